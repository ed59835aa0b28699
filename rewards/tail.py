"""The writing side of a hot tail: its file, its commits, and the rows whose heads are not stored yet."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from rewards.chain import SALT_BYTES, ChainHasher
from rewards.errors import LedgerError
from rewards.hot import HotRows, TailIdentity, checksum, holds_rows, whole_rows, with_hashes
from rewards.rows import Batch
from rewards.schema import SCHEMA_VERSION
from rewards.sqlite import APPLICATION_ID, close_settled, connect_writable, snapshot, sync_folder, transaction

_HEADLESS_ROWS = 16_384  # more of them wait for no pause
_PAGE = 16_384  # a commit is one large value or two: larger pages hold it in fewer pieces

_DDL = (
    "CREATE TABLE blocks (first_seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, sessions INTEGER NOT NULL, "
    "step INTEGER NOT NULL, time INTEGER NOT NULL, crc32 INTEGER NOT NULL, head TEXT)",
    "CREATE TABLE layouts (id INTEGER PRIMARY KEY, arrow_schema BLOB NOT NULL UNIQUE)",
    "CREATE TABLE batches (first_seq INTEGER PRIMARY KEY, layout INTEGER NOT NULL, rows BLOB NOT NULL, "
    "text_layout INTEGER, texts BLOB, secret BLOB)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


@dataclass(frozen=True)
class _Headless:
    """A block that is on disk and whose head is not."""

    first_seq: int
    time: int
    batch: Batch
    secret: bytes | None

    def hot_rows(self) -> HotRows:
        batch = self.batch
        texts = None if batch.texts is None else batch.texts.unpacked()
        return whole_rows(self.first_seq, batch.rows.unpacked(), texts, self.secret, (batch.step, self.time))


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
            text_layout, texts = self._layout_of(batch.texts.schema, new), memoryview(batch.texts.data)
        layout, rows = self._layout_of(batch.rows.schema, new), memoryview(batch.rows.data)
        self._connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", (first_seq, layout, rows, text_layout, texts, secret)
        )
        now = time.time_ns() // 1000
        block = (first_seq, batch.count, batch.sessions, batch.step, now, checksum(rows, texts))
        self._connection.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, NULL)", block)
        return _Headless(first_seq, now, batch, secret)

    def _layout_of(self, schema: pa.Schema, new: list[pa.Schema]) -> int:
        for number, known in enumerate((*self._layouts, *new), start=1):
            if schema.equals(known):  # far cheaper than hashing it
                return number
        number = len(self._layouts) + len(new) + 1
        self._connection.execute("INSERT INTO layouts VALUES (?, ?)", (number, schema.serialize().to_pybytes()))
        new.append(schema)
        return number

    def close(self) -> None:
        """Closes the file; SQLite folds its log into it."""
        close_settled(self._connection)
