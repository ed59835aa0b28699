"""The writing side of a ledger: one process's way in for sessions, events and checkpoints."""

import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from rewards import events
from rewards.catalog import DATABASE, place_at, read_chains, read_lineage
from rewards.chain import EVENTS_CHAIN, chain_name, ledger_head
from rewards.commit import Committer, Ticket
from rewards.errors import LedgerError
from rewards.lineage import Attempt, Place, places_payload
from rewards.rows import Batch, make_batch, table_batches
from rewards.schema import EVENT_KINDS
from rewards.sealer import Sealer
from rewards.sqlite import close_settled, snapshot, transaction, translated
from rewards.tail import TailWriter


class Writer:
    """One writer of one attempt. Made by `Ledger.writer`; to be used from any thread of the process that made it."""

    def __init__(
        self, root: Path, ledger: sqlite3.Connection, attempt: Attempt, tail: TailWriter, seal_rows: int | None
    ) -> None:
        self.run_id = attempt.run_id
        self.attempt = attempt.number
        self.writer = tail.identity.writer
        self.arm = attempt.arm
        self.resume_step = attempt.resume_step
        self._root = root
        self._defaults = {"arm": attempt.arm, "pipeline_id": attempt.pipeline_id}
        self._last_step = attempt.resume_step or 0
        self._lock = threading.Lock()
        self._sealer = Sealer(root, (attempt.id, self.writer), seal_rows)
        self._committer = Committer(
            str(tail.path),
            {"rows": _row_sink(tail, self._sealer), "event": _event_sink(root / DATABASE, ledger)},
            _head_sink(tail),
        )
        # Also runs at exit and when the writer is forgotten: what was handed over is written.
        self._parts = (self._committer, tail, ledger)
        self._finish = weakref.finalize(self, _forgotten, *self._parts)

    def append(self, step: int, rows: Any, *, durable: bool = False) -> Ticket:
        """Hands over the sessions of a step; returns at once. `ticket.wait()` returns when they are durable.

        durable: writes them in the calling thread and returns when they are.
        rows: with the columns of `rewards.schema` and `prompt`, `response`, `rejected`: dicts; an Arrow table, which
        is fastest; or a dict of columns, each a list, a numpy array or one value for all rows.
        Raises: LedgerError naming the column and the row that do not fit (nothing of the batch is kept then), or when
        an earlier write failed.
        """
        self._committer.check_process()
        step = _check_step(step)
        batch = make_batch(step, rows, self._defaults)
        self._check_new(step, batch)
        ticket = self._put_rows(batch, durable)
        if durable:
            ticket.wait()
        return ticket

    def append_table(self, table: pa.Table, rows_a_commit: int = 65_536) -> None:
        """Writes many sessions at once, which bring their `step`; durable on return. For imports: one writer a run.

        Steps must not go backwards, within the table and against what was written before. A commit holds many steps:
        such a run can be verified and forked at the end of each commit.
        Raises: LedgerError naming the column and the row that do not fit; nothing of the table is written then.
        """
        self._committer.check_process()
        if self.writer != 0:
            raise LedgerError("append_table is for the only writer of a run: writer 0")
        if table.num_rows and "step" in table.schema.names:
            first = table["step"][0].as_py()
            if isinstance(first, int) and 0 <= first < self._last_step:
                raise LedgerError(f"append_table: step {first} comes after step {self._last_step} was written")
        batches = table_batches(table, self._defaults, rows_a_commit)
        self._check_new(batches[0].first_step, batches[0])
        for batch in batches:
            ticket = self._put_rows(batch)
        ticket.wait()

    def _check_new(self, step: int, batch: Batch) -> None:
        if batch.sessions and self.resume_step is not None and step <= self.resume_step:
            raise LedgerError(
                f"append(step={step}): attempt {self.attempt} of run `{self.run_id}` continues after step "
                f"{self.resume_step}; train sessions up to it are on record and would count twice"
            )

    def _put_rows(self, batch: Batch, now: bool = False) -> Ticket:
        with self._lock:
            ticket = self._committer.put("rows", batch, batch.count, now)
            self._last_step = max(self._last_step, batch.step)
        return ticket

    def event(self, kind: str, payload: Mapping[str, Any], step: int | None = None) -> Ticket:
        """Hands over an event; returns at once. Without a step it counts as of the last step this writer has seen.

        Raises: LedgerError for an unknown kind, a missing key, or when an earlier write failed.
        """
        self._committer.check_process()
        if step is not None:
            step = _check_step(step)
        if kind not in EVENT_KINDS:
            raise LedgerError(f"unknown event kind `{kind}`; the kinds are {', '.join(EVENT_KINDS)}")
        if kind == "checkpoint" and isinstance(payload, Mapping) and "heads" in payload:
            raise LedgerError("event `checkpoint`: `heads` is what Writer.checkpoint records; call it instead")
        return self._put_event(kind, payload, step)

    def _put_event(self, kind: str, payload: Mapping[str, Any], step: int | None) -> Ticket:
        text = events.encode(kind, payload)
        with self._lock:
            at_step = self._last_step if step is None else step
            draft = events.Draft(self.run_id, self.attempt, self.writer, step, at_step, kind, text)
            ticket = self._committer.put("event", draft)
            self._last_step = max(self._last_step, at_step)
        return ticket

    def flush(self) -> None:
        """Returns when everything handed over is durable.

        Raises: LedgerError when something could not be written.
        """
        self._committer.flush()

    def checkpoint(self, step: int, path: str | None = None) -> dict[str, Any]:
        """Flushes, records every writer's place as an event and returns it as a position: pass it back as `resume=`.

        The other writers of the attempt must have flushed before. path: where the state of the training is, for the
        record. Returns plain JSON: run_id, attempt, step, positions {writer: {seq, head}}, event_head (after the
        checkpoint's event), head (of the whole ledger).
        """
        step = _check_step(step)
        self.flush()
        self._committer.settle()
        mine, heads = self._places()
        positions = places_payload(mine)
        payload = {"step": step, "path": path, "positions": positions, "heads": heads}
        ticket = self._put_event("checkpoint", payload, step)
        ticket.wait()
        event_head = str(ticket.result.hash)
        return {
            "run_id": self.run_id,
            "attempt": self.attempt,
            "step": step,
            "positions": positions,
            "event_head": event_head,
            "head": ledger_head(heads | {EVENTS_CHAIN: event_head}),
        }

    def _places(self) -> tuple[dict[int, Place], dict[str, str]]:
        """The places of this attempt's writers, and the heads of all chains that have rows."""
        mine: dict[int, Place] = {}
        heads: dict[str, str] = {}
        with snapshot(self._root / DATABASE) as ledger:
            for chain in read_chains(ledger, self._root, read_lineage(ledger)):
                place = place_at(chain)
                identity = chain.identity
                if place.seq >= identity.first_seq:
                    heads[chain_name(*identity.key)] = place.head
                if (identity.run_id, identity.attempt) == (self.run_id, self.attempt):
                    mine[identity.writer] = place
        return mine, heads

    @property
    def closed(self) -> bool:
        """Whether the writer was closed."""
        return not self._finish.alive

    def close(self) -> None:
        """Writes what waits, seals this writer's rows and closes the files. Closing twice is harmless.

        Rows that cannot be sealed are safe where they are: that is said on stderr, and the next seal takes them.
        Raises: LedgerError when something handed over could not be written.
        """
        was_open = not self.closed
        _shut(*self._parts)
        self._finish.detach()
        if self._committer.failure is not None:
            raise LedgerError(str(self._committer.failure)) from self._committer.failure
        if was_open and self._committer.is_ours():
            self._sealer.finish()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except LedgerError:
            # The block already ends with an error of this writer: the first one says it.
            if not isinstance(error, LedgerError):
                raise


def _check_step(step: Any) -> int:
    try:
        number = step.__index__() if not isinstance(step, bool) else None
    except AttributeError:
        number = None
    if number is None or not 0 <= number < 2**63:
        raise LedgerError(f"step is {step!r}, not a whole number from 0")
    return int(number)


def _row_sink(tail: TailWriter, sealer: Sealer) -> Callable[[Sequence[Batch]], Sequence[Any]]:
    def write(batches: Sequence[Batch]) -> Sequence[Any]:
        with translated(tail.path, "write session rows"):
            tail.commit(batches)
        sealer.committed(sum(batch.count for batch in batches))
        return [None] * len(batches)

    return write


def _head_sink(tail: TailWriter) -> Callable[[], None]:
    def write() -> None:
        with translated(tail.path, "write heads"):
            tail.settle()

    return write


def _event_sink(path: Path, ledger: sqlite3.Connection) -> Callable[[Sequence[events.Draft]], Sequence[Any]]:
    def write(drafts: Sequence[events.Draft]) -> Sequence[Any]:
        with translated(path, "write events"), transaction(ledger, path):
            return events.insert(ledger, drafts)

    return write


def _forgotten(committer: Committer, tail: TailWriter, ledger: sqlite3.Connection) -> None:
    _shut(committer, tail, ledger)
    if committer.failure is not None:
        print(f"error: {committer.failure}", file=sys.stderr)  # nobody is left to raise it to


def _shut(committer: Committer, tail: TailWriter, ledger: sqlite3.Connection) -> None:
    if committer.stop():
        tail.close()
        close_settled(ledger)
