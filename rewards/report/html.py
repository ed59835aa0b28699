"""The page: one file that holds its data, its style and its drawing code, and asks nothing of a network."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from rewards.report import findings, schedule, sections
from rewards.report.build import Report
from rewards.report.cells import Markup, count, counted, join, nothing, number, paragraph, section, table, tag
from rewards.report.charts import specs

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
CONTENTS = (
    ("alarms", "Attention"),
    ("claims", "Claims"),
    ("overview", "First and last"),
    ("stages", "Stages"),
    ("convergence", "Convergence"),
    ("recalibrations", "Recalibrations"),
    ("behaviour", "Behaviour"),
    ("categories", "Categories"),
    ("divergence", "KL and reference"),
    ("samples", "Samples"),
    ("limits", "Limits"),
    ("run", "The run"),
)


def render(report: Report) -> str:
    """The whole page as one string."""
    data, charts = report.data, specs(report.data)
    main = join(
        [
            _header(data),
            findings.alarms(data),
            findings.claims(data),
            sections.overview(data),
            sections.stages(data),
            sections.convergence(data, charts),
            schedule.recalibrations(data, charts),
            sections.behaviour(data, charts),
            sections.categories(data),
            sections.divergence(data, charts),
            _samples(report.samples),
            _limits(data),
            _run(data),
        ]
    )
    links = join([tag("li", tag("a", title, href=f"#{name}")) for name, title in CONTENTS])
    body = join([tag("nav", tag("ul", links), aria_label="Sections"), tag("main", main)])
    head = [
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", f"{data['run']}: reward report"),
        tag("style", Markup(_asset("page.css"))),
    ]
    scripts = [
        tag("script", inline_json(data), type="application/json", id="report"),
        tag("script", inline_json(charts), type="application/json", id="charts"),
        tag("script", Markup(_asset("page.js"))),
    ]
    parts = [
        '<!doctype html>\n<html lang="en">',
        tag("head", join(head)),
        tag("body", join([body, *scripts])),
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def inline_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, nor open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    return resources.files("rewards.report").joinpath(name).read_text(encoding="utf-8")


def _header(data: Mapping[str, Any]) -> Markup:
    ledger, told = data["ledger"], data["summary"]
    facts = [
        f"{told['pipeline'] or 'unknown'} run",
        counted(data["sessions"], "session"),
        counted(told["steps"], "step"),
        f"status: {told['status'] or 'unknown'}",
    ]
    if ledger["verified"] is None:
        state = tag("p", "The ledger was not verified for this report.", class_="verify bad")
    elif ledger["verified"]:
        head = tag("code", (ledger["head"] or "")[:16], title=ledger["head"])
        state = tag("p", join(["Every hash of the ledger fits its rows. Head ", head]), class_="verify ok")
    else:
        state = tag("p", f"The ledger does not verify: {ledger['first_bad'] or 'place unknown'}", class_="verify bad")
    parts: list[object] = [
        tag("p", "Reward report", class_="kicker"),
        tag("h1", data["run"]),
        tag("ul", join([tag("li", fact) for fact in facts]), class_="facts"),
        state,
    ]
    if data["statement"]:
        parts.append(tag("p", join([tag("strong", "What this record is: "), data["statement"]]), class_="statement"))
    return tag("header", join(parts))


def _samples(samples: Sequence[Mapping[str, Any]]) -> Markup:
    if not samples:
        return section("samples", "Samples", nothing("the run has no sessions"))
    if all(row["prompt"] is None and row["response"] is None and not row["redacted"] for row in samples):
        return section("samples", "Samples", nothing("no texts are on record"))
    parts: list[object] = []
    for position in dict.fromkeys(row["position"] for row in samples):
        title = "All sessions" if position == "only" else f"{position.capitalize()} sessions"
        found = [_sample(row) for row in samples if row["position"] == position]
        parts.append(join([tag("h3", title), tag("div", join(found), class_="samples")]))
    return section("samples", "Samples", *parts)


def _sample(row: Mapping[str, Any]) -> Markup:
    verdict = {1.0: "compliant", 0.0: "not compliant"}.get(row["compliant"], "compliance not judged")
    facts = [
        row["category"] or "no category",
        row["classification"] or "not classified",
        verdict,
        f"baseline {number(row['baseline_reward'])}",
        f"adjusted {number(row['adjusted_reward'])}",
    ]
    title = tag("h4", f"Session {count(row['session'])}, step {count(row['step'])}")
    texts = [
        join([tag("dt", name), tag("dd", row[name] or tag("span", _instead(row, name), class_="none"))])
        for name in ("prompt", "response", "rejected")
        if row[name] is not None or name in row["redacted"]
    ]
    return tag("article", join([title, tag("p", ", ".join(facts), class_="ci"), tag("dl", join(texts))]))


def _instead(row: Mapping[str, Any], name: str) -> str:
    return "taken out" if name in row["redacted"] else "empty"


def _limits(data: Mapping[str, Any]) -> Markup:
    listed = tag("ul", join([tag("li", sentence) for sentence in data["limits"]]))
    return section("limits", "What this record cannot say", listed)


def _run(data: Mapping[str, Any]) -> Markup:
    told = data["summary"]
    attempts = told["attempts"]
    facts: list[list[object]] = [
        ["pipeline", told["pipeline_id"]],
        ["started", told["time_started"]],
        ["ended", told["time_ended"]],
        ["attempts", count(attempts["count"])],
        ["sessions superseded by a resume", count(attempts["superseded_sessions"])],
        ["evaluation sessions", count(told["evaluation_sessions"])],
        ["sessions without a reward", count(told["sessions_without_reward"])],
        ["configuration digest", tag("code", told["config_digest"])],
        ["code commit", tag("code", told["code_commit"])],
        ["ledger head", tag("code", data["ledger"]["head"])],
    ]
    parts: list[object] = [table("This run", ["", "value"], facts, numeric=False)]
    runs = [
        [row["run_id"], count(row["sessions"]), count(row["steps"]), row["status"], count(row["attempts"])]
        for row in told["runs"]
    ]
    parts.append(table("Runs of the pipeline", ["run", "sessions", "steps", "status", "attempts"], runs))
    if told["components"]:
        rows = [
            [row["name"], row.get("role"), number(row.get("weight")), row.get("fn"), tag("code", row.get("scorer_id"))]
            for row in told["components"]
        ]
        parts.append(table("Reward functions", ["name", "role", "weight", "function", "scorer"], rows, numeric=False))
    else:
        parts.append(paragraph("No reward function is on record for this run."))
    return section("run", "The run", *parts)
