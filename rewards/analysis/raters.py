"""How far annotators agree, what they probably mean together, and where they are of two minds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.intervals import CONFIDENCE

Floats = NDArray[np.float64]

LEVELS = ("nominal", "ordinal", "interval")
REPLICATES = 1000
CAMP = 0.3  # share of an item's labels that makes a camp
FEWEST_IN_CAMPS = 4
_SMOOTHING = 0.01
_CHUNK = 2_000_000


# -- Krippendorff's alpha ----------------------------------------------------------------------------------------------


def krippendorff(ratings: Floats, level: str = "nominal") -> float | None:
    """Krippendorff's alpha = 1 - observed / expected disagreement; None where all labels are equal or none is paired.

    Shapes: ratings (annotators, items); NaN is missing. level: nominal, ordinal or interval.
    Raises: ValueError for another level.
    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability".
    """
    counts, values = _counts(ratings, level)
    return _number(_alpha(counts, values, np.ones((1, len(counts))), level)[0])


def alpha_estimate(
    ratings: Floats, level: str, rng: np.random.Generator, replicates: int = REPLICATES
) -> dict[str, Any]:
    """Alpha with a percentile interval over resampled items.

    Keys: estimate, low, high, level, n (items with two labels or more), labels (on those), why.
    """
    counts, values = _counts(ratings, level)
    n = len(counts)
    found: dict[str, Any] = {"estimate": None, "low": None, "high": None, "level": level, "n": n}
    found |= {"labels": int(counts.sum()), "why": None}
    if n == 0:
        return found | {"why": "no item has labels of two annotators"}
    found["estimate"] = _number(_alpha(counts, values, np.ones((1, n)), level)[0])
    if found["estimate"] is None:
        return found | {"why": "all labels are equal: there is no disagreement to expect, and so none to compare with"}
    if n < 2:
        return found | {"why": "one item has labels of two annotators: no interval"}
    draws = []
    rows = max(1, _CHUNK // counts.size)
    for done in range(0, replicates, rows):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(rows, replicates - done)).astype(np.float64)
        draws.append(_alpha(counts, values, weights, level))
    kept = np.concatenate(draws)
    kept = kept[np.isfinite(kept)]  # a resample of one label only has no alpha
    if len(kept) < replicates / 2:
        return found | {"why": "most resamples hold one label only: no interval"}
    low, high = np.quantile(kept, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return found | {"low": float(low), "high": float(high)}


def _counts(ratings: Floats, level: str) -> tuple[Floats, Floats]:
    """How often each item got each value, for items with two labels or more. Shapes: (items, values), (values,)."""
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; it is one of {', '.join(LEVELS)}")
    values = np.unique(ratings[np.isfinite(ratings)])
    counts = np.stack([(ratings == value).sum(axis=0) for value in values], axis=1) if len(values) else None
    if counts is None:
        return np.zeros((0, 1)), np.zeros(1)
    return counts[counts.sum(axis=1) >= 2].astype(np.float64), values


def _alpha(counts: Floats, values: Floats, weights: Floats, level: str) -> Floats:
    """Alpha for each weighting of the items. Shapes: counts (U, V), values (V,), weights (R, U) -> (R,).

    Ordinal distances are distances of midranks among all labels of the resample. Squared distances within an item sum
    to 2 (m sum x^2 - (sum x)^2), so that no table of pairs of values is needed.
    """
    size = counts.sum(axis=1)
    per_value = weights @ counts
    total = per_value.sum(axis=1)
    if level == "nominal":
        within = weights @ ((size**2 - (counts**2).sum(axis=1)) / (size - 1))
        among = total**2 - (per_value**2).sum(axis=1)
    else:
        shifted = values - values.mean()  # exact differences, small squares
        scale = np.cumsum(per_value, axis=1) - per_value / 2 if level == "ordinal" else shifted[None, :]
        scale = np.broadcast_to(scale, per_value.shape)
        spread = size[:, None] * (counts @ (scale**2).T) - (counts @ scale.T) ** 2
        within = 2 * np.einsum("ru,ur->r", weights, spread / (size - 1)[:, None])
        among = 2 * (total * (per_value * scale**2).sum(axis=1) - ((per_value * scale).sum(axis=1)) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = among / (total - 1)
        # Rounding leaves a remainder of either sign where all labels are equal.
        known = expected > 1e-12 * np.maximum(1.0, total)
        return np.where(known, 1 - within / np.where(known, expected, 1.0), np.nan)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# -- one truth behind the labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consensus:
    """What labels come to if there is one truth and annotators err independently.

    posterior: (items, classes); confusion: (annotators, true class, label); accuracy: (annotators,), the chance of the
    true label; rounds: of the iteration.
    """

    posterior: Floats
    confusion: Floats
    accuracy: Floats
    rounds: int


def dawid_skene(codes: NDArray[np.int64], classes: int, rounds: int = 200, tolerance: float = 1e-6) -> Consensus:
    """Posterior of the true class of each item and each annotator's confusions, by EM from the shares of the votes.

    It erases dissent: keep the labels themselves beside it.
    Shapes: codes (annotators, items), 0..classes-1, -1 missing. Raises: ValueError for codes outside.
    Source: Dawid and Skene 1979. Departures: 0.01 of a label is added to every cell, so that no chance is 0.
    """
    if codes.size == 0 or codes.max() >= classes or codes.min() < -1:
        raise ValueError(f"labels must be -1 or 0..{classes - 1}, and there must be some")
    said = (codes[:, :, None] == np.arange(classes)).astype(np.float64)
    votes = said.sum(axis=0)
    total = votes.sum(axis=1, keepdims=True)
    posterior = np.where(total > 0, votes / np.maximum(total, 1), 1 / classes)
    for done in range(1, rounds + 1):
        prior = posterior.mean(axis=0) + _SMOOTHING / len(posterior)
        confusion = np.einsum("ut,auk->atk", posterior, said) + _SMOOTHING
        confusion /= confusion.sum(axis=2, keepdims=True)
        log = np.log(prior / prior.sum()) + np.einsum("auk,atk->ut", said, np.log(confusion))
        log -= log.max(axis=1, keepdims=True)
        new = np.exp(log)
        new /= new.sum(axis=1, keepdims=True)
        moved = float(np.abs(new - posterior).max())
        posterior = new
        if moved < tolerance or done == rounds:
            break
    accuracy = np.einsum("t,att->a", posterior.mean(axis=0), confusion)
    return Consensus(posterior, confusion, accuracy, done)


def majority(codes: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The most frequent label of each item; -1 for a tie or no label. Shapes: codes (annotators, items) -> (items,)."""
    votes = (codes[:, :, None] == np.arange(classes)).sum(axis=0)
    best = votes.max(axis=1)
    alone = ((votes == best[:, None]).sum(axis=1) == 1) & (best > 0)
    return np.where(alone, votes.argmax(axis=1), -1).astype(np.int64)


# -- two minds ---------------------------------------------------------------------------------------------------------


def two_camps(
    labels: Sequence[float], level: str, spread: float | None = None
) -> tuple[list[float], list[float]] | None:
    """The two camps of an item's labels, or None: such an item has no middle that anybody meant.

    Nominal: the two most frequent labels hold 30 % each. Ordinal and interval: the labels fall apart at a gap of at
    least half of `spread` (the range of all labels in use), with 30 % on either side. At least 4 labels.
    """
    n = len(labels)
    if n < FEWEST_IN_CAMPS:
        return None
    ordered = sorted(labels)
    if level == "nominal":
        counts = sorted(((ordered.count(value), value) for value in set(ordered)), reverse=True)
        if len(counts) < 2 or counts[1][0] < CAMP * n:
            return None
        return [counts[0][1]] * counts[0][0], [counts[1][1]] * counts[1][0]
    gap, cut = max((ordered[i] - ordered[i - 1], i) for i in range(1, n))
    wide = (ordered[-1] - ordered[0]) if spread is None else spread
    if gap <= 0 or gap < wide / 2 or min(cut, n - cut) < CAMP * n:
        return None
    return ordered[:cut], ordered[cut:]
