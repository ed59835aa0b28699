"""A paired experiment's effect: one difference per seed, its interval, exact p and smallest detectable effect."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, stdtrit

from rewards.analysis.intervals import CONFIDENCE

Floats = NDArray[np.float64]

POWER = 0.8
EXACT_PAIRS = 20
DRAWS = 1 << 18
# Sums of the same numbers in another order differ by rounding; that must not decide about a tie.
TIE = 1e-12


@lru_cache(maxsize=1)
def _quadrature() -> tuple[Floats, Floats]:
    """Gauss and Legendre's points on 0..1 and their weights; half a second of work, and few runs are forked."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    return nodes / 2 + 0.5, weights / 2


def paired_effect(treated: Floats, control: Floats) -> dict[str, Any]:
    """Mean difference of pairs with a t interval over pairs, exact sign-flip p and smallest detectable effect.

    Shapes: one value a pair each; a pair with a NaN on either side takes no part. mde: what a two-sided t test at 5 %
    finds in four of five experiments of this many pairs and this spread. p_least: the smallest p that so many pairs can
    give, whatever they show. identical: every pair has no difference at all.
    """
    if treated.shape != control.shape:
        raise ValueError(f"pairs need equal shapes, got {treated.shape} and {control.shape}")
    d = treated - control
    known = np.isfinite(d)
    d = d[known]
    n = len(d)
    found: dict[str, Any] = dict.fromkeys(("estimate", "low", "high", "p", "p_least", "mde", "sd"))
    found |= {"n_pairs": n, "identical": bool(n and not d.any()), "why": None}
    if n == 0:
        return found | {"why": "no pair has the outcome in both arms"}
    found |= {
        "estimate": float(d.mean()),
        "treated_mean": float(treated[known].mean()),
        "control_mean": float(control[known].mean()),
        "p": sign_flip_p(d),
        "p_least": 2.0 ** (1 - n),
    }
    if n == 1:
        return found | {"why": "one pair: a difference without an interval"}
    sd = float(d.std(ddof=1))
    found["sd"] = sd
    if found["identical"]:
        return found | {"low": 0.0, "high": 0.0, "why": "the arms do not differ in any pair: there is no spread"}
    if sd <= TIE * float(np.abs(d).max()):
        return found | {"why": "every pair has the same difference: their spread gives no interval"}
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * sd / float(np.sqrt(n))
    found |= {"low": found["estimate"] - half, "high": found["estimate"] + half, "mde": paired_mde(sd, n)}
    return found


def sign_flip_p(differences: Floats) -> float:
    """Two-sided p: the share of all assignments of signs whose sum is at least as far from 0 as the one observed.

    Exact by enumeration up to 20 pairs; above, from 262,144 assignments drawn with a fixed seed, the observed one
    counted among them.
    Raises: ValueError for no differences.
    Source: Fisher 1935, section 21.
    """
    n = len(differences)
    if n == 0:
        raise ValueError("a sign-flip test needs at least one difference")
    bound = abs(float(differences.sum())) - TIE * max(float(np.abs(differences).sum()), TIE)
    if n > EXACT_PAIRS:
        rng = np.random.default_rng(0)
        hits = sum(
            int((np.abs((2.0 * rng.integers(0, 2, (DRAWS >> 4, n)) - 1) @ differences) >= bound).sum())
            for _ in range(16)
        )
        return (hits + 1) / (DRAWS + 1)
    # A sign more doubles the sums; by symmetry the first one can stay as it is.
    sums = differences[:1]
    for value in differences[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= bound))


def paired_mde(sd: float, n: int, power: float = POWER, confidence: float = CONFIDENCE) -> float:
    """Smallest mean difference that a two-sided paired t test finds with the given power.

    The noncentral t's tails are the normal's, averaged over the law of the estimated spread.
    Units: those of sd, the standard deviation of the differences. Raises: ValueError for fewer than two pairs.
    Departures: by quadrature, because scipy's noncentral t is NaN in parts of its lower tail.
    """
    if n < 2 or not sd > 0:
        raise ValueError(f"a smallest detectable difference needs two pairs and a spread, got n={n}, sd={sd}")
    from scipy.optimize import brentq  # takes half a second to import, and few runs were forked

    df = n - 1
    limit = float(stdtrit(df, 0.5 + confidence / 2))
    nodes, weights = _quadrature()
    spread = np.sqrt(2 * gammaincinv(df / 2, nodes) / df)

    def short(shift: float) -> float:
        return float(weights @ (ndtr(shift - limit * spread) + ndtr(-shift - limit * spread))) - power

    high = limit + 5.0
    while short(high) < 0:
        high *= 2
    return float(brentq(short, 0.0, high, xtol=1e-10)) * sd / float(np.sqrt(n))
