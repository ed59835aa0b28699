"""Quasi-binomial regression on the logit scale: overdispersion from Pearson's statistic, t intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, stdtr, stdtrit

from rewards.analysis.intervals import CONFIDENCE

Floats = NDArray[np.float64]

POWER = 0.8
MOST_STEPS = 60
# A fitted share within 2e-9 of 0 or 1: no finite number of sessions tells that from a coefficient without bound.
LARGEST_LOGIT = 20.0

SEPARATED = "the outcome never or always occurs on one side of the comparison: no finite estimate exists"


@dataclass(frozen=True)
class Coefficient:
    """One coefficient of a fit. Units: logit, per unit of its column.

    mde: the smallest true value that a two-sided test at the interval's level would find with 80 % power.
    """

    estimate: float
    low: float
    high: float
    se: float
    p: float
    mde: float


@dataclass(frozen=True)
class Fit:
    """A fitted model. Shapes: coefficients (columns,), covariance (columns, columns), scaled by phi.

    phi: max(1, Pearson's statistic / df); pearson: that statistic; df: rows less columns; why: the reason for having
    no coefficients, which are then NaN.
    """

    coefficients: Floats
    covariance: Floats
    phi: float
    pearson: float
    df: int
    why: str | None = None

    def coefficient(self, index: int) -> Coefficient:
        """One coefficient with its t interval at df degrees of freedom.

        Raises: ValueError for a fit that has none.
        """
        if self.why is not None:
            raise ValueError(self.why)
        value, se = float(self.coefficients[index]), float(np.sqrt(self.covariance[index, index]))
        quantile = float(stdtrit(self.df, 0.5 + CONFIDENCE / 2))
        p = 2 * float(stdtr(self.df, -abs(value) / se))
        mde = (quantile + float(stdtrit(self.df, POWER))) * se
        return Coefficient(value, value - quantile * se, value + quantile * se, se, p, mde)


def fit_logit(successes: Floats, trials: Floats, design: Floats) -> Fit:
    """Maximum likelihood of logit p = design @ coefficients, by iteratively reweighted least squares.

    The variance of a count is phi n p (1 - p). Rows without trials have no part. Separation, where no maximum exists,
    is reported in `why`, and so are columns that depend on each other and too few rows.
    Shapes: successes, trials (rows,), design (rows, columns).
    Raises: ValueError for counts that are no counts.
    Source: McCullagh & Nelder 1989, sections 2.5 and 4.5.
    Departures: phi is never below 1, so that chance underdispersion earns no narrower interval.
    """
    if np.any(successes < 0) or np.any(successes > trials) or not np.all(np.isfinite(trials)):
        raise ValueError("needs 0 <= successes <= trials in every row")
    kept = trials > 0
    k, n, x = successes[kept], trials[kept], design[kept]
    df = len(k) - x.shape[1]
    if df < 1:
        return _nothing(x, df, f"{len(k)} rows for {x.shape[1]} coefficients leave no degree of freedom")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return _nothing(x, df, "the columns of the design depend on each other")
    beta = _maximise(k, n, x)
    if beta is None:
        return _nothing(x, df, SEPARATED)
    mu = expit(x @ beta)
    weight = n * mu * (1 - mu)
    pearson = float(((k - n * mu) ** 2 / weight).sum())
    phi = max(1.0, pearson / df)
    return Fit(beta, phi * np.linalg.inv(x.T @ (weight[:, None] * x)), phi, pearson, df)


def _maximise(k: Floats, n: Floats, x: Floats) -> Floats | None:
    """The coefficients; None where they have no bound."""
    share = (k + 0.5) / (n + 1)
    start = np.log(share / (1 - share))
    weight = n * share * (1 - share)
    beta = np.linalg.solve(x.T @ (weight[:, None] * x), x.T @ (weight * start))
    eta = x @ beta
    best = _likelihood(k, n, eta)
    for _ in range(MOST_STEPS):
        mu = expit(eta)
        weight = n * mu * (1 - mu)
        try:
            move = np.linalg.solve(x.T @ (weight[:, None] * x), x.T @ (k - n * mu))
        except np.linalg.LinAlgError:
            return None
        reached = x @ (beta + move)
        # The likelihood is concave: half a step, repeated, always gains.
        for _ in range(30):
            if _likelihood(k, n, reached) >= best - 1e-12 * abs(best):
                break
            move = move / 2
            reached = x @ (beta + move)
        beta, change, eta = beta + move, float(np.abs(reached - eta).max()), reached
        best = _likelihood(k, n, eta)
        if float(np.abs(eta).max()) > LARGEST_LOGIT:
            return None
        if change < 1e-8:  # the steps shrink quadratically: the next one would be below rounding
            return np.asarray(beta, dtype=np.float64)
    return None


def _likelihood(k: Floats, n: Floats, eta: Floats) -> float:
    return float((k * eta - n * np.logaddexp(0, eta)).sum())


def _nothing(x: Floats, df: int, why: str) -> Fit:
    columns = x.shape[1]
    return Fit(np.full(columns, np.nan), np.full((columns, columns), np.nan), float("nan"), float("nan"), df, why)
