"""Events of an import: one JSON object a line, with `kind`, `session` or `step`, and the fields of the event.

The fields stand beside `kind`, or in an object `payload`, as `rewards export --events` writes them. An event with a
session and no step gets the step of that session; the session stays among its fields. A recalibration has `category`,
`old_pct`, `new_pct` and `reason`; its `op` is `set` where it gives none. An event that others speak of (`reviews`,
`supersedes`) gives its number in the file as `seq`. What an exported ledger says about its own attempts and rows
(start, checkpoints, resumes, end, redactions) is not taken: the import is an attempt with events of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.errors import DataError, UserError
from rewards.events import encode
from rewards.importers.fields import nearest
from rewards.importers.readers import json_objects
from rewards.schema import EVENT_KINDS

OWN = ("attempt_started", "checkpoint", "resumed", "stopped", "attempt_ended", "text_redacted")
REFERENCES = ("reviews", "supersedes")
_PLACES = ("run_id", "attempt", "seq")  # of the ledger an event was exported from
_NAMES = ("category", "component")
_PERCENT = ("old_pct", "new_pct")


@dataclass(frozen=True)
class ReadEvent:
    """An event of the file.

    number: by which others in the file speak of it. step: as given; None where it follows from the session, or is not
    known.
    """

    place: str
    kind: str
    number: int | None
    session: int | None
    step: int | None
    payload: dict[str, Any]


def read_events(path: Path) -> tuple[list[ReadEvent], int]:
    """The events of a file, and how many of them were about the attempts of another ledger.

    Raises: DataError naming file and line.
    """
    found: list[ReadEvent] = []
    foreign = 0
    for line, value in json_objects(path):
        event = _event(f"{path}:{line}", value)
        if event.kind in OWN:
            foreign += 1
            continue
        _check_references(event, {other.number for other in found})
        found.append(event)
    if not found and not foreign:
        raise DataError(f"{path}: holds no event; leave --events out")
    return found, foreign


def _event(place: str, value: Mapping[str, Any]) -> ReadEvent:
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise DataError(f"{place}: an event without `kind`; the kinds are {', '.join(EVENT_KINDS)}")
    if kind not in EVENT_KINDS:
        near = nearest(kind, EVENT_KINDS)
        hint = f"did you mean `{near}`?" if near else f"the kinds are {', '.join(EVENT_KINDS)}"
        raise DataError(f"{place}: unknown event kind `{kind}`; {hint}")
    payload = _payload(place, value)
    if kind == "recalibration":
        _recalibration(place, payload)
    try:
        encode(kind, payload)
    except UserError as error:
        raise DataError(f"{place}: {error}") from error
    session = _whole(place, payload, "session", 1)
    return ReadEvent(place, kind, _whole(place, value, "seq", 1), session, _whole(place, value, "step", 0), payload)


def _payload(place: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the event, without the names that its rows had in another ledger."""
    inner = value.get("payload")
    if inner is None:
        inner = {key: part for key, part in value.items() if key not in ("kind", "step", *_PLACES)}
        return {key: _decoded(part) for key, part in inner.items()}
    if not isinstance(inner, dict):
        raise DataError(f"{place}: `payload` is {type(inner).__name__}, not an object")
    payload = {key: _decoded(part) for key, part in inner.items()}
    for name, row in (("session", "row"), ("sessions", "rows")):
        if f"{name}_now" in value:
            payload[name] = value[f"{name}_now"]
            payload.pop(row, None)
    if "time" in value:
        payload.setdefault("recorded_at", value["time"])
    return payload


def _decoded(value: Any) -> Any:
    """NaN and the infinities as numbers again."""
    if isinstance(value, dict):
        if value.keys() == {"$float"}:
            return float(value["$float"])
        return {key: _decoded(part) for key, part in value.items()}
    return [_decoded(part) for part in value] if isinstance(value, list) else value


def _recalibration(place: str, payload: dict[str, Any]) -> None:
    payload.setdefault("op", "set")
    for name in _NAMES:  # rows hold them as text
        if isinstance(payload.get(name), int) and not isinstance(payload[name], bool):
            payload[name] = str(payload[name])
    for name in _PERCENT:
        number = payload.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise DataError(f"{place}: `{name}` is {number!r}, not a number of percent")


def _whole(place: str, value: Mapping[str, Any], name: str, least: int) -> int | None:
    number = value.get(name)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 2**63:
        raise DataError(f"{place}: `{name}` is {number!r}, not a whole number from {least}")
    return number


def _check_references(event: ReadEvent, known: set[int | None]) -> None:
    for name in REFERENCES:
        number = event.payload.get(name)
        if number is not None and number not in known:
            raise DataError(f"{event.place}: `{name}` is {number!r}, and no event above it has that `seq`")


def placed(events: list[ReadEvent], steps: Mapping[int, int], sessions: int) -> list[ReadEvent]:
    """The events with the steps of their sessions. steps: of the sessions they name.

    Raises: DataError for a session that the run does not have.
    """
    found = []
    for event in events:
        if event.session is not None and event.session > sessions:
            raise DataError(f"{event.place}: session {event.session:,} is beyond the run, which has {sessions:,}")
        step = event.step
        if step is None and event.session is not None:
            step = steps[event.session]
        found.append(replace(event, step=step))
    return found


def renumbered(payload: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """The payload with the numbers that the events it speaks of have now."""
    return {key: numbers[value] if key in REFERENCES and value in numbers else value for key, value in payload.items()}
