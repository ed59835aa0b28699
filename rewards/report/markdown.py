"""The report's findings as Markdown, for a pull request or a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewards.report.cells import count, counted, number

Data = Mapping[str, Any]


def markdown(data: Data) -> str:
    """Findings, ends and recalibrations of a report, and where each number comes from."""
    return "\n".join(_lines(data)) + "\n"


def _lines(data: Data) -> Iterator[str]:
    found, told = data["analysis"], data["summary"]
    yield f"# {_cell(data['run'])}: reward report"
    yield ""
    status = _cell(told["status"] or "unknown")
    yield f"{counted(data['sessions'], 'session')}, {counted(told['steps'], 'step')}, status {status}."
    if data["statement"]:
        yield f"What this record is: {_cell(data['statement'])}"
    yield ""
    yield "## What needs attention"
    yield ""
    for alert in found["alerts"]:
        yield f"- **{alert['severity']}**: {_cell(alert['text'])}"
    if not found["alerts"]:
        yield "No section of the analysis raises an alarm."
    yield from _ends(data)
    yield from _effects(found)
    yield ""
    yield "## What this record cannot say"
    yield ""
    yield from (f"- {_cell(sentence)}" for sentence in data["limits"])
    yield ""
    verified = {True: "verified", False: "DOES NOT VERIFY", None: "not verified"}[data["ledger"]["verified"]]
    yield (
        f"Ledger head `{data['ledger']['head']}` ({verified}), configuration `{told['config_digest']}`, "
        f"code `{told['code_commit'] or 'unknown'}`."
    )


def _ends(data: Data) -> Iterator[str]:
    window = data["summary"]["window"]
    if not window:
        return
    behaviour, ends = data["behaviour"], data["convergence"]["ends"]
    rows = [
        (f"mean baseline {data['convergence']['unit']}", ends["baseline"], "measure"),
        ("mean adjusted", ends["adjusted"], "measure"),
        ("unsolicited content", behaviour["unsolicited"], "share"),
        ("distinct answers", behaviour["diversity"], "share"),
        ("distinct words and marks", behaviour["vocabulary"], "types"),
    ]
    yield ""
    yield f"## First and last {count(window)} sessions"
    yield ""
    yield "| | first | last |"
    yield "|---|---|---|"
    for name, pair, unit in rows:
        if pair["first"] is None and pair["last"] is None:
            yield f"| {name} | {_cell(pair['why'] or 'not on record')} | |"
        else:
            yield f"| {name} | {_end(pair, 'first', unit)} | {_end(pair, 'last', unit)} |"


def _end(pair: Data, name: str, unit: str) -> str:
    low, high = pair.get(f"{name}_interval") or (None, None)
    between = "" if low is None else f" [{number(low, unit)}, {number(high, unit)}]"
    return f"{number(pair[name], unit)}{between}, n {count(pair.get(f'{name}_n'))}"


def _effects(found: Data) -> Iterator[str]:
    if not found["recalibrations"]:
        return
    yield ""
    yield "## Recalibrations"
    yield ""
    yield "| | session | category | differential | excess effect, points | adjusted p | smallest detectable |"
    yield "|---|---|---|---|---|---|---|"
    for place, row in enumerate(found["recalibrations"], start=1):
        excess = row.get("excess") or {}
        said = _cell(excess.get("why") or row.get("why") or "not given")
        if excess.get("points") is not None:
            said = f"{excess['points']:+.1f} [{_signed(excess['points_low'])}, {_signed(excess['points_high'])}]"
            said += f", n {count(excess['n_treated'])} and {count(excess['n_controls'])}"
        yield (
            f"| R{place} | {count(row['session'])} | {_cell(row['category'])} | {row['old_pct']} to {row['new_pct']} % "
            f"| {said} | {number(excess.get('p_adjusted'))} | {_signed(row.get('mde_points')).lstrip('+')} |"
        )


def _signed(value: float | None) -> str:
    return number(None) if value is None else f"{value:+.1f}"


def _cell(text: object) -> str:
    """Text that cannot open a cell, a line or an element of its own."""
    return " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
