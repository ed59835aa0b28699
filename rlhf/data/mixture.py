"""Which rows a step takes: a function of the step and the seed alone, so that a resumed run takes the same ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rewards.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rlhf.config import MixturePhase


def generator_of(*key: int) -> np.random.Generator:
    """A generator of its own for what these numbers name."""
    return np.random.default_rng([part % 2**64 for part in key])


class EpochOrder:
    """Rows of a fixed data set in the order of a new permutation per epoch.

    Batches run on across the end of an epoch, so every step has `batch` rows and after e epochs every row was taken e
    times; the batch on the border may hold a row twice, once from either side.
    """

    def __init__(self, n: int, batch: int, seed: int) -> None:
        """n: rows; batch: rows of an optimizer step over all ranks and accumulated micro-batches."""
        if n < 1 or batch < 1:
            raise ValueError(f"{n} rows in batches of {batch}: both must be at least 1")
        self.n, self.batch, self.seed = n, batch, seed
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def units(self) -> int:
        """What an epoch is made of: rows."""
        return self.n

    def steps(self, epochs: float) -> int:
        """Optimizer steps after which every row was taken at least `epochs` times (the last step is a whole one)."""
        return max(1, math.ceil(round(self.n * epochs, 6) / self.batch))

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` (counted from 1)."""
        return step * self.batch / self.n

    def indices(self, step: int) -> list[int]:
        """Row indices of a step, counted from 1."""
        return [row for _, row in self.taken(step)]

    def groups(self, step: int) -> list[list[int]]:
        """The rows of each unit of a step, counted from 1: here every row is one."""
        return [[row] for row in self.indices(step)]

    def taken(self, step: int) -> list[tuple[int, int]]:
        """(epoch, row) of each place of a step; steps count from 1, epochs from 0."""
        if step < 1:
            raise ValueError(f"step {step}: steps count from 1")
        start = (step - 1) * self.batch
        places = (divmod(at, self.n) for at in range(start, start + self.batch))
        return [(epoch, int(self._permutation(epoch)[place])) for epoch, place in places]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, generator_of(self.seed, epoch, 11).permutation(self.n))
        return self._order[1]


@dataclass(frozen=True)
class Entry:
    """A category whose weight begins or changes at a step. Payload of the event mixture_changed."""

    category: str
    weight: float
    from_step: int


class Mixture:
    """Prompts of an online-RL step: categories by weight, rows of a category at random, none twice where possible.

    Without phases the rows are taken in epochs, like EpochOrder. A category with several phases has the weight of the
    newest that has begun; one without a phase takes no part (`left_out`).
    """

    def __init__(self, categories: Sequence[str | None], phases: Sequence[MixturePhase] | None, seed: int) -> None:
        """categories: of every row.

        Raises: DataError for no rows, or a phase whose category no row has; ConfigError where a step would have none.
        """
        if not categories:
            raise DataError("no prompts to choose from")
        self.seed = seed
        self._count = len(categories)
        self._phases = [Entry(p.category, p.weight, p.from_step) for p in phases] if phases is not None else None
        self._rows: dict[str, NDArray[np.int64]] = {}
        self._orders: dict[int, EpochOrder] = {}
        if self._phases is None:
            return
        for phase in self._phases:
            rows = np.flatnonzero([category == phase.category for category in categories])
            if len(rows) == 0:
                known = ", ".join(sorted({str(c) for c in categories if c is not None})) or "none"
                raise DataError(
                    f"data.mixture names category `{phase.category}`, which no row has (there are: {known})"
                )
            self._rows[phase.category] = rows
        for step in sorted({1, *(phase.from_step for phase in self._phases)}):
            if not self.weights(step):
                raise ConfigError(f"data.mixture: no category has a weight above 0 at step {step}")
        self._left_out = len(categories) - sum(len(rows) for rows in self._rows.values())

    @property
    def left_out(self) -> int:
        """Rows whose category the mixture does not name."""
        return 0 if self._phases is None else self._left_out

    def weights(self, step: int) -> dict[str, float]:
        """Category -> share of the prompts of a step, only those above 0; empty without phases."""
        newest: dict[str, Entry] = {}
        for phase in self._phases or []:
            begun = newest.get(phase.category)
            if phase.from_step <= step and (begun is None or begun.from_step <= phase.from_step):
                newest[phase.category] = phase
        total = sum(phase.weight for phase in newest.values())
        return {name: phase.weight / total for name, phase in newest.items() if phase.weight > 0}

    def entries_at(self, step: int) -> list[Entry]:
        """Phases that begin at this step; those of step 1 are the start, not a change."""
        return [phase for phase in self._phases or [] if phase.from_step == step and step > 1]

    def choose(self, step: int, n: int) -> list[int]:
        """Rows of a step (counted from 1): n indices in random order, a function of (seed, step, n) alone.

        The number of prompts of a category is its share of n rounded down or up at random, such that it is right on
        average. Without phases n must be the same in every step: for a smaller last step take the first of n.
        """
        if step < 1 or n < 1:
            raise ValueError(f"step {step}, {n} prompts: both count from 1")
        if self._phases is None:
            order = self._orders.setdefault(n, EpochOrder(self._count, n, self.seed))
            return order.indices(step)
        generator = generator_of(self.seed, step, 12)
        weights = self.weights(step)
        counts = allocate(n, list(weights.values()), generator)
        chosen: list[int] = []
        for name, count in zip(weights, counts, strict=True):
            rows = self._rows[name]
            while count > 0:
                taken = generator.permutation(rows)[:count]
                chosen += taken.tolist()
                count -= len(taken)
        return [chosen[i] for i in generator.permutation(len(chosen))]


def allocate(n: int, shares: Sequence[float], generator: np.random.Generator) -> list[int]:
    """Whole numbers that sum to n, each its share of n rounded down or up, on average exactly the share.

    What is left after rounding down goes to the categories by systematic sampling with their remainders as
    probabilities, in random order. shares must sum to 1.
    """
    exact = np.asarray(shares, dtype=np.float64) * n
    # A share such as 0.1 + 0.2 must not lose a whole prompt to the last bit of its sum.
    down = np.floor(exact + 1e-9).astype(int)
    left = n - int(down.sum())
    if left == 0:
        return [int(count) for count in down]
    order = generator.permutation(len(down))
    edges = np.cumsum(np.clip(exact - down, 0.0, None)[order])
    points = (generator.random() + np.arange(left)) * edges[-1] / left
    for position in np.searchsorted(edges, points, side="right"):
        down[order[min(position, len(order) - 1)]] += 1
    return [int(count) for count in down]
