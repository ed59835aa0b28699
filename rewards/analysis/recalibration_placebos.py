"""Placebos of a recalibration: other dates, other categories, and triggers on which nothing was done."""

from typing import Any

import numpy as np

from rewards.analysis.event_bins import Design, Place, Sessions, pair
from rewards.analysis.excess import Comparison, Excess, compare, excess
from rewards.analysis.recalibration_outcomes import Moment, Outcome


def _statistic(found: Excess) -> float | None:
    return None if found.found is None else found.found.estimate / found.found.se


def _rank(event: float | None, others: list[float], what: str, where: int) -> dict[str, Any]:
    """Where the event's statistic stands among placebos: a diagnostic, since they need not be exchangeable with it."""
    many = len(others)
    found: dict[str, Any] = {"n": many, "larger": None, "p": None, "smallest_p": None, "why": None}
    if event is None or not many:
        none = "the event itself has no estimate" if event is None else f"no usable placebo among {where} {what}"
        return found | {"why": none}
    larger = sum(abs(other) >= abs(event) for other in others)
    return found | {"larger": larger, "p": (1 + larger) / (1 + many), "smallest_p": 1 / (1 + many)}


def in_space(found: Comparison, moment: Moment, honest: Excess) -> dict[str, Any]:
    """Each control in the place of the treated category, against the other controls."""
    others = []
    if len(moment.controls) > 1 and honest.found is not None:
        for code in moment.controls:
            rest = [other for other in moment.controls if other != code]
            statistic = _statistic(excess(pair(found.counts, code, rest)))
            if statistic is not None:
                others.append(statistic)
    return _rank(_statistic(honest), others, "controls", len(moment.controls))


def in_time(
    sessions: Sessions, outcome: Outcome, moment: Moment, honest: Excess, design: Design, most: int
) -> dict[str, Any]:
    """The same comparison at dates at which nothing was done to the category, evenly over the run."""
    if not outcome.anywhere:
        return _rank(_statistic(honest), [], "dates", 0) | {"why": "texts are read around the events only"}
    total, window = int(sessions.edges[-1]), design.window
    many = most if total >= 2 * window and honest.found is not None else 0
    others, tried = [], 0
    for date in np.linspace(window, total - window, many):
        at = int(sessions.edges[np.searchsorted(sessions.edges, int(date))])
        if any(abs(at - own) < window for own in moment.own):
            continue
        tried += 1
        place = Place(at, max(0, at - window), min(total, at + window))
        here = compare(sessions, outcome.values, place, moment.treated, moment.controls, design)
        statistic = _statistic(here.with_trend)
        if statistic is not None:
            others.append(statistic)
    return _rank(_statistic(honest), others, "dates", tried)


def withheld(sessions: Sessions, outcome: Outcome, moment: Moment, design: Design) -> dict[str, Any]:
    """The same comparison where the trigger reached its count and nothing was applied."""
    found = []
    if moment.triggered:
        for place in moment.withheld:
            here = compare(sessions, outcome.values, place, moment.treated, moment.controls, design).with_trend
            if here.found is not None:
                found.append({"session": place.at, "estimate": here.found.estimate, "se": here.found.se})
    middle = float(np.median([one["estimate"] for one in found])) if found else None
    why = None if found else "no withheld trigger of the category far enough from its recalibrations can be compared"
    return {"n": len(found), "median": middle, "placebos": found, "why": why}
