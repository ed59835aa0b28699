"""Group commit: what was handed over is written in order, as much as waits at a time.

A thread does it in the background. Who waits for it does it himself if nobody is at it: two changes of threads cost
as much as a quarter of a commit, and far more on a machine whose cores are all busy.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rewards.errors import LedgerError

# More rows than this wait nowhere: a disk that cannot follow must slow the producer down, not fill the memory.
_MAX_WAITING_ROWS = 200_000
_LOOK_SECONDS = 1.0
_RAISING = (signal.SIGINT, signal.SIGTERM)
_PAUSE_SECONDS = 0.02  # nothing to write for so long: time for what may wait


class Ticket:
    """What was handed over and is not yet on disk."""

    def __init__(self, help_along: Callable[[], None] | None = None) -> None:
        self._help_along = help_along
        self._done = threading.Event()
        self._failure: LedgerError | None = None
        self.result: Any = None

    def done(self) -> bool:
        """Whether it is durable, or failed."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Returns once it is durable: it survives a crash and a power loss from here on.

        Raises: LedgerError when it could not be written; TimeoutError after `timeout` seconds.
        """
        if timeout is None and self._help_along is not None and not self._done.is_set():
            self._help_along()
        if not self._done.wait(timeout):
            raise TimeoutError(f"not durable after {timeout} s")
        if self._failure is not None:
            raise LedgerError(str(self._failure)) from self._failure

    def settle(self, result: Any = None, failure: LedgerError | None = None) -> None:
        """Called by the writing thread, once."""
        self.result, self._failure = result, failure
        self._done.set()


@dataclass
class _Item:
    kind: str
    load: Any
    rows: int
    ticket: Ticket


class Committer:
    """Runs `sinks[kind](loads)` for what was put, in order; neighbours of one kind share a call and a transaction.

    A sink returns one result a load. settle: what may wait until nothing else does, and is done at the end. After the
    first error nothing is written any more: what a file holds after a failed write is not known.
    """

    def __init__(
        self, name: str, sinks: Mapping[str, Callable[[Sequence[Any]], Sequence[Any]]], settle: Callable[[], None]
    ) -> None:
        self._name = name
        self._sinks = sinks
        self._settle_sink = settle
        self._unsettled = False
        self._waiting: deque[_Item] = deque()
        self._waiting_rows = 0
        lock = threading.Lock()
        self._condition = threading.Condition(lock)
        self._room = threading.Condition(lock)  # apart: who writes himself must not wake the thread
        self._writing = threading.Lock()
        self._closing = False
        self._failure: LedgerError | None = None
        self._last: Ticket | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"ledger {name}", daemon=True)
        self._thread.start()

    def put(self, kind: str, load: Any, rows: int = 1, now: bool = False) -> Ticket:
        """Hands something over; returns at once unless the disk is far behind. now: writes it in the calling thread.

        Raises: LedgerError when an earlier write failed, after `close`, or in a process that was forked.
        """
        self.check_process()
        item = _Item(kind, load, rows, Ticket(None if now else self._help))
        with self._condition:
            self._check()
            while self._waiting and self._waiting_rows + rows > _MAX_WAITING_ROWS:
                self._room.wait()
                self._check()
            self._waiting.append(item)
            self._waiting_rows += rows
            self._last = item.ticket
            if not now:
                self._condition.notify_all()
        if now:
            with self._writing, _Uninterrupted():
                self._write()
        return item.ticket

    def _check(self) -> None:
        if self._failure is not None:
            raise LedgerError(str(self._failure)) from self._failure
        if self._closing:
            raise LedgerError(f"{self._name}: the writer is closed; open another one")

    def is_ours(self) -> bool:
        """Whether this is the process that made the committer."""
        return os.getpid() == self._pid

    def check_process(self) -> None:
        """Raises LedgerError in a process that was forked from the writer's: the writing thread is not in it."""
        if os.getpid() != self._pid:
            raise LedgerError(
                f"{self._name}: the writer belongs to process {self._pid}; a forked one joins as a writer of its own"
            )

    def flush(self) -> None:
        """Returns once everything that was put is durable.

        Raises: LedgerError when something could not be written.
        """
        self.check_process()
        with self._condition:
            last, failure = self._last, self._failure
        if failure is not None:
            raise LedgerError(str(failure)) from failure
        if last is not None:
            last.wait()

    def stop(self) -> bool:
        """Writes what waits and ends the thread; ask `failure` how it went. False in a forked process: not its own."""
        if os.getpid() != self._pid:
            return False
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        return True

    @property
    def failure(self) -> LedgerError | None:
        """The error that ended the writing, if one did."""
        return self._failure

    def settle(self) -> None:
        """Does what may wait, now; after `flush`.

        Raises: LedgerError when something could not be written.
        """
        with self._writing:
            self._settle()
        if self._failure is not None:
            raise LedgerError(str(self._failure)) from self._failure

    def _run(self) -> None:
        while True:
            with self._condition:
                idle = False
                while not (self._waiting or self._closing or idle):
                    # Who writes in his own thread wakes nobody: what is left to do then is found at the next look.
                    quiet = not self._condition.wait(_PAUSE_SECONDS if self._unsettled else _LOOK_SECONDS)
                    idle = quiet and self._unsettled
                last = self._closing and not self._waiting
            with self._writing:
                self._write()
                if idle or last:
                    self._settle()
            if last:
                return

    def _settle(self) -> None:
        if self._unsettled and self._failure is None:
            self._unsettled = False
            try:
                self._settle_sink()
            except BaseException as error:
                self._fail(error, "heads of the commits written last")

    def _help(self) -> None:
        """Writes what waits in the calling thread, unless the background thread is at it."""
        if not self.is_ours() or not self._writing.acquire(blocking=False):
            return
        try:
            with _Uninterrupted():
                self._write()
        finally:
            self._writing.release()

    def _write(self) -> None:
        with self._condition:
            items = list(self._waiting)
            self._waiting.clear()
            self._waiting_rows = 0
            self._room.notify_all()
        for kind, group in groupby(items, key=lambda item: item.kind):
            self._commit(kind, list(group))

    def _commit(self, kind: str, items: list[_Item]) -> None:
        results: Sequence[Any] = [None] * len(items)
        if self._failure is None:
            try:
                results = self._sinks[kind]([item.load for item in items])
                self._unsettled = True
            except BaseException as error:
                rows = sum(item.rows for item in items) if kind == "rows" else 0
                self._fail(error, f"{rows} session rows" if rows else f"{len(items)} events")
        for item, result in zip(items, results, strict=True):
            item.ticket.settle(result, self._failure)

    def _fail(self, error: BaseException, what: str) -> None:
        where = "" if isinstance(error, LedgerError) else f"{self._name}: {type(error).__name__}: "
        failure = LedgerError(
            f"{where}{error}; the {what} handed over last were not written, what was acknowledged "
            "before is safe; nothing more is written here: resume from the last checkpoint"
        )
        failure.__cause__ = error
        with self._condition:
            self._failure = failure
            self._room.notify_all()


class _Uninterrupted:
    """Signals whose handlers may raise wait until the commit is whole: half of one would end the writer."""

    def __enter__(self) -> None:
        self._came: list[int] = []
        self._before: list[tuple[int, Any]] = []
        if threading.current_thread() is threading.main_thread():
            for number in _RAISING:
                handler = signal.getsignal(number)
                if callable(handler):
                    signal.signal(number, self._note)
                    self._before.append((number, handler))

    def _note(self, number: int, frame: object) -> None:
        self._came.append(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)
        for number in self._came:
            signal.raise_signal(number)
