"""Recalibrations and withheld triggers: what happened, and on which evidence."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rewards.analysis.columns import Floats, strings, where
from rewards.analysis.convergence import Bin
from rewards.analysis.intervals import share_estimate
from rewards.text import contains

Event = Mapping[str, Any]


def of_kind(events: Sequence[Event], *kinds: str) -> list[Event]:
    """Events of the given kinds, each distinct content once: a resumed run may repeat what it announces."""
    kept: dict[str, Event] = {}
    for event in events:
        if event["kind"] in kinds:
            content = [event["run_id"], event["kind"], event.get("step"), event["payload"]]
            kept.setdefault(json.dumps(content, sort_keys=True, default=str), event)
    return list(kept.values())


def session_after_step(steps: NDArray[np.int64], step: int | None) -> int | None:
    """Number of the last session scored up to and including a step; 0 before the first, None without a step."""
    return None if step is None else int(np.searchsorted(steps, step, side="right"))


def last_session_before(event: Event, steps: NDArray[np.int64]) -> int | None:
    """Number of the last session that a change could not yet touch.

    A recalibration acts from the step after its own; a change of mixture from its `from_step`.
    """
    begins = event["payload"].get("from_step")
    return session_after_step(steps, event.get("step") if begins is None else begins - 1)


def recalibration_table(steps: NDArray[np.int64], events: Sequence[Event]) -> list[dict[str, Any]]:
    """Every recalibration with its evidence, as recorded. What it did is for `recalibration_effect` to say."""
    return [_row(event, steps) for event in of_kind(events, "recalibration")]


def withheld_table(steps: NDArray[np.int64], events: Sequence[Event]) -> list[dict[str, Any]]:
    """Every time a trigger reached its k and nothing was applied, with the reason."""
    rows = []
    for event in of_kind(events, "trigger_evaluated"):
        if event["payload"].get("applied") is False:
            row = _row(event, steps)
            row["withheld_because"] = event["payload"].get("withheld_because")
            row["gamma"] = event["payload"].get("gamma")
            rows.append(row)
    return rows


def phrase_curves(table: pa.Table, bins: Sequence[Bin], events: Sequence[Event]) -> list[dict[str, Any]]:
    """For every phrase a trigger watched: the share of its category's sessions that contain it, per bin."""
    watched: dict[tuple[str, str], str] = {}
    for event in of_kind(events, "recalibration", "trigger_evaluated"):
        trigger, category = event["payload"].get("trigger") or {}, event["payload"].get("category")
        if trigger.get("phrase") and category:
            watched.setdefault((category, trigger["phrase"]), trigger.get("name") or trigger["phrase"])
    curves = []
    for (category, phrase), name in sorted(watched.items()):
        hits = phrase_hits(table, category, phrase)
        curve: dict[str, Any] = {"name": name, "phrase": phrase, "category": category, "bins": [], "why": None}
        if not np.isfinite(hits).any():
            curve["why"] = f"no texts of category {category} are on record"
        else:
            curve["bins"] = [
                found.place() | {"share": share_estimate(hits[found.start : found.stop]).as_dict()} for found in bins
            ]
        curves.append(curve)
    return curves


def phrase_hits(table: pa.Table, category: str, phrase: str) -> Floats:
    """1 where a session of the category contains the phrase, 0 where not, NaN elsewhere and without a text."""
    hits = np.full(table.num_rows, np.nan)
    responses = strings(table, "response")
    for i in np.flatnonzero(where(strings(table, "category"), category)):
        text = responses[i]
        if text is not None:
            hits[i] = float(contains(text, phrase))
    return hits


def _row(event: Event, steps: NDArray[np.int64]) -> dict[str, Any]:
    payload = event["payload"]
    names = ("category", "component", "op", "old_pct", "new_pct", "reason", "approval", "randomised_delay")
    return {
        "step": event.get("step"),
        "session": session_after_step(steps, event.get("step")),
        **{name: payload.get(name) for name in names},
        "trigger": payload.get("trigger"),
        "evidence": payload.get("evidence"),
    }
