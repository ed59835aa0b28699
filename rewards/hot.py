"""The hot tail: one SQLite file per writer process, with the rows that are not sealed yet and, for good, its blocks.

A block is one commit: its step, first row, number of rows, number of train sessions and the head of the chain after
it. Its rows are one Arrow batch, a second one holds its texts; all are written in one transaction of one file, with a
checksum of these bytes. The head, which takes longer than all the rest, follows with the next commit or when there is
time; whoever needs it before computes it from the rows (`heads`).
"""

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from rewards import hot_v1
from rewards.chain import SALT_BYTES, ChainHasher, text_hashes, text_salt
from rewards.errors import DamagedRows, LedgerError
from rewards.rows import Batch
from rewards.schema import BY_NAME, SCHEMA_VERSION, TEXT_COLUMNS, TEXT_HASHES
from rewards.sqlite import APPLICATION_ID, close_settled, connect_writable, snapshot, sync_folder, transaction

_BLOCK = "first_seq, count, sessions, step, time, coalesce(head, '')"
_HEADLESS_ROWS = 16_384  # more of them wait for no pause
_FOREIGN_LAYOUTS = 1_000_000
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

    step: of its rows; the highest, where an import put several steps into one commit. head: empty while it is not
    stored: only the newest blocks of a tail can be without.
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
    """The stored rows of one block. rows: stored columns without seq; texts: with their salts.

    The rows of schema version 1 have the hashes of texts, others do not.
    """

    first_seq: int
    rows: pa.RecordBatch
    texts: pa.RecordBatch | None


_DDL = (
    "CREATE TABLE blocks (first_seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, sessions INTEGER NOT NULL, "
    "step INTEGER NOT NULL, time INTEGER NOT NULL, crc32 INTEGER NOT NULL, head TEXT)",
    "CREATE TABLE layouts (id INTEGER PRIMARY KEY, arrow_schema BLOB NOT NULL UNIQUE)",
    "CREATE TABLE batches (first_seq INTEGER PRIMARY KEY, layout INTEGER NOT NULL, rows BLOB NOT NULL, "
    "text_layout INTEGER, texts BLOB, secret BLOB)",
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
    """The only writer of a tail. After an error the file is suspect and must not be used."""

    def __init__(self, path: Path, identity: TailIdentity) -> None:
        """Creates the file. An empty one of that name that no claim speaks of is left over from a crash and replaced.

        Raises: LedgerError when such a file holds rows: ledger.db is older than it.
        """
        self.path = path
        self.identity = identity
        self.next_seq = identity.first_seq
        self._head = identity.genesis
        self._headless: list[_Headless] = []
        self._layouts: list[pa.Schema] = []  # the first has the number 1
        _check_leftover(path)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        self._connection = connect_writable(path, page_size=_PAGE, create=True)
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
        new: list[pa.Schema] = []
        written: list[_Headless] = []
        seq = self.next_seq
        with transaction(self._connection, self.path):
            if sum(block.batch.count for block in self._headless) > _HEADLESS_ROWS:
                self._write_heads()
            for batch in batches:
                written.append(self._write(batch, seq, new))
                seq += batch.count
        self._layouts += new
        self._headless += written
        self.next_seq = seq

    def settle(self) -> None:
        """Stores the heads that are not stored yet."""
        if self._headless:
            with transaction(self._connection, self.path):
                self._write_heads()

    def _write_heads(self) -> None:
        head = self._head
        for block in self._headless:
            columns = with_hashes(block.hot_rows())
            head = ChainHasher(self.identity.key, columns).commit(
                head, block.time, block.first_seq, 0, block.batch.count
            )
            self._connection.execute("UPDATE blocks SET head = ? WHERE first_seq = ?", (head, block.first_seq))
        self._head, self._headless = head, []

    def _write(self, batch: Batch, first_seq: int, new: list[pa.Schema]) -> "_Headless":
        text_layout, texts, secret = None, None, None
        if batch.texts is not None:
            secret = os.urandom(SALT_BYTES)
            text_layout, texts = self._packed(batch.texts, new)
        layout, rows = self._packed(batch.rows, new)
        self._connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", (first_seq, layout, rows, text_layout, texts, secret)
        )
        now = time.time_ns() // 1000
        block = (first_seq, batch.count, batch.sessions, batch.step, now, checksum(rows, texts))
        self._connection.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, NULL)", block)
        return _Headless(first_seq, now, batch, secret)

    def _packed(self, batch: pa.RecordBatch, new: list[pa.Schema]) -> tuple[int, memoryview]:
        schema = batch.schema
        for number, known in enumerate((*self._layouts, *new), start=1):
            if schema.equals(known):  # far cheaper than hashing it
                return number, memoryview(batch.serialize())
        number = len(self._layouts) + len(new) + 1
        self._connection.execute("INSERT INTO layouts VALUES (?, ?)", (number, schema.serialize().to_pybytes()))
        new.append(schema)
        return number, memoryview(batch.serialize())

    def close(self) -> None:
        """Closes the file; SQLite folds its log into it."""
        close_settled(self._connection)


@dataclass(frozen=True)
class _Headless:
    """A block that is on disk and whose head is not."""

    first_seq: int
    time: int
    batch: Batch
    secret: bytes | None

    def hot_rows(self) -> HotRows:
        return _whole(self.first_seq, self.batch.rows, self.batch.texts, self.secret, (self.batch.step, self.time))


def checksum(rows: bytes | memoryview, texts: bytes | memoryview | None) -> int:
    """CRC-32 of a block's bytes: shows a change until the head is stored, which then proves there was none."""
    return zlib.crc32(texts or b"", zlib.crc32(rows))


def _whole(
    first_seq: int, rows: pa.RecordBatch, texts: pa.RecordBatch | None, secret: bytes | None, constant: tuple[int, int]
) -> HotRows:
    """A block's rows with what is stored once for all of them: step and time where rows bring none, and the salts.

    A salt is the hash of the block's secret and the text's place; equal texts of a block have one in common: they are
    equal anyway. Sealed rows keep their salts, and no secret.
    """
    for name, value in zip(("step", "time"), constant, strict=True):
        if name not in rows.schema.names:
            rows = rows.append_column(name, pa.repeat(pa.scalar(value, BY_NAME[name].type), rows.num_rows))
    if texts is None or secret is None:
        return HotRows(first_seq, rows, texts)
    salted = {}
    for name, array in zip(texts.schema.names, texts.columns, strict=True):
        codes = array.dictionary_encode()
        salts = [text_salt(secret, name, code) for code in range(len(codes.dictionary))]
        salted[name], salted[f"{name}_salt"] = array, pa.array(salts, pa.binary()).take(codes.indices)
    return HotRows(first_seq, rows, pa.RecordBatch.from_arrays(list(salted.values()), list(salted)))


def text_columns_hashed(salted: pa.RecordBatch) -> dict[str, pa.Array]:
    """The hashes of texts with their salts, as the columns of rows."""
    hashed = {}
    for name in TEXT_COLUMNS:
        if name in salted.schema.names:
            salts, texts = salted.column(f"{name}_salt").to_pylist(), _bytes_of(salted.column(name))
            known = dict(zip(salts, texts, strict=True))
            hash_of = dict(zip(known, text_hashes(name, list(known), list(known.values())), strict=True))
            hashed[f"{name}_hash"] = pa.array([hash_of[salt] for salt in salts], pa.binary())
    return hashed


def with_hashes(hot: HotRows) -> dict[str, pa.Array]:
    """The columns of a block's rows with the hashes of its texts."""
    columns = dict(zip(hot.rows.schema.names, hot.rows.columns, strict=True))
    if hot.texts is None or any(name in columns for name in TEXT_HASHES):
        return columns
    return columns | text_columns_hashed(hot.texts)


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
    query = f"SELECT {_BLOCK} FROM blocks" + where + " ORDER BY first_seq"
    return [Block(*row) for row in tail.execute(query, arguments)]


def last_block(tail: sqlite3.Connection, seq: int | None = None) -> Block | None:
    """The newest block, or the newest that ends at or before row `seq`."""
    where, arguments = ("", ()) if seq is None else (" WHERE first_seq + count - 1 <= ?", (seq,))
    query = f"SELECT {_BLOCK} FROM blocks" + where
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

    Raises: DamagedRows when what is stored is not what the ledger writes.
    """
    if is_first_version(tail):
        places = hot_v1.places(tail, above)
        for first_seq, last_seq in places:
            with _readable(tail, first_seq):
                found = hot_v1.read_rows(tail, first_seq, last_seq)
            if found is not None:
                yield HotRows(first_seq, found[0], found[1] if texts else None)
        return
    layouts = dict(tail.execute("SELECT id, arrow_schema FROM layouts"))
    columns = "first_seq, layout, rows, " + ("text_layout, texts, secret" if texts else "NULL, NULL, NULL")
    # A batch without its block is found by verify: it must be read, not passed over.
    query = f"SELECT {columns}, step, time FROM batches LEFT JOIN blocks USING (first_seq) WHERE first_seq > ?"
    for row in tail.execute(query + " ORDER BY first_seq", (above,)):
        first_seq, layout, rows, text_layout, salted, secret, *constant = row
        with _readable(tail, first_seq):
            hot = _whole(
                first_seq,
                _unpacked(rows, layouts[layout]),
                None if salted is None else _unpacked(salted, layouts[text_layout]),
                secret,
                (constant[0], constant[1]),
            )
        yield hot


@contextmanager
def _readable(tail: sqlite3.Connection, first_seq: int) -> Iterator[None]:
    try:
        yield
    except (LedgerError, pa.ArrowException, sqlite3.Error, KeyError, TypeError, ValueError, OSError, EOFError) as error:
        path = tail.execute("PRAGMA database_list").fetchone()[2]
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedRows(path, first_seq, said) from error


def _unpacked(batch: bytes, layout: bytes) -> pa.RecordBatch:
    """A stored batch; whatever its bytes are, nothing is read beside them."""
    rows = pa.ipc.read_record_batch(pa.py_buffer(batch), _schema(layout))
    rows.validate(full=True)
    return rows


def drop_rows(tail: sqlite3.Connection, up_to: int) -> None:
    """Takes out the rows of the blocks that end at or before row `up_to`; inside a write transaction of the caller."""
    if is_first_version(tail):
        tail.execute("DELETE FROM sessions WHERE seq <= ?", (up_to,))
        tail.execute("DELETE FROM texts WHERE seq <= ?", (up_to,))
    else:
        tail.execute("DELETE FROM batches WHERE first_seq <= ?", (up_to,))


def replace_texts(tail: sqlite3.Connection, hot: HotRows, texts: pa.RecordBatch) -> None:
    """Puts other texts in the place of a block's, each with its salt; the hashes of the old ones are kept in its rows.

    The secret that the salts came from goes. Inside a write transaction of the caller.
    """
    columns = with_hashes(hot)
    rows = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    row_bytes, text_bytes = memoryview(rows.serialize()), memoryview(texts.serialize())
    tail.execute(
        "UPDATE batches SET layout = ?, rows = ?, text_layout = ?, texts = ?, secret = NULL WHERE first_seq = ?",
        (_layout(tail, rows.schema), row_bytes, _layout(tail, texts.schema), text_bytes, hot.first_seq),
    )
    tail.execute("UPDATE blocks SET crc32 = ? WHERE first_seq = ?", (checksum(row_bytes, text_bytes), hot.first_seq))


def _layout(tail: sqlite3.Connection, schema: pa.Schema) -> int:
    """The number of a layout that somebody other than the writer uses: it counts its own from 1."""
    stored = schema.serialize().to_pybytes()
    known = tail.execute("SELECT id FROM layouts WHERE arrow_schema = ?", (stored,)).fetchone()
    if known is None:
        known = tail.execute("SELECT max(max(id), ?) + 1 FROM layouts", (_FOREIGN_LAYOUTS,)).fetchone()
        tail.execute("INSERT INTO layouts VALUES (?, ?)", (*known, stored))
    return int(known[0])
