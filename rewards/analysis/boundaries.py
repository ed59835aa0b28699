"""Intervals for the places at which a run changes: profile likelihood of a step's place and of a ramp's two ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from rewards.analysis.intervals import CONFIDENCE, effective_sample_size
from rewards.analysis.segmentation import (
    LEAST_BLOCKS,
    Blocks,
    Shape,
    mixed_costs,
    phase_costs,
    ramp_costs,
    spread_noise,
)

Floats = NDArray[np.float64]

# Of the likelihood ratio of a change point, whose law is (1 - exp(-c / 2))^2: 7.35 at 95 %.
STEP_CRITICAL = -2 * float(np.log1p(-np.sqrt(CONFIDENCE)))
# Of one regular parameter, chi-squared with one degree of freedom: 3.84 at 95 %.
KNOT_CRITICAL = float(ndtri(0.5 + CONFIDENCE / 2)) ** 2
# Places a side of the grid that ramps are tried on.
GRID = 33


@dataclass(frozen=True)
class Span:
    """Interval of a boundary.

    low, high: block edges between which the first session of the new phase lies, None where the record cannot say;
    why: the reason for that. widening: factor on the critical value for the dependence between blocks.
    """

    low: int | None
    high: int | None
    widening: float = 1.0
    why: str | None = None


def boundary_spans(blocks: Blocks, shape: Shape) -> list[Span]:
    """95 % intervals of the boundaries of a shape, in its order.

    A step's holds the places k whose cost, between the neighbouring boundaries, exceeds the least by under 7.35 times
    the widening; a ramp's end those that some other end brings within 3.84 times it. One block is added on either side,
    since a change falls inside a block and k is an edge: so the block of the estimate is always in it. A step's
    interval that reaches the shortest phase which the partition can make runs on to the neighbouring boundary.
    Units: edges of blocks, 0 .. K.
    Source: law of the likelihood ratio of a change point, Yao 1987; inverted, Hansen 2000, equations 12 and 13;
    dependence, Bai 1997.
    Departures: Bai's ratio of the long-run to the plain variance is averaged over level and log variance, each by its
    part in what a step gains; of a ramp the larger counts; it is never below 1. The interval takes it that there are so
    many boundaries and that the others are where they were found: that a phase may be spurious is not in it.
    """
    if not shape.cuts:
        return []
    ratios = _Dependence.of(blocks, shape)
    if shape.kind == "ramp":
        return _knots(blocks, shape.cuts, ratios)
    cost, mixed = phase_costs(blocks), mixed_costs(blocks)
    edges = [0, *shape.cuts, len(blocks)]
    spans = []
    for before, cut, after in zip(edges, edges[1:], edges[2:], strict=False):
        widening = ratios.at(_step_gains(blocks, cost, (before, cut, after)))
        places, profile = step_profile(cost, mixed, before, after)
        spans.append(_step_span(places[profile <= profile.min() + STEP_CRITICAL * widening], before, after, widening))
    return spans


def step_profile(cost: Floats, mixed: Floats, before: int, after: int) -> tuple[NDArray[np.int64], Floats]:
    """Places at which a step between two boundaries may be, and what each costs.

    A phase may begin with a mixed block here as in the partition.
    Shapes: cost (K + 1, K + 1), entry [end, start]; mixed (K,); both results (after - before - 15,).
    """
    places = np.arange(before + LEAST_BLOCKS, after - LEAST_BLOCKS + 1)
    left = cost[places, before]
    if before > 0:
        left = np.minimum(left, mixed[before] + cost[places, before + 1])
    return places, left + np.minimum(cost[after, places], mixed[places] + cost[after, places + 1])


@dataclass(frozen=True)
class _Dependence:
    """Long-run variance over the one that the costs stand on, of the level and of the log variance; at least 1."""

    level: float
    spread: float

    @classmethod
    def of(cls, blocks: Blocks, shape: Shape) -> _Dependence:
        """From what a shape leaves over, without the blocks that a boundary may run through."""
        level, spread = _residuals(blocks, shape)
        noise = 1.0 if blocks.spread is None else spread_noise(blocks.spread) ** 2
        return cls(len(level) / effective_sample_size(level), max(_long_run(spread) / noise, 1.0))

    def at(self, gains: tuple[float, float]) -> float:
        """Their mean, weighted by the gain of the level and that of the log variance."""
        level, spread = (max(gain, 0.0) for gain in gains)
        if level + spread == 0:
            return max(self.level, self.spread)
        return float((level * self.level + spread * self.spread) / (level + spread))


def _long_run(x: Floats) -> float:
    return float(x.var()) * len(x) / effective_sample_size(x)


def _residuals(blocks: Blocks, shape: Shape) -> tuple[Floats, Floats]:
    """Level, in units of its own scatter where it is, and log variance around the shape. Shapes: (at most K,)."""
    k, root = len(blocks), np.sqrt(blocks.weight)
    spread = np.zeros(k) if blocks.spread is None else blocks.spread
    if shape.kind == "ramp":
        base = _ramp_base(k, *shape.cuts)
        level, spread = (y - base @ np.linalg.lstsq(base, y, rcond=None)[0] for y in (blocks.level, spread))
        scatter = np.sqrt(np.maximum(base @ np.abs(np.linalg.lstsq(base, level**2, rcond=None)[0]), 1e-300))
        return root * level / scatter, root * spread
    levels, spreads = [], []
    for start, stop in itertools.pairwise([0, *shape.cuts, k]):
        part = slice(start + (start > 0), stop - (stop < k))
        level, other = (y[part] - np.average(y[part], weights=blocks.weight[part]) for y in (blocks.level, spread))
        levels.append(root[part] * level / (float(level.std()) or 1.0))
        spreads.append(root[part] * other)
    return np.concatenate(levels), np.concatenate(spreads)


def _ramp_base(k: int, first: int, last: int) -> Floats:
    way = np.clip((np.arange(k) + 0.5 - first) / (last - first), 0.0, 1.0)
    return np.column_stack([1 - way, way])


def _step_gains(blocks: Blocks, cost: Floats, cuts: tuple[int, int, int]) -> tuple[float, float]:
    """What a step saves in the level and in the log variance."""
    before, cut, after = cuts
    whole = float(cost[after, before] - cost[cut, before] - cost[after, cut])
    if blocks.spread is None:
        return whole, 0.0
    sums = [_around(blocks.spread, blocks.weight, *part) for part in ((before, after), (before, cut), (cut, after))]
    spread = (sums[0] - sums[1] - sums[2]) / spread_noise(blocks.spread) ** 2
    return whole - spread, spread


def _around(x: Floats, weight: Floats, start: int, stop: int) -> float:
    part, shares = x[start:stop], weight[start:stop]
    return float((shares * (part - np.average(part, weights=shares)) ** 2).sum())


def _step_span(held: NDArray[np.int64], before: int, after: int, widening: float) -> Span:
    """The hull of the places that are held, a block wider on either side."""
    first, last = before + LEAST_BLOCKS, after - LEAST_BLOCKS
    open_low, open_high = held[0] == first, held[-1] == last
    if open_low and open_high:
        why = f"the {after - before} blocks between the neighbouring boundaries do not say where between them it is"
        return Span(None, None, widening, why)
    low, high = before if open_low else int(held[0]) - 1, after if open_high else int(held[-1]) + 1
    return Span(low, high, widening)


def _knots(blocks: Blocks, cuts: Sequence[int], ratios: _Dependence) -> list[Span]:
    """Both ends of a ramp: the ranges, of either end, of the pairs that cost little more than the best pair.

    The pairs are tried on a grid that is drawn closer around those that hold until it is one block fine.
    """
    k, widening = len(blocks), max(ratios.level, ratios.spread)
    box, cell, least, best = [(0, k - LEAST_BLOCKS), (LEAST_BLOCKS, k)], k, np.inf, cuts
    while cell > 1:
        axes = [np.linspace(*ends, GRID).round().astype(np.int64) for ends in box]
        axes = [np.unique([*axis, *known]) for axis, known in zip(axes, zip(cuts, best, strict=True), strict=True)]
        steps = [int(np.diff(axis).max()) for axis in axes]
        first, last = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
        wide = last - first >= LEAST_BLOCKS
        ends = first[wide], last[wide]
        cost = ramp_costs(blocks, *ends)
        i = int(np.argmin(cost))
        least, best = float(cost[i]), (int(ends[0][i]), int(ends[1][i]))
        held = (cost <= least + KNOT_CRITICAL * widening) | ((ends[0] == cuts[0]) & (ends[1] == cuts[1]))
        box = [
            (max(int(end[held].min()) - step, 0), min(int(end[held].max()) + step, k))
            for end, step in zip(ends, steps, strict=True)
        ]
        if max(steps) == cell:
            break
        cell = max(steps)
    why = "the run does not say where in it the change begins or ends"
    unknown = [low <= LEAST_BLOCKS and high >= k - LEAST_BLOCKS for low, high in box]
    return [
        Span(None, None, widening, why) if none else Span(*ends, widening)
        for none, ends in zip(unknown, box, strict=True)
    ]
