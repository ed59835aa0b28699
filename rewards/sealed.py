"""The sealed body: Delta tables of session rows and of their texts. Nothing in them shows before it is safe.

A file is written and synced first, then the log entry that makes it part of the table, then the folders. Only after
that may a tail let go of its rows. How far a chain is sealed stands in the table itself (an application transaction
a chain), so that a seal that was interrupted is repeated without a row twice.
"""

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from rewards.delta_log import COUNT, open_table, uri
from rewards.errors import LedgerError
from rewards.parts import SCHEMAS, Keys, Part, part_of, spared
from rewards.sqlite import sync_folder

if TYPE_CHECKING:
    from deltalake import DeltaTable

_CHECKPOINT_EVERY = 50  # log entries: opening a table reads those since the last checkpoint
_STATISTICS = ("run_id", "attempt", "writer", "seq", "chain", "step")
_ROW_GROUP = 131_072
_FILE_ROWS = 2 * _ROW_GROUP
_LEVEL = 3
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # in messages of the deltalake package


class Body:
    """One of the Delta tables, as of now."""

    def __init__(self, root: Path, name: str, damaged: list[str] | None = None) -> None:
        """Opens the table if there is one.

        damaged: where given, the log is not relied on: `parts` are all files of the folder, the newest first, and what
        is wrong with the log is said there.
        Raises: LedgerError naming the file when the log cannot be read.
        """
        self.root = root / name
        self.name = name
        self._table: DeltaTable | None = None
        self.damage: str | None = None  # a log entry that never came to be, and is passed over
        self._unlisted = damaged is not None
        if (self.root / "_delta_log").is_dir():
            try:
                self._table, self.damage = open_table(self.root)
            except LedgerError as error:
                self.damage = str(error)
                if damaged is None:
                    raise
        if damaged is not None:
            damaged += [self.damage] if self.damage else []
            missing = [part.path for part in self._listed() if not part.path.exists()]
            damaged += [f"{path}: the file is missing" for path in missing]

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
        if self._table is None or self._unlisted:
            return 0
        return self._table.transaction_version(_app(chain)) or 0

    def parts(self) -> list[Part]:
        """The files of the table."""
        if not self._unlisted:
            return self._listed()
        newest_first = sorted(self.root.glob("*.parquet"), key=lambda path: -path.stat().st_mtime)
        return [Part(path, 0, 0, None, None, None) for path in newest_first]

    def _listed(self) -> list[Part]:
        if self._table is None:
            return []
        actions = pa.table(self._table.get_add_actions(flatten=True)).to_pylist()
        return [part_of(self.root, action) for action in actions]

    # -- writing: under the lock of the caller -----------------------------------------------------------------------

    def append(self, rows: pa.Table, chain: int, up_to: int) -> None:
        """Adds rows of a chain, which then is sealed up to `up_to`. Durable on return."""
        from deltalake import Transaction

        with self._said():
            table = self._writable()
            self._commit(table, self._write_all(rows), [Transaction(_app(chain), up_to)])

    def replace(self, old: Sequence[Part], rows: Iterable[pa.Table], *, same_rows: bool) -> None:
        """Puts new files in the place of old ones, in one step.

        same_rows: they are only arranged in another way: engines that follow the table row by row need not look.
        """
        with self._said():
            table = self._writable()
            added: list[Any] = [self._write(batch, changes=not same_rows) for batch in rows]
            self._commit(table, [*added, *(_removal(self.root, part, same_rows) for part in old)])
            for part in old:  # the time from which it was needed no more
                with suppress(FileNotFoundError):
                    os.utime(part.path)

    def overwrite(self, rows: pa.Table) -> None:
        """Makes these rows the whole table."""
        with self._said():
            self._writable(rows.schema)
        self.replace(self.parts(), [rows], same_rows=False)

    def make_durable(self) -> None:
        """What the table says now survives a power loss from here on, whoever wrote it."""
        if self._table is not None:
            with self._said():
                self._sync_log()

    def vacuum(self, keep_seconds: float = 0.0, keys_elsewhere: Callable[[], Keys] | None = None) -> int:
        """Deletes files that are no longer, or never were, part of the table; returns how many.

        keep_seconds: files that went out of use later than that stay, for readers of an older snapshot.
        keys_elsewhere: of rows outside of the table. Given, a file stays that has a row which is neither there nor in
        the table: no log entry speaks of it any more, and it may be all that is left of the row.
        """
        if self.damage is not None:
            raise LedgerError(self.damage)
        if self._table is None:
            return 0
        self.make_durable()  # what replaced the files, before they go
        with self._said():
            self._table.update_incremental()
            parts = self.parts()
            needed = {part.path for part in parts}
            newest = time.time() - keep_seconds
            gone = [p for p in self.root.glob("*.parquet") if p not in needed and p.stat().st_mtime <= newest]
            if gone and keys_elsewhere is not None:
                gone = spared(gone, parts, keys_elsewhere)
            for path in gone:
                path.unlink()
            if gone:
                sync_folder(self.root)
        return len(gone)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What goes wrong in writing, as one line that names the table."""
        from deltalake.exceptions import DeltaError

        try:
            yield
        except (DeltaError, pa.ArrowException, OSError) as error:
            said = " ".join(_COLOUR.sub("", str(error)).replace("↳", " ").split())
            more = "; make room" if "os error 28" in said or "[Errno 28]" in said else ""
            raise LedgerError(
                f"{self.root}: cannot be written ({said}){more}; nothing that was there is lost"
            ) from error

    def _writable(self, schema: pa.Schema | None = None) -> "DeltaTable":
        from deltalake import DeltaTable

        if self.damage is not None:
            raise LedgerError(self.damage)
        if self._table is None:
            self.root.mkdir(exist_ok=True)
            schema = schema or SCHEMAS[self.name]()
            configuration = {
                "delta.checkpointInterval": "1000000",
                "delta.enableExpiredLogCleanup": "false",
                # otherwise only those of the first 32 columns are looked at
                "delta.dataSkippingStatsColumns": ",".join(name for name in _STATISTICS if name in schema.names),
            }
            self._table = DeltaTable.create(uri(self.root), schema, mode="ignore", configuration=configuration)
            self._sync_log()
            sync_folder(self.root.parent)
        self._table.update_incremental()
        return self._table

    def _write_all(self, rows: pa.Table) -> list[Any]:
        """Files of moderate size, several at a time: writing one keeps one core busy."""
        pieces = [rows.slice(start, _FILE_ROWS) for start in range(0, rows.num_rows, _FILE_ROWS)]
        if len(pieces) == 1:
            return [self._write(rows)]
        with ThreadPoolExecutor(min(len(pieces), os.cpu_count() or 1)) as pool:
            return list(pool.map(self._write, pieces))

    def _write(self, rows: pa.Table, changes: bool = True) -> Any:
        """One Parquet file, synced; not yet part of the table."""
        import pyarrow.parquet as pq
        from deltalake.transaction import AddAction

        path = self.root / f"part-{uuid.uuid4()}.parquet"
        continuous = [name for name in rows.schema.names if _is_continuous(rows[name])]
        try:
            pq.write_table(
                rows,
                path,
                row_group_size=_ROW_GROUP,
                compression="zstd",
                compression_level=_LEVEL,
                use_dictionary=[name for name in rows.schema.names if name not in continuous],
                write_page_checksum=True,  # without it most flipped bits read as other values
            )
            sync_file(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        size = path.stat().st_size
        return AddAction(path.name, size, {}, time.time_ns() // 1_000_000, changes, json.dumps(_stats(rows)))

    def _commit(self, table: "DeltaTable", actions: list[Any], transactions: Sequence[Any] = ()) -> None:
        from deltalake import CommitProperties, PostCommitHookProperties

        sync_folder(self.root)  # the files' names, before the log speaks of them
        table.create_write_transaction(
            actions,
            "append",
            table.schema(),
            commit_properties=CommitProperties(
                custom_metadata={COUNT: str(len(actions) + len(transactions))}, app_transactions=list(transactions)
            ),
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


def _removal(root: Path, part: Part, same_rows: bool) -> Any:
    from deltalake.transaction import RemoveAction

    return RemoveAction(
        path=str(part.path.relative_to(root)),
        data_change=not same_rows,
        deletion_timestamp=time.time_ns() // 1_000_000,
        size=part.bytes,
        partition_values={},
    )


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
    for name in _STATISTICS:
        if name in rows.schema.names:
            bounds = pc.min_max(rows[name]).as_py()
            low[name], high[name] = bounds["min"], bounds["max"]
    return {"numRecords": rows.num_rows, "minValues": low, "maxValues": high, "nullCount": {}}
