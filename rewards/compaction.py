"""Small files of the sealed tables become large ones; files and room that nobody needs are given back.

All of it under the lock of `seal`.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from rewards.blocks import place_keys
from rewards.catalog import DATABASE, read_chains, read_lineage
from rewards.errors import LedgerError
from rewards.hot import hot_rows, is_first_version
from rewards.parts import RESTORE, SCHEMAS, SESSIONS, TEXTS, Keys, Part, missing_file, read_parts
from rewards.seal import DERIVED
from rewards.sealed import Body
from rewards.sqlite import connect_writable, snapshot, translated

_SMALL_ROWS, _LARGE_ROWS = 250_000, 1_000_000
_FEW_FILES = 8


def compact(root: Path) -> int:
    """Puts many small files of a table together; returns how many were replaced.

    Raises: LedgerError for the first file that cannot be read, after the others were put together.
    """
    replaced = 0
    failures: list[LedgerError] = []
    for name in (SESSIONS, TEXTS):
        body = Body(root, name)
        for group in _groups([part for part in body.parts() if part.rows < _SMALL_ROWS]):
            try:
                merged = _merged(group, SCHEMAS[name]().names)
            except LedgerError as error:
                failures.append(error)
                continue
            body.replace(group, [merged], same_rows=True)
            replaced += len(group)
    if failures:
        raise failures[0]
    return replaced


def _groups(small: list[Part]) -> Iterator[list[Part]]:
    """Neighbours in the order of their rows, up to a large file's worth; a few small files stay."""
    if len(small) < _FEW_FILES:
        return
    group: list[Part] = []
    for part in sorted(small, key=lambda p: (p.chains or (0, 0), p.seqs or (0, 0))):
        if group and sum(p.rows for p in group) + part.rows > _LARGE_ROWS:
            if len(group) > 1:
                yield group
            group = []
        group.append(part)
    if len(group) > 1:
        yield group


def _merged(group: list[Part], columns: list[str]) -> pa.Table:
    try:
        table = pa.Table.from_batches(list(read_parts(group, columns)))
    except FileNotFoundError as error:
        raise LedgerError(f"{missing_file(error)}: the file is missing; {RESTORE}") from error
    return table.sort_by([("chain", "ascending"), ("seq", "ascending")])


def vacuum(root: Path, keep_seconds: float = 0.0) -> int:
    """Deletes files that no table needs, and whose rows are all in the tables or the tails; returns how many.

    keep_seconds: those that went out of use later than that stay for readers of an older snapshot. A reader that
    misses a file tries again on a new one; what it handed out, a connection for SQL, cannot.
    """
    rows = sum(Body(root, name).vacuum(keep_seconds, lambda: _hot_keys(root)) for name in (SESSIONS, TEXTS))
    return rows + sum(Body(root, name).vacuum(keep_seconds) for name in DERIVED)


def _hot_keys(root: Path) -> Keys:
    """The rows that are in the tails, as far as those can be read."""
    with snapshot(root / DATABASE) as ledger:
        chains = read_chains(ledger, root, read_lineage(ledger))
    found: list[Keys] = [np.zeros(0, np.int64)]
    for chain in chains:
        with suppress(LedgerError), snapshot(chain.path) as tail:
            for hot in hot_rows(tail, texts=False):
                found.append(place_keys(chain.number, hot.first_seq + np.arange(hot.rows.num_rows)))
    return np.concatenate(found)


def shrink_tail(path: Path) -> None:
    """Gives the room of sealed rows back; harmless where the tail still has rows or readers."""
    with translated(path, "shrink"), closing(connect_writable(path)) as tail:
        if is_first_version(tail) or tail.execute("SELECT 1 FROM batches LIMIT 1").fetchone():
            return
        if tail.execute("PRAGMA freelist_count").fetchone()[0]:
            try:
                tail.execute("VACUUM")
                tail.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError:
                return  # somebody reads: the room is used by the next rows, or given back by the next seal
