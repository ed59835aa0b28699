"""The effects of a run's recalibrations: naive and honest estimates side by side, adjusted over all of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rewards.analysis.constraint import AROUND, leverage
from rewards.analysis.data import RunData
from rewards.analysis.event_bins import Design, Sessions
from rewards.analysis.multiplicity import benjamini_hochberg
from rewards.analysis.recalibration_comparison import needed_sessions, outcome_effect
from rewards.analysis.recalibration_outcomes import Event, Texts, Timeline, compliance
from rewards.analysis.recalibration_spill import spill, spilled
from rewards.analysis.recalibration_verdicts import event_verdict, outcome_verdict, spill_refusal

PLACEBO_DATES = 20
PLACEBO_FITS = 400  # over all events of a run

_PAYLOAD = ("category", "component", "op", "old_pct", "new_pct", "reason", "approval", "randomised_delay", "claim")
_PRIMARY = ("naive", "excess", "without_trend", "mde_points", "mde_logit", "needed_sessions", "pretrend", "placebo")


def section(data: RunData, design: Design | None = None) -> list[dict[str, Any]]:
    """Every recalibration of a run with its effect on each outcome: compliance, and the phrases that triggers watched.

    Effects are excess effects: what the category did beyond the categories that nothing was done to. Where the change
    moved those too (`spill`, of `recalibration_spill`), there is no comparison. p_adjusted is
    Benjamini and Hochberg's over all recalibrations and outcomes. The first outcome also stands on the entry itself.
    Units: estimates in logits, points in percentage points at the rate before the event; sessions are numbered from 1.
    """
    used = design or fitting(data)
    timeline = Timeline(data, used)
    if not timeline.recalibrations:
        return []
    sessions = Sessions.of(data.steps, data.codes, len(data.names))
    texts, primary = Texts(data), compliance(data)
    dates = min(PLACEBO_DATES, PLACEBO_FITS // len(timeline.recalibrations))
    reach = _reach(data, timeline)
    entries = []
    for event, leveraged in zip(timeline.recalibrations, reach, strict=True):
        entry = _row(event, timeline, used) | {"leverage": leveraged}
        moment = timeline.moment(event)
        entry["spill"] = spill(data, moment, leveraged)
        refusal = spill_refusal(entry["spill"]) if spilled(entry["spill"]) else None
        entry["spill_refused"] = refusal is not None
        if isinstance(moment, str):
            entry["why"] = moment
        else:
            outcomes = [primary, *(texts.outcome(phrase) for phrase in timeline.phrases(entry["category"]))]
            entry["outcomes"] = [outcome_effect(sessions, outcome, moment, used, dates) for outcome in outcomes]
            entry["controls"] = [data.names[code] for code in moment.controls]
            for found in entry["outcomes"]:
                if refusal is not None:
                    _refuse(found, refusal)
                found["claim"] = _claimed(event, found)
        entries.append(entry)
    _judge(entries)
    return entries


def fitting(data: RunData) -> Design:
    """The usual design, with windows of at least twelve steps a side where steps are long."""
    usual = Design()
    if not data.sessions:
        return usual
    step = data.sessions / max(1, int(np.count_nonzero(np.diff(data.steps))) + 1)
    return replace(usual, window=max(usual.window, int(np.ceil(usual.most_bins * step))))


def _row(event: Event, timeline: Timeline, design: Design) -> dict[str, Any]:
    payload = event["payload"]
    return {
        "session": timeline.at(event),
        "step": event.get("step"),
        **{name: payload.get(name) for name in _PAYLOAD},
        "triggered": bool(payload.get("trigger")),
        "trigger": payload.get("trigger"),
        "evidence": payload.get("evidence"),
        "same_window": timeline.nearby(event, design.window),
        "controls": [],
        "outcomes": [],
        "why": None,
    }


def _reach(data: RunData, timeline: Timeline) -> list[dict[str, Any]]:
    """Leverage and spill in the steps before and after each recalibration, as recorded."""
    rows = [
        {"step": event.get("step"), **{name: event["payload"].get(name) for name in ("category", "old_pct", "new_pct")}}
        for event in timeline.recalibrations
    ]
    near = {row["step"] + shift for row in rows if row["step"] is not None for shift in range(-AROUND, AROUND + 1)}
    by_step: dict[int, list[Event]] = {}
    any_stats = False
    for event in data.events:
        if event["kind"] == "step_stats":
            any_stats = True
            if event.get("step") in near:
                by_step.setdefault(event["step"], []).append(event)
    reached = []
    for row in rows:
        steps = [] if row["step"] is None else range(row["step"] - AROUND, row["step"] + AROUND + 1)
        around = leverage([event for step in steps for event in by_step.get(step, [])], [row])["around"]
        if around:
            reached.append({"before": around[0]["before"], "after": around[0]["after"], "why": None})
        else:
            here = "near the event recorded the leverage of its category" if any_stats else "recorded a leverage"
            reached.append({"before": None, "after": None, "why": f"no step {here}"})
    return reached


def _refuse(found: dict[str, Any], why: str) -> None:
    """Takes out every number that leans on the other categories."""
    for name in ("excess", "without_trend"):
        numbers = ("estimate", "low", "high", "se", "p", "points", "points_low", "points_high", "phi", "df")
        found[name] = found[name] | dict.fromkeys(numbers) | {"why": why}
    found |= dict.fromkeys(("mde_logit", "mde_points", "mde_points_down", "mde_points_up"))
    found["pretrend"] = found["pretrend"] | dict.fromkeys(("slope", "low", "high", "se", "p", "flag")) | {"why": why}
    found["placebo"] = {
        name: {"n": 0, "larger": None, "p": None, "smallest_p": None, "why": why} for name in ("in_time", "in_space")
    } | {"triggers": {"n": 0, "median": None, "placebos": [], "why": why}, "smallest_p": None}
    for needed in (found["needed_sessions"] or {}).values():
        needed["run_sessions"] = None
    found["why"] = why


def _claimed(event: Event, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the record says the recalibration did to this outcome, and how many sessions that would need."""
    claim = event["payload"].get("claim")
    if not isinstance(claim, Mapping) or claim.get("points") is None:
        return None
    about = claim.get("outcome") or "compliant"
    if found["outcome"] != about and found["outcome"].partition(":")[0] != about:
        return None
    rate = found["excess"]["rate_before"]
    needed = None if rate is None or not claim["points"] else needed_sessions(rate, abs(claim["points"]))
    # Points of the sessions that did not comply are points of compliance with the other sign.
    mirrored = claim.get("of") == "non-compliant" and about == "compliant"
    points = -claim["points"] if mirrored else claim["points"]
    as_recorded = f"{claim['points']:+g} points of non-compliant sessions" if mirrored else None
    return {
        "points": points,
        "sessions": claim.get("sessions"),
        "as_recorded": as_recorded,
        "category_sessions_needed": needed,
    }


def _judge(entries: list[dict[str, Any]]) -> None:
    """Adjusted p and verdicts, in place."""
    outcomes = [found for entry in entries for found in entry["outcomes"]]
    tested = [found["excess"] for found in outcomes if found["excess"]["p"] is not None]
    for honest, adjusted in zip(tested, adjust([honest["p"] for honest in tested]), strict=True):
        honest["p_adjusted"] = adjusted
    for found in outcomes:
        found["verdict"] = outcome_verdict(found, len(tested))
    for entry in entries:
        first = entry["outcomes"][0] if entry["outcomes"] else {}
        entry |= {name: first.get(name) for name in _PRIMARY}
        judged = next((found["claim"] for found in entry["outcomes"] if found["claim"]), None)
        entry["claim_judged"] = None if entry["claim"] is None else judged is not None
        entry["claim"] = judged or entry["claim"]
        entry["comparisons"] = len(tested)
        entry["verdict"] = event_verdict(entry)


def adjust(p: list[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p."""
    return [float(found) for found in benjamini_hochberg(p)]
