"""Two sets of answers to the same prompts: the mean difference with its interval, and McNemar's test for yes or no."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import binom

from rewards.analysis.intervals import CONFIDENCE

Floats = NDArray[np.float64]

REPLICATES = 4000
FEWEST = 4  # prompts for any interval
FEWEST_RESAMPLED = 20  # below that many prompts a bootstrap interval is too narrow, and Student's is taken
RESIDUE = 1e-12  # of the largest difference: what rounding leaves
MOST_RESAMPLED = 5000
FEW_VALUES = 64
ALPHA = 1 - CONFIDENCE
POWER_Z = float(ndtri(0.5 + CONFIDENCE / 2) + ndtri(0.8))  # 2.80: what a two-sided test finds in 4 of 5 cases
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, new minus old.

    n: prompts; p: two-sided, against no difference; mde: the smallest difference that a test at 5 % finds in 4 of 5
    cases; why: the reason for whatever is null. Units: the metric's.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    mde: float | None
    why: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def mean_difference(d: Floats, rng: np.random.Generator, replicates: int = REPLICATES) -> Difference:
    """Mean of paired differences with a BCa bootstrap interval and the p-value that inverts it.

    Shapes: d, one value a prompt: the mean over its new answers minus the mean over its old ones, so that answers to
    one prompt stay together and every prompt weighs the same.
    Raises: ValueError for values that are not finite.
    Source: Efron 1987 (BCa). Departures: Student's interval below 20 prompts; above 5,000 prompts what is resampled
    are 5,000 random bundles of prompts.
    """
    n = len(d)
    if n < FEWEST_RESAMPLED or _alike(d):
        return student_difference(d)
    if not np.all(np.isfinite(d)):
        raise ValueError("the differences must be finite")
    value = float(d.mean())
    draws = _resampled_means(d, rng, replicates)
    bootstrap = Bca.of(value, draws, acceleration(d - value))
    low, high = bootstrap.interval()
    return Difference(value, low, high, n, bootstrap.p(), mean_mde(d))


def _alike(d: Floats) -> bool:
    """Whether the differences are equal but for rounding, whose spread is no evidence."""
    return bool(np.ptp(d) <= RESIDUE * np.abs(d).max(initial=0.0))


def student_difference(d: Floats) -> Difference:
    """Mean of paired differences with Student's interval and p-value; a sign test where all of them are equal.

    Raises: ValueError for values that are not finite.
    """
    if not np.all(np.isfinite(d)):
        raise ValueError("the differences must be finite")
    n = len(d)
    if n == 0:
        return Difference(None, None, None, 0, None, None, "no prompt is on both sides")
    value = float(d.mean())
    if n < FEWEST:
        return Difference(value, None, None, n, None, None, f"fewer than {FEWEST} prompts: no interval")
    if _alike(d):
        p = 1.0 if value == 0 else 2.0 ** (1 - n)
        return Difference(value, None, None, n, p, None, "all differences are equal: their spread gives no interval")
    se = float(d.std(ddof=1)) / np.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * se
    p = 2 * float(stdtr(n - 1, -abs(value) / se))
    return Difference(value, float(value - half), float(value + half), n, p, mean_mde(d))


def mean_mde(d: Floats) -> float | None:
    """Smallest mean of paired differences found in 4 of 5 cases: 2.80 sd / sqrt(n); None without a spread."""
    if len(d) < FEWEST or _alike(d):
        return None
    return POWER_Z * float(d.std(ddof=1)) / float(np.sqrt(len(d)))


def binary_mde(discordant: float, n: int) -> float:
    """Smallest difference of two paired shares found in 4 of 5 cases: 2.80 sqrt(discordance / n).

    discordant: pairs whose two answers differ. Fewer than 3 count as 3: none in n pairs still allows a rate of 3 / n.
    Units: share. Raises: ValueError unless 0 <= discordant <= n and n > 0.
    """
    if n <= 0 or not 0 <= discordant <= n:
        raise ValueError(f"need 0 <= discordant <= n and n > 0, got {discordant} of {n}")
    return min(1.0, POWER_Z * float(np.sqrt(max(discordant, min(3, n)) / n / n)))


def mcnemar(worse: int, better: int) -> tuple[float, float]:
    """Two-sided mid-p and exact p-value of McNemar's test: worse and better count the pairs that changed.

    The mid-p takes off the probability of what was seen once: without that the test is too timid.
    Raises: ValueError for negative counts. Source: Lancaster 1961; Fagerland, Lydersen and Laake 2013.
    """
    if worse < 0 or better < 0:
        raise ValueError(f"counts of pairs are not negative, got {worse} and {better}")
    if worse + better == 0:
        return 1.0, 1.0
    fewer = min(worse, better)
    twice = 2 * float(binom.cdf(fewer, worse + better, 0.5))
    mid = twice - float(binom.pmf(fewer, worse + better, 0.5))
    return min(1.0, mid), min(1.0, twice)


def mcnemar_table(a: Floats, b: Floats) -> dict[str, Any]:
    """McNemar's test of paired answers of two values, old and new, of which the larger is the better.

    Keys: worse, better (pairs that changed for the worse, for the better), discordant, n, p (mid-p), exact_p.
    """
    worse, better = int((b < a).sum()), int((b > a).sum())
    p, exact = mcnemar(worse, better)
    return {"worse": worse, "better": better, "discordant": worse + better, "n": len(a), "p": p, "exact_p": exact}


# -- bootstrap ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bca:
    """A bootstrap that is corrected for bias and for a spread that changes with the value. Source: Efron 1987."""

    value: float
    draws: Floats
    bias: float
    acceleration: float

    @classmethod
    def of(cls, value: float, draws: Floats, acceleration: float) -> "Bca":
        """Shapes: draws, one value a replicate; they are sorted here."""
        ordered = np.sort(draws)
        below = _share_below(ordered, value)
        return cls(value, ordered, float(ndtri(below)), acceleration)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Limits of the two-sided interval."""
        ends = []
        for tail in (0.5 - confidence / 2, 0.5 + confidence / 2):
            z = self.bias + float(ndtri(tail))
            ends.append(float(ndtr(self.bias + z / (1 - self.acceleration * z))))
        low, high = np.quantile(self.draws, ends)
        return float(low), float(high)

    def p(self, null: float = 0.0) -> float:
        """Two-sided p-value: the level at which the interval just touches the null; not below 1 / replicates."""
        u = float(ndtri(_share_below(self.draws, null))) - self.bias
        z = u / (1 + self.acceleration * u) - self.bias
        return min(1.0, max(2 * float(ndtr(-abs(z))), 1 / len(self.draws)))

    @property
    def mde(self) -> float | None:
        """Smallest value that a test at 5 % finds in 4 of 5 cases: 2.80 standard errors; None without a spread."""
        se = float(self.draws.std(ddof=1))
        return POWER_Z * se if se > 0 else None


def acceleration(influence: Floats) -> float:
    """BCa's acceleration from the influence of each prompt on the statistic: sum u^3 / (6 (sum u^2)^1.5)."""
    squares = float((influence**2).sum())
    return float((influence**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0


def resampled_counts(n: int, rng: np.random.Generator, replicates: int, width: int) -> Iterator[NDArray[np.int64]]:
    """How often each of n prompts is drawn, in chunks of replicates whose tables of `width` columns stay small.

    Shapes: (replicates of the chunk, n).
    """
    done = 0
    while done < replicates:
        rows = min(replicates - done, max(1, _CHUNK // max(n, width)))
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        done += rows


def _share_below(ordered: Floats, value: float) -> float:
    """Share of replicates below a value, ties half, kept off 0 and 1 by half a replicate."""
    left, right = np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right")
    count = len(ordered)
    return float(np.clip((left + right) / 2 / count, 0.5 / count, 1 - 0.5 / count))


def _resampled_means(d: Floats, rng: np.random.Generator, replicates: int) -> Floats:
    n = len(d)
    values, counts = np.unique(d, return_counts=True)
    if len(values) <= FEW_VALUES:  # the same law, without drawing every prompt
        return np.asarray(rng.multinomial(n, counts / n, size=replicates) @ values / n, dtype=np.float64)
    sums, sizes = d, np.ones(n)
    if n > MOST_RESAMPLED:
        bundle = rng.permutation(n) % MOST_RESAMPLED
        sums = np.asarray(np.bincount(bundle, weights=d, minlength=MOST_RESAMPLED), dtype=np.float64)
        sizes = np.bincount(bundle, minlength=MOST_RESAMPLED).astype(np.float64)
    chunks = [
        (found @ sums) / (found @ sizes) for found in resampled_counts(len(sums), rng, replicates, width=len(sums))
    ]
    return np.asarray(np.concatenate(chunks), dtype=np.float64)
