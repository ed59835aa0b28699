"""Whether larger changes of a differential went with larger effects, over all recalibrations of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from rewards.analysis.binomial import POWER
from rewards.analysis.data import RunData
from rewards.analysis.intervals import CONFIDENCE

Floats = NDArray[np.float64]

FEWEST_EVENTS = 20
UNIT = "logit of the excess effect per unit of log(new differential / old differential)"


@dataclass(frozen=True)
class Slope:
    """A weighted regression of effects on a dose. n: events; df: events less coefficients; scale: of the weights.

    mde: the smallest true slope that would be found at 80 % power.
    """

    estimate: float
    low: float
    high: float
    se: float
    p: float
    time_slope: float
    n: int
    df: int
    scale: float
    mde: float


def regress(effects: Floats, errors: Floats, dose: Floats, time: Floats) -> Slope | str:
    """The slope of estimated effects on a dose at equal time, or why there is none.

    Weights 1 / se^2; the covariance is scaled by the weighted mean square of the residuals, with t intervals.
    Shapes: one entry an event each. Units: time in any; errors: standard errors of the effects, above 0.
    Source: Hartung & Knapp 2001; Knapp & Hartung 2003.
    Departures: the scale is never below 1, so that effects that agree by chance earn no narrower interval (Roever,
    Knapp & Friede 2015); the time of the event is a covariate, since doses that escalate follow the run's trend.
    """
    n = len(effects)
    if n < 4:
        return f"{n} events; a slope beside a trend with an interval needs 4"
    design = np.column_stack([np.ones(n), _standard(dose), _standard(time)])
    if np.linalg.matrix_rank(design) < 3:
        return "the doses are all equal, or follow the time of the events exactly: their slope cannot be told"
    weight = 1 / errors**2
    inverse = np.linalg.inv(design.T @ (weight[:, None] * design))
    beta = inverse @ (design.T @ (weight * effects))
    df = n - 3
    scale = max(1.0, float((weight * (effects - design @ beta) ** 2).sum()) / df)
    unit = float(np.std(dose))
    value, se = float(beta[1]) / unit, float(np.sqrt(scale * inverse[1, 1])) / unit
    quantile = float(stdtrit(df, 0.5 + CONFIDENCE / 2))
    return Slope(
        estimate=value,
        low=value - quantile * se,
        high=value + quantile * se,
        se=se,
        p=2 * float(stdtr(df, -abs(value) / se)),
        time_slope=float(beta[2]) / float(np.std(time)),
        n=n,
        df=df,
        scale=scale,
        mde=(quantile + float(stdtrit(df, POWER))) * se,
    )


def section(data: RunData, effects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Dose and response over the recalibrations of a run.

    effects: its recalibrations with their excess effects, of which the first outcome is taken. Below FEWEST_EVENTS
    only the interval of the slope is given. The rank correlation is descriptive: it knows no errors and no trend.
    """
    points, left_out = _points(effects)
    found: dict[str, Any] = {
        "events": len(points),
        "left_out": left_out,
        "needed_events": FEWEST_EVENTS,
        "outcome": next((entry["outcomes"][0]["outcome"] for entry in effects if entry.get("outcomes")), None),
        "unit": UNIT,
        "points": points,
        **dict.fromkeys(("slope", "low", "high", "se", "p", "time_slope", "df", "mde", "spearman")),
    }
    if not effects:
        return found | _refusal("no recalibration is on record")
    slope = _regressed(points)
    short = len(points) < FEWEST_EVENTS
    if isinstance(slope, str):
        return found | _refusal(f"insufficient: {len(points)} of {FEWEST_EVENTS} events" if short else slope)
    found |= {"low": slope.low, "high": slope.high, "df": slope.df, "mde": slope.mde}
    if short:
        why = f"insufficient: {len(points)} of {FEWEST_EVENTS} events"
        interval = f"{slope.low:+.2f} to {slope.high:+.2f}"
        return found | {"why": why, "verdict": f"{why}; the interval of the slope, {interval}, is all that is given."}
    found |= {"slope": slope.estimate, "se": slope.se, "p": slope.p, "time_slope": slope.time_slope}
    dose = np.array([point["log_ratio"] for point in points])
    return found | {
        "spearman": spearman(dose, np.array([point["estimate"] for point in points])),
        "why": None,
        "verdict": _verdict(slope),
    }


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation, ties at their mean rank."""
    from scipy.stats import rankdata  # takes most of a second to import

    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _points(effects: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Events with an effect and a dose, and how many lack which."""
    points = []
    left_out = {"no_estimate": 0, "no_ratio": 0}
    for entry in effects:
        honest, old, new = entry.get("excess") or {}, entry.get("old_pct"), entry.get("new_pct")
        if honest.get("estimate") is None or entry.get("session") is None:
            left_out["no_estimate"] += 1
        elif old is None or new is None or old <= 0 or new <= 0:  # a differential that begins or ends at 0
            left_out["no_ratio"] += 1
        else:
            points.append(
                {
                    "session": entry["session"],
                    "category": entry["category"],
                    "difference_points": new - old,
                    "ratio": new / old,
                    "log_ratio": float(np.log(new / old)),
                    "estimate": honest["estimate"],
                    "se": honest["se"],
                }
            )
    return points, left_out


def _regressed(points: Sequence[Mapping[str, Any]]) -> Slope | str:
    columns = (np.array([point[name] for point in points]) for name in ("estimate", "se", "log_ratio", "session"))
    return regress(*columns)


def _standard(x: Floats) -> Floats:
    spread = float(np.std(x))
    return (x - x.mean()) / spread if spread > 1e-12 * max(1.0, float(np.abs(x).max())) else np.zeros(len(x))


def _refusal(why: str) -> dict[str, Any]:
    return {"why": why, "verdict": f"No dose-response is given: {why}."}


def _verdict(slope: Slope) -> str:
    way = "larger" if slope.estimate > 0 else "smaller"
    interval = f"{slope.low:+.2f} to {slope.high:+.2f}, {slope.n} events, p {slope.p:.3f}"
    if slope.low <= 0 <= slope.high:
        return (
            f"No dose-response is claimed: the interval ({interval}) covers 0; slopes of {slope.mde:.2f} or more could "
            "have been found."
        )
    return (
        f"Larger changes went with {way} excess effects: {slope.estimate:+.2f} "
        f"({interval}), at equal time of the event. Doses were not assigned at random."
    )
