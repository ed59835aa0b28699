"""The hot tail: one SQLite file per writer process, with the rows that are not sealed yet and, for good, its blocks.

A block is one commit: its step, first row, number of rows, number of train sessions and the head of the chain after
it. Its rows are one Arrow batch, a second one holds its texts; all are written in one transaction of one file, with a
checksum of these bytes. The head, which takes longer than all the rest, follows with the next commit or when there is
time; whoever needs it before computes it from the rows (`heads`).
"""

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from rewards import hot_v1
from rewards.chain import text_hashes, text_salt
from rewards.errors import DamagedRows, LedgerError
from rewards.schema import BY_NAME, TEXT_COLUMNS, TEXT_HASHES

_BLOCK = "first_seq, count, sessions, step, time, coalesce(head, '')"
_FOREIGN_LAYOUTS = 1_000_000


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


def checksum(rows: bytes | memoryview, texts: bytes | memoryview | None) -> int:
    """CRC-32 of a block's bytes: shows a change until the head is stored, which then proves there was none."""
    return zlib.crc32(texts or b"", zlib.crc32(rows))


def whole_rows(
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


def live_counts(tail: sqlite3.Connection, max_step: int | None, last_row: int) -> tuple[int, int]:
    """How many train sessions there are up to a step and a row, and the highest step that has one."""
    where, arguments = ("", ()) if max_step is None else (" AND step <= ?", (max_step,))
    query = "SELECT coalesce(sum(sessions), 0), coalesce(max(step), 0) FROM blocks WHERE sessions > 0"
    sessions, last = tail.execute(query + " AND first_seq <= ?" + where, (last_row, *arguments)).fetchone()
    if type(sessions) is not int or type(last) is not int:
        raise LedgerError(f"{_path_of(tail)}: a commit is not as it was written; run verify")
    return sessions, last


def check_blocks(tail: sqlite3.Connection, blocks: Iterable[Block]) -> None:
    """Raises LedgerError for one whose values are not of the kinds that are written."""
    for block in blocks:
        numbers: list[Any] = [block.first_seq, block.count, block.sessions, block.step, block.time]
        if any(type(number) is not int for number in numbers) or type(block.head) is not str:
            raise LedgerError(
                f"{_path_of(tail)}: the commit at seq {block.first_seq!r} is not as it was written; run verify"
            )


def _path_of(tail: sqlite3.Connection) -> str:
    return str(tail.execute("PRAGMA database_list").fetchone()[2])


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
            hot = whole_rows(
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
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedRows(_path_of(tail), first_seq, said) from error


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
