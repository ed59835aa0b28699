"""Calls of reward functions put together to batches: a batch is done when every function of the set has answered."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.errors import DataError
from rewards.recording.functions import Part
from rewards.recording.texts import texts_of

# Batches that not every function was called with. More of them are no accident of threads.
MOST_OPEN = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What one call gave. Shapes: values and status have one entry a row; no value where the status is not ok."""

    values: list[float | None]
    status: list[str]
    latency_ms: float


@dataclass
class Batch:
    """The calls with one list of completions. place: what the recorder knew of it at the first call."""

    arguments: dict[str, Any]
    prompts: list[str]
    responses: list[str]
    place: Any
    begun: set[int] = field(default_factory=set)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    closed: bool = False

    def __len__(self) -> int:
        return len(self.responses)


@dataclass
class Call:
    """One function at work on one batch."""

    index: int
    batch: Batch
    start: float


class Batches:
    """Finds for each call the batch it belongs to, whatever threads and event loops the calls come from.

    Calls belong together when they got the same list of completions, or lists that say the same.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        place: Callable[[dict[str, Any], list[str]], Any],
        done: Callable[[Batch, str | None], None],
    ) -> None:
        """place: what to remember of a new batch; done: takes a batch and, where it is incomplete, what went wrong."""
        self._parts = parts
        self._place, self._done = place, done
        self._open: list[Batch] = []
        self._lock = threading.RLock()

    def begin(self, index: int, arguments: dict[str, Any]) -> Call:
        """Raises: DataError for completions or prompts that are no text, or not as many as the completions."""
        with self._lock:
            batch = self._find(index, arguments)
            if batch is None:
                prompts, responses = texts_of(arguments)
                batch = self._alike(index, prompts, responses)
                if batch is None:
                    batch = Batch(arguments, prompts, responses, self._place(arguments, prompts))
                    self._open.append(batch)
                    self._check_open()
            batch.begun.add(index)
        return Call(index, batch, time.perf_counter())

    def _find(self, index: int, arguments: dict[str, Any]) -> Batch | None:
        mine = arguments.get("completions")
        # The list stays referenced while its batch is open, so no other list can be taken for it.
        same = (b for b in self._open if mine is not None and b.arguments["completions"] is mine)
        return next((b for b in same if index not in b.begun), None)

    def _alike(self, index: int, prompts: list[str], responses: list[str]) -> Batch | None:
        alike = (b for b in self._open if index not in b.begun and b.responses == responses and b.prompts == prompts)
        return next(alike, None)

    def _check_open(self) -> None:
        if len(self._open) > MOST_OPEN:
            oldest = next((b for b in self._open if b.begun == set(b.verdicts)), None)
            if oldest is not None:
                self._leave(oldest)

    def returned(self, call: Call, values: Any) -> Any:
        """Keeps the values; gives them back as a list where they were an iterator.

        Raises: DataError when there is not one number or None a row. The batch is then recorded as far as it came.
        """
        latency_ms = 1000 * (time.perf_counter() - call.start)
        name, rows = self._parts[call.index].name, len(call.batch)
        try:
            given = _listed(values, name)
            verdict = _verdict(given, rows, latency_ms, name)
        except Exception as error:
            self.failed(call, error)
            raise
        with self._lock:
            if call.batch.closed:
                _log.warning("reward function `%s` answered after its batch was recorded without it", name)
                return given
            call.batch.verdicts[call.index] = verdict
            if len(call.batch.verdicts) == len(self._parts):
                self._close(call.batch, None)
        return given

    def failed(self, call: Call, error: BaseException) -> None:
        """Records the batch as far as it came. Never raises: the trainer gets the function's own error."""
        name, rows = self._parts[call.index].name, len(call.batch)
        status = "timeout" if isinstance(error, TimeoutError) else "error"
        latency_ms = 1000 * (time.perf_counter() - call.start)
        said = str(error) if isinstance(error, DataError) else f"reward function `{name}` {_raised(error)}"
        with self._lock:
            if call.batch.closed:
                return
            call.batch.verdicts[call.index] = Verdict([None] * rows, [status] * rows, latency_ms)
            try:
                self._close(call.batch, said)
            except Exception as unrecorded:
                error.add_note(f"its {rows} sessions are not in the ledger: {unrecorded}")

    def leave(self) -> None:
        """Records the batches that not every function has answered for, at the end."""
        with self._lock:
            for batch in list(self._open):
                self._leave(batch)

    def _leave(self, batch: Batch) -> None:
        missing = [part.name for i, part in enumerate(self._parts) if i not in batch.verdicts]
        _log.warning(
            "%d sessions are recorded without a reward: reward function `%s` did not answer for them; does the trainer "
            "call every function of the set?",
            len(batch),
            "`, `".join(missing),
        )
        self._close(batch, "")

    def _close(self, batch: Batch, problem: str | None) -> None:
        batch.closed = True
        self._open = [other for other in self._open if other is not batch]
        self._done(batch, problem)


def _listed(values: Any, name: str) -> Any:
    if hasattr(values, "__len__"):
        return values
    if not isinstance(values, Iterable):
        raise DataError(
            f"reward function `{name}` returned {type(values).__name__}, not one number or None a completion"
        )
    return list(values)


def _verdict(given: Iterable[Any], rows: int, latency_ms: float, name: str) -> Verdict:
    values: list[float | None] = []
    status = []
    for row, value in enumerate(given):
        number = _number(value, name, row, rows)
        status.append("na" if number is None else "error" if number != number else "ok")
        values.append(number if status[-1] == "ok" else None)
    if len(values) != rows:
        raise DataError(f"reward function `{name}` returned {len(values)} values for {rows} completions")
    if "error" in status:
        first = status.index("error")
        _log.warning(
            "reward function `%s` returned NaN for row %d of %d (%d in all): recorded with status `error`; return None "
            "for what it cannot score",
            name,
            first,
            rows,
            status.count("error"),
        )
    return Verdict(values, status, latency_ms)


def _number(value: Any, name: str, row: int, rows: int) -> float | None:
    if value is None or type(value) is float:
        return value
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"reward function `{name}` returned {value!r} for row {row} of {rows}, neither a number nor None"
        ) from None


def _raised(error: BaseException) -> str:
    return " ".join(f"raised {type(error).__name__}: {error}".split())


def total(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The weighted sum of the values there are; None where there is none."""
    terms = [w * v for w, v in zip(weights, values, strict=True) if v is not None]
    if not terms:
        return None
    # With infinities the sum is what the trainer gets too; fsum refuses some of them.
    return math.fsum(terms) if all(map(math.isfinite, terms)) else sum(terms)
