"""SQLite as the ledger uses it: durable commits, patience with other processes, errors that name the file."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from rewards.errors import LedgerError

APPLICATION_ID = 0x524C4544  # "RLED": `file` and other tools can tell a ledger's databases from others

_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_BUSY_SECONDS = 20.0  # SQLite's own patience, per statement
_WAL_BYTES = 16_000_000  # the log is folded into the file when it has grown to this
_PATIENCE_SECONDS = 180.0  # ours, per transaction: somebody left a transaction open in a shell


def connect_writable(path: Path, page_size: int | None = None, create: bool = False) -> sqlite3.Connection:
    """A connection whose commits survive power loss. Transactions are begun by hand.

    create: makes the file where it is missing; else that is an error: a lost file must not pass for an empty one.
    page_size: of a new file.
    """
    connection = sqlite3.connect(
        f"{_location(path)}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        if page_size is not None:
            connection.execute(f"PRAGMA page_size={page_size}")
            connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_BYTES // page_size}")
        _patiently(connection, "PRAGMA journal_mode=WAL", path)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone does not reach the disk there
    except BaseException:
        connection.close()
        raise
    return connection


def _location(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}"


def _connect_readonly(path: Path) -> sqlite3.Connection:
    wal = path.with_name(path.name + "-wal")
    # Reading a WAL database writes to its -shm file. Where nothing can be written and no WAL waits, the file is all.
    settled = not os.access(path.parent, os.W_OK) and not (wal.exists() and wal.stat().st_size)
    mode = "mode=ro&immutable=1" if settled else "mode=ro"
    return sqlite3.connect(
        f"{_location(path)}?{mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


@contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only view of a database as it is now; later commits do not show in it."""
    with translated(path, "read"), closing(_connect_readonly(path)) as connection:
        _patiently(connection, "BEGIN", path)
        _patiently(connection, "SELECT count(*) FROM sqlite_master", path)  # the snapshot is taken by the first read
        yield connection


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """A write transaction: committed and on disk when the block is left, or nothing of it."""
    _patiently(connection, "BEGIN IMMEDIATE", path)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def close_settled(connection: sqlite3.Connection) -> None:
    """Closes a connection and folds the log into the file as far as readers allow, so that the file alone can travel.

    The log stays complete where that fails: nothing is lost.
    """
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    connection.close()


def _patiently(connection: sqlite3.Connection, statement: str, path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            connection.execute(statement).fetchone()
            return
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) not in _PASSING:
                raise
            if time.monotonic() > deadline:
                raise LedgerError(
                    f"{path}: another process has kept a transaction open for {_PATIENCE_SECONDS:.0f} s; end it"
                ) from error
            time.sleep(0.01)


@contextmanager
def translated(path: Path, doing: str) -> Iterator[None]:
    """Turns SQLite's and the system's errors into one line that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quotes the damaged bytes in its message, and Python cannot read that
        raise LedgerError(
            f"{path}: cannot {doing}: the file is damaged; restore it from a copy of the ledger"
        ) from error
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"{path}: cannot {doing}: {_reason(error, path)}") from error


def _reason(error: Exception, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    said = "".join(c if c.isprintable() else "?" for c in str(error))
    if not path.exists():
        return "the file is missing; restore it from a copy of the ledger"
    if code == sqlite3.SQLITE_NOTADB:
        return "it is no SQLite database; is this the folder of a ledger?"
    if _is_damage(code, said):
        return f"the file is damaged ({said}); restore it from a copy of the ledger"
    if code == sqlite3.SQLITE_FULL:
        return f"{said}; free some space"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) or isinstance(error, PermissionError):
        return f"{said}; make the folder writable, or copy the ledger to one that is"
    return said


def _is_damage(code: int, said: str) -> bool:
    return code == sqlite3.SQLITE_CORRUPT or said.startswith(("no such table", "no such column", "Could not decode"))


def sync_folder(path: Path) -> None:
    """Makes the entries of a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
