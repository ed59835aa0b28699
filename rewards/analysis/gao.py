"""How reward grows and bends over with the distance from the reference: fits in d = sqrt(KL), with a guarded peak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from rewards.analysis.intervals import CONFIDENCE, effective_sample_size

Floats = NDArray[np.float64]
Form = Literal["rl", "bon"]

# Below this ratio of the bend to its standard error a peak is an extrapolation of noise.
CLEAR_BEND = 3.0
FEWEST_POINTS = 8
POWER = 0.8
# exp of more than this is no distance anybody trains to, and its square no float.
LARGEST_LOG = 100.0


def best_of_n_kl(n: Floats) -> Floats:
    """KL of the best of n samples to the policy they come from: ln n - (n - 1) / n.

    An upper bound; it holds with equality for continuous rewards.
    Units: nats. Raises: ValueError for n below 1.
    Source: Stiennon et al. 2020, appendix G.3; Beirami et al. 2024 for the bound.
    """
    if np.any(~(n >= 1)):
        raise ValueError("a best of n needs n >= 1")
    return np.asarray(np.log(n) - (n - 1) / n, dtype=np.float64)


@dataclass(frozen=True)
class Fit:
    """Reward as a function of d = sqrt(KL) by weighted least squares.

    rl: R = d (alpha - beta ln d). bon: R = d (alpha - beta d). With an offset, R is that plus the reward at d = 0.
    covariance: of alpha and beta; df: degrees of freedom left; farthest: largest d in the data; inflation: the factor
    on all standard errors for residuals that depend on each other.
    Units: d in sqrt(nats); alpha, beta in reward per d and per d ln d (rl) or d squared (bon).
    """

    form: Form
    alpha: float
    beta: float
    offset: float | None
    covariance: Floats
    df: float
    points: int
    farthest: float
    inflation: float

    @property
    def errors(self) -> tuple[float, float]:
        """Standard errors of alpha and beta."""
        return float(np.sqrt(self.covariance[0, 0])), float(np.sqrt(self.covariance[1, 1]))

    @property
    def log_peak(self) -> tuple[float, float] | None:
        """Logarithm of d* and its standard error by the delta method; None where the curve never turns down.

        rl: ln d* = alpha / beta - 1, gradient (1 / beta, -alpha / beta^2). bon: ln d* = ln(alpha / 2 beta), gradient
        (1 / alpha, -1 / beta).
        """
        if self.beta <= 0 or (self.form == "bon" and self.alpha <= 0):
            return None
        if self.form == "rl":
            value, gradient = self.alpha / self.beta - 1, np.array([1 / self.beta, -self.alpha / self.beta**2])
        else:
            value, gradient = np.log(self.alpha / (2 * self.beta)), np.array([1 / self.alpha, -1 / self.beta])
        return float(value), float(np.sqrt(gradient @ self.covariance @ gradient))

    @property
    def log_peak_interval(self) -> tuple[float, float] | None:
        """95 % interval of ln d*, whether or not the peak may be declared."""
        found = self.log_peak
        if found is None:
            return None
        half = _quantile(self.df) * found[1]
        return found[0] - half, found[0] + half

    def refusal(self) -> str | None:
        """Why no peak is declared, or None where both guards hold.

        A peak needs beta more than three standard errors above 0, and the upper limit of d* inside the data: the fit
        to a curve that still rises has a peak too, anywhere beyond its end.
        """
        limits, beta_error = self.log_peak_interval, self.errors[1]
        if limits is None:
            return "no peak: the fitted reward does not turn down at any distance"
        if beta_error > 0 and self.beta / beta_error <= CLEAR_BEND:
            ratio = self.beta / beta_error
            return f"no peak: the bend is {ratio:.1f} standard errors from none; it takes more than {CLEAR_BEND:g}"
        if limits[1] > np.log(self.farthest):
            upper = 2 * limits[1]
            shown = f"{np.exp(upper):.3g}" if upper < LARGEST_LOG else "any number of"
            return (
                f"no peak: it may lie at up to {shown} nats (upper limit), beyond the data, "
                f"which end at {self.farthest**2:.3g} nats"
            )
        return None

    def peak_kl(self) -> dict[str, Any] | None:
        """The declared peak as KL in nats with its 95 % interval, or None where `refusal` says why not."""
        found, limits = self.log_peak, self.log_peak_interval
        if found is None or limits is None or self.refusal() is not None:
            return None
        estimate, low, high = (float(np.exp(2 * value)) for value in (found[0], *limits))
        return {"estimate": estimate, "low": low, "high": high, "n": self.points}

    def coefficient(self, name: Literal["alpha", "beta"]) -> dict[str, Any]:
        """Estimate, 95 % interval, n, two-sided p against 0 and the smallest value found at 80 % power."""
        value, error = (self.alpha, self.errors[0]) if name == "alpha" else (self.beta, self.errors[1])
        quantile = _quantile(self.df)
        return {
            "estimate": value,
            "low": value - quantile * error,
            "high": value + quantile * error,
            "n": self.points,
            "p": float(2 * stdtr(self.df, -abs(value) / error)) if error > 0 else None,
            "mde": (quantile + float(stdtrit(self.df, POWER))) * error,
        }


def fit(
    d: Floats,
    reward: Floats,
    weights: Floats | None = None,
    form: Form = "rl",
    offset: bool = False,
    dependent: bool = False,
) -> Fit:
    """Fits one of the two forms; both are linear in their coefficients.

    Shapes: one value a point, in the order of training. weights: proportional to 1 / variance of a point, equal by
    default. offset: also estimate the reward at d = 0, for rewards that are not measured against the reference policy.
    dependent: count the residuals as their effective number, as points along one run are not independent.
    Raises: ValueError for fewer than 8 points, values that are not finite, a d or a weight below 0, or all d equal.
    Source: Gao, Schulman and Hilton 2022, section 3.1.
    Departures: the offset; the source subtracts the reward of the initial policy, known there from many samples.
    """
    design, root = _design(d, reward, weights, form, offset)
    scaled, response = design * root[:, None], reward * root
    normal = scaled.T @ scaled
    if np.linalg.matrix_rank(scaled / np.abs(scaled).max(axis=0)) < design.shape[1]:
        raise ValueError("the distances do not differ enough for a fit")
    values = np.linalg.solve(normal, scaled.T @ response)
    residual = response - scaled @ values
    plain = float(len(d) - design.shape[1])
    df = plain
    if dependent and np.ptp(residual) > 0:
        # As if there were so many independent points: the curve takes its share of their spread too.
        df = max(1.0, effective_points(residual, design.shape[1]) - design.shape[1])
    covariance = np.asarray(np.linalg.inv(normal)[:2, :2] * float(residual @ residual) / df, dtype=np.float64)
    inflation = float(np.sqrt(plain / df))
    base = float(values[2]) if offset else None
    return Fit(form, float(values[0]), float(values[1]), base, covariance, df, len(d), float(d.max()), inflation)


def effective_points(residual: Floats, coefficients: int) -> float:
    """How many independent points the residuals of a fit are worth.

    The smaller of Geyer's estimate and n (1 - r) / (1 + r), with r their correlation at lag one plus
    (coefficients + 3 r) / n, by which the residuals of a fit look less dependent than its noise is; r stays in 0..0.99.
    Source: Marriott and Pope 1954 for the bias of r with one coefficient, 1 + 3 r over n.
    Departures: the same with more coefficients; checked by simulation, not derived.
    """
    n = len(residual)
    centred = residual - residual.mean()
    r = float(centred[1:] @ centred[:-1] / (centred @ centred))
    r = min(max(r + (coefficients + 3 * r) / n, 0.0), 0.99)
    return min(effective_sample_size(residual), n * (1 - r) / (1 + r))


def peak_over_runs(
    runs: Sequence[tuple[Floats, Floats]], rng: np.random.Generator, draws: int = 1000, form: Form = "rl"
) -> tuple[float, float] | None:
    """95 % interval of ln d* from several runs (seeds), by drawing whole runs with replacement.

    Points along one run depend on each other, so one run is one observation. None where more than a fortieth of the
    draws bend nowhere: the interval has no upper end then.
    Shapes: runs, (d, reward) of each. Raises: ValueError for fewer than three runs, and as `fit`.
    """
    if len(runs) < 3:
        raise ValueError("an interval over runs needs at least three of them")
    logs = []
    for chosen in rng.integers(len(runs), size=(draws, len(runs))):
        d, reward = (np.concatenate([runs[i][part] for i in chosen]) for part in (0, 1))
        found = fit(d, reward, form=form).log_peak
        logs.append(np.inf if found is None else found[0])
    low, high = np.quantile(logs, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="higher")
    return (float(low), float(high)) if np.isfinite(high) else None


_BEND: dict[Form, Callable[[Floats], Floats]] = {
    "rl": lambda d: -d * np.log(np.where(d > 0, d, 1.0)),  # d ln d goes to 0 with d
    "bon": lambda d: -(d**2),
}


def _design(d: Floats, reward: Floats, weights: Floats | None, form: Form, offset: bool) -> tuple[Floats, Floats]:
    given = np.ones(len(d)) if weights is None else weights
    if len(d) < FEWEST_POINTS:
        raise ValueError(f"a fit needs at least {FEWEST_POINTS} points, got {len(d)}")
    if not len(d) == len(reward) == len(given):
        raise ValueError("distances, rewards and weights are not of one length")
    if not all(np.isfinite(values).all() for values in (d, reward, given)) or d.min() < 0 or given.min() < 0:
        raise ValueError("distances and weights must be finite and not below 0, rewards finite")
    if np.count_nonzero(given) < FEWEST_POINTS:
        raise ValueError(f"fewer than {FEWEST_POINTS} points have a weight above 0")
    if d.max() == 0:
        raise ValueError("the distances do not differ enough for a fit")
    columns = [d, _BEND[form](d)] + ([np.ones(len(d))] if offset else [])
    return np.stack(columns, axis=1), np.sqrt(given)


def _quantile(df: float) -> float:
    return float(stdtrit(df, 0.5 + CONFIDENCE / 2))
