"""People's notes on sessions, and the reviews of notes. Both are events: what was said is kept as it was said.

A review stands beside the note it reviews, and so do all the others; none closes a note or changes it. A person who
thinks better of a note writes another one that supersedes it, and the first one stays readable. Where the other one
is somebody else's, that is shown and settles nothing: nobody closes another person's note.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewards.errors import LedgerError
from rewards.places import Key, last_step, numbers_now, session_keys

if TYPE_CHECKING:
    from rewards.ledger import Ledger

VERDICTS = ("agree", "disagree", "unclear")

# What the reviews of a note come to, the newest word of each reviewer counting. Only `agreed` is nobody's concern.
STATES = ("unreviewed", "agreed", "disputed", "unsettled", "superseded")


def annotate(
    ledger: Ledger,
    run_id: str,
    about: Mapping[str, Any],
    *,
    annotator: str,
    label: str,
    note: str | None = None,
    confidence: float | None = None,
    supersedes: int | None = None,
) -> dict[str, Any]:
    """Adds a note and returns its event; `seq` is the number to review or supersede it by.

    about: {"session": 4803}, {"step": 20} or {"sessions": [10000, 11000]}: numbers of the run's live view. The row a
    session has now is recorded too, since a resume gives its number to another row. note: kept to the letter.
    confidence: from 0 to 1. supersedes: number of an earlier annotation of the same run.
    Raises: LedgerError for a place that the run does not have, or a note that is not there.
    """
    _check_words({"annotator": annotator, "label": label})
    if confidence is not None and not (math.isfinite(confidence) and 0 <= confidence <= 1):
        raise LedgerError(f"confidence is {confidence}; give a number from 0 to 1")
    place, step = _place(ledger, run_id, about)
    if supersedes is not None:
        _check_superseded(ledger, run_id, supersedes)
    said = {"annotator": annotator, "label": label, "note": note, "confidence": confidence, "supersedes": supersedes}
    return ledger.note("annotation", said | place, run_id, step=step)


def review(ledger: Ledger, event: int, *, annotator: str, verdict: str, note: str | None = None) -> dict[str, Any]:
    """Adds what somebody thinks of a note, and returns its event. verdict: one of VERDICTS, or another word.

    Raises: LedgerError when the event is no annotation of this ledger.
    """
    _check_words({"annotator": annotator, "verdict": verdict})
    reviewed = _annotation(ledger, event)
    said = {"annotator": annotator, "label": verdict, "note": note, "reviews": event}
    return ledger.note("review", said, reviewed["run_id"], step=reviewed["step"])


def read_notes(ledger: Ledger, run_id: str | None = None) -> list[dict[str, Any]]:
    """All notes of a run or of all, in their order, each with its reviews beside it.

    Keys: those of an event with its payload's beside them (number, run_id, time, step, annotator, label, note,
    confidence, supersedes; session or sessions, and session_now or sessions_now, which are null where a resume has
    superseded the row), state (one of STATES), superseded_by (number, annotator), reviews (number, time, annotator,
    label, note, of_own_note). A review that names no note of this ledger stands alone: its kind is `review`, and its
    `reviews` are empty.
    Raises: LedgerError for an unknown run.
    """
    notes = {}
    for event in ledger.events(run_id, kind="annotation", live=False):
        notes[event["seq"]] = _shown(event) | {"superseded_by": [], "reviews": []}
    alone = []
    for event in ledger.events(run_id, kind="review", live=False):
        found = _shown(event)
        note = notes.get(_number(found.pop("reviews", None)))
        if note is None:
            alone.append(found | {"state": "unsettled", "superseded_by": [], "reviews": []})
        else:
            note["reviews"].append(found | {"of_own_note": found["annotator"] == note["annotator"]})
    for number, note in notes.items():
        older = notes.get(_number(note.get("supersedes")))
        if older is not None:
            older["superseded_by"].append({"number": number, "annotator": note["annotator"]})
    for note in notes.values():
        by_author = note["annotator"] in [newer["annotator"] for newer in note["superseded_by"]]
        note["state"] = "superseded" if by_author else _state(note["reviews"])
    _add_numbers_now(ledger, list(notes.values()))
    return [*notes.values(), *alone]


def _shown(event: Mapping[str, Any]) -> dict[str, Any]:
    said = {"annotator": None, "label": None, "note": None} | event["payload"]
    kept = {"number": event["seq"], "kind": event["kind"], "run_id": event["run_id"], "time": event["time"]}
    return kept | {"step": event["step"]} | {key: value for key, value in said.items() if key not in kept}


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _state(reviews: Sequence[Mapping[str, Any]]) -> str:
    """By the newest word of each reviewer; an author's own is shown and settles nothing."""
    words = {repr(review["annotator"]): review["label"] for review in reviews if not review["of_own_note"]}
    if not words:
        return "unreviewed"
    if "disagree" in words.values():
        return "disputed"
    return "agreed" if all(word == "agree" for word in words.values()) else "unsettled"


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_words(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if not isinstance(value, str) or not value.strip():
            raise LedgerError(f"{name} is {value!r}; give a name")


def _annotation(ledger: Ledger, number: int) -> dict[str, Any]:
    for kind in ("annotation", "review"):
        for event in ledger.events(kind=kind, live=False):
            if event["seq"] == number:
                if kind == "annotation":
                    return event
                of = event["payload"].get("reviews")
                raise LedgerError(
                    f"event {number} is a review of event {of}; reviews stand beside the note: review {of}"
                )
    raise LedgerError(f"event {number} is no annotation; `rewards annotations LEDGER` lists them with their numbers")


def _check_superseded(ledger: Ledger, run_id: str, number: int) -> None:
    other = _annotation(ledger, number)["run_id"]
    if other != run_id:
        raise LedgerError(f"event {number} is a note on run `{other}`; one on run `{run_id}` cannot supersede it")


def _place(ledger: Ledger, run_id: str, about: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """What the payload says of the place, and the step the event belongs to."""
    if len(about) != 1 or not about.keys() <= {"session", "step", "sessions"}:
        raise LedgerError("say what the note is about: one of session=, step= or sessions=[first, last]")
    runs = {run["run_id"]: run for run in ledger.runs()}
    if run_id not in runs:
        known = ", ".join(f"`{name}`" for name in runs) or "no run yet"
        raise LedgerError(f"no run `{run_id}` in this ledger; it holds: {known}")
    if "step" in about:
        step, last = about["step"], last_step(ledger, run_id)
        if last is None or not 0 <= step <= last:
            there = "it has recorded none yet" if last is None else f"its steps go up to {last:,}"
            raise LedgerError(f"run `{run_id}` has no step {step}: {there}")
        return {"step": step, "attempt": runs[run_id]["newest_attempt"]}, step
    first, last = about.get("sessions") or (about["session"], about["session"])
    if first > last:
        raise LedgerError(f"sessions {first} to {last}: the first comes after the last")
    keys, step = session_keys(ledger, run_id, first, last)
    ends = [{"attempt": key.attempt, "writer": key.writer, "seq": key.seq} for key in keys]
    if "session" in about:
        return {"session": first, "row": ends[0]}, step
    return {"sessions": [first, last], "rows": [ends[0], ends[-1]]}, step


# -- where the rows are now -------------------------------------------------------------------------------------------


def _add_numbers_now(ledger: Ledger, notes: Sequence[dict[str, Any]]) -> None:
    """Adds `session_now` or `sessions_now`: the numbers that the rows have now, null where a resume superseded them.

    Notes from elsewhere name no row; their numbers are taken to be those of now.
    """
    keys = {id(note): _keys(note) for note in notes}
    numbers = numbers_now(ledger, {key for of_note in keys.values() for key in of_note})
    for note in notes:
        now = [numbers[key] for key in keys[id(note)]]
        if note.get("session") is not None:
            note["session_now"] = now[0] if now else note["session"]
        elif note.get("sessions") is not None:
            note["sessions_now"] = now or note["sessions"]


def _keys(note: Mapping[str, Any]) -> list[Key]:
    ends = [note["row"]] if isinstance(note.get("row"), Mapping) else note.get("rows")
    try:
        return [Key(note["run_id"], end["attempt"], end["writer"], end["seq"]) for end in ends or ()]
    except (KeyError, TypeError):  # somebody else's event, with keys of the same name
        return []
