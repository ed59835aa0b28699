"""The hot tail: one SQLite file per writer process, with its session rows, their blocks and their texts.

A block is one appended batch: its step, first row, number of rows, number of train sessions and the head of the chain
after it. It is written in the transaction of its rows, in the same file.
"""

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rewards.chain import commit_hash, text_hash
from rewards.errors import LedgerError
from rewards.rows import Batch, from_sql, to_sql
from rewards.schema import FILE_COLUMNS, SCHEMA_VERSION, STORED, TEXT_COLUMNS, TEXT_HASHES
from rewards.sqlite import APPLICATION_ID, close_settled, connect_writable, snapshot, sync_folder, transaction

_SALT_BYTES = 16
_CHUNK = 20_000


@dataclass(frozen=True)
class TailIdentity:
    """Whose rows a tail holds and where its chain starts."""

    run_id: str
    attempt: int
    writer: int
    first_seq: int
    genesis: str

    @property
    def key(self) -> tuple[str, int, int]:
        """Run, attempt and writer: what every hash of the chain names."""
        return self.run_id, self.attempt, self.writer


@dataclass(frozen=True)
class Block:
    """One appended batch. Units: time in microseconds since 1970; sessions are the rows with split = train."""

    first_seq: int
    count: int
    sessions: int
    step: int
    time: int
    head: str

    @property
    def last_seq(self) -> int:
        """Number of the block's last row."""
        return self.first_seq + self.count - 1


def _affinity(kind: pa.DataType) -> str:
    if pa.types.is_floating(kind):
        return "REAL"
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_timestamp(kind)
    return "INTEGER" if whole else "TEXT"


def _ddl() -> list[str]:
    texts = ", ".join(f"{name} TEXT" for name in TEXT_COLUMNS)
    columns = ["seq INTEGER PRIMARY KEY"]
    for column in STORED:
        if column.name != "seq":
            columns.append(f"{column.name} {_affinity(column.type)}{' NOT NULL' if column.required else ''}")
    columns += [f"{name} BLOB" for name in TEXT_HASHES]
    return [
        f"CREATE TABLE sessions ({', '.join(columns)})",
        "CREATE TABLE blocks (first_seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, sessions INTEGER NOT NULL, "
        "step INTEGER NOT NULL, time INTEGER NOT NULL, head TEXT NOT NULL)",
        f"CREATE TABLE texts (seq INTEGER PRIMARY KEY, salt BLOB NOT NULL, {texts})",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ]


def _check_leftover(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        return
    with snapshot(path) as tail:
        tables = {name for (name,) in tail.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "sessions" in tables and tail.execute("SELECT 1 FROM sessions LIMIT 1").fetchone():
            raise LedgerError(
                f"{path}: holds rows of a writer that ledger.db does not know; was ledger.db replaced by an older "
                "copy? restore it, or move the file away"
            )


class TailWriter:
    """The only writer of a tail. Keeps the chain's head; after an error the file is suspect and must not be used."""

    def __init__(self, path: Path, identity: TailIdentity) -> None:
        """Creates the file. An empty one of that name that no claim speaks of is left over from a crash and replaced.

        Raises: LedgerError when such a file holds rows: ledger.db is older than it.
        """
        self.path = path
        self.identity = identity
        self.head = identity.genesis
        self.next_seq = identity.first_seq
        _check_leftover(path)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        self._connection = connect_writable(path)
        meta = {key: json.dumps(value) for key, value in asdict(identity).items()}
        with transaction(self._connection, path):
            self._connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            for statement in _ddl():
                self._connection.execute(statement)
            self._connection.executemany("INSERT INTO meta VALUES (?, ?)", sorted(meta.items()))
        sync_folder(path.parent)

    def commit(self, batches: Sequence[Batch]) -> None:
        """Writes batches, each a block of its own, in one transaction. Durable on return."""
        head, seq = self.head, self.next_seq
        with transaction(self._connection, self.path):
            for batch in batches:
                head = self._write(batch, head, seq)
                seq += batch.count
        self.head, self.next_seq = head, seq

    def _write(self, batch: Batch, head: str, first_seq: int) -> str:
        numbers = range(first_seq, first_seq + batch.count)
        columns = dict(batch.columns)
        if batch.texts:
            columns.update(self._write_texts(batch, numbers))
        head = commit_hash(head, self.identity.key, first_seq, batch.count, columns)
        names = ["seq", *columns]
        values = [numbers, *(to_sql(name, array) for name, array in columns.items())]
        self._connection.executemany(
            f"INSERT INTO sessions ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            zip(*values, strict=True),
        )
        block = (first_seq, batch.count, batch.sessions, batch.step, time.time_ns() // 1000, head)
        self._connection.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", block)
        return head

    def _write_texts(self, batch: Batch, numbers: range) -> dict[str, pa.Array]:
        noise = os.urandom(_SALT_BYTES * batch.count)
        salts = [noise[i : i + _SALT_BYTES] for i in range(0, len(noise), _SALT_BYTES)]
        absent: list[str | None] = [None] * batch.count
        texts = [batch.texts.get(name, absent) for name in TEXT_COLUMNS]
        hashes = {}
        for name, column in zip(TEXT_COLUMNS, texts, strict=True):
            if column is not absent:
                digests = [None if t is None else text_hash(s, name, t) for s, t in zip(salts, column, strict=True)]
                hashes[f"{name}_hash"] = pa.array(digests, pa.binary())
        rows = [row for row in zip(numbers, salts, *texts, strict=True) if row[2:] != (None, None, None)]
        self._connection.executemany("INSERT INTO texts VALUES (?, ?, ?, ?, ?)", rows)
        return hashes

    def close(self) -> None:
        """Closes the file; SQLite folds its log into it."""
        close_settled(self._connection)


# -- reading: every function takes a snapshot of the file ------------------------------------------------------------


def tail_path(tail: sqlite3.Connection) -> str:
    """The file behind a connection, for messages."""
    return str(tail.execute("PRAGMA database_list").fetchone()[2])


def read_identity(tail: sqlite3.Connection) -> TailIdentity:
    """Whose tail it is, as the file says."""
    return TailIdentity(**{key: json.loads(value) for key, value in tail.execute("SELECT key, value FROM meta")})


def read_blocks(tail: sqlite3.Connection, max_step: int | None = None) -> list[Block]:
    """The blocks in order, up to a step where one is given."""
    where, arguments = ("", ()) if max_step is None else (" WHERE step <= ?", (max_step,))
    query = "SELECT first_seq, count, sessions, step, time, head FROM blocks" + where + " ORDER BY first_seq"
    return [Block(*row) for row in tail.execute(query, arguments)]


def last_block(tail: sqlite3.Connection, seq: int | None = None) -> Block | None:
    """The newest block, or the newest that ends at or before row `seq`."""
    where, arguments = ("", ()) if seq is None else (" WHERE first_seq + count - 1 <= ?", (seq,))
    query = "SELECT first_seq, count, sessions, step, time, head FROM blocks" + where
    row = tail.execute(query + " ORDER BY first_seq DESC LIMIT 1", arguments).fetchone()
    return None if row is None else Block(*row)


def read_sessions(tail: sqlite3.Connection, max_step: int | None = None, texts: bool = False) -> list[pa.RecordBatch]:
    """The rows in order of seq, without the columns that are the same in the whole file, up to a step.

    Raises: LedgerError when a stored value is not one the ledger writes.
    """
    names = [c.name for c in STORED] + [name for name in TEXT_COLUMNS if texts]
    query = f"SELECT {', '.join(names)} FROM sessions"
    if texts:
        query += " LEFT JOIN texts USING (seq)"
    where, arguments = ("", ()) if max_step is None else (" WHERE step <= ?", (max_step,))
    cursor = tail.execute(query + where + " ORDER BY seq", arguments)
    batches = []
    while rows := cursor.fetchmany(_CHUNK):
        values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        try:
            arrays = [from_sql(c.name, values[c.name]) for c in STORED]
        except LedgerError as error:
            first = values["seq"][0]
            where = f"{tail_path(tail)}: from seq {first} on"
            raise LedgerError(f"{where}, {error}: not as it was written; run verify") from error
        arrays += [pa.array(values[name], pa.string()) for name in names[len(STORED) :]]
        batches.append(pa.RecordBatch.from_arrays(arrays, names))
    return batches


def block_columns(tail: sqlite3.Connection, block: Block) -> tuple[int, dict[str, pa.Array]]:
    """The stored rows of a block as the chain hashes them, and how many there are.

    Raises: LedgerError when rows are missing, out of place or hold what the ledger never writes; or when a text does
    not belong to its hash.
    """
    names = [c.name for c in STORED] + list(TEXT_HASHES)
    rows = tail.execute(
        f"SELECT {', '.join(names)} FROM sessions WHERE seq BETWEEN ? AND ? ORDER BY seq",
        (block.first_seq, block.last_seq),
    ).fetchall()
    if len(rows) != block.count:
        raise LedgerError(f"{len(rows)} rows are stored where {block.count} were recorded")
    values = dict(zip(names, zip(*rows, strict=True), strict=True))
    columns = {c.name: from_sql(c.name, list(values[c.name])) for c in STORED if c.name != "seq"}
    if set(values["step"]) != {block.step}:
        raise LedgerError("the rows' step is not the block's")
    if values["split"].count("train") != block.sessions:
        raise LedgerError("the number of train sessions is not the block's")
    for name in TEXT_HASHES:
        columns[name] = pa.array(values[name], pa.binary())
    _check_texts(tail, block, values)
    return len(rows), columns


def _check_texts(tail: sqlite3.Connection, block: Block, values: dict[str, tuple[Any, ...]]) -> None:
    query = f"SELECT seq, salt, {', '.join(TEXT_COLUMNS)} FROM texts WHERE seq BETWEEN ? AND ?"
    stored = {row[0]: row[1:] for row in tail.execute(query, (block.first_seq, block.last_seq))}
    for position, seq in enumerate(values["seq"]):
        salt, *texts = stored.get(seq, (b"", None, None, None))
        for name, text in zip(TEXT_COLUMNS, texts, strict=True):
            recorded = values[f"{name}_hash"][position]
            fits = text is None or (type(text) is str and type(salt) is bytes)
            if not fits or recorded != (None if text is None else text_hash(salt, name, text)):
                raise LedgerError(f"the {name} of row {seq} is not the one that was recorded")


def with_identity(batch: pa.RecordBatch, identity: TailIdentity) -> pa.RecordBatch:
    """The batch with the columns that are the same in a whole file."""
    count = batch.num_rows
    constant = {
        "run_id": pa.array([identity.run_id] * count, pa.string()),
        "attempt": pa.array([identity.attempt] * count, pa.int32()),
        "writer": pa.array([identity.writer] * count, pa.int32()),
    }
    names = [*FILE_COLUMNS, *batch.schema.names]
    return pa.RecordBatch.from_arrays([*(constant[n] for n in FILE_COLUMNS), *batch.columns], names)
