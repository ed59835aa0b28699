"""Tails of schema version 1, which kept rows in the columns of a table and components as JSON: read, never written."""

import json
import math
import sqlite3
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rewards.errors import LedgerError
from rewards.schema import BY_NAME, COMPONENT_COLUMNS, STORED, TEXT_COLUMNS, TEXT_HASHES
from rewards.values import as_array

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FLOATS = frozenset(c.name for c in COMPONENT_COLUMNS if pa.types.is_floating(c.type))


def hot_rows(tail: sqlite3.Connection, above: int) -> Iterator[tuple[int, pa.RecordBatch, pa.RecordBatch | None]]:
    """First row, rows and texts of each block that starts above row `above`.

    Raises: LedgerError when a stored value is not one the ledger writes.
    """
    names = [c.name for c in STORED] + list(TEXT_HASHES)
    query = f"SELECT {', '.join(names)} FROM sessions WHERE seq BETWEEN ? AND ? ORDER BY seq"
    blocks = "SELECT first_seq, first_seq + count - 1 FROM blocks WHERE first_seq > ? ORDER BY first_seq"
    for first, last in tail.execute(blocks, (above,)).fetchall():
        rows = tail.execute(query, (first, last)).fetchall()
        if not rows:
            continue
        values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        if values["seq"] != list(range(first, last + 1)):
            raise LedgerError(f"{len(rows)} rows are stored where {last - first + 1} were recorded")
        columns = {c.name: _from_sql(c.name, values[c.name]) for c in STORED if c.name != "seq"}
        for name in TEXT_HASHES:
            columns[name] = pa.array(values[name], pa.binary())
        yield first, pa.RecordBatch.from_arrays(list(columns.values()), list(columns)), _texts(tail, first, last)


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
