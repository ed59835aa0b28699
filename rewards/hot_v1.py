"""Tails of schema version 1, which kept rows in the columns of a table and components as JSON: read, never written."""

import json
import math
import sqlite3
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rewards.errors import LedgerError
from rewards.schema import BY_NAME, COMPONENT_COLUMNS, STORED, TEXT_COLUMNS, TEXT_HASHES
from rewards.values import as_array

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FLOATS = frozenset(c.name for c in COMPONENT_COLUMNS if pa.types.is_floating(c.type))


def places(tail: sqlite3.Connection, above: int) -> list[tuple[int, int]]:
    """First and last row of each block that starts above row `above`."""
    query = "SELECT first_seq, first_seq + count - 1 FROM blocks WHERE first_seq > ? ORDER BY first_seq"
    return tail.execute(query, (above,)).fetchall()


def read_rows(tail: sqlite3.Connection, first: int, last: int) -> tuple[pa.RecordBatch, pa.RecordBatch | None] | None:
    """The rows and texts of a block; None where they were sealed.

    Raises: LedgerError when a stored value is not one the ledger writes.
    """
    names = [c.name for c in STORED] + list(TEXT_HASHES)
    query = f"SELECT {', '.join(names)} FROM sessions WHERE seq BETWEEN ? AND ? ORDER BY seq"
    rows = tail.execute(query, (first, last)).fetchall()
    if not rows:
        return None
    values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    if len(rows) != last - first + 1 or values["seq"] != list(range(first, last + 1)):
        raise LedgerError(f"{len(rows)} rows are stored where {last - first + 1} were recorded")
    columns = {c.name: _from_sql(c.name, values[c.name]) for c in STORED if c.name != "seq"}
    for name in TEXT_HASHES:
        columns[name] = pa.array(values[name], pa.binary())
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns)), _texts(tail, first, last)


def stray(tail: sqlite3.Connection) -> str | None:
    """What no commit covers, in words: a row outside of all blocks, a text without its row, a salt without a text."""
    inside = "EXISTS (SELECT 1 FROM blocks b WHERE t.seq BETWEEN b.first_seq AND b.first_seq + b.count - 1)"
    row = tail.execute(f"SELECT min(seq) FROM sessions t WHERE NOT {inside}").fetchone()[0]
    if row is not None:
        return f"row {row} of table sessions belongs to no commit"
    text = tail.execute("SELECT min(seq) FROM texts WHERE seq NOT IN (SELECT seq FROM sessions)").fetchone()[0]
    if text is not None:
        return f"row {text} of table texts belongs to no commit"
    nothing = " AND ".join(f"{name} IS NULL" for name in TEXT_COLUMNS)
    empty = tail.execute(f"SELECT min(seq) FROM texts WHERE {nothing}").fetchone()[0]
    return None if empty is None else f"row {empty} of table texts holds a salt and no text"


def take_out(tail: sqlite3.Connection, seq: int, columns: Sequence[str]) -> None:
    """Takes out texts of a row, and their salt with the last of them; inside a write transaction of the caller.

    One salt a row served its three texts: while another text of the row stays, so does the salt, and somebody who
    has both can try whether a guess of the text fits its hash.
    """
    for name in columns:
        tail.execute(f"UPDATE texts SET {name} = NULL WHERE seq = ?", (seq,))
    nothing = " AND ".join(f"{name} IS NULL" for name in TEXT_COLUMNS)
    tail.execute(f"DELETE FROM texts WHERE seq = ? AND {nothing}", (seq,))


def _texts(tail: sqlite3.Connection, first: int, last: int) -> pa.RecordBatch | None:
    """The texts of a block. One salt a row served its three texts."""
    query = f"SELECT seq, salt, {', '.join(TEXT_COLUMNS)} FROM texts WHERE seq BETWEEN ? AND ?"
    stored = {row[0]: row[1:] for row in tail.execute(query, (first, last))}
    if not stored:
        return None
    absent = (None,) * 4
    rows = [stored.get(seq, absent) for seq in range(first, last + 1)]
    columns = {}
    for place, name in enumerate(TEXT_COLUMNS, start=1):
        texts = [row[place] for row in rows]
        if any(type(text) is not str for text in texts if text is not None):
            raise LedgerError(f"a {name} from row {first} on is not the text that was recorded")
        columns[name] = pa.array(texts, pa.string())
        salts = [row[0] if row[place] is not None else None for row in rows]
        if any(type(salt) is not bytes for salt in salts if salt is not None):
            raise LedgerError(f"the salt of a {name} from row {first} on is not the one that was recorded")
        columns[f"{name}_salt"] = pa.array(salts, pa.binary())
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def _from_sql(name: str, values: list[Any]) -> pa.Array:
    column = BY_NAME[name]
    if name == "components":
        return _components(values)
    if pa.types.is_boolean(column.type):
        values = [bool(v) if v == 0 or v == 1 else v for v in values]
    elif pa.types.is_floating(column.type):
        values = [_NOT_FINITE.get(v, v) if type(v) is str else v for v in values]
    return as_array(column, values)


def _components(values: list[Any]) -> pa.Array:
    try:
        rows = [None if v is None else json.loads(v) for v in values]
    except (ValueError, TypeError) as error:
        raise LedgerError(f"column `components` holds text that is not JSON: {error}") from error
    for row in rows:
        for entry in row if isinstance(row, list) else ():
            if isinstance(entry, dict):
                for key, value in entry.items():
                    if type(value) is str and value in _NOT_FINITE and key in _FLOATS:
                        entry[key] = _NOT_FINITE[value]
    return as_array(BY_NAME["components"], rows)
