"""Whether a recalibration also moved the categories it is compared with: the pull of their own advantages around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.data import RunData
from rewards.analysis.recalibration_outcomes import Moment
from rewards.leverage import Change, Pulled, change

MOST_SPILL = 0.05
SESSIONS, RECORDED = "sessions", "recorded"

_COLUMNS = ("compliant", "advantage", "advantage_unadjusted")

Data = Mapping[str, Any]


def spill(data: RunData, moment: Moment | str, leveraged: Data) -> dict[str, Any]:
    """By how much the change moved the controls: their ratio of slopes after the event over that before it.

    The ratio is gamma(advantage) / gamma(advantage_unadjusted) of `rewards.leverage` over the sessions of the controls
    in the windows of the comparison, what is left out beside a triggered event left out here too. What stands on both
    sides, such as another category's differential, cancels. Where the sessions do not say it, the spill that the steps
    recorded stands in, and without one before the event that counts as 1.
    Keys: before, after, ratio, low, high (its 95 % bootstrap over groups), n_groups (mixed groups of the controls on
    either side), source (sessions, recorded, or null where nothing is known), why (the source is not the sessions).
    leveraged: what steps recorded around the event, as `section` gives it under `leverage`.
    """
    found = moment if isinstance(moment, str) else _measured(data, moment)
    if isinstance(found, str):
        return _recorded(leveraged, found)
    return {
        "before": found.before,
        "after": found.after,
        "ratio": found.ratio,
        "low": found.low,
        "high": found.high,
        "n_groups": dict(zip(("before", "after"), found.n_groups, strict=True)),
        "source": SESSIONS,
        "why": None,
    }


def spilled(found: Data) -> bool:
    """Whether a comparison with these controls is to be refused: the point estimate decides."""
    return found["ratio"] is not None and abs(found["ratio"] - 1) > MOST_SPILL


def _measured(data: RunData, moment: Moment) -> Change | str:
    if not moment.controls:
        return "no other category was left alone around the event"
    place = moment.place
    pulled = _pulled(
        data, moment, [(place.start, place.at - place.gap_before), (place.at + place.gap_after, place.stop)]
    )
    found = change(pulled[0], pulled[1], np.random.default_rng(place.at))
    for name, side, value in zip(("before", "after"), pulled, (found.before, found.after), strict=True):
        if value is None:
            return _unknown(name, side, found.n_groups[name == "after"])
    return found if found.ratio is not None else "the pull on the other categories before the event is 0"


def _unknown(when: str, side: Pulled, mixed: int) -> str:
    if not len(side.group):
        return f"no whole step {when} the event has a group (`group_id`) of the other categories"
    for name, values in zip(_COLUMNS, (side.x, side.advantage, side.unadjusted), strict=True):
        if not np.isfinite(values).any():
            return f"no session of the other categories {when} the event has `{name}`"
    if not mixed:
        return f"no group of the other categories {when} the event has answers that comply and answers that do not"
    return f"{when} the event the advantages of the other categories may not depend on compliance at all"


def _pulled(data: RunData, moment: Moment, windows: Sequence[tuple[int, int]]) -> list[Pulled]:
    """The controls' sessions of the whole steps in each window, with their groups numbered in their order.

    A group is one of a step and a category, as where leverage is recorded. windows: sessions start..stop-1, from 0.
    """
    first, last = moment.place.start, moment.place.stop
    columns, named = data.part(first + 1, last, _COLUMNS, "group_id")
    codes, steps = data.codes[first:last], data.steps[first:last]
    usable = np.isin(codes, moment.controls) & (named >= 0)
    found = []
    for start, stop in windows:
        low, high = _whole_steps(data.steps, start, stop)
        kept = slice(max(low - first, 0), max(high - first, 0))
        mine = np.flatnonzero(usable[kept]) + kept.start
        step = np.unique(steps[mine], return_inverse=True)[1]
        key = (step * len(data.names) + codes[mine]) * (int(named.max()) + 1) + named[mine]
        x, advantage, unadjusted = (column[mine] for column in columns)
        found.append(Pulled(x, advantage, unadjusted, np.unique(key, return_inverse=True)[1]))
    return found


def _whole_steps(steps: NDArray[np.int64], start: int, stop: int) -> tuple[int, int]:
    """The sessions of the steps that lie in start..stop-1 as a whole; none where the first is not below the last."""
    low, high = max(start, 0), min(stop, len(steps))
    if 0 < low < high:
        low = int(np.searchsorted(steps, steps[low - 1], side="right"))
    if low < high < len(steps):
        high = int(np.searchsorted(steps, steps[high], side="left"))
    return (low, high) if low < high else (0, 0)


def _recorded(leveraged: Data, why: str) -> dict[str, Any]:
    before, after = ((leveraged[side] or {}).get("spill", {}).get("median") for side in ("before", "after"))
    found = {"before": before, "after": after, "ratio": None, "low": None, "high": None, "n_groups": None}
    if after is None or before == 0:
        none = "no step after it recorded a spill" if after is None else "the recorded spill before it is 0"
        return found | {"source": None, "why": f"{why}; and {leveraged['why'] or none}"}
    found["ratio"] = after / (1.0 if before is None else before)
    taken = "; no step before the event recorded one, which is taken for 1" if before is None else ""
    return found | {"source": RECORDED, "why": f"{why}: what the steps recorded stands in{taken}"}
