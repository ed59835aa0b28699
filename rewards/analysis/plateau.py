"""Whether a run ends on a plateau: a mean that is shown to be flat, and a spread that is shown to have collapsed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from rewards.analysis.data import RunData
from rewards.analysis.intervals import effective_sample_size
from rewards.analysis.phase_series import Series
from rewards.analysis.segmentation import Blocks, make_blocks, moments, step_edges, two_valued
from rewards.counted import counted

Floats = NDArray[np.float64]
Data = dict[str, Any]

OUTCOME = "baseline_reward"
WINDOW = 2000
# Parts of a run: the window is a tenth of a long one, and at most a third of a short one.
LONG_PART, SHORT_PART = 10, 3
LEAST_WINDOW = 100
DELTA_SD = 0.1
COLLAPSED = 0.05
GEOMETRIC, POOLED = "geometric mean of block variances", "pooled variance of blocks"
BLOCK = 25
# Both one-sided tests at 5 %: the interval of the pair is the 90 % one.
SIZE = 0.05
# Bartlett bandwidth as a part of the window, and the 95 % point of the slope's t for it. Normal: 1.645.
BANDWIDTH = 0.1
CRITICAL = 2.06
# Points that the slope of a long window is fitted to.
LONG = 4000


@dataclass(frozen=True)
class Drift:
    """Change of the mean along a window: its value, the standard error, half of the 90 % interval and the values."""

    value: float
    se: float
    half: float
    n: int


@dataclass(frozen=True)
class VarianceRatio:
    """Variance in the last window over that in the first, with its 90 % interval; None where there is no spread.

    of: what stands for a window's variance, the geometric mean of its blocks' or their pooled one.
    """

    of: str
    value: float
    low: float | None
    high: float | None
    blocks: int


def section(data: RunData) -> Data:
    """Whether the baseline reward of a run ends on a plateau.

    converged: the mean of the last window is flat within delta (true), moves by more than delta (false), or the window
    cannot tell (null). delta is a tenth of the sd of all sessions or of the first window, whichever is larger. Nothing
    is asked of the spread, since a healthy run may keep its own.
    collapsed: the stricter reading, a flat mean and a variance below `collapse_below` times that of the first window.
    """
    series = Series.of(data, OUTCOME)
    return plateau(series.values, series.steps)


def plateau(values: Floats, steps: NDArray[np.int64] | None = None, delta_sd: float = DELTA_SD) -> Data:
    """The same for any series of finite values. steps: optimizer step of each, ascending; single ones by default."""
    found: Data = {"outcome": OUTCOME, "window": None, "delta_sd": delta_sd, "delta": None, "delta_of": None}
    found |= {"slope_change": None, "variance_ratio": None, "mean_flat": None, "variance_collapsed": None}
    found |= {"collapse_below": COLLAPSED, "collapsed": None, "converged": None, "n": len(values), "verdict": None}
    window = window_of(len(values))
    if window < LEAST_WINDOW:
        return found | {
            "why": f"{counted(len(values), 'session')} with a reward: a plateau needs {SHORT_PART * LEAST_WINDOW}"
        }
    sd, of = max((float(part.std(ddof=1)), name) for part, name in _scales(values, window))
    found |= {"window": window, "delta": delta_sd * sd, "delta_of": f"{delta_sd:g} sd of {of}, sd {sd:.4g}"}
    if sd == 0:
        return found | {"why": f"all {len(values):,} rewards are equal: no spread to measure a drift by"}
    drift = drift_of(values[-window:])
    steps = np.arange(len(values)) if steps is None else steps
    ratio = variance_ratio(values, steps, window)
    flat = _within(drift.value - drift.half, drift.value + drift.half, found["delta"])
    collapsed = None if ratio is None else _below(ratio, COLLAPSED)
    found |= {
        "mean_flat": flat,
        "converged": flat,
        "variance_collapsed": collapsed,
        "collapsed": _both(flat, collapsed),
    }
    found["slope_change"] = {
        "estimate": drift.value,
        "low": drift.value - drift.half,
        "high": drift.value + drift.half,
        "confidence": 1 - 2 * SIZE,
        "n": drift.n,
        "mde": drift.half + float(ndtri(0.8)) * drift.se,
    }
    if ratio is not None:
        found["variance_ratio"] = {"of": ratio.of, "estimate": ratio.value, "low": ratio.low, "high": ratio.high}
        found["variance_ratio"] |= {"confidence": 1 - 2 * SIZE, "n": 2 * window, "blocks": ratio.blocks}
    return found | {"verdict": _verdict(found, drift), "why": None}


def _scales(values: Floats, window: int) -> Iterator[tuple[Floats, str]]:
    """What a drift may be measured by: the larger counts, since a run may start without spread, or lose it early."""
    yield values, "all sessions"
    yield values[:window], f"the first {window:,} sessions"


def window_of(n: int) -> int:
    """Sessions in the last window: 2,000, a tenth of a run where that is more, and at most a third."""
    return min(max(WINDOW, n // LONG_PART), n // SHORT_PART)


def drift_of(x: Floats) -> Drift:
    """Slope of a straight line times the length of the series, with a fixed-b interval.

    The long-run variance of the slope's scores has a Bartlett kernel over a tenth of the series; the critical value
    belongs to that bandwidth and a linear trend, and does not assume that the bandwidth is small. A series of more than
    4,000 values is first averaged over neighbours.
    Raises: ValueError for fewer than 20 values.
    Source: Kiefer and Vogelsang 2005 (fixed-b asymptotics); TOST, Schuirmann 1987.
    Departures: the critical value is simulated for the trend regressor, for which the published ones are too small.
    """
    if len(x) < 20:
        raise ValueError(f"a drift needs 20 values, got {len(x)}")
    n, width = len(x), -(-len(x) // LONG)
    y = x[len(x) % width :].reshape(-1, width).mean(axis=1)
    t = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(t @ y) / float(t @ t)
    scores = t * (y - y.mean() - slope * t)
    lags = max(1, int(BANDWIDTH * len(y)))
    long_run = float(scores @ scores)
    for lag in range(1, lags):
        long_run += 2 * (1 - lag / lags) * float(scores[lag:] @ scores[:-lag])
    se = len(y) * float(np.sqrt(max(long_run, 0.0))) / float(t @ t)
    return Drift(slope * len(y), se, CRITICAL * se, n)


def variance_ratio(values: Floats, steps: NDArray[np.int64], window: int) -> VarianceRatio | None:
    """exp(mean log variance of the last window's blocks - that of the first window's); None without spread at first.

    The interval is t at the effective number of blocks. Two-valued series, and those with blocks that have no spread,
    have no log variance of their own: there the pooled variance is compared, by leaving out one block at a time.
    """
    parts = [slice(0, window), slice(len(values) - window, len(values))]
    first, last = (_blocks(values[part], steps[part]) for part in parts)
    if min(len(first), len(last)) < 2:
        return None
    count = len(first) + len(last)
    flat = first.flat or last.flat or first.spread is None or last.spread is None
    of = POOLED if flat or two_valued(values) else GEOMETRIC
    if of == POOLED:
        (start, start_se), (end, end_se) = _pooled(first), _pooled(last)
        if start is None:
            return None
        if end is None:
            return VarianceRatio(POOLED, 0.0, None, None, count)
        half = float(ndtri(1 - SIZE)) * float(np.hypot(start_se, end_se))
    else:
        (start, start_se, size), (end, end_se, other) = _mean_log(first), _mean_log(last)
        half = float(stdtrit(max(min(size, other) - 1, 1.0), 1 - SIZE)) * float(np.hypot(start_se, end_se))
    value, low, high = (float(np.exp(end - start + sign * half)) for sign in (0, -1, 1))
    return VarianceRatio(of, value, low, high, count)


def _blocks(values: Floats, steps: NDArray[np.int64]) -> Blocks:
    edges = step_edges(steps, max(BLOCK, len(values) // 200))
    return make_blocks(edges, moments(values, edges))


def _mean_log(blocks: Blocks) -> tuple[float, float, float]:
    assert blocks.spread is not None
    size = effective_sample_size(blocks.spread)
    return float(blocks.spread.mean()), float(blocks.spread.std(ddof=1)) / np.sqrt(size), size


def _pooled(blocks: Blocks) -> tuple[float | None, float]:
    squares, free = (blocks.n - 1) * blocks.variance, blocks.n - 1
    pooled = float(squares.sum() / free.sum())
    left = (squares.sum() - squares) / (free.sum() - free)
    if pooled <= 1e-24 or np.any(left <= 1e-24):
        return None, 0.0
    logs = np.log(left)
    return float(np.log(pooled)), float(np.sqrt((len(logs) - 1) / len(logs) * ((logs - logs.mean()) ** 2).sum()))


def _within(low: float, high: float, delta: float) -> bool | None:
    if -delta < low and high < delta:
        return True
    return False if low > delta or high < -delta else None


def _below(ratio: VarianceRatio, bound: float) -> bool | None:
    if ratio.high is None or ratio.low is None:
        return ratio.value < bound
    if ratio.high < bound:
        return True
    return False if ratio.low > bound else None


def _both(flat: bool | None, collapsed: bool | None) -> bool | None:
    if flat is False or collapsed is False:
        return False
    return True if flat and collapsed else None


def _verdict(found: Data, drift: Drift) -> str:
    low, high, delta = drift.value - drift.half, drift.value + drift.half, found["delta"]
    over = f"over the last {found['window']:,} sessions"
    limits = f"90 % interval {low:+.3g} to {high:+.3g}, bound {delta:.3g} = {found['delta_of']}, n {drift.n:,}"
    if found["mean_flat"]:
        text = f"The mean reward is flat {over} ({limits})."
    elif found["mean_flat"] is False:
        text = f"The mean reward still moves {over}, by {drift.value:+.3g} ({limits})."
    else:
        needed = drift.n * (drift.half / delta) ** 2
        text = (
            f"Whether the mean reward is flat {over} cannot be told ({limits}): that takes about "
            f"{needed:,.0f} sessions even where there is no drift."
        )
    ratio = found["variance_ratio"]
    if ratio is None:
        return f"{text} Whether its variance collapsed cannot be told: too few blocks or no spread at first."
    shown = "no interval" if ratio["low"] is None else f"90 % interval {ratio['low']:.3g} to {ratio['high']:.3g}"
    state = {True: "collapsed", False: "did not collapse", None: "may or may not have collapsed"}
    return (
        f"{text} Its variance {state[found['variance_collapsed']]}: {ratio['of']} {ratio['estimate']:.3g} times that "
        f"of the first {found['window']:,} sessions ({shown}, bound {COLLAPSED:g}). A flat mean does not say that the "
        "policy is any good."
    )
