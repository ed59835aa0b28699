"""Taking out a text for good: the event first, then the text and its salt, wherever they are stored.

The hash of the text stays in its row, so the chain still holds; without its salt it tells nothing about the text.
Whatever interrupts this, it can be done again: what is left to do is found in the files, not in the event.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards import compaction, events, hot_v1, notes, seal
from rewards.catalog import DATABASE, Chain, read_chains, read_lineage, upgrade
from rewards.errors import LedgerError
from rewards.heads import complete
from rewards.hot import HotRows, hot_rows, is_first_version, replace_texts, with_hashes
from rewards.parts import SESSIONS, TEXTS, Part, read_parts
from rewards.schema import TEXT_COLUMNS, texts_schema
from rewards.sealed import Body, sync_file
from rewards.sqlite import connect_writable, snapshot, sync_folder, transaction, translated

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Row:
    """A row by its place: what `sessions` shows as attempt, writer and seq."""

    run_id: str
    attempt: int
    writer: int
    seq: int

    def __str__(self) -> str:
        """The row in messages."""
        return f"run `{self.run_id}`, attempt {self.attempt}, writer {self.writer}: row {self.seq}"


def redact(root: Path, row: Row, columns: Sequence[str], reason: str, by: str) -> dict[str, Any]:
    """Takes texts of a row out of the ledger. See `Ledger.redact`."""
    for name in columns:
        if name not in TEXT_COLUMNS:
            raise LedgerError(f"`{name}` is no text of a session; the texts are {', '.join(TEXT_COLUMNS)}")
    for name, value in {"reason": reason, "by": by}.items():
        if not isinstance(value, str) or not value.strip():
            raise LedgerError(f"a redaction needs {name}=: it is recorded for good")
    with seal.lock(root):
        chain = _chain_of(root, row)
        recorded, there = _texts_of(root, chain, row)
        wanted = [name for name in recorded if name in columns or not columns]
        absent = [name for name in columns if name not in recorded]
        if absent or not wanted:
            said = f"its texts are: {', '.join(recorded)}" if recorded else "it was recorded without any"
            raise LedgerError(f"{row} has no {absent[0] if absent else 'text'}; {said}")
        done = _on_record(root, row)
        lost = [name for name in wanted if name not in there and name not in done]
        if lost:
            raise LedgerError(f"{row}: its {lost[0]} is gone, and no redaction is on record; run verify")
        upgrade(root)
        new = [name for name in wanted if name not in done]
        if new:
            payload = {"attempt": row.attempt, "writer": row.writer, "seq": row.seq, "columns": new}
            event = notes.add(root, "text_redacted", payload | {"reason": reason, "by": by}, row.run_id)
        else:
            event = done[wanted[0]]
        _redact_hot(chain, row.seq, wanted)
        _redact_sealed(root, chain, row.seq, wanted)
    if not there.intersection(wanted):
        raise LedgerError(f"{row}: its {wanted[0]} was taken out before (event {event['seq']})")
    return event


# -- what there is ---------------------------------------------------------------------------------------------------


def _chain_of(root: Path, row: Row) -> Chain:
    with snapshot(root / DATABASE) as ledger:
        for chain in read_chains(ledger, root, read_lineage(ledger), row.run_id):
            if chain.identity.key == (row.run_id, row.attempt, row.writer):
                return chain
    raise LedgerError(f"{root}: run `{row.run_id}` has no writer {row.writer} in an attempt {row.attempt}")


def _texts_of(root: Path, chain: Chain, row: Row) -> tuple[list[str], set[str]]:
    """The texts that the row was recorded with, and those of them that are still stored somewhere.

    Raises: LedgerError when there is no such row.
    """
    hashes = {f"{name}_hash": name for name in TEXT_COLUMNS}
    recorded: set[str] | None = None
    there: set[str] = set()
    with translated(chain.path, "read"), snapshot(chain.path) as tail:
        hot = _block_of(tail, row.seq)
        if hot is not None:
            place = row.seq - hot.first_seq
            recorded = {
                hashes[name] for name, column in with_hashes(hot).items() if name in hashes and column[place].is_valid
            }
            there |= _given(hot.texts, place)
    keep = _is_row(chain, row.seq)
    for batch in read_parts(_parts(root, SESSIONS, chain), list(hashes), keep):
        if batch.num_rows:
            recorded = {name for hashed, name in hashes.items() if batch.column(hashed)[0].is_valid}
    if recorded is None:
        raise LedgerError(f"{row} does not exist")
    for batch in read_parts(_parts(root, TEXTS, chain), list(TEXT_COLUMNS), keep):
        for place in range(batch.num_rows):
            there |= _given(batch, place)
    return [name for name in TEXT_COLUMNS if name in recorded], there


def _block_of(tail: sqlite3.Connection, seq: int) -> HotRows | None:
    """The rows of the commit that a hot row belongs to."""
    for hot in hot_rows(tail):
        if hot.first_seq <= seq < hot.first_seq + hot.rows.num_rows:
            return hot
    return None


def _given(texts: pa.RecordBatch | None, place: int) -> set[str]:
    if texts is None:
        return set()
    return {name for name in TEXT_COLUMNS if name in texts.schema.names and texts.column(name)[place].is_valid}


def _is_row(chain: Chain, seq: int) -> pc.Expression:
    return (pc.field("chain") == chain.number) & (pc.field("seq") == seq)


def _parts(root: Path, name: str, chain: Chain) -> list[Part]:
    return [part for part in Body(root, name).parts() if part.may_hold(chain.identity.run_id)]


def _on_record(root: Path, row: Row) -> dict[str, dict[str, Any]]:
    """The texts of the row that were taken out, each with the event that says so."""
    found: dict[str, dict[str, Any]] = {}
    with snapshot(root / DATABASE) as ledger:
        stored = events.read(ledger, row.run_id, ["text_redacted"])
    for event in stored:
        content = event.content()
        named = content.get("columns")
        if [content.get(k) for k in ("attempt", "writer", "seq")] == [row.attempt, row.writer, row.seq]:
            found |= {str(name): event.shown() for name in (named if isinstance(named, list) else ())}
    return found


# -- taking out ------------------------------------------------------------------------------------------------------


def _redact_hot(chain: Chain, seq: int, columns: Sequence[str]) -> None:
    """Takes the texts out of the tail, and out of what SQLite keeps of rows that were deleted or changed."""
    complete(chain.path, chain.identity)
    with translated(chain.path, "take out a text"), closing(connect_writable(chain.path)) as tail:
        with transaction(tail, chain.path):
            if is_first_version(tail):
                hot_v1.take_out(tail, seq, columns)
            else:
                hot = _block_of(tail, seq)
                if hot is not None and hot.texts is not None:
                    replace_texts(tail, hot, _without(hot.texts, seq - hot.first_seq, columns))
        deadline = time.monotonic() + _PATIENCE_SECONDS
        tail.execute("VACUUM")
        while tail.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > deadline:
                raise LedgerError(
                    f"{chain.path}: the text is taken out, but its bytes wait in the log of the file while another "
                    "process reads it; redact the row again when that has ended"
                )
            time.sleep(0.02)


def _without(texts: pa.RecordBatch, place: int, columns: Sequence[str]) -> pa.RecordBatch:
    """The batch with a row's texts and their salts null."""
    gone = np.arange(texts.num_rows) == place
    arrays = [_nulled(texts.column(name), name, gone, columns) for name in texts.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=texts.schema)


def _nulled(column: Any, name: str, gone: np.ndarray[Any, Any], columns: Sequence[str]) -> Any:
    if name.removesuffix("_salt") not in columns:
        return column
    # Not if_else: it keeps the bytes of what it makes null.
    return column.take(pa.array(np.arange(len(column)), mask=gone))


def _redact_sealed(root: Path, chain: Chain, seq: int, columns: Sequence[str]) -> None:
    """Takes the texts out of the table, and out of files beside it, which are deleted where nothing needs them."""
    body = Body(root, TEXTS)
    for part in _parts(root, TEXTS, chain):
        if _holds(part.path, chain, seq):
            body.replace([part], [_file_without(part.path, chain, seq, columns)], same_rows=False)
    compaction.vacuum(root)
    listed = {part.path for part in Body(root, TEXTS).parts()}
    for path in sorted((root / TEXTS).glob("*.parquet")):  # what is left may hold the last of some row
        if path not in listed and _holds(path, chain, seq):
            new = path.with_name(f"new-{path.name}")
            _write(_file_without(path, chain, seq, columns), new)
            os.replace(new, path)
            sync_folder(path.parent)


def _batches(path: Path, columns: Sequence[str], keep: pc.Expression | None = None) -> Iterator[pa.RecordBatch]:
    return read_parts([Part(path, 0, 0, None, None, None)], columns, keep)


def _holds(path: Path, chain: Chain, seq: int) -> bool:
    return any(batch.num_rows for batch in _batches(path, ["seq"], _is_row(chain, seq)))


def _file_without(path: Path, chain: Chain, seq: int, columns: Sequence[str]) -> pa.Table:
    schema = texts_schema()
    table = pa.Table.from_batches(list(_batches(path, schema.names)), schema)
    gone = pc.and_(pc.equal(table["chain"], chain.number), pc.equal(table["seq"], seq)).to_numpy()
    return pa.Table.from_arrays([_nulled(table[name], name, gone, columns) for name in schema.names], schema=schema)


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    sync_file(path)
