"""Rows in bins of at most so many tokens, so that every micro-batch of bins costs about the same.

A bin is no sequence: its rows stay apart, each with positions and attention of its own, and each a session.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf.data.mixture import EpochOrder, generator_of


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> NDArray[np.int64]:
    """The bin of each length: longest first, each into the fullest bin that has room, else into a new one.

    Bins of equal room are filled in the order of their making. lengths must not increase.

    Raises: ValueError for a length that is not in 1..capacity, or that follows a smaller one.
    Source: Johnson 1973, "Near-optimal bin packing algorithms".
    """
    bins = np.empty(len(lengths), dtype=np.int64)
    waiting: dict[int, deque[int]] = {}  # room -> bins that have exactly that much
    rooms: list[int] = []  # the keys of `waiting`, ascending
    count, before = 0, capacity
    for i, length in enumerate(lengths):
        if not 1 <= length <= before:
            raise ValueError(f"length {length} after {before}: lengths go down, from {capacity} to 1")
        before = length
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            chosen, room = count, capacity
            count += 1
        else:
            room = rooms[at]
            chosen = waiting[room].popleft()
            if not waiting[room]:
                del waiting[room], rooms[at]
        bins[i] = chosen
        left = room - length
        if left:
            if left not in waiting:
                waiting[left] = deque()
                bisect.insort(rooms, left)
            waiting[left].append(chosen)
    return bins


class PackedOrder:
    """Bins of a fixed data set: a new order of bins per epoch, in which rows of one length change places.

    The bins of an epoch hold every row once, and there are equally many in every epoch. Batches run on across the end
    of an epoch, as in EpochOrder. What a step takes is a function of the step and the seed alone.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, batch: int, seed: int) -> None:
        """lengths: tokens of every row; capacity: tokens of a bin; batch: bins of an optimizer step over all ranks.

        Raises: ValueError for a row that is longer than a bin.
        """
        self.capacity, self.seed = capacity, seed
        self.lengths = np.asarray(lengths, dtype=np.int64)
        bins = best_fit_decreasing(np.sort(self.lengths)[::-1].tolist(), capacity)
        # Which bin a place in the descending order goes to depends on the lengths alone: found once for all epochs.
        self._places = np.argsort(bins, kind="stable")
        self._ends = np.cumsum(np.bincount(bins))
        self.bins = EpochOrder(len(self._ends), batch, seed)
        self._rows: tuple[int, NDArray[np.int64]] | None = None

    @property
    def units(self) -> int:
        """Bins of an epoch."""
        return self.bins.n

    @property
    def fill(self) -> float:
        """Share of the bins' tokens that rows take."""
        return float(self.lengths.sum()) / (self.units * self.capacity)

    def groups(self, step: int) -> list[list[int]]:
        """The rows of each bin of a step, counted from 1; the longest row first."""
        return [self._bin(epoch, number) for epoch, number in self.bins.taken(step)]

    def _bin(self, epoch: int, number: int) -> list[int]:
        if self._rows is None or self._rows[0] != epoch:
            shuffled = generator_of(self.seed, epoch, 13).permutation(len(self.lengths))
            descending = shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]
            self._rows = (epoch, descending[self._places])
        start = self._ends[number - 1] if number else 0
        found: list[int] = self._rows[1][start : self._ends[number]].tolist()
        return found
