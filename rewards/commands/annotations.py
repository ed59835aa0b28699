"""`rewards annotations`: people's notes with their reviews side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.commands.arguments import About, Commands, add_command, add_json
from rewards.commands.lookup import chosen_runs
from rewards.commands.output import line, minute, print_json, say, shown
from rewards.counted import counted

ABOUT = About(
    "people's notes with their reviews side by side",
    "A note is agreed when somebody other than its author reviewed it and the newest word of every such\n"
    "reviewer is agree; disputed when one is disagree; unsettled when one is unclear or another word; superseded\n"
    "when its author wrote another one in its place: nobody closes another person's note. All that was ever said\n"
    "is listed, whatever it came to.",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "annotations", run, ABOUT)
    parser.add_argument("--run", help="only this run")
    parser.add_argument(
        "--open", action="store_true", help="only what is not settled: unreviewed, disputed and unsettled notes"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Lists the notes."""
    from rewards.annotations import read_notes
    from rewards.ledger import Ledger

    with Ledger.open(args.ledger) as ledger:
        chosen_runs(args.run, ledger.runs())
        notes = read_notes(ledger, args.run)
    listed = [note for note in notes if not args.open or note["state"] not in ("agreed", "superseded")]
    if args.json:
        print_json({"annotations": listed})
        return 0
    print_notes(listed)
    if not listed:
        say(
            "no note on record" if not notes else f"nothing is open: {counted(len(notes), 'note')} agreed or superseded"
        )
    elif not args.open:
        counts = {
            state: sum(note["state"] == state for note in notes) for state in dict.fromkeys(n["state"] for n in notes)
        }
        say("; ".join(f"{count:,} {state}" for state, count in counts.items()))
    return 0


def print_notes(notes: Sequence[Mapping[str, Any]]) -> None:
    """Notes, each with its reviews indented below it."""
    for number, note in enumerate(notes):
        if number:
            print()
        if note["kind"] == "review":
            print(f"{_who(note)}: {line(note['label'])} (review of a note that is not in this ledger)")
        else:
            print(f"{_who(note)} on {place(note)}: {line(note['label'])}{_more(note)}  [{_state(note)}]")
        _print_text(note["note"], "    ")
        for review in note["reviews"]:
            own = ", reviewing their own note" if review["of_own_note"] else ""
            print(f"  {_who(review)}: {line(review['label'])}{own}")
            _print_text(review["note"], "      ")


def place(note: Mapping[str, Any]) -> str:
    """What a note is about, in people's words; where a resume gave the number to another row, that is said."""
    run = line(note["run_id"])
    if note.get("session") is not None:
        return f"{run}, session {_number(note['session'])}{_moved(note['session'], note['session_now'])}"
    if note.get("sessions") is not None:
        ends = " to ".join(_number(end) for end in note["sessions"])
        return f"{run}, sessions {ends}{_moved(note['sessions'], note['sessions_now'])}"
    return run if note["step"] is None else f"{run}, step {_number(note['step'])}"


def _moved(then: Any, now: Any) -> str:
    if then == now:
        return ""
    if now is None or None in (now if isinstance(now, list) else ()):
        return " (then; superseded by a resume)"
    return f" (then; {' to '.join(_number(end) for end in (now if isinstance(now, list) else [now]))} now)"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else line(value)


def _who(said: Mapping[str, Any]) -> str:
    return f"{said['number']}  {minute(said['time'])}  {line(said['annotator'])}"


def _more(note: Mapping[str, Any]) -> str:
    more = "" if note.get("confidence") is None else f" (confidence {line(note['confidence'])})"
    return more if note.get("supersedes") is None else f"{more} (supersedes {line(note['supersedes'])})"


def _state(note: Mapping[str, Any]) -> str:
    newer = note["superseded_by"]
    if note["state"] == "superseded":
        return "superseded by " + ", ".join(str(other["number"]) for other in newer)
    others = [f"{line(other['annotator'])} would supersede it by {other['number']}" for other in newer]
    return "; ".join([str(note["state"]), *others])


def _print_text(text: Any, indent: str) -> None:
    if text is not None:
        print("\n".join(f"{indent}{part}" for part in shown(text).split("\n")))
