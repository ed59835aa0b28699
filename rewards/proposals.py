"""A change of the schedule that a rule asks for: the events that say so, and the schedule that follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.differential import Change, Op, Schedule
from rewards.leverage import Gamma

Event = tuple[str, dict[str, Any]]
"""Kind and payload."""


def decided(
    schedule: Schedule,
    key: tuple[str, str | None],
    op: Op,
    changed: Change,
    said: Mapping[str, Any],
    slope: Gamma | None,
    objections: Sequence[str],
) -> tuple[list[Event], Schedule]:
    """Every request is an event, granted or not; a granted one is a recalibration too.

    key: category and component. changed: what `op` makes of the schedule. said: reason, trigger and evidence, in this
    order.
    """
    payload: dict[str, Any] = {
        "category": key[0],
        "component": key[1],
        "op": op,
        "old_pct": changed.old_pct,
        "new_pct": changed.new_pct,
        **said,
        "approval": "automatic",
        "randomised_delay": None,
    }
    evaluated = {
        **payload,
        "applied": not objections,
        "withheld_because": "; ".join(objections) or None,
        "gamma": None if slope is None else slope.payload(),
    }
    if objections:
        return [("trigger_evaluated", evaluated)], schedule
    return [("trigger_evaluated", evaluated), ("recalibration", payload)], changed.schedule
