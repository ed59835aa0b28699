"""Estimates with their intervals: shares, means of autocorrelated series, block jackknife, smallest detectable rate."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Floats = NDArray[np.float64]

Bounds = tuple[float, float]

CONFIDENCE = 0.95
NO_BOUNDS: Bounds = (-np.inf, np.inf)


@dataclass(frozen=True)
class Estimate:
    """A number with what is needed to judge it.

    value, low, high: null when the data cannot give them; n: observations used; ess: how many independent ones they are
    worth (null where that was not needed); why: the reason for whatever is null.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    ess: float | None = None
    why: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a share.

    n may be an effective number of observations and need not be whole.
    Raises: ValueError for n <= 0 or successes outside 0..n.
    Source: Wilson 1927.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = float(ndtri(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The exact limits at 0 and n are 0 and 1; rounding would leave them a few 1e-18 beside.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return float(low), float(high)


def effective_sample_size(x: Floats) -> float:
    """How many independent observations the mean of an autocorrelated series is worth.

    ESS = n / (1 + 2 sum rho_k), summed over Geyer's initial monotone positive sequence. A constant series has n.
    Raises: ValueError for an empty series or values that are not finite.
    Source: Geyer 1992, section 3.3.
    Departures: never above n, so that negative autocorrelation earns no narrower interval.
    """
    n = len(x)
    if n == 0 or not np.all(np.isfinite(x)):
        raise ValueError("an effective sample size needs at least one value, and all of them finite")
    centred = x - x.mean()
    variance = float(centred @ centred) / n
    if n < 4 or variance <= 1e-24 * max(1.0, float(np.abs(x).max()) ** 2):
        return float(n)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    rho = np.fft.irfft(spectrum * np.conj(spectrum), size)[:n] / (n * variance)
    pairs = rho[: n - n % 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    kept = np.minimum.accumulate(pairs[: negative[0]] if len(negative) else pairs)
    tau = 2 * float(kept.sum()) - 1
    return float(n / max(tau, 1.0))


def mean_estimate(x: Floats, bounds: Bounds = NO_BOUNDS) -> Estimate:
    """Mean of the finite values of a series in its own order, with a t interval at its effective sample size.

    The interval is cut at the bounds of what the mean can be, where it has any.
    """
    kept = x[np.isfinite(x)]
    n = len(kept)
    if n == 0:
        return Estimate(None, None, None, 0, why="no values")
    value = float(kept.mean())
    if n < 4:
        return Estimate(value, None, None, n, why="fewer than 4 values: no interval")
    ess = effective_sample_size(kept)
    if np.ptp(kept) == 0:
        return Estimate(value, None, None, n, ess, why="all values are equal: their spread gives no interval")
    if ess < 2:
        return Estimate(value, None, None, n, ess, why="worth fewer than 2 independent values: no interval")
    half = float(stdtrit(ess - 1, 0.5 + CONFIDENCE / 2)) * float(kept.std(ddof=1)) / np.sqrt(ess)
    return Estimate(value, *_cut(value, half, bounds), n, ess)


def share_estimate(x: Floats) -> Estimate:
    """Share of ones in a 0/1 series in its own order: Wilson's interval at the effective sample size."""
    kept = x[np.isfinite(x)]
    n = len(kept)
    if n == 0:
        return Estimate(None, None, None, 0, why="no values")
    ess = effective_sample_size(kept)
    value = float(kept.mean())
    low, high = wilson(value * ess, ess)
    return Estimate(value, low, high, n, ess)


def jackknife_interval(value: float, left_out: Sequence[float], bounds: Bounds = NO_BOUNDS) -> tuple[float, float]:
    """Interval of a statistic from its values with one block of the data left out each time, cut at its bounds.

    Unlike a bootstrap, which repeats observations and so lowers any count of distinct things, it suits richness.
    Raises: ValueError for fewer than two blocks.
    """
    blocks = len(left_out)
    if blocks < 2:
        raise ValueError("a jackknife needs at least two blocks")
    values = np.asarray(left_out, dtype=np.float64)
    se = np.sqrt((blocks - 1) / blocks * float(((values - values.mean()) ** 2).sum()))
    half = float(stdtrit(blocks - 1, 0.5 + CONFIDENCE / 2)) * float(se)
    return _cut(value, half, bounds)


def _cut(value: float, half: float, bounds: Bounds) -> tuple[float, float]:
    return float(max(value - half, bounds[0])), float(min(value + half, bounds[1]))


def rate_mde(rate: float, n_before: float, n_after: float, power: float = 0.8, confidence: float = CONFIDENCE) -> float:
    """Smallest difference of two rates that a two-sided test would find with the given power.

    (z_(1-alpha/2) + z_power) sqrt(p (1 - p) (1/n_before + 1/n_after)), independent observations: dependence makes it
    larger, never smaller.
    Units: share. Raises: ValueError for an empty side or a rate outside 0..1.
    """
    if n_before <= 0 or n_after <= 0 or not 0 <= rate <= 1:
        raise ValueError(f"need a rate in 0..1 and observations on both sides, got {rate}, {n_before}, {n_after}")
    z = float(ndtri(0.5 + confidence / 2) + ndtri(power))
    return float(z * np.sqrt(rate * (1 - rate) * (1 / n_before + 1 / n_after)))


def first_last(first: Estimate, last: Estimate) -> dict[str, Any]:
    """Plain numbers under `first` and `last`; intervals and counts beside them."""
    return {
        "first": first.value,
        "last": last.value,
        "first_interval": [first.low, first.high],
        "last_interval": [last.low, last.high],
        "first_n": first.n,
        "last_n": last.n,
        "why": first.why or last.why,
    }
