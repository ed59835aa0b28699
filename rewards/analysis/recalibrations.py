"""Recalibrations and withheld triggers: what happened, on which evidence, and what one run cannot say about them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rewards.analysis.columns import Floats, floats, strings, where
from rewards.analysis.convergence import Bin
from rewards.analysis.intervals import rate_mde, share_estimate
from rewards.text import contains

WINDOW = 500

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


def recalibration_table(table: pa.Table, steps: NDArray[np.int64], events: Sequence[Event]) -> list[dict[str, Any]]:
    """Every recalibration with its evidence, the smallest effect a comparison could find, and a plain statement."""
    found = []
    for event in of_kind(events, "recalibration"):
        row = _row(event, steps)
        row["detectable"] = _detectable(table, row)
        row["same_window"] = _same_window(events, steps, row)
        row["statement"] = _statement(row)
        found.append(row)
    return found


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


def _detectable(table: pa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """Smallest difference of a rate between the category's sessions within WINDOW sessions on either side."""
    at = row["session"]
    if at is None or row["category"] is None:
        return {"difference": None, "why": "the event names no step or no category"}
    phrase = (row["trigger"] or {}).get("phrase")
    mine = where(strings(table, "category"), row["category"])
    outcome = phrase_hits(table, row["category"], phrase) if phrase else floats(table, "compliant")
    outcome = np.where(mine, outcome, np.nan)
    before, after = slice(max(0, at - WINDOW), at), slice(at, at + WINDOW)
    sides = [outcome[side][np.isfinite(outcome[side])] for side in (before, after)]
    what = "the phrase" if phrase else "compliance"
    if not len(sides[0]) or not len(sides[1]):
        return {"difference": None, "why": f"{what} is not on record on both sides"}
    pooled = np.concatenate(sides)
    rate = float((pooled.sum() + 2) / (len(pooled) + 4))  # never 0 or 1: a rate seen as 0 is not known to be 0
    return {
        "outcome": f"rate of {what} in {row['category']}",
        "difference": rate_mde(rate, len(sides[0]), len(sides[1])),
        "rate": rate,
        "before_n": len(sides[0]),
        "after_n": len(sides[1]),
        "window_sessions": WINDOW,
        "power": 0.8,
        "why": None,
    }


def _same_window(events: Sequence[Event], steps: NDArray[np.int64], row: Mapping[str, Any]) -> list[str]:
    """Other changes close enough to share the comparison windows."""
    others = []
    for event in of_kind(events, "recalibration", "mixture_changed", "config_changed", "reference_synced"):
        payload = event["payload"]
        at = last_session_before(event, steps)
        same = event["kind"] == "recalibration" and (event.get("step"), payload.get("category")) == (
            row["step"],
            row["category"],
        )
        if at is None or row["session"] is None or same or abs(at - row["session"]) > WINDOW:
            continue
        what = event["kind"].replace("_", " ")
        others.append(f"{what}{' of ' + payload['category'] if payload.get('category') else ''} at session {at:,}")
    return others


def _statement(row: Mapping[str, Any]) -> str:
    trigger, detectable = row["trigger"] or {}, row["detectable"]
    evidence = row["evidence"] or {}
    if trigger:
        hits = evidence.get("hits", trigger.get("hits"))
        some = f"at least {trigger.get('k')}" if hits is None else hits
        cause = (
            f"It fired because {some} of the last {evidence.get('n', trigger.get('n'))} sessions of {row['category']} "
            "matched. A window picked for being high is followed by a lower one whatever "
            "is done (regression to the mean), so no before-and-after figure is given."
        )
    else:
        cause = "The run was changing anyway, so a before-and-after figure would mix its trend with this event."
    if detectable["difference"] is None:
        power = f"How small a difference could be found is not known: {detectable['why']}."
    else:
        power = (
            f"With {detectable['before_n']} sessions of {row['category']} in the {WINDOW} before and "
            f"{detectable['after_n']} in the {WINDOW} after, a comparison at 80 % power finds differences of "
            f"{100 * detectable['difference']:.1f} points or more (at a rate of {100 * detectable['rate']:.0f} %, "
            "independent sessions; dependence makes it larger)."
        )
    shared = f" In the same window: {'; '.join(row['same_window'])}." if row["same_window"] else ""
    if row["randomised_delay"] is None:
        design = (
            "Only a fork with and without it, or a randomised delay, would identify its effect; this run had neither."
        )
    else:
        design = f"Its delay was randomised ({row['randomised_delay']}); one event is one draw."
    return f"{cause} {power}{shared} {design}"
