"""Blocks of whole steps, their exact optimal partition, and whether a series changes by steps or along a ramp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_BLOCKS = 500
LEAST_SESSIONS = 8
# Blocks in a phase, and in a ramp: a change within fewer is a step at this resolution.
LEAST_BLOCKS = 8
FEWEST_BLOCKS = 16
# A run of fewer blocks is charged for its phases as one of so many.
FEWEST_CHARGED = 100
# Times the rarer of two values is expected in a block: fewer, and the logit of a block jumps between few values.
LEAST_RARE = 10
# Part of the variance that independent sessions would give a block mean, below which a phase's scatter is not believed.
FLOOR = 0.1

Kind = Literal["none", "steps", "ramp"]


@dataclass(frozen=True)
class Blocks:
    """A series in blocks of whole steps.

    Shapes: edges (K + 1,), positions in the series; the others (K,). n: values in a block; mean, variance: theirs;
    level: the mean, or the log-odds of the higher value of a two-valued series; spread: log variance, free of the bias
    of small blocks, None where the series has none of its own (two values, or no spread inside blocks);
    noise: the variance that `level` would have were the values independent; weight: precision of a block beside that
    of an average one, from its size; flat: blocks without any spread.
    """

    edges: Ints
    n: Ints
    mean: Floats
    variance: Floats
    level: Floats
    spread: Floats | None
    noise: Floats
    weight: Floats
    flat: int

    def __len__(self) -> int:
        return len(self.n)


@dataclass(frozen=True)
class Shape:
    """How a series changes. cuts: blocks at which a new phase begins; of a ramp its two ends, 0 and K included."""

    kind: Kind
    cuts: tuple[int, ...] = ()


def two_valued(values: Floats) -> bool:
    """Whether a series takes exactly two values. Raises: ValueError for an empty series."""
    low, high = values.min(), values.max()
    return bool(low < high and np.all((values == low) | (values == high)))


def step_edges(steps: NDArray[np.int64], size: int) -> Ints:
    """Edges of blocks of whole steps with at least `size` sessions each, as few more as whole steps allow.

    A remainder that is too small joins the last block.
    Shapes: steps, one per session, ascending; the edges run from 0 to the number of sessions.
    """
    starts = np.flatnonzero(np.r_[True, steps[1:] != steps[:-1]])
    edges = [0]
    while True:
        found = int(np.searchsorted(starts, edges[-1] + size))
        if found == len(starts) or len(steps) - starts[found] < size:
            return np.array([*edges, len(steps)])
        edges.append(int(starts[found]))


def block_size(values: Floats) -> int:
    """Sessions that a block should have: for at most 500 blocks, and for both values of a two-valued series in each."""
    size = max(LEAST_SESSIONS, -(-len(values) // MOST_BLOCKS))
    if two_valued(values):
        high = float((values == values.max()).mean())
        size = max(size, int(np.ceil(LEAST_RARE / min(high, 1 - high))))
    return size


def moments(values: Floats, edges: Ints) -> tuple[Ints, Floats, Floats]:
    """Count, mean and unbiased variance of every block. Shapes: (K,) each; every block has two values or more."""
    n = np.diff(edges)
    mean = np.add.reduceat(values, edges[:-1]) / n
    centred = values - np.repeat(mean, n)
    centred *= centred
    return n, mean, np.add.reduceat(centred, edges[:-1]) / (n - 1)


def make_blocks(
    edges: Ints,
    found: tuple[Ints, Floats, Floats],
    ends: tuple[float, float] | None = None,
    effective: Floats | None = None,
) -> Blocks:
    """Blocks from their counts, means and variances.

    ends: the two values of a two-valued series. effective: sessions that a block is worth, where that is not its count.
    """
    n, mean, variance = found
    worth = n.astype(np.float64) if effective is None else effective
    weight = worth / worth.mean()
    if ends is not None:
        hits = np.clip((mean - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0) * n
        level = np.log((hits + 0.5) / (n - hits + 0.5))
        noise = (1 / (hits + 0.5) + 1 / (n - hits + 0.5)) * n / worth
        return Blocks(edges, n, mean, variance, level, None, noise, weight, 0)
    flat = variance <= 1e-12 * max(float(variance.max()), float(mean.var()))
    if flat.all():
        nothing = np.full(len(n), 1e-6 * float(mean.var()) + 1e-300)
        return Blocks(edges, n, mean, variance, mean, None, nothing, weight, len(n))
    # A block without spread is known to have less than the least that was seen, not none at all.
    kept = np.where(flat, variance[~flat].min(), variance)
    half = np.maximum(worth - 1, 1.0) / 2
    spread = np.log(kept) - (digamma(half) - np.log(half))
    return Blocks(edges, n, mean, variance, mean, spread, kept / worth, weight, int(flat.sum()))


def series_blocks(steps: NDArray[np.int64], values: Floats, size: int | None = None) -> Blocks:
    """Blocks of a series of finite values. size: least sessions in a block; the default suits the series' length."""
    edges = step_edges(steps, size or block_size(values))
    ends = (float(values.min()), float(values.max())) if two_valued(values) else None
    return make_blocks(edges, moments(values, edges), ends)


def shape_of(blocks: Blocks) -> Shape:
    """Phases of a series by exact optimal partition; a two-knot ramp instead where BIC prefers it.

    The cost of a phase is sum (v - mean v)^2 / s_v^2 + L log var(m) over its L blocks, with m the level, v the log
    variance and s_v its noise from differences of neighbours; every further phase costs `phase_penalty`. Blocks of
    unequal size weigh in proportion.
    A ramp has one level before it, another after it, and a straight line between, in m and in v at the same blocks,
    the scatter of m following v. It is looked at only where the partition found a change.
    Source: optimal partitioning, Jackson et al. 2005; BIC, Schwarz 1978.
    Departures: in BIC the place of a step or of a ramp's end counts as two parameters, since the whole run is searched
    for it; counted as one, a single weak step passes for a short ramp in one run of eight.
    """
    k = len(blocks)
    if k < FEWEST_BLOCKS:
        return Shape("none")
    fit, cuts = best_cuts(phase_costs(blocks), phase_penalty(k), mixed_costs(blocks))
    if not cuts:
        return Shape("none")
    phases, tracks = len(cuts) + 1, 1 if blocks.spread is None else 2
    by_steps = fit + ((tracks + 1) * phases + 2 * (phases - 1)) * np.log(k)
    by_ramp, first, last = _best_ramp(blocks)
    if by_ramp + (1 + 2 * tracks + 4) * np.log(k) < by_steps:
        return Shape("ramp", (first, last))
    return Shape("steps", tuple(cuts))


def phase_penalty(blocks: int) -> float:
    """What a further phase costs in a run of K blocks: 4 log K in a long run, which has about 500 of them.

    In a shorter one K counts double, up to 500, and as 100 at least. Its blocks hold as few as eight sessions, whose
    log variance has long tails, and s_v is known from fewer differences, so that noise alone gains more: at 4 log K
    phases were found in 5 to 12 % of stationary runs of 160 to 400 sessions.
    """
    return 4 * float(np.log(max(blocks, min(2 * blocks, MOST_BLOCKS), FEWEST_CHARGED)))


def spread_noise(spread: Floats) -> float:
    """Standard deviation of the log variance of a block: from differences of neighbours, whatever the phases are."""
    differences = np.diff(spread)
    differences = differences[differences != 0]  # two blocks without spread tell nothing about noise
    if len(differences) < LEAST_BLOCKS:
        return 1.0
    noise = float(np.median(np.abs(differences - np.median(differences)))) / (0.6745 * np.sqrt(2))
    return noise or float(differences.std()) / np.sqrt(2) or 1.0


def phase_costs(blocks: Blocks) -> Floats:
    """Cost of a phase of blocks s..t-1. Shapes: (K + 1, K + 1), entry [t, s]; infinite where t - s < 8."""
    k = len(blocks)
    length = (np.arange(k + 1)[:, None] - np.arange(k + 1)).astype(np.float64)
    short = length < LEAST_BLOCKS
    length[short] = 1.0
    level, scale = _standard(blocks.level)
    floor = FLOOR * _sums(blocks.weight * blocks.noise / scale**2) / length
    floor[short] = 1.0
    cost = length * np.log(np.maximum(_squares(level, blocks.weight) / length, floor))
    if blocks.spread is not None:
        cost += _squares((blocks.spread - blocks.spread.mean()) / spread_noise(blocks.spread), blocks.weight)
    cost[short] = np.inf
    return cost


def mixed_costs(blocks: Blocks) -> Floats:
    """Cost of leaving a block out of both phases that meet in it: what it is like under the whole run's spread.

    In a long run a step falls inside a block that is like neither side, by many times the noise of either; without this
    way out such a block would make a phase of its own with seven innocent neighbours. It costs as much as four phases:
    an outlier of a heavy-tailed series is not worth that. Shapes: (K,).
    """
    level, _ = _standard(blocks.level)
    cost = level * level - 1 + 4 * phase_penalty(len(level))
    if blocks.spread is not None:
        noise, whole = spread_noise(blocks.spread) ** 2, float(blocks.spread.var()) or 1.0
        cost += np.log(whole / noise) + (blocks.spread - blocks.spread.mean()) ** 2 / whole
    return np.asarray(cost, dtype=np.float64)


def best_cuts(cost: Floats, penalty: float, mixed: Floats) -> tuple[float, list[int]]:
    """Cost of the cheapest partition without its penalties, and the starts of all its phases but the first.

    A phase may begin with one mixed block at a cost of its own.
    Shapes: cost (K + 1, K + 1), entry [end, start]; mixed (K,).
    """
    k = len(cost) - 1
    best, opened, before = np.full(k + 1, np.inf), np.full(k + 1, np.inf), np.zeros(k + 1, dtype=np.int64)
    best[0] = opened[0] = 0.0
    for t in range(1, k + 1):
        total = opened[:t] + cost[t, :t]
        before[t] = int(np.argmin(total))
        best[t] = total[before[t]] + penalty
        opened[t] = min(best[t], best[t - 1] + mixed[t - 1]) if t > 1 else best[t]
    cuts, t = [], k
    while before[t] > 0:
        t = int(before[t])
        t -= int(opened[t] < best[t])
        cuts.append(t)
    return float(best[k]) - penalty * (len(cuts) + 1), cuts[::-1]


def _standard(level: Floats) -> tuple[Floats, float]:
    scale = float(level.std()) or 1.0
    return (level - level.mean()) / scale, scale


def _squares(x: Floats, weight: Floats) -> Floats:
    """Weighted sum of squares around the mean of x[s:t], t > s. Shapes: (K + 1, K + 1), entry [t, s]."""
    total = _sums(weight)
    total[total <= 0] = 1.0
    return np.maximum(_sums(weight * x * x) - _sums(weight * x) ** 2 / total, 0.0)


def _sums(x: Floats) -> Floats:
    sums = np.r_[0.0, np.cumsum(x)]
    return np.asarray(sums[:, None] - sums, dtype=np.float64)


def _best_ramp(blocks: Blocks) -> tuple[float, int, int]:
    """Cost of the best ramp, without its parameters, and its two ends: a grid, refined around its best point."""
    k = len(blocks)
    stride = max(1, k // 30)
    places = np.unique(np.r_[np.arange(0, k, stride), k])
    first, last = (grid.ravel() for grid in np.meshgrid(places, places, indexing="ij"))
    score, best = _cheapest(blocks, first, last)
    while stride > 1:
        around = np.arange(-4, 5) * max(1, stride // 4)
        first, last = (grid.ravel() for grid in np.meshgrid(best[0] + around, best[1] + around, indexing="ij"))
        score, best = _cheapest(blocks, np.clip(first, 0, k), np.clip(last, 0, k))
        stride = max(1, stride // 4)
    return score, best[0], best[1]


def _cheapest(blocks: Blocks, first: Ints, last: Ints) -> tuple[float, tuple[int, int]]:
    wide = last - first >= LEAST_BLOCKS
    first, last = first[wide], last[wide]
    cost = ramp_costs(blocks, first, last)
    i = int(np.argmin(cost))
    return float(cost[i]), (int(first[i]), int(last[i]))


def ramp_costs(blocks: Blocks, first: Ints, last: Ints) -> Floats:
    """Costs of ramps from block edge `first` to edge `last`, first < last. Shapes: (G,) each."""
    k = len(blocks)
    way = np.clip((np.arange(k) + 0.5 - first[:, None]) / (last - first)[:, None], 0.0, 1.0)
    cost = np.zeros(len(first))
    if blocks.spread is None:
        log_variance = np.broadcast_to(np.log(_smooth(blocks.noise * blocks.weight)), way.shape)
    else:
        squares, start, end = _fit(way, blocks.spread - blocks.spread.mean(), blocks.weight[None, :])
        cost += squares / spread_noise(blocks.spread) ** 2
        log_variance = start[:, None] + (end - start)[:, None] * way
    log_variance = log_variance - log_variance.mean(axis=1, keepdims=True)
    squares, _, _ = _fit(way, _standard(blocks.level)[0], blocks.weight * np.exp(-log_variance))
    cost += k * np.log(np.maximum(squares / k, 1e-300))
    return cost


def _fit(way: Floats, y: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Least squares of y on a level before and one after: what is left over, and the two levels.

    Shapes: way (G, K); weight (G, K) or (1, K); y (K,); results (G,).
    """
    part = weight * way
    c = np.einsum("gk,gk->g", part, way)
    b = part.sum(axis=1) - c
    a = weight.sum(axis=1) - 2 * b - c
    after = part @ y
    before = weight @ y - after
    determinant = a * c - b * b
    start, end = (c * before - b * after) / determinant, (a * after - b * before) / determinant
    return np.maximum(weight @ (y * y) - start * before - end * after, 0.0), start, end


def _smooth(x: Floats) -> Floats:
    ones = np.ones(9)
    return np.convolve(x, ones, "same") / np.convolve(np.ones_like(x), ones, "same")
