"""One recalibration, one outcome: naive and honest estimate, what could have been found, drift before the event."""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import logit, ndtr, ndtri

from rewards.analysis.binomial import POWER
from rewards.analysis.event_bins import PER, Design, Pair, Sessions, Values, bins_around, pair, tally
from rewards.analysis.excess import Excess, compare, points, slope
from rewards.analysis.intervals import CONFIDENCE, rate_mde
from rewards.analysis.recalibration_outcomes import Moment, Outcome
from rewards.analysis.recalibration_placebos import in_space, in_time, withheld

DRIFT_LEVEL = 0.05
TARGETS = (5.0, 8.0, 11.0)

REGRESSION_TO_THE_MEAN = (
    "refused: the event was triggered by a high window, and a window picked for being high is followed by a lower one "
    "whatever is done (regression to the mean)"
)


def outcome_effect(
    sessions: Sessions, outcome: Outcome, moment: Moment, design: Design, placebos: int = 20
) -> dict[str, Any]:
    """Everything about one outcome but its adjusted p and its verdict, which need all the others.

    placebos: how many other dates are tried, at most.
    """
    found = compare(sessions, outcome.values, moment.place, moment.treated, moment.controls, design)
    honest = found.with_trend
    space = in_space(found, moment, honest)
    return {
        "outcome": outcome.name,
        "label": outcome.label,
        "naive": naive(sessions, outcome.values, moment, design.naive_window),
        "excess": honest.as_dict(),
        "without_trend": found.without_trend.as_dict(),
        **detectable(honest, (moment.place.stop - moment.place.start) // 2),
        "pretrend": drift(sessions, outcome.values, moment, found.width, design),
        "placebo": {
            "in_time": in_time(sessions, outcome, moment, honest, design, placebos),
            "in_space": space,
            "triggers": withheld(sessions, outcome, moment, design),
            "smallest_p": space["smallest_p"],
        },
        "bin_sessions": found.width,
        "correlation_sessions": found.time,
        "donut_sessions": moment.place.gap_before + moment.place.gap_after,
        "donut": {"before": moment.place.gap_before, "after": moment.place.gap_after},
        "window": {"first_session": moment.place.start + 1, "last_session": moment.place.stop},
        "series": _series(found.both, moment.place.at),
        "why": honest.why,
    }


def naive(sessions: Sessions, values: Values, moment: Moment, window: int) -> dict[str, Any]:
    """The category's share before and after, and the two-proportion z test: what is usually reported, for comparison.

    It takes the run's trend for an effect. For a triggered event it is refused. Units: shares, differences of them;
    mde_points: percentage points that it would find at 80 % power if sessions were independent.
    """
    at, stop = moment.place.at, min(moment.place.at + window, int(sessions.edges[-1]))
    sides = []
    for low, high in ((max(0, at - window), at), (at, stop)):
        part = values(low, high)
        sides.append(part[(sessions.codes[low:high] == moment.treated) & np.isfinite(part)])
    n_before, n_after = len(sides[0]), len(sides[1])
    found: dict[str, Any] = dict.fromkeys(
        ("before", "after", "difference", "low", "high", "p", "mde_points", "refused")
    )
    found |= {"n_before": n_before, "n_after": n_after, "window": window, "why": None}
    if not n_before or not n_after:
        return found | {"why": "the outcome of the category is not on record on both sides"}
    k_before, k_after = float(sides[0].sum()), float(sides[1].sum())
    held = (k_before + k_after + 2) / (n_before + n_after + 4)  # never 0 or 1: a share seen as 0 is not known to be 0
    found["mde_points"] = 100 * rate_mde(held, n_before, n_after)
    if moment.triggered:
        return found | {"refused": REGRESSION_TO_THE_MEAN}
    before, after = k_before / n_before, k_after / n_after
    pooled = (k_before + k_after) / (n_before + n_after)
    spread = float(np.sqrt(pooled * (1 - pooled) * (1 / n_before + 1 / n_after)))
    half = float(
        ndtri(0.5 + CONFIDENCE / 2) * np.sqrt(before * (1 - before) / n_before + after * (1 - after) / n_after)
    )
    found |= {"before": before, "after": after, "difference": after - before}
    if spread == 0:
        return found | {"why": "all outcomes are equal: their spread gives no interval"}
    p = 2 * float(ndtr(-abs(after - before) / spread))
    return found | {"low": after - before - half, "high": after - before + half, "p": p}


def detectable(found: Excess, window: int) -> dict[str, Any]:
    """The smallest effect that the comparison would have found at 80 % power, and what TARGETS points would need.

    mde_points: a change of so many points either way would have been found. needed_sessions, per target: sessions of
    the category a side if independent and nothing else moved, and sessions of the run a side in this comparison.
    """
    empty: dict[str, Any] = {"mde_logit": None, "mde_points": None, "mde_points_down": None, "mde_points_up": None}
    if found.rate is None:
        return empty | {"needed_sessions": None}
    rate = found.rate
    needed = {f"{target:g}": _needed(rate, target, found, window) for target in TARGETS}
    if found.found is None:
        return empty | {"needed_sessions": needed}
    mde = found.found.mde
    down, up = -points(rate, -mde), points(rate, mde)
    return {
        "mde_logit": mde,
        "mde_points": max(down, up),
        "mde_points_down": down,
        "mde_points_up": up,
        "needed_sessions": needed,
    }


def needed_sessions(rate: float, target: float) -> int:
    """Sessions a side, if independent, for a difference of `target` points to be found at 80 % power.

    2 (z_(1-alpha/2) + z_power)^2 p (1 - p) / d^2.
    """
    z = float(ndtri(0.5 + CONFIDENCE / 2) + ndtri(POWER))
    return int(np.ceil(2 * (100 * z / target) ** 2 * rate * (1 - rate)))


def _needed(rate: float, target: float, found: Excess, window: int) -> dict[str, Any]:
    reachable = [float(logit(to) - logit(rate)) for to in (rate - target / 100, rate + target / 100) if 0 < to < 1]
    here = None
    if found.found is not None and reachable:
        # The variance of delta falls as the window grows at the same rates.
        here = int(np.ceil(window * (found.found.mde / min(abs(change) for change in reachable)) ** 2))
    return {"points": target, "category_sessions": needed_sessions(rate, target), "run_sessions": here}


def drift(sessions: Sessions, values: Values, moment: Moment, width: int, design: Design) -> dict[str, Any]:
    """Whether the category already moved against its controls before the event, over up to three windows before it.

    Units: logits per 1,000 sessions. flag: p below .05; parallel trends then do not hold, and only the estimate with
    the trend term, which is a straight line, can be looked at.
    """
    place = replace(moment.place, start=moment.earliest, stop=moment.place.at, gap_after=0)
    bins = bins_around(sessions.edges, place, width)
    counts = tally(sessions, values(place.start, place.stop), place.start, bins, place.at)
    found = slope(pair(counts, moment.treated, moment.controls))
    shown: dict[str, Any] = dict.fromkeys(("slope", "low", "high", "se", "p"))
    shown |= {"flag": None, "bins": len(bins), "unit": f"logit per {PER:,.0f} sessions", "why": None}
    if isinstance(found, str):
        return shown | {"why": found}
    return shown | {
        "slope": found.estimate,
        "low": found.low,
        "high": found.high,
        "se": found.se,
        "p": found.p,
        "flag": found.p < DRIFT_LEVEL,
    }


def _series(both: Pair, at: int) -> list[dict[str, Any]]:
    """Shares per bin, for the plot of the trends before the event."""
    return [
        {
            "session": round(at + PER * float(both.middle[i])),
            "treated": _share(both, 0, i),
            "n_treated": int(both.trials[0, i]),
            "controls": _share(both, 1, i),
            "n_controls": int(both.trials[1, i]),
            "after": bool(both.post[i]),
        }
        for i in range(len(both.middle))
    ]


def _share(both: Pair, side: int, i: int) -> float | None:
    return float(both.successes[side, i] / both.trials[side, i]) if both.trials[side, i] else None
