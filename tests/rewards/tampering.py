"""Changing a stored ledger behind its back, wherever a row is: the hot tail, a sealed file, a tail of version 1.

It knows the file formats by itself and is careful: checksums of bytes and the log of a Delta table fit what it leaves.
"""

import json
import math
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from rewards.schema import COMPONENTS_TYPE, STORED, TEXT_COLUMNS, TEXT_FIELDS, sealed_schema
from tests.rewards.sample_ledgers import Key

Change = Callable[[pa.Table], pa.Table]
_TYPES = {field.name: field.type for field in (*sealed_schema(), *TEXT_FIELDS)}
_V1_TEXTS = "seq, salt, prompt, response, rejected"


def sql(root: Path, file: str, *statements: str) -> None:
    """Runs statements that must change something."""
    with closing(sqlite3.connect(root / file)) as database, database:
        for statement in statements:
            assert database.execute(statement).rowcount != 0, statement


def joined(root: Path) -> dict[Key, tuple[int, Path]]:
    """Number and tail of every chain."""
    with closing(sqlite3.connect(root / "ledger.db")) as ledger:
        query = "SELECT run_id, attempt, writer, seq, payload FROM events WHERE kind = 'writer_joined'"
        found = ledger.execute(query).fetchall()
    return {(run, a, w): (seq, root / "tails" / json.loads(text)["file"]) for run, a, w, seq, text in found}


def tail_of(root: Path, key: Key) -> str:
    return str(joined(root)[key][1].relative_to(root))


def files_of(root: Path, table: str) -> list[Path]:
    """The Parquet files of a Delta table."""
    log = root / table / "_delta_log"
    return _listed(root / table, len(list(log.iterdir()))) if log.exists() else []


@lru_cache
def _listed(table: Path, entries: int) -> list[Path]:
    return [Path(uri.removeprefix("file://")) for uri in DeltaTable(table).file_uris()]


def file_of(root: Path, table: str, key: Key, seq: int) -> Path | None:
    """The sealed file with a row."""
    number = joined(root)[key][0]
    for path in files_of(root, table):
        keys = pq.read_table(path, columns=["chain", "seq"], partitioning=None)
        if pc.any(pc.and_(pc.equal(keys["chain"], number), pc.equal(keys["seq"], seq))).as_py():
            return path
    return None


def is_v1(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as tail:
        return bool(tail.execute("PRAGMA user_version").fetchone()[0] == 1)


# -- what is stored around a row: a table with `seq`, changed as a whole -----------------------------------------------


def change(root: Path, key: Key, seq: int, table: str, how: Change, column: str = "") -> None:
    """Changes the stored unit that a row is in: a commit's batch in a tail, or a sealed file.

    column: what `how` edits; a hot salt is not stored, but the secret of the commit that it comes from.
    """
    path = joined(root)[key][1]
    with closing(sqlite3.connect(path)) as tail, tail:
        query = "SELECT max(first_seq) FROM batches WHERE first_seq <= ?"
        first = None if is_v1(path) else tail.execute(query, (seq,)).fetchone()[0]
        if first is not None and first + unpack(tail, first, "rows").num_rows > seq:
            if column.endswith("_salt") and column not in unpack(tail, first, "texts").schema.names:
                assert tail.execute("UPDATE batches SET secret = zeroblob(16) WHERE first_seq = ?", (first,)).rowcount
                return
            change_batch(tail, first, {"sessions": "rows"}.get(table, table), how)
            return
    file = file_of(root, table, key, seq)
    assert file is not None, "the row is nowhere"
    rewrite(file, how)


def unpack(tail: sqlite3.Connection, first: int, what: str) -> pa.Table:
    """The rows or texts of a commit, with `seq`; step and time are written out."""
    layout = {"rows": "layout", "texts": "text_layout"}[what]
    query = (
        f"SELECT arrow_schema, {what}, step, time FROM batches JOIN blocks USING (first_seq) "
        f"JOIN layouts ON id = {layout} WHERE first_seq = ?"
    )
    schema, blob, *constant = tail.execute(query, (first,)).fetchone()
    batch = pa.ipc.read_record_batch(pa.py_buffer(blob), pa.ipc.read_schema(pa.py_buffer(schema)))
    table = pa.Table.from_batches([batch])
    for name, value in zip(("step", "time"), constant, strict=True):
        if what == "rows" and name not in table.schema.names:
            table = table.append_column(name, pa.array([value] * table.num_rows, _TYPES[name]))
    return table.append_column("seq", pa.array(range(first, first + table.num_rows), pa.int64()))


def change_batch(tail: sqlite3.Connection, first: int, what: str, how: Change) -> None:
    """Writes a changed batch back, in order of `seq`, with a checksum that fits."""
    table = how(unpack(tail, first, what)).sort_by("seq").drop_columns("seq").combine_chunks()
    batch = (table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)])[0]
    schema = batch.schema.serialize().to_pybytes()
    tail.execute("INSERT OR IGNORE INTO layouts SELECT max(max(id), 5000000) + 1, ? FROM layouts", (schema,))
    layout = tail.execute("SELECT id FROM layouts WHERE arrow_schema = ?", (schema,)).fetchone()[0]
    name = {"rows": "layout", "texts": "text_layout"}[what]
    tail.execute(
        f"UPDATE batches SET {name} = ?, {what} = ? WHERE first_seq = ?",
        (layout, memoryview(batch.serialize()), first),
    )
    fix_checksum(tail, first)


def fix_checksum(tail: sqlite3.Connection, first: int) -> None:
    rows, texts = tail.execute("SELECT rows, texts FROM batches WHERE first_seq = ?", (first,)).fetchone()
    crc = zlib.crc32(texts or b"", zlib.crc32(rows))
    tail.execute("UPDATE blocks SET crc32 = ? WHERE first_seq = ?", (crc, first))


def rewrite(path: Path, how: Change, **options: Any) -> None:
    """Writes a sealed file anew in its place."""
    table = how(pq.read_table(path, partitioning=None))
    pq.write_table(table, path, **({"compression": "zstd"} | options))


def overwrite(root: Path, name: str, how: Change) -> None:
    """Makes another table of a sealed one, as a Delta program would: the log fits."""
    table = DeltaTable(root / name)
    write_deltalake(table, how(pa.table(table.to_pyarrow_table())), mode="overwrite")


# -- one value, one row ------------------------------------------------------------------------------------------------


def other(value: Any, kind: pa.DataType) -> Any:
    """The value nearest to another one."""
    if value is None:
        return _SOME[kind]
    if isinstance(value, bool):
        return not value
    if pa.types.is_timestamp(kind):
        return value.replace(microsecond=(value.microsecond + 1) % 1_000_000)
    if isinstance(value, float):
        number = {pa.float32(): np.float32, pa.float64(): np.float64}[kind]
        return 0.0 if math.isnan(value) else float(np.nextafter(number(value), number(math.inf)))
    if isinstance(value, list):
        return value[1:] or None
    return (
        value + 1 if isinstance(value, int) else value + value[:1] if len(value) else value + type(value)(b"x", "ascii")
    )


_SOME = {
    pa.float64(): 0.0,
    pa.float32(): 0.0,
    pa.int64(): 0,
    pa.int32(): 0,
    pa.bool_(): False,
    pa.string(): "",
    pa.binary(): b"",
    _TYPES["time"]: 0,
    COMPONENTS_TYPE: [],
}


def set_value(root: Path, key: Key, seq: int, column: str, value: Any = ..., table: str = "sessions") -> None:
    """Edits one value; without one given, to the nearest other. `components.raw`: of the row's first component."""
    path = joined(root)[key][1]
    if is_v1(path) and _holds(path, seq):
        _set_v1(path, seq, column, value, table)
        return
    number = joined(root)[key][0]

    def edited(stored: pa.Table) -> pa.Table:
        return with_value(stored, _place(stored, number, seq), column, value)

    change(root, key, seq, table, edited, column)


def with_value(stored: pa.Table, place: int, column: str, value: Any = ...) -> pa.Table:
    """A table with one value edited."""
    column, _, entry = column.partition(".")
    there = column in stored.schema.names
    kind = stored.schema.field(column).type if there and column != "components" else _TYPES[column]
    if not there:
        stored = stored.append_column(column, pa.nulls(stored.num_rows, kind))
    values = stored[column].to_pylist()
    if entry:
        values[place] = _with_entry(values[place], entry, value)
    else:
        values[place] = other(values[place], kind) if value is ... else value
    return stored.set_column(stored.schema.get_field_index(column), column, pa.array(values, kind))


def _with_entry(entries: list[dict[str, Any]], name: str, value: Any) -> list[dict[str, Any]]:
    kind = COMPONENTS_TYPE.value_type.field(name).type
    first = entries[0] | {name: other(entries[0].get(name), kind) if value is ... else value}
    return [first, *entries[1:]]


def _place(stored: pa.Table, number: int, seq: int) -> int:
    found = pc.equal(stored["seq"], seq)
    if "chain" in stored.schema.names:
        found = pc.and_(found, pc.equal(stored["chain"], number))
    place: int = pc.index(found, True).as_py()
    assert place >= 0
    return place


def remove(root: Path, key: Key, seq: int, table: str = "sessions") -> None:
    """Takes one row out."""
    path, number = joined(root)[key][1], joined(root)[key][0]
    if is_v1(path) and _holds(path, seq):
        sql(path.parent, path.name, f"DELETE FROM {table} WHERE seq = {seq}")
        return

    def without(stored: pa.Table) -> pa.Table:
        place = _place(stored, number, seq)
        return pa.concat_tables([stored.slice(0, place), stored.slice(place + 1)])

    change(root, key, seq, table, without)


def insert(root: Path, key: Key, like: int, seq: int, table: str = "sessions") -> None:
    """Puts in a copy of the row `like`, with another number."""
    path, number = joined(root)[key][1], joined(root)[key][0]
    if is_v1(path) and _holds(path, like):
        names = _V1_TEXTS if table == "texts" else "seq, " + ", ".join(_v1_columns(path))
        copied = names.replace("seq", str(seq), 1)
        sql(path.parent, path.name, f"INSERT INTO {table} ({names}) SELECT {copied} FROM {table} WHERE seq = {like}")
        return

    def longer(stored: pa.Table) -> pa.Table:
        copy = stored.slice(_place(stored, number, like), 1)
        copy = copy.set_column(copy.schema.get_field_index("seq"), "seq", pa.array([seq], pa.int64()))
        return pa.concat_tables([stored, copy])

    change(root, key, like, table, longer)


def swap(root: Path, key: Key, seq: int, with_seq: int) -> None:
    """Two rows of one commit change places, with their texts."""
    path, number = joined(root)[key][1], joined(root)[key][0]
    if is_v1(path) and _holds(path, seq):
        for table in ("sessions", "texts"):
            numbers = [(seq, -1), (with_seq, seq), (-1, with_seq)]
            sql(path.parent, path.name, *(f"UPDATE {table} SET seq = {b} WHERE seq = {a}" for a, b in numbers))
        return

    def swapped(stored: pa.Table) -> pa.Table:
        values = stored["seq"].to_pylist()
        a, b = _place(stored, number, seq), _place(stored, number, with_seq)
        values[a], values[b] = values[b], values[a]
        return stored.set_column(stored.schema.get_field_index("seq"), "seq", pa.array(values, pa.int64()))

    for table in ("sessions", "texts"):
        change(root, key, seq, table, swapped)


# -- every value there is ----------------------------------------------------------------------------------------------

Target = tuple[str, str, Any, str]  # file, what in it, row, column


def stored_values(root: Path) -> list[Target]:
    """Every value that is stored in a ledger of this version."""
    found: list[Target] = []
    for path in sorted([root / "ledger.db", *(root / "tails").glob("*.db")]):
        name = str(path.relative_to(root))
        with closing(sqlite3.connect(path)) as database:
            tables = ("events",) if path.name == "ledger.db" else ("blocks", "meta")
            for table in tables:
                columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
                ids = [row[0] for row in database.execute(f"SELECT rowid FROM {table}")]
                found += [(name, table, rowid, column) for rowid in ids for column in columns if column != "crc32"]
            if path.name != "ledger.db":
                found += _batch_values(database, name)
    for table in ("sessions", "texts", "attempts", "blocks"):
        for path in files_of(root, table):
            stored = pq.read_table(path, partitioning=None)
            name = str(path.relative_to(root))
            found += [(name, table, i, c) for i in range(stored.num_rows) for c in stored.schema.names]
    return found


def _batch_values(tail: sqlite3.Connection, name: str) -> list[Target]:
    found: list[Target] = []
    for first, texts in tail.execute("SELECT first_seq, texts FROM batches").fetchall():
        for what in ("rows", "texts") if texts is not None else ("rows",):
            stored = unpack(tail, first, what)
            columns = [column for column in stored.schema.names if column != "seq"]
            found += [(name, what, (first, i), column) for i in range(stored.num_rows) for column in columns]
        found += [(name, "batches", first, "first_seq"), (name, "blocks", first, "crc32")]  # unread once it is sealed
        found += [(name, "batches", first, "secret")] if texts is not None else []
    return found


def change_value(root: Path, target: Target) -> None:
    """Changes one of the `stored_values`."""
    file, what, place, column = target
    if file.endswith(".parquet"):
        rewrite(root / file, lambda stored: with_value(stored, place, column))
        return
    with closing(sqlite3.connect(root / file)) as database, database:
        if what in ("rows", "texts"):
            first, i = place
            change_batch(database, first, what, lambda stored: with_value(stored, i, column))
            return
        (old,) = database.execute(f"SELECT {column} FROM {what} WHERE rowid = ?", (place,)).fetchone()
        kind = {str: pa.string(), bytes: pa.binary(), int: pa.int64(), type(None): pa.int64()}[type(old)]
        new = 10**6 if isinstance(old, int) and column != "count" else other(old, kind)  # unique where it must be
        database.execute(f"UPDATE {what} SET {column} = ? WHERE rowid = ?", (new, place))


# -- version 1 ---------------------------------------------------------------------------------------------------------


def _holds(path: Path, seq: int) -> bool:
    with closing(sqlite3.connect(path)) as tail:
        return tail.execute("SELECT 1 FROM sessions WHERE seq = ?", (seq,)).fetchone() is not None


def _v1_columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as tail:
        return [row[1] for row in tail.execute("PRAGMA table_info(sessions)") if row[1] != "seq"]


def _set_v1(path: Path, seq: int, column: str, value: Any, table: str) -> None:
    column, _, entry = column.partition(".")
    stored = "salt" if column.endswith("_salt") else column
    with closing(sqlite3.connect(path)) as tail, tail:
        (old,) = tail.execute(f"SELECT {stored} FROM {table} WHERE seq = ?", (seq,)).fetchone()
        if column == "components":
            old = None if old is None else json.loads(old)
            new = _with_entry(old, entry, value) if entry else other(old, COMPONENTS_TYPE) if value is ... else value
            new = None if new is None else json.dumps(new)
        elif value is not ...:
            new = value
        else:
            kind = pa.int64() if column == "time" else _TYPES[column]
            new = other(bool(old) if kind == pa.bool_() and old is not None else old, kind)
        assert tail.execute(f"UPDATE {table} SET {stored} = ? WHERE seq = ?", (new, seq)).rowcount == 1


ROW_COLUMNS = tuple(c.name for c in STORED if c.name != "seq")
ENTRIES = tuple(f"components.{field.name}" for field in COMPONENTS_TYPE.value_type)
TEXTS = (*TEXT_COLUMNS, *(f"{name}_salt" for name in TEXT_COLUMNS))
