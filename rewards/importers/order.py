"""Session numbers and steps: given or counted, checked to be dense and never going backwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rewards.errors import DataError
from rewards.importers.prepare import Prepared

Ints = NDArray[np.int64]


@dataclass
class Numbers:
    """Numbers of the rows of one chunk. session: 0 for rows that are not numbered (evaluation)."""

    session: Ints
    step: Ints
    train: NDArray[np.bool_]


@dataclass
class Numbering:
    """Runs over a file's rows in their order and gives each its session and step.

    wanted: sessions whose step is to be remembered. ordered: whether all rows so far may be written as they come:
    sessions 1, 2, 3, ... and steps that never go backwards. A file without session numbers is numbered in its order.
    """

    wanted: frozenset[int] = frozenset()
    rows: int = 0
    sessions: int = 0
    last_step: int = 0
    ordered: bool = True
    filled: set[str] = field(default_factory=set)
    steps: dict[int, int] = field(default_factory=dict)
    _train_step: int = 0
    _evals: int = 0

    def number(self, rows: Prepared) -> Numbers:
        """The numbers of the next rows.

        Raises: DataError for a session or a step that cannot be, at its place.
        """
        train = np.asarray(pc.equal(rows.columns["split"], "train").to_numpy(zero_copy_only=False))
        session = self._sessions(rows, train)
        step = self._steps(rows, train, session)
        self._follow(session, step, train, rows.at)
        self.rows += rows.count
        self._evals += int((~train).sum())
        return Numbers(session, step, train)

    def prompt_ids(self, rows: Prepared, numbers: Numbers) -> pa.Array:
        """Stand-ins for prompts without an id: the data set's row, else the session's number."""
        self.filled.add("prompt_id")
        evals = self._evals - int((~numbers.train).sum())
        names = pa.array(numbers.session).cast(pa.string())
        if not numbers.train.all():
            counted = pa.array(evals + np.cumsum(~numbers.train)).cast(pa.string())
            names = pc.if_else(pa.array(numbers.train), names, pc.binary_join_element_wise("eval-", counted, ""))
        given = rows.columns.get("row_id")
        return names if given is None else pc.coalesce(given, names)

    def _sessions(self, rows: Prepared, train: NDArray[np.bool_]) -> Ints:
        given = rows.columns.get("session")
        if given is None:
            self.filled.add("session")
            counted = np.asarray(np.where(train, self.sessions + np.cumsum(train), 0), dtype=np.int64)
            return counted
        missing = np.asarray(given.is_null().to_numpy(zero_copy_only=False))
        wrong = np.flatnonzero(missing == train)
        if len(wrong):
            row = int(wrong[0])
            if train[row]:
                raise DataError(f"{rows.at(row)}: column `session` is empty; number every training session or none")
            number = given[row].as_py()
            raise DataError(
                f"{rows.at(row)}: session {number} is an evaluation row: leave it empty, only training counts"
            )
        found: Ints = pc.fill_null(given, 0).to_numpy().astype(np.int64)
        low = np.flatnonzero(train & (found < 1))
        if len(low):
            raise DataError(f"{rows.at(int(low[0]))}: session {found[low[0]]}: sessions are numbered from 1")
        return found

    def _steps(self, rows: Prepared, train: NDArray[np.bool_], session: Ints) -> Ints:
        given = rows.columns.get("step")
        if given is None:
            self.filled.add("step")
            latest = np.maximum.accumulate(np.concatenate(([self._train_step], np.where(train, session, 0))))
            return np.where(train, session, latest[1:])
        found: Ints = given.to_numpy().astype(np.int64)
        low = np.flatnonzero(found < 0)
        if len(low):
            raise DataError(f"{rows.at(int(low[0]))}: step {found[low[0]]}: steps count from 0")
        return found

    def _follow(self, session: Ints, step: Ints, train: NDArray[np.bool_], at: Callable[[int], str]) -> None:
        mine, steps = session[train], step[train]
        if self.ordered and len(mine):
            in_turn = bool((mine == self.sessions + 1 + np.arange(len(mine))).all())
            back = np.flatnonzero(np.diff(steps, prepend=self._train_step) < 0)
            if in_turn and len(back):
                i = int(back[0])
                before = int(steps[i - 1]) if i else self._train_step
                raise backwards(at(int(np.flatnonzero(train)[i])), int(mine[i]), int(steps[i]), before)
            self.ordered = in_turn
        if self.ordered and len(step):
            self.ordered = bool((np.diff(step, prepend=self.last_step) >= 0).all())
        if len(step):
            self.last_step = int(step[-1]) if self.ordered else max(self.last_step, int(step.max()))
        if len(mine):
            self._train_step = int(steps[-1]) if "step" not in self.filled else int(mine[-1])
        for place in np.flatnonzero(np.isin(mine, list(self.wanted))) if self.wanted else ():
            self.steps[int(mine[place])] = int(steps[place])
        self.sessions += len(mine)


def backwards(place: str, session: int, step: int, before: int) -> DataError:
    """The error for a step that goes backwards in the order of the sessions."""
    return DataError(
        f"{place}: step {step:,} of session {session:,} comes after step {before:,}: steps must not go backwards "
        "in the order of the sessions"
    )


def check_dense(sessions: Ints, steps: Ints, at: Callable[[int], str]) -> None:
    """Checks the numbers of all train rows, in whatever order they came.

    Raises: DataError naming the row and the number that is missing, repeated, or whose step goes backwards.
    """
    order = np.argsort(sessions, kind="stable")
    sorted_ = sessions[order]
    wrong = np.flatnonzero(sorted_ != np.arange(1, len(sorted_) + 1))
    if len(wrong):
        i = int(wrong[0])
        place, number = at(int(order[i])), int(sorted_[i])
        if i and sorted_[i - 1] == number:
            first = at(int(order[i - 1]))
            raise DataError(f"{place}: session {number:,} a second time, first at {first}; numbers must not repeat")
        missing = int(sorted_[i - 1]) + 1 if i else 1
        raise DataError(f"{place}: session {number:,}, but session {missing:,} is missing; numbers must have no gaps")
    back = np.flatnonzero(np.diff(steps[order]) < 0)
    if len(back):
        i = int(back[0]) + 1
        raise backwards(at(int(order[i])), int(sorted_[i]), int(steps[order[i]]), int(steps[order[i - 1]]))


class Places:
    """The places of all rows of an import, by their number in the order of reading."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ats: list[Callable[[int], str]] = []
        self._rows = 0

    def add(self, count: int, at: Callable[[int], str]) -> None:
        """The next rows."""
        self._starts.append(self._rows)
        self._ats.append(at)
        self._rows += count

    def __call__(self, row: int) -> str:
        """The place of a row."""
        i = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._ats[i](row - self._starts[i])


def joined(parts: Sequence[Any]) -> Ints:
    """Arrays end to end; none is an empty one."""
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
