"""The series that phases are looked for in: an outcome, one category of it, or all categories at steady shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.data import RunData
from rewards.analysis.intervals import Estimate, mean_estimate
from rewards.analysis.segmentation import (
    FEWEST_BLOCKS,
    LEAST_BLOCKS,
    LEAST_SESSIONS,
    Blocks,
    block_size,
    make_blocks,
    series_blocks,
    two_valued,
)
from rewards.counted import counted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RATIO_WINDOW = 500
# Points that an estimate of a long series is made from.
LONG = 1 << 17


@dataclass(frozen=True)
class Series:
    """The finite values of an outcome. Shapes: one entry a value; sessions: their numbers from 1."""

    values: Floats
    steps: NDArray[np.int64]
    sessions: Ints

    @classmethod
    def of(cls, data: RunData, outcome: str, category: int | None = None) -> Series:
        """An outcome of a run, or of one category's sessions. category: index into the run's names."""
        values = data.column(outcome)
        kept = np.isfinite(values)
        if category is not None:
            kept &= data.codes == category
        if kept.all():
            return cls(values, data.steps, np.arange(1, len(values) + 1))
        places = np.flatnonzero(kept)
        return cls(values[places], data.steps[places], places + 1)

    def blocks(self) -> tuple[Blocks | None, str | None]:
        """The series in blocks of whole steps, or why there are none that phases could be looked for in."""
        n = len(self.values)
        if n < LEAST_SESSIONS * FEWEST_BLOCKS:
            return None, f"{counted(n, 'session')} with a value: phases need at least {LEAST_SESSIONS * FEWEST_BLOCKS}"
        if np.ptp(self.values) == 0:
            return None, f"all {n:,} values are equal: there is nothing to divide"
        blocks = series_blocks(self.steps, self.values)
        if len(blocks) >= FEWEST_BLOCKS:
            return blocks, None
        size = block_size(self.values)
        rare = ", so many because one of the two values is rare" if size > LEAST_SESSIONS else ""
        return None, (
            f"{n:,} sessions make {counted(len(blocks), 'block')} of whole steps with at least {size} sessions{rare}: "
            f"phases need {FEWEST_BLOCKS} blocks"
        )


def reweighted_blocks(data: RunData, series: Series, blocks: Blocks) -> tuple[Blocks | None, list[str | None]]:
    """The same blocks with every category at its share of the whole run, so that a changed mixture moves nothing.

    A category that is missing from a few blocks stands in with the mean and the mean square between its neighbours. One
    that is missing from more than a tenth of the run on end (it entered late, or left) is left out and named: how it
    would have fared is not known. Sessions without a category are a category of their own, None.
    """
    codes = data.codes if len(series.values) == data.sessions else data.codes[series.sessions - 1]
    centre, width = float(series.values.mean()), len(data.names) + 1
    count, first, second = (np.zeros((len(blocks), width)) for _ in range(3))
    for i in range(len(blocks)):
        part = slice(blocks.edges[i], blocks.edges[i + 1])
        label, x = codes[part].astype(np.int64) + 1, series.values[part] - centre
        count[i] = np.bincount(label, minlength=width)
        first[i] = np.bincount(label, weights=x, minlength=width)
        second[i] = np.bincount(label, weights=x * x, minlength=width)
    present = np.flatnonzero(count.sum(axis=0))
    held = [c for c in present if _longest_gap(count[:, c]) <= max(LEAST_BLOCKS, len(blocks) / 10)]
    left_out = [None if c == 0 else data.names[c - 1] for c in present if c not in held]
    if not held:
        return None, left_out
    mean, square, inverse = np.zeros(len(blocks)), np.zeros(len(blocks)), np.zeros(len(blocks))
    for c in held:
        there = np.flatnonzero(count[:, c])
        share = count[:, c].sum() / count[:, held].sum()
        sizes = count[there, c]
        for target, found in ((mean, first[there, c] / sizes), (square, second[there, c] / sizes)):
            target += share * np.interp(np.arange(len(blocks)), there, found)
        inverse += share**2 / np.interp(np.arange(len(blocks)), there, sizes)
    worth = 1 / inverse
    variance = np.maximum(square - mean**2, 0.0) * worth / np.maximum(worth - 1, 1.0)
    ends = None
    if two_valued(series.values):
        ends = (float(series.values.min()), float(series.values.max()))
    return make_blocks(blocks.edges, (blocks.n, mean + centre, variance), ends, worth), left_out


def _longest_gap(count: Floats) -> int:
    """Blocks without any session on end."""
    there = np.flatnonzero(np.r_[1.0, count, 1.0])
    return int(np.diff(there).max()) - 1


def long_mean(x: Floats) -> Estimate:
    """The mean of a series with its interval at the effective sample size; of a long one from means of neighbours.

    ess: independent sessions that the mean is worth; n: sessions.
    """
    width = -(-len(x) // LONG)
    if width <= 1:
        return mean_estimate(x)
    kept = len(x) - len(x) % width
    means = x[:kept].reshape(-1, width).mean(axis=1)
    found = mean_estimate(means)
    scale = float(x.var()) / (float(means.var()) or np.inf)
    ess = None if found.ess is None else min(float(len(x)), found.ess * scale)
    return Estimate(found.value, found.low, found.high, len(x), ess, found.why)


def midpoint(values: Floats) -> float:
    """The middle between the lowest and the highest value, outliers of half a per cent at either end left aside."""
    low, high = np.quantile(values, [0.005, 0.995])
    if low == high:
        low, high = values.min(), values.max()
    return float(low + high) / 2


def ratio_reached(
    values: Floats, threshold: float, ratios: Sequence[float] = (3, 5), window: int = RATIO_WINDOW
) -> dict[str, Any]:
    """From where on the last `window` values hold at least r times as many above a threshold as below it.

    Values equal to the threshold count on neither side. `session` of a ratio: number, from 1, of the first value from
    which the ratio never falls below r again; null where there is none. last_ratio: at the end; null without a value
    below.
    Shapes: values: finite, in order.
    """
    n = len(values)
    window = min(window, n)
    found: dict[str, Any] = {"window": window, "threshold": threshold, "n": n, "last_ratio": None, "reached": []}
    if n == 0:
        return found
    above, below = (_trailing(side, window) for side in (values > threshold, values < threshold))
    found["last_ratio"] = float(above[-1] / below[-1]) if below[-1] else None
    for ratio in ratios:
        missed = np.flatnonzero((above < ratio * below) | (above == 0))
        start = int(missed[-1]) + 1 if len(missed) else 0
        found["reached"].append({"ratio": ratio, "session": window + start if start < len(above) else None})
    return found


def _trailing(side: NDArray[np.bool_], window: int) -> NDArray[np.int32]:
    sums = np.cumsum(side, dtype=np.int32)
    counts = sums[window - 1 :].copy()
    counts[1:] -= sums[:-window]
    return counts
