"""When a reward model may decide: prediction sets of split conformal prediction, and whether margins rank the errors.

The set of a row holds each outcome whose strangeness, one minus its probability, is at most a threshold. With one
outcome in it the set decides; with both, the model has nothing to say of the row. Strangeness falls with the margin for
the outcome whatever the temperature, and any label noise below one half, may be: the sets are those of the margin
against the outcome, in units of z. So no row is spent on a temperature, and two halves suffice, one for the threshold
and one to measure on. A row that is turned round (-z, 1 - y) keeps its score: of a pair either text may come first.

What is promised is an average over rows like those of the calibration: not for each category (hence thresholds of
their own), not for each outcome, not for the rows that are decided (where errors are all to be found: hence their
accuracy), and not after the policy whose texts are judged has moved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from rlhf.evaluation.calibration import Floats, claims, halves
from rlhf.evaluation.harness import share

ALPHA = 0.1


def rank(n: int, alpha: float) -> int:
    """Which of n sorted scores is the threshold, k = ceil((n + 1)(1 - alpha)); above n, none of them.

    Raises: ValueError for an alpha that is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is the share of sets that may miss: expected a number between 0 and 1, got {alpha}")
    # In binary fractions the product can lie just above a whole number, and k would be one too many.
    return math.ceil((n + 1) * (1 - Fraction(str(float(alpha)))))


def threshold(scores: Floats, alpha: float) -> float:
    """The k-th smallest calibration score; infinite, which puts every outcome into every set, where k > n.

    The score of a row that is exchangeable with them is at most that with probability k / (n + 1), which is at least
    1 - alpha and hardly more; where scores are tied it can be much more, never less.
    Raises: ValueError for scores that are not numbers, or an alpha that is not between 0 and 1.
    Source: Sadinle et al. 2019 (1609.00451) for the score, Vovk 2012 (1209.2673) for the threshold.
    """
    k, missing = rank(len(scores), alpha), int(np.isnan(scores).sum())
    if missing:
        raise ValueError(f"{missing} of {len(scores)} scores are not numbers")
    return math.inf if k > len(scores) else float(np.partition(scores, k - 1)[k - 1])


def coverage_law(n: int, alpha: float, quantiles: Sequence[float] = ()) -> tuple[float, Floats]:
    """Mean and quantiles of what a threshold from n rows turns out to cover: Beta(k, n + 1 - k); 1 where k > n.

    Exact for independent rows with scores that are never tied; with ties the coverage is that or more.
    Raises: ValueError for an alpha that is not between 0 and 1.
    Source: Marques 2023 (2303.02770).
    """
    k = rank(n, alpha)
    if k > n:
        return 1.0, np.ones(len(quantiles))
    return k / (n + 1), np.asarray(beta.ppf(np.asarray(quantiles, dtype=np.float64), k, n + 1 - k))


def against(z: Floats, y: Floats) -> Floats:
    """The margin against the outcome that came true, which is the score of a row: below 0 where the model is right."""
    return np.where(y == 1, -z, z)


def aurc(confidence: Floats, wrong: Floats) -> float:
    """Area under the risk-coverage curve: the mean over k of the share wrong among the k most confident rows.

    Rows of equal confidence count as the mean over their orders.
    Raises: ValueError without rows.
    Source: Geifman et al. 2019 (1805.08206).
    """
    if len(confidence) == 0:
        raise ValueError("a risk-coverage curve needs at least one row")
    _, level, size = np.unique(-confidence, return_inverse=True, return_counts=True)
    even = np.repeat(np.bincount(level, weights=wrong) / size, size)
    return float((np.cumsum(even) / np.arange(1, len(even) + 1)).mean())


def one_of_each(keys: Sequence[str]) -> NDArray[np.intp]:
    """One row of each key, by digest: rows of one prompt are alike, so that all of them are not exchangeable.

    Source: Dunn et al. 2022 (1809.07441), single subsampling.
    """
    rows: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        rows.setdefault(key, []).append(i)
    draws = {key: int.from_bytes(hashlib.sha256(f"conformal:{key}".encode()).digest()[:8], "big") for key in rows}
    return np.array([mine[draws[key] % len(mine)] for key, mine in rows.items()], dtype=np.intp)


def conformal(
    z: Floats, y: Floats, keys: Sequence[str], categories: Sequence[str | None], alpha: float = ALPHA
) -> dict[str, Any]:
    """What a threshold from one half of the keys decides and covers of the other half.

    `metrics`: over all; with the areas under the risk-coverage curve of both halves, `e_aurc` being what is above that
    of the best order of the same errors. `by_category`: by a threshold of the category's own. Where its rows are too
    few for one it has none, as the threshold over all promises nothing there; `coverage_pooled` is what that covers.
    keys: of the rows with one key (a prompt) one is used.
    Units: decide_margin in those of z, of which |z| above it decides; all else are shares.
    Raises: ValueError without rows, or for an alpha that is not between 0 and 1.
    Departures: no set is empty. Where the threshold is below 0, there being fewer errors than alpha, all is decided,
    and the coverage is above the law.
    """
    chosen = one_of_each(keys)
    z, y = z[chosen], y[chosen]
    fit = halves([keys[i] for i in chosen])
    names = np.array([categories[i] for i in chosen], dtype=object)
    finite, why = bool(np.isfinite(z).all()), None
    if not finite:
        why = "some margins are not finite"
    elif not np.isin(y, (0, 1)).all():
        why = "the labels are probabilities: which outcome came true is not known"
    confidence, right = claims(z, y)
    area = aurc(confidence, 1 - right)
    excess = area - aurc(right, 1 - right)
    areas = {"aurc": area, "e_aurc": excess} if finite else {"aurc": None, "e_aurc": None}
    scores = against(z, y)
    metrics = _decisions(scores[fit], scores[~fit], alpha, why)
    cut, found = metrics["decide_margin"], {}
    for name in sorted({str(name) for name in names if name is not None}):
        mine = names == name
        rest = scores[mine & ~fit]
        pooled = _share(rest <= cut["value"]) if "why" not in cut else _figure(None, len(rest), cut["why"])
        found[name] = _decisions(scores[mine & fit], rest, alpha, why) | {"coverage_pooled": pooled}
    metrics |= {name: _figure(value, len(z), None if finite else why) for name, value in areas.items()}
    return {"metrics": metrics, "by_category": found}


def _decisions(fit: Floats, rest: Floats, alpha: float, why: str | None) -> dict[str, dict[str, Any]]:
    """The threshold of some scores and what it does to others; null with the reason where there is none."""
    n, k = len(fit), rank(len(fit), alpha)
    if why is None and k > n:
        least = math.ceil(1 / Fraction(str(float(alpha)))) - 1
        why = f"{n} rows to calibrate on, and to cover {100 * (1 - alpha):g} % takes {least}"
    if why is not None:
        measured = ("decided", "decided_accuracy", "coverage")
        names = {"decide_margin": n, **dict.fromkeys(measured, len(rest)), "coverage_law": n}
        return {name: _figure(None, size, why) for name, size in names.items()}
    found = threshold(fit, alpha)
    cut = max(found, 0.0)
    decided = np.abs(rest) > cut
    average, (low, high) = coverage_law(n, alpha, (0.025, 0.975))
    law = {"value": average, "low": float(low), "high": float(high), "n": n}
    if found < 0:
        law = _figure(None, n, f"under {100 * alpha:g} % are ranked wrong: all are decided, more covered than asked")
    return {
        "decide_margin": _figure(cut, n),
        "decided": _share(decided),
        "decided_accuracy": _share(rest[decided] < 0, "none is decided"),
        "coverage": _share(rest <= cut),
        "coverage_law": law,
    }


def _share(hits: NDArray[np.bool_], empty: str = "no rows to measure on") -> dict[str, Any]:
    return share(hits.tolist()) or _figure(None, 0, empty)


def _figure(value: float | None, n: int, why: str | None = None) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "n": n} | ({} if why is None else {"why": why})
