"""Events: checked and encoded on the way in, chained in the order in which they were committed."""

import json
import math
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike, fspath
from typing import Any

import numpy as np

from rewards.chain import EVENTS_GENESIS, event_hash
from rewards.errors import LedgerError
from rewards.schema import CLAIM_KINDS, EVENT_KINDS

_COLUMNS = "seq, run_id, attempt, writer, step, at_step, time, kind, payload, hash"

DDL = (
    "CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, run_id TEXT NOT NULL, attempt INTEGER, "
    "writer INTEGER, step INTEGER, at_step INTEGER NOT NULL, time INTEGER NOT NULL, kind TEXT NOT NULL, "
    "payload TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind, run_id)",
)


@dataclass(frozen=True)
class Draft:
    """An event before it has a number.

    step: as the caller gave it. at_step: the same, or the last step the writer had seen: what decides whether the
    event is live. payload: JSON. attempt, writer: null for a note of somebody who is no writer.
    """

    run_id: str
    attempt: int | None
    writer: int | None
    step: int | None
    at_step: int
    kind: str
    payload: str


@dataclass(frozen=True)
class Event:
    """A stored event. Units: time in microseconds since 1970."""

    seq: int
    run_id: str
    attempt: int | None
    writer: int | None
    step: int | None
    at_step: int
    time: int
    kind: str
    payload: str
    hash: str

    def content(self) -> dict[str, Any]:
        """The payload as it was given.

        Raises: LedgerError when the stored text is no JSON object.
        """
        try:
            content = json.loads(self.payload, object_hook=_decode)
        except (ValueError, TypeError) as error:
            raise LedgerError(f"event {self.seq} ({self.kind}) holds text that is not JSON; run verify") from error
        if not isinstance(content, dict):
            raise LedgerError(f"event {self.seq} ({self.kind}) holds no JSON object; run verify")
        return content

    def shown(self) -> dict[str, Any]:
        """The event as readers get it."""
        return {
            "run_id": self.run_id,
            "attempt": self.attempt,
            "seq": self.seq,
            "step": self.step,
            "time": iso(self.time),
            "kind": self.kind,
            "payload": self.content(),
        }

    def expected_hash(self, previous: str) -> str:
        """The hash this event must have after `previous`."""
        fields = (self.seq, self.run_id, self.attempt, self.writer, self.step, self.at_step, self.time, self.kind)
        return event_hash(previous, (*fields, self.payload))


def iso(microseconds: int) -> str:
    """A time as ISO 8601, UTC."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).isoformat(timespec="microseconds")


# -- payloads --------------------------------------------------------------------------------------------------------


def encode(kind: str, payload: Any) -> str:
    """The payload as JSON.

    Numbers that JSON does not know (NaN, infinities) are written as {"$float": "NaN"} and come back as they were.
    Raises: LedgerError for an unknown kind, a missing key, or a value that JSON cannot hold.
    """
    known = EVENT_KINDS.get(kind) or CLAIM_KINDS.get(kind)
    if known is None:
        raise LedgerError(f"unknown event kind `{kind}`; the kinds are {', '.join(EVENT_KINDS)}")
    if not isinstance(payload, Mapping):
        raise LedgerError(f"event `{kind}`: the payload is {type(payload).__name__}, not a dict")
    missing = [key for key in known.required if key not in payload]
    if missing:
        raise LedgerError(f"event `{kind}`: the payload has no `{missing[0]}`; give it, null if it is not known")
    text = json.dumps(_plain(payload, kind, "payload"), ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeError as error:
        raise LedgerError(f"event `{kind}`: the payload holds text that is no valid Unicode: {error}") from error
    return text


def _plain(value: Any, kind: str, path: str) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | int):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Mapping):
        return {_key(key, kind, path): _plain(item, kind, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, kind, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, PathLike):
        return str(fspath(value))
    raise LedgerError(f"event `{kind}`: {path} is {type(value).__name__}, which cannot be recorded")


def _key(key: Any, kind: str, path: str) -> str:
    if isinstance(key, str) and key != "$float":
        return str(key)
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return str(key)
    raise LedgerError(f"event `{kind}`: {path} has the key {key!r}, which cannot be recorded; use text")


def _decode(value: dict[str, Any]) -> Any:
    return float(value["$float"]) if value.keys() == {"$float"} else value


# -- the table -------------------------------------------------------------------------------------------------------


def head(ledger: sqlite3.Connection) -> str:
    """The head of the chain of events."""
    row = ledger.execute("SELECT hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return EVENTS_GENESIS if row is None else str(row[0])


def insert(ledger: sqlite3.Connection, drafts: Sequence[Draft]) -> list[Event]:
    """Numbers, chains and stores events; inside a write transaction of the caller."""
    row = ledger.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (0, EVENTS_GENESIS) if row is None else row
    if re.fullmatch("[0-9a-f]{64}", str(previous)) is None:
        raise LedgerError(f"event {seq}: its hash is damaged; restore ledger.db from a copy of the ledger")
    events = []
    for draft in drafts:
        seq += 1
        fields = (draft.run_id, draft.attempt, draft.writer, draft.step, draft.at_step)
        blank = Event(seq, *fields, time.time_ns() // 1000, draft.kind, draft.payload, "")
        previous = blank.expected_hash(previous)
        events.append(Event(seq, *fields, blank.time, draft.kind, draft.payload, previous))
    ledger.executemany(
        f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(e.seq, e.run_id, e.attempt, e.writer, e.step, e.at_step, e.time, e.kind, e.payload, e.hash) for e in events],
    )
    return events


def read(ledger: sqlite3.Connection, run_id: str | None = None, kinds: Iterable[str] | None = None) -> list[Event]:
    """Events in order, of one run or all, of some kinds or all."""
    conditions, arguments = ["1"], []
    if run_id is not None:
        conditions.append("run_id = ?")
        arguments.append(run_id)
    if kinds is not None:
        kinds = list(kinds)
        conditions.append(f"kind IN ({', '.join('?' * len(kinds))})")
        arguments += kinds
    query = f"SELECT {_COLUMNS} FROM events WHERE {' AND '.join(conditions)} ORDER BY seq"
    return [Event(*row) for row in ledger.execute(query, arguments)]
