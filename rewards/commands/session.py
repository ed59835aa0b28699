"""One row with all that is known of it: its columns, its texts or why they are gone, the notes on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewards.annotations import read_notes
from rewards.commands.annotations import print_notes
from rewards.commands.output import line, minute, print_items, shown
from rewards.places import key_of
from rewards.schema import COLUMNS, TEXT_COLUMNS

if TYPE_CHECKING:
    from rewards.ledger import Ledger

_TITLE = ("run_id", "attempt", "writer", "seq", "session", "live", "split", "step", "time", "components")


def with_record(ledger: Ledger, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with `redactions` (time, columns, reason, by) and `annotations` (as `read_notes` gives them)."""
    key = key_of(dict(row))
    redactions = [
        {"time": event["time"], **{k: event["payload"].get(k) for k in ("columns", "reason", "by")}}
        for event in ledger.events(key.run_id, kind="text_redacted", live=False)
        if tuple(event["payload"].get(k) for k in ("attempt", "writer", "seq")) == key[1:]
    ]
    notes = [note for note in read_notes(ledger, key.run_id) if note["kind"] == "annotation" and _is_about(note, row)]
    return {**row, "redactions": redactions, "annotations": notes}


def _is_about(note: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a note is on this row, on a range that holds it now, or on its step."""
    end = note.get("row")
    if isinstance(end, Mapping):
        return all(end.get(part) == row[part] for part in ("attempt", "writer", "seq"))
    number = row["session"]
    if note.get("session") is not None:
        return bool(note["session"] == number)
    if note.get("sessions") is not None:
        first, last = note["sessions_now"][0], note["sessions_now"][-1]
        return None not in (number, first, last) and first <= number <= last
    return bool(note["step"] == row["step"])


def print_row(known: Mapping[str, Any]) -> None:
    """The row for people: a title, one line a column that has a value, components as a table, texts, notes."""
    print(_title(known))
    names = [c.name for c in COLUMNS if c.name not in _TITLE and known[c.name] is not None]
    margin = max(len(name) for name in names)
    for name in names:
        print(f"  {name:<{margin}}  {_value(known[name])}")
    if known["components"]:
        print()
        for part in known["components"]:
            figures = [f"{k} {_value(v)}" for k, v in part.items() if k != "name" and v is not None]
            print_items(f"component {line(part['name'])}", figures)
    gone = _gone(known["redactions"])
    for name in TEXT_COLUMNS:
        if known[name] is not None:
            print(f"\n{name}\n{shown(known[name])}")
        elif name in gone:
            print(f"\n{name}\n({gone[name]})")
    if known["annotations"]:
        print("\nnotes")
        print_notes(known["annotations"])


def _title(row: Mapping[str, Any]) -> str:
    called = f"row {row['attempt']}/{row['writer']}/{row['seq']}"
    what = f"{called} (superseded by a resume)"
    if row["live"]:
        what = f"session {row['session']:,} ({called})" if row["session"] is not None else f"{called} ({row['split']})"
    return f"{line(row['run_id'])}, {what}: step {row['step']:,}, {minute(row['time'].isoformat())} UTC"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.8g}" if isinstance(value, float) else line(value)


def _gone(redactions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of each text that was taken out, when, by whom and why."""
    gone = {}
    for event in redactions:
        for column in event["columns"] or ():
            by, reason = line(event["by"]), line(event["reason"])
            gone[column] = f"taken out on {minute(event['time'])} UTC by {by}: {reason}"
    return gone
