"""The page's section on the schedule: recalibrations, withheld triggers, watched phrases and leverage."""

from collections.abc import Mapping
from typing import Any

from rewards.report.cells import Markup, count, counted, join, nothing, number, paragraph, section, table, tag
from rewards.report.charts import Spec, figure
from rewards.report.findings import effects, forked, spills

Data = Mapping[str, Any]


def recalibrations(data: Data, specs: Mapping[str, Spec]) -> Markup:
    """Every change of the schedule, what was withheld, the watched phrases and the leverage."""
    parts: list[object] = []
    if data["recalibrations"]:
        head = ["", "after session", "step", "category", "component", "differential", "evidence", "approval"]
        rows = [[f"R{place}", *_change(row)] for place, row in enumerate(data["recalibrations"], start=1)]
        parts.append(table("Recalibrations", head, rows, numeric=False))
        parts.append(effects(data["analysis"]["recalibrations"]))
        parts.append(spills(data["analysis"]["recalibrations"]))
        above = tag("a", "what needs attention", href="#alarms")
        parts.append(
            paragraph(
                "A plain difference takes the trend of the run for an effect, and a high window that set off a trigger "
                "for the usual level. What can be said of each change stands under ",
                above,
                ".",
            )
        )
    else:
        parts.append(nothing("the schedule was not changed in this run"))
    parts.append(forked(data["analysis"]["forks"]))
    if data["withheld"]:
        shown = data["withheld"][:20]
        held = [[*_change(row)[:4], *_change(row)[5:6], row["withheld_because"] or "no reason given"] for row in shown]
        caption = f"Triggers that reached their count and were withheld: {count(len(data['withheld']))}"
        if len(shown) < len(data["withheld"]):
            caption += f", the first {count(len(shown))} shown"
        head = ["after session", "step", "category", "component", "evidence", "withheld because"]
        parts.append(table(caption, head, held, numeric=False))
    for place, phrase in enumerate(data["phrases"]):
        caption = f"Share of {phrase['category']} sessions that hold the phrase “{phrase['phrase']}”, 95 % interval"
        parts.append(figure(f"phrase-{place}", specs.get(f"phrase-{place}"), caption))
        if phrase["why"]:
            parts.append(nothing(phrase["why"]))
    parts.append(_leverage(data["leverage"], specs))
    return section("recalibrations", "Recalibrations", *parts)


def _change(row: Data) -> list[object]:
    trigger, evidence = row["trigger"] or {}, row["evidence"] or {}
    hits, n = evidence.get("hits", trigger.get("hits")), evidence.get("n", trigger.get("n"))
    said = f"{hits} of {n} sessions held “{trigger['phrase']}”" if trigger.get("phrase") else (row["reason"] or None)
    before = evidence.get("rate_before")
    if before is not None:
        window = evidence.get("window_before")
        earlier = (
            f"; {number(before, 'share')} of the run's {counted(window, 'session')} before"
            if window
            else f"; {number(before, 'share')} before"
        )
        said = f"{said or 'no reason given'}{earlier}"
    gap = f"{_pct(row['old_pct'])} to {_pct(row['new_pct'])}"
    component = row["component"] or "whole reward"
    change = tag("span", gap, class_="nowrap")
    return [count(row["session"]), count(row["step"]), row["category"], component, change, said, row["approval"]]


def _pct(value: Any) -> str:
    return "unknown" if value is None else f"{value:g} %"


def _leverage(found: Data, specs: Mapping[str, Spec]) -> Markup:
    title = tag("h3", "Leverage")
    if found["why"]:
        return join([title, nothing(found["why"])])
    parts: list[object] = [title]
    rows = []
    for row in found["around"]:
        for name in ("leverage", "spill", "relative"):
            ends = [_median(row[side][name], row[side]["of"]) for side in ("before", "after")]
            rows.append([f"{row['category']}, step {row['step']}: {name}", *ends])
    if rows:
        parts.append(table("Medians over the ten steps before and after", ["", "before", "after"], rows))
    else:
        parts.append(nothing("no recalibration of a category whose leverage was recorded"))
    for name, spec in specs.items():
        if name.startswith("leverage-"):
            caption = f"Leverage of the schedule by step, {name.removeprefix('leverage-')}; bands may leave the frame"
            parts.append(figure(name, spec, caption))
    parts.append(
        paragraph(
            "Leverage compares how strongly compliance moves the advantage with and without the schedule, over the "
            "same sessions: 1 is no reach, below 1 the schedule weakens it. It is recorded while a differential acts, "
            "and a step without mixed groups has none. The recorded spill is that of all other categories, with what "
            "their own differentials do."
        )
    )
    return join(parts)


def _median(found: Data, steps: int) -> str:
    if found["median"] is None:
        return f"none in {counted(steps, 'step')} on record" if steps else "not recorded"
    return f"{number(found['median'])} (n {found['n']} of {counted(steps, 'step')})"
