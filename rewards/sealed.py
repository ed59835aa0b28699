"""The sealed body: Delta tables of session rows and of their texts. Nothing in them shows before it is safe.

A file is written and synced first, then the log entry that makes it part of the table, then the folders. Only after
that may a tail let go of its rows. How far a chain is sealed stands in the table itself (an application transaction
a chain), so that a seal that was interrupted is repeated without a row twice.
"""

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import LedgerError
from rewards.schema import sealed_schema, texts_schema
from rewards.sqlite import sync_folder

if TYPE_CHECKING:
    from deltalake import DeltaTable

SESSIONS, TEXTS = "sessions", "texts"
SCHEMAS = {SESSIONS: sealed_schema, TEXTS: texts_schema}

_CHECKPOINT_EVERY = 50  # log entries: opening a table reads those since the last checkpoint
_ROW_GROUP = 131_072
_LEVEL = 3


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table. rows, bytes: as the log says; keys: chain -> (first seq, last seq) where it says."""

    path: Path
    rows: int
    bytes: int
    run_ids: tuple[str, str] | None
    chains: tuple[int, int] | None
    seqs: tuple[int, int] | None

    def may_hold(self, run_id: str | None) -> bool:
        """Whether rows of a run can be in the file."""
        return run_id is None or self.run_ids is None or self.run_ids[0] <= run_id <= self.run_ids[1]


class Body:
    """One of the Delta tables, as of now."""

    def __init__(self, root: Path, name: str) -> None:
        """Opens the table if there is one.

        Raises: LedgerError naming the file when the log cannot be read.
        """
        self.root = root / name
        self.name = name
        self._table: DeltaTable | None = None
        self.damage: str | None = None  # a log entry that never came to be, and is passed over
        if (self.root / "_delta_log").is_dir():
            self._table, self.damage = _opened(self.root)

    @property
    def exists(self) -> bool:
        """Whether anything was sealed yet."""
        return self._table is not None

    @property
    def version(self) -> int | None:
        """The version of the table that is read."""
        return None if self._table is None else self._table.version()

    def sealed_up_to(self, chain: int) -> int:
        """The seq up to which a chain's rows are in the table; 0 where none is."""
        return 0 if self._table is None else self._table.transaction_version(_app(chain)) or 0

    def parts(self) -> list[Part]:
        """The files of the table."""
        if self._table is None:
            return []
        actions = pa.table(self._table.get_add_actions(flatten=True)).to_pylist()
        return [_part(self.root, action) for action in actions]

    # -- writing: under the lock of the caller -----------------------------------------------------------------------

    def append(self, rows: pa.Table, chain: int, up_to: int) -> None:
        """Adds rows of a chain, which then is sealed up to `up_to`. Durable on return."""
        from deltalake import CommitProperties, Transaction

        table = self._writable()
        added = self._write(rows)
        properties = CommitProperties(app_transactions=[Transaction(_app(chain), up_to)])
        self._commit(table, [added], "append", properties)

    def replace(self, old: Sequence[Part], rows: Iterable[pa.Table], *, same_rows: bool) -> None:
        """Puts new files in the place of old ones, in one step.

        same_rows: they are only arranged in another way: engines that follow the table row by row need not look.
        """
        from deltalake.transaction import RemoveAction

        table = self._writable()
        added: list[Any] = [self._write(batch, changes=not same_rows) for batch in rows]
        now = time.time_ns() // 1_000_000
        removed = [
            RemoveAction(
                path=str(part.path.relative_to(self.root)),
                data_change=not same_rows,
                deletion_timestamp=now,
                size=part.bytes,
                partition_values={},
            )
            for part in old
        ]
        self._commit(table, [*added, *removed], "append", None)

    def overwrite(self, rows: pa.Table) -> None:
        """Makes these rows the whole table."""
        table = self._writable(rows.schema)
        self._commit(table, [self._write(rows)], "overwrite", None)

    def vacuum(self) -> int:
        """Deletes the files that are no longer, or never were, part of the table; returns how many."""
        if self._table is None:
            return 0
        self._table.update_incremental()
        gone = self._table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        self._sync_log()
        return len(gone)

    def _writable(self, schema: pa.Schema | None = None) -> "DeltaTable":
        from deltalake import DeltaTable

        if self._table is None:
            self.root.mkdir(exist_ok=True)
            self._table = DeltaTable.create(
                self.root,
                schema or SCHEMAS[self.name](),
                mode="ignore",
                configuration={"delta.checkpointInterval": "1000000", "delta.enableExpiredLogCleanup": "false"},
            )
            self._sync_log()
            sync_folder(self.root.parent)
        self._table.update_incremental()
        return self._table

    def _write(self, rows: pa.Table, changes: bool = True) -> Any:
        """One Parquet file, synced; not yet part of the table."""
        import pyarrow.parquet as pq
        from deltalake.transaction import AddAction

        path = self.root / f"part-{uuid.uuid4()}.parquet"
        continuous = [name for name in rows.schema.names if _is_continuous(rows[name])]
        pq.write_table(
            rows,
            path,
            row_group_size=_ROW_GROUP,
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=[name for name in rows.schema.names if name not in continuous],
        )
        sync_file(path)
        size = path.stat().st_size
        return AddAction(path.name, size, {}, time.time_ns() // 1_000_000, changes, json.dumps(_stats(rows)))

    def _commit(self, table: "DeltaTable", actions: list[Any], mode: str, properties: Any) -> None:
        from deltalake import PostCommitHookProperties

        sync_folder(self.root)  # the files' names, before the log speaks of them
        table.create_write_transaction(
            actions,
            mode,
            table.schema(),
            commit_properties=properties,
            post_commithook_properties=PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False),
        )
        table.update_incremental()
        self._sync_log()
        if table.version() % _CHECKPOINT_EVERY == 0:
            table.create_checkpoint()
            self._sync_log(everything=True)

    def _sync_log(self, everything: bool = False) -> None:
        """Makes the log durable: its newest entries, or with what a checkpoint wrote."""
        log = self.root / "_delta_log"
        entries = sorted(path for path in log.iterdir() if path.is_file())
        for path in entries if everything else [p for p in entries if p.suffix == ".json"][-4:]:
            sync_file(path)
        sync_folder(log)
        sync_folder(self.root)


def sync_file(path: Path) -> None:
    """Makes a file's content durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _app(chain: int) -> str:
    return f"tail-{chain}"


def _is_continuous(column: pa.ChunkedArray) -> bool:
    """Whether a dictionary would only cost: nearly every value is another."""
    kind = column.type
    if pa.types.is_binary(kind):
        return True  # hashes and salts
    if not (pa.types.is_floating(kind) or pa.types.is_string(kind)) or column.null_count == len(column):
        return False
    sample = column.slice(0, 4096)
    return bool(pc.count_distinct(sample).as_py() > 0.7 * len(sample))


def _stats(rows: pa.Table) -> dict[str, Any]:
    """What lets a reader skip the file."""
    low, high = {}, {}
    for name in ("run_id", "attempt", "writer", "seq", "chain", "step"):
        if name in rows.schema.names:
            bounds = pc.min_max(rows[name]).as_py()
            low[name], high[name] = bounds["min"], bounds["max"]
    return {"numRecords": rows.num_rows, "minValues": low, "maxValues": high, "nullCount": {}}


def _part(root: Path, action: dict[str, Any]) -> Part:
    def bounds(name: str) -> Any:
        low, high = action.get(f"min.{name}"), action.get(f"max.{name}")
        return None if low is None or high is None else (low, high)

    return Part(
        root / action["path"],
        action["num_records"],
        action["size_bytes"],
        bounds("run_id"),
        bounds("chain"),
        bounds("seq"),
    )


# -- opening, and what can be wrong with it --------------------------------------------------------------------------


def _opened(root: Path) -> tuple["DeltaTable", str | None]:
    """The table; without its newest log entry where that was cut short: nothing relies on it yet."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(root), None
    except (DeltaError, TableNotFoundError, OSError, ValueError) as error:
        damage, newest = _log_damage(root)
        if newest:
            try:
                return DeltaTable(root, version=newest - 1), damage
            except (DeltaError, OSError, ValueError):
                pass
        raise LedgerError(damage or f"{root}/_delta_log: cannot be read: {error}") from error


def set_aside(root: Path, name: str) -> str | None:
    """Renames a newest log entry that was cut short, so that the table can be written again; says what it did."""
    damage, newest = _log_damage(root / name)
    if damage is None or newest is None:
        return None
    path = root / name / "_delta_log" / f"{newest:020d}.json"
    path.rename(path.with_suffix(".json.damaged"))
    sync_folder(path.parent)
    return damage


def _log_damage(root: Path) -> tuple[str | None, int | None]:
    """The log entry that is cut short or missing, in words, and its number where it is the newest."""
    entries = sorted((root / "_delta_log").glob("*.json"))
    numbers = [int(path.stem) for path in entries if path.stem.isdigit()]
    for path in entries:
        if not path.stem.isdigit():
            continue
        try:
            lines = path.read_text().splitlines()
            if not lines:
                raise ValueError("it is empty")
            for line in lines:
                json.loads(line)
        except (ValueError, OSError) as error:
            newest = path == entries[-1]
            advice = (
                "it is the newest, and its rows are still in the tails: `rewards seal` sets it aside and writes it anew"
                if newest
                else "restore it from a copy of the ledger"
            )
            said = f"{path}: the log entry is cut short or damaged ({error}); {advice}"
            return said, int(path.stem) if newest else None
    for before, after in pairwise(numbers):
        if after != before + 1:
            return f"{root}/_delta_log/{before + 1:020d}.json: the log entry is missing; restore it from a copy", None
    return None, None


def read_parts(
    parts: Sequence[Part], columns: Sequence[str], keep: pa.compute.Expression | None = None
) -> Iterator[Any]:
    """Record batches of files, in the files' order, only the rows that `keep` keeps.

    Raises: LedgerError naming the file that is missing or damaged; FileNotFoundError when the first is missing: the
    caller may have an old snapshot.
    """
    import pyarrow.dataset as ds

    for part in parts:
        try:
            source = ds.dataset(str(part.path), format="parquet")
            yield from source.to_batches(columns=list(columns), filter=keep, use_threads=True)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise LedgerError(
                f"{part.path}: the file is damaged ({str(error).splitlines()[0]}); restore it from a copy of the ledger"
            ) from error
