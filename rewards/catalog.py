"""ledger.db: the events and, told by events, who may write: attempts and the writers that joined them.

Claims are events, so the chain of events covers what makes rows count; the views `attempts`, `writers` and `runs` are
there for people with a SQLite shell.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from operator import index
from pathlib import Path

from rewards import events
from rewards.delta_log import check_path
from rewards.errors import LedgerError, NoLedger
from rewards.filesystem import check_local
from rewards.heads import completed
from rewards.hot import TailIdentity, check_blocks, last_block, read_blocks
from rewards.lineage import Attempt, Lineage, Place
from rewards.schema import SCHEMA_VERSION
from rewards.sqlite import APPLICATION_ID, connect_writable, snapshot, sync_folder, transaction, translated

DATABASE = "ledger.db"
TAILS = "tails"


def _parts(*keys: str) -> str:
    return ", ".join(f"json_extract(payload, '$.{key}') AS {key}" for key in keys)


_DDL = (
    *events.DDL,
    "CREATE UNIQUE INDEX IF NOT EXISTS one_claim ON events (run_id, attempt) WHERE kind = 'attempt_claimed'",
    "CREATE UNIQUE INDEX IF NOT EXISTS one_join ON events (run_id, attempt, writer) WHERE kind = 'writer_joined'",
    f"""CREATE VIEW IF NOT EXISTS attempts AS SELECT {_parts("id")}, run_id, attempt, {
        _parts("parent", "resume_step", "arm", "pipeline_id")
    }, time AS started FROM events WHERE kind = 'attempt_claimed'""",
    f"""CREATE VIEW IF NOT EXISTS writers AS SELECT run_id, attempt, writer, {_parts("file", "first_seq", "genesis")},
    time AS joined FROM events WHERE kind = 'writer_joined'""",
    """CREATE VIEW IF NOT EXISTS runs AS SELECT run_id, count(*) AS attempts, max(attempt) AS newest_attempt,
    min(time) AS started FROM events WHERE kind = 'attempt_claimed' GROUP BY run_id""",
)


@dataclass(frozen=True)
class Chain:
    """A writer that joined: its attempt, where its chain starts and its file."""

    attempt: Attempt
    identity: TailIdentity
    path: Path
    number: int  # of the event that it joined with: unique in the ledger, what sealed rows name their chain by


def create(root: Path) -> None:
    """Makes the folder a ledger; harmless where it is one, or where another process does the same.

    Raises: LedgerError when the folder holds something else or cannot be written.
    """
    check_local(root)
    check_path(root)
    with translated(root, "create a ledger"):
        if root.exists() and not root.is_dir():
            raise LedgerError(f"{root}: is a file; a ledger is a folder")
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(
                f"{root}: cannot be made ({error.strerror}); name a folder on a disk that can be written"
            ) from error
        others = any(not entry.name.startswith(".") for entry in root.iterdir())
        if others and not (root / DATABASE).exists():  # in this order: another process may be creating the ledger
            raise LedgerError(f"{root}: holds other files and no ledger; give an empty or a new folder")
    path = root / DATABASE
    with translated(path, "create a ledger"), closing(connect_writable(path, create=True)) as connection:
        if not _has_events(connection):
            if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise LedgerError(f"{path}: is a database of something else; give an empty or a new folder")
            with transaction(connection, path):
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                for statement in _DDL:
                    connection.execute(statement)
        (root / TAILS).mkdir(exist_ok=True)
        sync_folder(root)
        sync_folder(root.parent)


def check(root: Path) -> None:
    """Raises LedgerError when the folder is no ledger, or one of a newer version."""
    if not root.exists():
        raise NoLedger(root)
    path = root / DATABASE
    if not path.exists():
        raise LedgerError(f"{root}: not a ledger (it has no {DATABASE}); check the path")
    with snapshot(path) as connection:
        if not _has_events(connection):
            raise LedgerError(f"{path}: not a ledger (it has no table of events); check the path")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        mark = connection.execute("PRAGMA application_id").fetchone()[0]
    if mark != APPLICATION_ID:
        raise LedgerError(f"{path}: not a ledger (another application's database); check the path")
    if version > SCHEMA_VERSION:
        raise LedgerError(f"{path}: written by a newer version (schema {version}); upgrade rlhf-ledger to read it")


def mark_version(ledger: sqlite3.Connection) -> None:
    """Marks a ledger of an older version, so that programs of that version refuse what they would misread.

    Inside a write transaction of the caller.
    """
    if ledger.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
        ledger.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def upgrade(root: Path) -> None:
    """Marks a ledger as `mark_version` does, before rows of it are put where older programs do not look."""
    path = root / DATABASE
    with translated(path, "mark its version"), closing(connect_writable(path)) as ledger, transaction(ledger, path):
        mark_version(ledger)


def _has_events(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone() is not None


def read_lineage(ledger: sqlite3.Connection) -> Lineage:
    """All attempts that were claimed."""
    claims = events.read(ledger, kinds=["attempt_claimed"])
    try:
        return Lineage(Attempt.from_payload(e.run_id, e.attempt or 0, e.time, e.content()) for e in claims)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"a claim of an attempt is not as it was written ({error}); run verify") from error


def read_chains(ledger: sqlite3.Connection, root: Path, lineage: Lineage, run_id: str | None = None) -> list[Chain]:
    """All writers that joined, of one run or all, in order of attempts and writers."""
    chains = []
    for event in events.read(ledger, run_id, ["writer_joined"]):
        content = event.content()
        attempt = lineage.runs.get(event.run_id, {}).get(event.attempt or 0)
        if attempt is None or type(event.seq) is not int:
            raise LedgerError(f"event {event.seq}: a writer joined an attempt that nobody claimed; run verify")
        try:
            identity = TailIdentity(
                event.run_id,
                attempt.number,
                index(event.writer or 0),
                index(content["first_seq"]),
                str(content["genesis"]),
            )
            chains.append(Chain(attempt, identity, root / TAILS / content["file"], event.seq))
        except (KeyError, TypeError) as error:
            raise LedgerError(
                f"event {event.seq}: a writer joined, and how is not as it was written; run verify"
            ) from error
    return sorted(chains, key=lambda chain: (chain.attempt.id, chain.identity.writer))


def place_at(chain: Chain, seq: int | None = None) -> Place:
    """A writer's place as its file says: now, or at the last block that ends at or before row `seq`."""
    with snapshot(chain.path) as tail:
        block = last_block(tail, seq)
        if block is None:
            return Place(chain.identity.first_seq - 1, chain.identity.genesis)
        check_blocks(tail, [block])
        head = block.head
        if not head:
            blocks = completed(tail, chain.identity, read_blocks(tail))
            head = next(b.head for b in blocks if b.first_seq == block.first_seq)
    return Place(block.last_seq, head)
