"""Excess effect of an event on one category: quasi-binomial difference-in-differences over bins of whole steps.

logit p_bg = alpha_b + gamma [g treated] + delta [treated, after] (+ theta [treated] time): the bins absorb every trend
that the categories share, theta a linear one in which the treated category differs. delta is what the category did
beyond the others, not the whole of what the event did: categories share parameters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit

from rewards.analysis.binomial import Coefficient, fit_logit
from rewards.analysis.event_bins import (
    FINE,
    PER,
    Design,
    Pair,
    Place,
    Sessions,
    Tally,
    Values,
    bin_width,
    bins_around,
    pair,
    tally,
)

FEWEST_BINS = 3  # a side


@dataclass(frozen=True)
class Excess:
    """An estimate of delta, or why there is none. n: sessions of the treated category and of the controls in the bins.

    rate: share in the treated category before the event, at which logits are put into points.
    """

    found: Coefficient | None
    with_trend: bool
    phi: float | None
    df: int | None
    bins: int
    n: tuple[int, int]
    rate: float | None
    why: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; points are percentage points at the rate before the event."""
        kept: dict[str, Any] = dict.fromkeys(
            ("estimate", "low", "high", "se", "p", "points", "points_low", "points_high")
        )
        found, rate = self.found, self.rate
        if found is not None and rate is not None:
            kept |= {name: getattr(found, name) for name in ("estimate", "low", "high", "se", "p")}
            kept |= {
                "points": points(rate, found.estimate),
                "points_low": points(rate, found.low),
                "points_high": points(rate, found.high),
            }
        return kept | {
            "p_adjusted": None,
            "unit": "logit",
            "with_trend": self.with_trend,
            "phi": self.phi,
            "df": self.df,
            "bins": self.bins,
            "n_treated": self.n[0],
            "n_controls": self.n[1],
            "rate_before": rate,
            "why": self.why,
        }


def points(rate: float, change: float) -> float:
    """What a change in logits is at a rate. Units: percentage points."""
    return 100 * float(expit(logit(rate) + change) - rate)


def excess(both: Pair, trend: bool = True) -> Excess:
    """Quasi-binomial difference-in-differences: delta, with or without theta.

    Source: Card & Krueger 1994 for the comparison; McCullagh & Nelder 1989 for the model.
    Departures: bins in which all outcomes are alike are left out: their own coefficient has no bound.
    """
    kept = both.informative()
    sides = int((~kept.post).sum()), int(kept.post.sum())
    n = int(kept.trials[0].sum()), int(kept.trials[1].sum())
    of = float(both.trials[0, ~both.post].sum())
    rate = float((both.successes[0, ~both.post].sum() + 0.5) / (of + 1)) if of else None
    if min(sides) < FEWEST_BINS:
        why = _too_few(both, sides)
        return Excess(None, trend, None, None, sum(sides), n, rate, why)
    treated = np.r_[np.ones(sum(sides)), np.zeros(sum(sides))]
    columns = [treated, treated * np.r_[kept.post, kept.post]]
    if trend:
        columns.append(treated * np.r_[kept.middle, kept.middle])
    bins = np.tile(np.eye(sum(sides)), (2, 1))
    fit = fit_logit(kept.successes.ravel(), kept.trials.ravel(), np.column_stack([*columns, bins]))
    if fit.why is not None:
        return Excess(None, trend, None, fit.df, sum(sides), n, rate, fit.why)
    return Excess(fit.coefficient(1), trend, fit.phi, fit.df, sum(sides), n, rate)


def _too_few(both: Pair, sides: tuple[int, int]) -> str:
    if not both.trials[0].any():
        return "the outcome is null in every session of the category around the event"
    if not both.trials[1].any():
        return "no other category that has this outcome was left alone around the event: nothing to compare with"
    total = both.successes.sum()
    if total in (0.0, both.trials.sum()):
        return "the outcome is the same in every session around the event"
    return (
        f"usable bins of whole steps: {sides[0]} before, {sides[1]} after, and {FEWEST_BINS} a side are the least "
        "(a bin in which all sessions agree says nothing)"
    )


def slope(both: Pair) -> Coefficient | str:
    """How the treated category moved against its controls per PER sessions, from bins before the event; or why not."""
    kept = both.informative()
    many = len(kept.middle)
    if many < 2 * FEWEST_BINS:
        return f"usable bins before the event: {many}, and {2 * FEWEST_BINS} are the least"
    treated = np.r_[np.ones(many), np.zeros(many)]
    columns = [treated, treated * np.r_[kept.middle, kept.middle], np.tile(np.eye(many), (2, 1))]
    fit = fit_logit(kept.successes.ravel(), kept.trials.ravel(), np.column_stack(columns))
    return fit.why if fit.why is not None else fit.coefficient(1)


@dataclass(frozen=True)
class Comparison:
    """What one event and one outcome give.

    with_trend, without_trend: delta with and without theta; counts: of all categories; width, time: of a bin, and the
    autocorrelation time found, in sessions.
    """

    with_trend: Excess
    without_trend: Excess
    counts: Tally
    both: Pair
    width: int
    time: float | None


def compare(
    sessions: Sessions, values: Values, place: Place, treated: int, controls: list[int], design: Design
) -> Comparison:
    """The excess effect at one place: bins from the estimated autocorrelation time, then both fits."""
    part = values(place.start, place.stop)

    def counted(width: int) -> Tally:
        return tally(sessions, part, place.start, bins_around(sessions.edges, place, width), place.at)

    least = max(1, design.window // (design.most_bins * FINE))
    fine = pair(counted(least), treated, controls)
    if len(fine.middle) > 1:  # steps may be longer than that
        least = max(least, round(float(np.median(np.diff(fine.middle))) * PER))
    width, time = bin_width(fine, least, place.stop - place.start, design)
    counts = counted(width)
    both = pair(counts, treated, controls)
    return Comparison(excess(both, True), excess(both, False), counts, both, width, time)
