"""What a fork showed, in words and for a terminal."""

from collections.abc import Mapping
from typing import Any

from rewards.counted import counted

ALPHA = 0.05
MEANINGS = {
    "with": "total effect of the recalibration",
    "sham": "a sham: known to be none",
    "null": "a whole-reward differential under group standardisation: known to be none",
}


def outcome_verdict(row: Mapping[str, Any]) -> str:
    """One outcome in words."""
    n = row["n_pairs"]
    if row["identical"]:
        return f"no difference at all in {n} pair{'s' * (n != 1)}"
    if row["low"] is None:
        return str(row["why"])
    found = _amount(row, "mde").lstrip("+")
    if row["p_adjusted"] <= ALPHA:
        return (
            f"a total effect of {_amount(row, 'estimate')} [{_amount(row, 'low')}, {_amount(row, 'high')}], "
            f"p {row['p_adjusted']:.2g}, over {counted(n, 'pair')}"
        )
    few = f"; {counted(n, 'pair')} cannot give a p below {row['p_least']:.2g}" if row["p_least"] > ALPHA else ""
    return (
        f"no effect that this design could have found: {counted(n, 'pair')} would find one of {found} in four of five "
        f"experiments{few}"
    )


def fork_verdict(entry: Mapping[str, Any]) -> str:
    """The fork in words: first whether it was one, then its primary outcome."""
    before = entry["same_before"]
    if before["n"] and before["share"] < 1:
        return (
            f"not a valid pair: {before['n'] - round(before['share'] * before['n']):,} of {before['n']:,} sessions "
            "before the event differ between the arms"
        )
    if not entry["outcomes"]:
        return "no outcome is on record after the event"
    if all(row["identical"] for row in entry["outcomes"]):
        return f"the arms are equal in every outcome ({entry['meaning']})"
    primary = next((row for row in entry["outcomes"] if row["primary"]), None)
    if primary is None:
        return "the primary outcome has no value in these arms"
    return f"{primary['outcome']} in {primary['of']}, {primary['window']}: {primary['verdict']}"


def as_lines(entry: Mapping[str, Any]) -> list[str]:
    """A fork for a terminal: its head, one line an outcome, its verdict."""
    head = ["outcome", "of", "window", "difference [95 %]", "p", "adjusted", "detectable", "pairs"]
    body = [[row["outcome"], row["of"], row["window"], *_cells(row)] for row in entry["outcomes"]]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
    ]
    event, (treated, control) = entry["event"], entry["arms"]
    what = event["category"] if event.get("component") is None else f"{event['category']}/{event['component']}"
    return [
        f"{treated} against {control}: {what} {entry['old_pct']:g} % to {entry['new_pct']:g} % after step "
        f"{event['step']}, {counted(entry['n_pairs'], 'pair')}, {counted(entry['steps_after'], 'step')} "
        f"({counted(entry['sessions_after'], 'session')}) each: {entry['meaning']}",
        table[0],
        "-" * len(table[0]),
        *table[1:],
        f"Verdict: {entry['verdict']}.",
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    interval = "" if row["low"] is None else f" [{_amount(row, 'low')}, {_amount(row, 'high')}]"
    mde = "-" if row["mde"] is None else _amount(row, "mde").lstrip("+")
    shown = f"{_amount(row, 'estimate')}{interval}{' *' if row['primary'] else ''}"
    p = ["-" if row[name] is None else f"{row[name]:.3g}" for name in ("p", "p_adjusted")]
    return [shown, *p, mde, str(row["n_pairs"])]


def _amount(row: Mapping[str, Any], name: str) -> str:
    if row["unit"] == "points":
        return f"{100 * row[name]:+.2f} points"
    return f"{row[name]:+.4f}"
