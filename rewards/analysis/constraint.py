"""The reference constraint and the schedule's reach, as recorded: divergence, reference, pivots, leverage."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rewards.analysis.columns import floats, strings
from rewards.analysis.convergence import Bin
from rewards.analysis.intervals import mean_estimate
from rewards.analysis.recalibrations import of_kind, session_after_step

AROUND = 10

Event = Mapping[str, Any]


def kl_curve(table: pa.Table, bins: Sequence[Bin], reason: str | None = None) -> dict[str, Any]:
    """Divergence from the reference and baseline reward per bin. Units: nats a session.

    reason: why the record has no divergence, where it says so.
    """
    kl, baseline = floats(table, "kl_nats"), floats(table, "baseline_reward")
    known = int(np.isfinite(kl).sum())
    if known == 0:
        why = "kl_nats is null in every session" if table.num_rows else "the run has no sessions"
        return {"bins": [], "n": 0, "why": f"{why}: {reason}" if reason else why}
    rows = []
    for found in bins:
        part = slice(found.start, found.stop)
        both = np.isfinite(kl[part]) & np.isfinite(baseline[part])
        rows.append(
            found.place()
            | {
                "kl_nats": mean_estimate(kl[part][both]).as_dict(),
                "baseline": mean_estimate(baseline[part][both]).as_dict(),
            }
        )
    return {"bins": rows, "n": known, "why": None}


def reference(
    table: pa.Table,
    steps: NDArray[np.int64],
    events: Sequence[Event],
    windows: tuple[slice, slice] | None,
    reason: str | None = None,
) -> dict[str, Any]:
    """Which reference the sessions were held to, how far the policy went from it, and the pivots measured on it.

    reason: why the record names no reference, where it says so.
    """
    kl = floats(table, "kl_nats")
    ids: dict[str, int] = {}
    for found in strings(table, "reference_id"):
        if found is not None:
            ids[found] = ids.get(found, 0) + 1
    pivots = [
        {name: event["payload"].get(name) for name in ("category", "component", "value", "standard_error", "n")}
        for event in of_kind(events, "pivot_set")
    ]
    ends = windows or (slice(0, 0), slice(0, 0))
    return {
        "ids": [{"reference_id": name, "sessions": count} for name, count in ids.items()],
        "synced_at_sessions": [
            session_after_step(steps, event.get("step")) for event in of_kind(events, "reference_synced")
        ],
        "kl_nats": {name: mean_estimate(kl[end]).as_dict() for name, end in zip(("first", "last"), ends, strict=True)},
        "pivots": pivots,
        "why": None if ids else "no session names a reference" + (f": {reason}" if reason else ""),
    }


def leverage(events: Sequence[Event], recalibrations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Leverage per step and category, and its median in the steps before and after each recalibration.

    Units: ratio; 1 is no reach at all, 1.15: compliance moves the advantage 15 % more than without the schedule.
    """
    series: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["kind"] == "step_stats":
            for category, found in (event["payload"].get("leverage") or {}).items():
                series.setdefault(category, []).append({"step": event.get("step"), **found})
    if not series:
        return {"by_category": {}, "around": [], "why": "no step recorded a leverage"}
    around = []
    for row in recalibrations:
        found = [point for point in series.get(row["category"], []) if point["step"] is not None]
        if row["step"] is None or not found:
            continue
        sides = (
            [point for point in found if row["step"] - AROUND < point["step"] <= row["step"]],
            [point for point in found if row["step"] < point["step"] <= row["step"] + AROUND],
        )
        around.append(
            {
                "category": row["category"],
                "step": row["step"],
                "old_pct": row["old_pct"],
                "new_pct": row["new_pct"],
                "before": _middle(sides[0]),
                "after": _middle(sides[1]),
            }
        )
    return {"by_category": {name: series[name] for name in sorted(series)}, "around": around, "why": None}


def _middle(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the steps in which the quantity was defined; `of` counts all steps of the side."""
    found: dict[str, Any] = {"of": len(points)}
    for name in ("leverage", "spill", "relative"):
        values = [point[name] for point in points if point.get(name) is not None]
        found[name] = {"median": median(values) if values else None, "n": len(values)}
    return found
