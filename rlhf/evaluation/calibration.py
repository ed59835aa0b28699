"""Whether a model's probabilities are right: reliability, expected calibration error, temperature, Brier and log loss.

A margin z says that an outcome y is 1 with probability sigmoid(z), and with known label noise e with
(1 - e) sigmoid(z) + e sigmoid(-z). Of a pair y is 1 always, in the order that the pair is given in; so that its
probabilities can be binned, each pair is read as the claim that the text with the higher score is the better one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, log_expit

from rewards.analysis.intervals import wilson
from rlhf.evaluation.harness import mean

Floats = NDArray[np.float64]

BINS = 15
PER_BIN = 20
LEAST_HALF = 20
_HALF_CHI2 = 1.920729410347062
"""Half of the 95 % point of chi-squared with one degree of freedom."""


@dataclass(frozen=True)
class Bin:
    """A bin of the reliability diagram: mean probability that was claimed, share that came true with 95 % interval."""

    claimed: float
    found: float
    low: float
    high: float
    n: int


def claims(z: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Margins and outcomes, turned round where the margin is negative: every claim is of at least one half."""
    return np.abs(z), np.where(z == 0, 0.5, np.where(z > 0, y, 1 - y))


def probabilities(z: Floats, noise: float = 0.0) -> Floats:
    """(1 - e) sigmoid(z) + e sigmoid(-z)."""
    return np.asarray((1 - noise) * expit(z) + noise * expit(-z), dtype=np.float64)


def _cut(p: Floats, bins: int | None) -> list[NDArray[np.intp]]:
    if len(p) == 0:
        raise ValueError("a calibration needs at least one probability")
    count = max(1, min(BINS, len(p) // PER_BIN)) if bins is None else bins
    return np.array_split(np.argsort(p, kind="stable"), count)


def reliability(p: Floats, y: Floats, bins: int | None = None) -> list[Bin]:
    """Equal-mass bins of claimed probabilities against what came true; bins: null, 15 of at least 20 each."""
    found = []
    for index in _cut(p, bins):
        share = float(y[index].mean())
        low, high = wilson(share * len(index), len(index))
        found.append(Bin(float(p[index].mean()), share, low, high, len(index)))
    return found


def ece(p: Floats, y: Floats, bins: int | None = None) -> float:
    """Expected calibration error as it is usually computed: sum_b w_b |p - y|. Biased upwards, never 0 at finite n."""
    return float(sum(len(i) * abs(p[i].mean() - y[i].mean()) for i in _cut(p, bins)) / len(p))


def squared_ece(p: Floats, y: Floats, bins: int | None = None) -> float:
    """Squared calibration error without the bias of its bins' noise: sum_b w_b [(p - y)^2 - var(y) / n_b].

    var(y) / n_b is y (1 - y) / (n_b - 1) of outcomes 0 and 1, and less of probabilities. Around 0, and as often below,
    when the probabilities are right.
    Raises: ValueError for bins with fewer than two rows.
    Source: Kumar et al. 2019 (1909.10155), the debiased estimator.
    """
    total = 0.0
    for index in _cut(p, bins):
        n = len(index)
        if n < 2:
            raise ValueError("a bin of one row has no variance: use fewer bins")
        total += n * ((float(p[index].mean()) - float(y[index].mean())) ** 2 - float(y[index].var(ddof=1)) / n)
    return total / len(p)


def brier(p: Floats, y: Floats) -> Floats:
    """(p - y)^2 of each row."""
    return (p - y) ** 2


def log_loss(z: Floats, y: Floats, noise: float = 0.0) -> Floats:
    """-log of the probability of what came true, each row. Units: nats."""
    return -(y * _log_probability(z, noise) + (1 - y) * _log_probability(-z, noise))


def _log_probability(z: Floats, noise: float) -> Floats:
    if noise == 0:
        return np.asarray(log_expit(z))
    return np.asarray(np.logaddexp(math.log1p(-noise) + log_expit(z), math.log(noise) + log_expit(-z)))


def fit_temperature(z: Floats, y: Floats, noise: float = 0.0) -> dict[str, Any]:
    """The temperature T of maximum likelihood for sigmoid(z / T), with its 95 % profile-likelihood interval.

    value and bounds are null, with the reason in `why`, where the data have no such T: too few rows, margins that
    order no better than chance, or without a single error.
    Source: Guo et al. 2017 (1706.04599) sec. 4.2, for one logit.
    """

    def missing(why: str) -> dict[str, Any]:
        return {"value": None, "low": None, "high": None, "n": len(z), "why": why}

    if len(z) < LEAST_HALF:
        return missing(f"fewer than {LEAST_HALF} rows")
    if not np.any(z):
        return missing("all margins are 0")
    if np.all(z * (2 * y - 1) >= 0) and np.all((y == 0) | (y == 1)) and noise == 0:
        return missing("no margin is on the wrong side: the likelihood grows without end as T falls")
    if _slope(0.0, z, y, noise) <= 0:
        return missing("the margins order no better than chance: no positive temperature fits")
    # The inverse a = 1 / T is what is searched: at a = 0 the slope is positive, and far out it is negative.
    scale = 1.0 / float(np.abs(z).mean())
    top = _beyond(lambda a: _slope(a, z, y, noise) < 0, scale)
    if top is None:
        return missing("the likelihood grows without end as T falls")
    best = brentq(lambda a: _slope(a, z, y, noise), 0.0, top, xtol=1e-12 * top)
    limit = float(log_loss(best * z, y, noise).sum()) + _HALF_CHI2

    def over(a: float) -> float:
        return float(log_loss(a * z, y, noise).sum()) - limit

    least = brentq(over, 0.0, best) if over(0.0) > 0 else None
    far = _beyond(lambda a: over(a) > 0, best)
    most = None if far is None else brentq(over, best, far)
    return {
        "value": 1 / best,
        "low": None if most is None else 1 / most,
        "high": None if least is None else 1 / least,
        "n": len(z),
    }


def _slope(a: float, z: Floats, y: Floats, noise: float) -> float:
    """Derivative of the log likelihood by a."""
    s = expit(a * z)
    p = (1 - noise) * s + noise * (1 - s)
    inner = (1 - 2 * noise) * s * (1 - s) * z
    return float((y * inner / np.maximum(p, 1e-300) - (1 - y) * inner / np.maximum(1 - p, 1e-300)).sum())


def _beyond(reached: Callable[[float], bool], start: float) -> float | None:
    a = start
    for _ in range(60):
        if reached(a):
            return a
        a *= 2
    return None


def halves(keys: Sequence[str]) -> NDArray[np.bool_]:
    """True for the half that a temperature is fitted on: by digest, so that rows of one key stay together."""
    return np.array([hashlib.sha256(f"calibration:{key}".encode()).digest()[0] % 2 == 0 for key in keys], dtype=bool)


def calibrate(z: Floats, y: Floats, keys: Sequence[str], noise: float = 0.0) -> dict[str, Any]:
    """Figures before and after the temperature, and the reliability diagram before it.

    The temperature is fitted on one half of the keys; Brier score, log loss and calibration error are those of the
    other half. Where no temperature can be had, the figures before it are those of all rows, and those after it null.
    keys: rows with one key (a prompt) are on one side.
    """
    fit = halves(keys)
    temperature = fit_temperature(z[fit], y[fit], noise)
    t = temperature["value"]
    rest = np.ones(len(z), dtype=bool) if t is None or fit.all() else ~fit
    claim_z, claim_y = claims(z[rest], y[rest])
    metrics: dict[str, Any] = {"temperature": temperature}
    for when, divisor in (("before", 1.0), ("after", t if not fit.all() else None)):
        metrics |= _figures(when, claim_z, claim_y, divisor, noise)
    p = probabilities(claim_z, noise)
    return {"metrics": metrics, "n": len(z), "reliability": [asdict(b) for b in reliability(p, claim_y)]}


def _figures(when: str, z: Floats, y: Floats, divisor: float | None, noise: float) -> dict[str, Any]:
    names = ("brier", "log_loss", "ece", "squared_ece")
    if divisor is None:
        return {f"{name}_{when}": {"value": None, "low": None, "high": None, "n": len(z)} for name in names}
    scaled = z / divisor
    p = probabilities(scaled, noise)
    squared = None if len(z) < 2 else squared_ece(p, y)
    bare = {"ece": ece(p, y), "squared_ece": squared}
    return {
        f"brier_{when}": mean(brier(p, y).tolist()),
        f"log_loss_{when}": mean(log_loss(scaled, y, noise).tolist()),
        **{f"{name}_{when}": {"value": v, "low": None, "high": None, "n": len(z)} for name, v in bare.items()},
    }
