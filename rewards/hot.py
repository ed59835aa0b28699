"""The hot tail: one SQLite file per writer process, with the rows that are not sealed yet and, for good, its blocks.

A block is one commit: its step, first row, number of rows, number of train sessions and the head of the chain after
it. Its rows are one Arrow batch, a second one holds its texts; all are written in one transaction of one file.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from rewards import hot_v1
from rewards.chain import SALT_BYTES, ChainHasher, text_hashes
from rewards.errors import LedgerError
from rewards.rows import Batch
from rewards.schema import SCHEMA_VERSION, TEXT_COLUMNS
from rewards.sqlite import APPLICATION_ID, close_settled, connect_writable, snapshot, sync_folder, transaction

_PAGE = 16_384  # a commit is one large value or two: larger pages hold it in fewer pieces


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
    """One commit. Units: time in microseconds since 1970; sessions are the rows with split = train.

    step: of its rows; the highest, where an import put several steps into one commit.
    """

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


@dataclass(frozen=True)
class HotRows:
    """The stored rows of one block. rows: stored columns with hashes of texts, without seq; texts: with their salts."""

    first_seq: int
    rows: pa.RecordBatch
    texts: pa.RecordBatch | None


_DDL = (
    "CREATE TABLE blocks (first_seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, sessions INTEGER NOT NULL, "
    "step INTEGER NOT NULL, time INTEGER NOT NULL, head TEXT NOT NULL)",
    "CREATE TABLE layouts (id INTEGER PRIMARY KEY, arrow_schema BLOB NOT NULL UNIQUE)",
    "CREATE TABLE batches (first_seq INTEGER PRIMARY KEY, layout INTEGER NOT NULL, rows BLOB NOT NULL, "
    "text_layout INTEGER, texts BLOB)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


def _check_leftover(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        return
    with snapshot(path) as tail:
        if holds_rows(tail):
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
        self._layouts: dict[pa.Schema, int] = {}
        _check_leftover(path)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        self._connection = connect_writable(path, page_size=_PAGE)
        meta = {key: json.dumps(value) for key, value in asdict(identity).items()}
        with transaction(self._connection, path):
            self._connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            for statement in _DDL:
                self._connection.execute(statement)
            self._connection.executemany("INSERT INTO meta VALUES (?, ?)", sorted(meta.items()))
        sync_folder(path.parent)

    def commit(self, batches: Sequence[Batch]) -> None:
        """Writes batches, each a block of its own, in one transaction. Durable on return."""
        head, seq = self.head, self.next_seq
        new: dict[pa.Schema, int] = {}
        with transaction(self._connection, self.path):
            for batch in batches:
                head = self._write(batch, head, seq, new)
                seq += batch.count
        self._layouts |= new
        self.head, self.next_seq = head, seq

    def _write(self, batch: Batch, head: str, first_seq: int, new: dict[pa.Schema, int]) -> str:
        columns = dict(batch.columns)
        text_layout, texts = None, None
        if batch.texts:
            salted, hashes = _salted(batch.texts)
            columns |= hashes
            text_layout, texts = self._packed(salted, new)
        head = ChainHasher(self.identity.key, columns).commit(head, first_seq, 0, batch.count)
        layout, rows = self._packed(columns, new)
        self._connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (first_seq, layout, rows, text_layout, texts)
        )
        block = (first_seq, batch.count, batch.sessions, batch.step, time.time_ns() // 1000, head)
        self._connection.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", block)
        return head

    def _packed(self, columns: dict[str, pa.Array], new: dict[pa.Schema, int]) -> tuple[int, memoryview]:
        batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
        layout = self._layouts.get(batch.schema) or new.get(batch.schema)
        if layout is None:
            layout = len(self._layouts) + len(new) + 1
            self._connection.execute(
                "INSERT INTO layouts VALUES (?, ?)", (layout, batch.schema.serialize().to_pybytes())
            )
            new[batch.schema] = layout
        return layout, memoryview(batch.serialize())

    def close(self) -> None:
        """Closes the file; SQLite folds its log into it."""
        close_settled(self._connection)


def _salted(texts: dict[str, pa.Array]) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """The texts with a salt each, and their hashes. Equal texts of a commit share a salt: they are equal anyway."""
    salted, hashes = {}, {}
    for name in TEXT_COLUMNS:
        if name not in texts:
            continue
        values = _bytes_of(texts[name])
        place = {text: i for i, text in enumerate(dict.fromkeys(values))}
        place.pop(None, None)
        distinct = list(place)
        noise = os.urandom(SALT_BYTES * (len(distinct) + 1))
        salts = [noise[i : i + SALT_BYTES] for i in range(0, SALT_BYTES * len(distinct), SALT_BYTES)]
        digests = text_hashes(name, salts, distinct)
        salts_array, digests_array = pa.array(salts, pa.binary()), pa.array(digests, pa.binary())
        if len(distinct) < len(values):
            take = pa.array([place.get(text) for text in values], pa.int32())
            salts_array, digests_array = salts_array.take(take), digests_array.take(take)
        salted[name] = texts[name]
        salted[f"{name}_salt"], hashes[f"{name}_hash"] = salts_array, digests_array
    return salted, hashes


def _bytes_of(array: pa.Array) -> list[bytes | None]:
    """The UTF-8 of texts."""
    if array.null_count:
        values: list[bytes | None] = array.cast(pa.binary()).to_pylist()
        return values
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, "<i4", len(array) + 1, 4 * array.offset).tolist()
    body = b"" if data is None else data.to_pybytes()
    return [body[start:stop] for start, stop in pairwise(bounds)]


# -- reading: every function takes a snapshot of the file ------------------------------------------------------------


def is_first_version(tail: sqlite3.Connection) -> bool:
    """Whether the file keeps its rows in the columns of a table."""
    version: int = tail.execute("PRAGMA user_version").fetchone()[0]
    return version == 1


def holds_rows(tail: sqlite3.Connection) -> bool:
    """Whether any row was written to the file, sealed since or not."""
    tables = {name for (name,) in tail.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return any(
        table in tables and tail.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()
        for table in ("blocks", "batches", "sessions")
    )


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


def live_counts(tail: sqlite3.Connection, max_step: int | None) -> tuple[int, int]:
    """How many train sessions there are up to a step, and the highest step that has one."""
    where, arguments = ("", ()) if max_step is None else (" AND step <= ?", (max_step,))
    query = "SELECT coalesce(sum(sessions), 0), coalesce(max(step), 0) FROM blocks WHERE sessions > 0" + where
    sessions, last = tail.execute(query, arguments).fetchone()
    return sessions, last


@lru_cache(maxsize=512)
def _schema(serialized: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(serialized))


def hot_rows(tail: sqlite3.Connection, above: int = 0, texts: bool = True) -> Iterator[HotRows]:
    """The rows that are in the file, block by block, from the block that starts above row `above`.

    Raises: LedgerError when what is stored is not what the ledger writes.
    """
    if is_first_version(tail):
        for first_seq, rows, salted in hot_v1.hot_rows(tail, above):
            yield HotRows(first_seq, rows, salted if texts else None)
        return
    layouts = {id: _schema(blob) for id, blob in tail.execute("SELECT id, arrow_schema FROM layouts")}
    columns = "first_seq, layout, rows" + (", text_layout, texts" if texts else ", NULL, NULL")
    query = f"SELECT {columns} FROM batches WHERE first_seq > ? ORDER BY first_seq"
    for first_seq, layout, rows, text_layout, salted in tail.execute(query, (above,)):
        try:
            yield HotRows(
                first_seq,
                pa.ipc.read_record_batch(pa.py_buffer(rows), layouts[layout]),
                None if salted is None else pa.ipc.read_record_batch(pa.py_buffer(salted), layouts[text_layout]),
            )
        except (pa.ArrowException, KeyError, TypeError, OSError) as error:
            path = tail.execute("PRAGMA database_list").fetchone()[2]
            raise LedgerError(
                f"{path}: the rows from seq {first_seq} on are not as they were written ({error}); run verify"
            ) from error


def drop_rows(tail: sqlite3.Connection, up_to: int) -> None:
    """Takes out the rows of the blocks that end at or before row `up_to`; inside a write transaction of the caller."""
    if is_first_version(tail):
        tail.execute("DELETE FROM sessions WHERE seq <= ?", (up_to,))
        tail.execute("DELETE FROM texts WHERE seq <= ?", (up_to,))
    else:
        tail.execute("DELETE FROM batches WHERE first_seq <= ?", (up_to,))


def replace_texts(tail: sqlite3.Connection, first_seq: int, texts: pa.RecordBatch) -> None:
    """Puts other texts in the place of a block's, of the same layout; inside a write transaction of the caller."""
    tail.execute("UPDATE batches SET texts = ? WHERE first_seq = ?", (memoryview(texts.serialize()), first_seq))
