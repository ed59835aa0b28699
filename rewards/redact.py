"""Taking out a text for good: the event first, then the text and its salt, wherever they are stored.

The hash of the text stays in its row, so the chain still holds; without its salt it tells nothing about the text.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards import notes, seal
from rewards.catalog import DATABASE, Chain, read_chains, read_lineage
from rewards.errors import LedgerError
from rewards.hot import hot_rows, is_first_version, replace_texts
from rewards.schema import TEXT_COLUMNS
from rewards.sealed import TEXTS, Body, read_parts
from rewards.sqlite import connect_writable, snapshot, transaction, translated


@dataclass(frozen=True)
class Row:
    """A row by its place: what `sessions` shows as attempt, writer and seq."""

    run_id: str
    attempt: int
    writer: int
    seq: int


def redact(root: Path, row: Row, columns: Sequence[str], reason: str, by: str) -> dict[str, Any]:
    """Takes texts of a row out of the ledger. See `Ledger.redact`."""
    columns = list(dict.fromkeys(columns)) or list(TEXT_COLUMNS)
    for name in columns:
        if name not in TEXT_COLUMNS:
            raise LedgerError(f"`{name}` is no text of a session; the texts are {', '.join(TEXT_COLUMNS)}")
    for name, value in {"reason": reason, "by": by}.items():
        if not isinstance(value, str) or not value.strip():
            raise LedgerError(f"a redaction needs {name}=: it is recorded for good")
    with seal.lock(root):
        seal.recover(root)
        chain = _chain_of(root, row)
        hashed = _recorded(root, chain, row.seq)
        absent = [name for name in columns if name not in hashed]
        if absent and len(columns) < len(TEXT_COLUMNS):
            raise LedgerError(f"{_said(row)} has no {absent[0]}; its texts are: {', '.join(hashed) or 'none'}")
        columns = [name for name in columns if name in hashed]
        if not columns:
            raise LedgerError(f"{_said(row)} has no text")
        payload = {"attempt": row.attempt, "writer": row.writer, "seq": row.seq, "columns": columns}
        event = notes.add(root, "text_redacted", payload | {"reason": reason, "by": by}, row.run_id)
        _redact_hot(chain, row.seq, columns)
        _redact_sealed(root, chain, row.seq, columns)
    return event


def _said(row: Row) -> str:
    return f"run `{row.run_id}`, attempt {row.attempt}, writer {row.writer}: row {row.seq}"


def _chain_of(root: Path, row: Row) -> Chain:
    with snapshot(root / DATABASE) as ledger:
        for chain in read_chains(ledger, root, read_lineage(ledger), row.run_id):
            if chain.identity.key == (row.run_id, row.attempt, row.writer):
                return chain
    raise LedgerError(f"{root}: run `{row.run_id}` has no writer {row.writer} in an attempt {row.attempt}")


def _recorded(root: Path, chain: Chain, seq: int) -> list[str]:
    """The texts that the row was recorded with."""
    names = [f"{name}_hash" for name in TEXT_COLUMNS]
    with translated(chain.path, "read"), snapshot(chain.path) as tail:
        for hot in hot_rows(tail, texts=False):
            if hot.first_seq <= seq < hot.first_seq + hot.rows.num_rows:
                place = seq - hot.first_seq
                there = set(hot.rows.schema.names)
                return [
                    n for n, h in zip(TEXT_COLUMNS, names, strict=True) if h in there and hot.rows[h][place].is_valid
                ]
    keep = (pc.field("chain") == chain.number) & (pc.field("seq") == seq)
    body = Body(root, "sessions")
    for batch in read_parts([p for p in body.parts() if p.may_hold(chain.identity.run_id)], names, keep):
        if batch.num_rows:
            return [n for n, h in zip(TEXT_COLUMNS, names, strict=True) if batch.column(h)[0].is_valid]
    raise LedgerError(f"{_said(Row(*chain.identity.key, seq))} does not exist")


def _redact_hot(chain: Chain, seq: int, columns: Sequence[str]) -> None:
    with translated(chain.path, "take out a text"), closing(connect_writable(chain.path)) as tail:
        tail.execute("PRAGMA secure_delete=ON")  # what is freed is overwritten
        if is_first_version(tail):
            _redact_first_version(chain, tail, seq, columns)
        else:
            with transaction(tail, chain.path):
                for hot in hot_rows(tail):
                    if hot.texts is not None and hot.first_seq <= seq < hot.first_seq + hot.rows.num_rows:
                        replace_texts(tail, hot.first_seq, _without(hot.texts, seq - hot.first_seq, columns))
                        break
        tail.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _redact_first_version(chain: Chain, tail: Any, seq: int, columns: Sequence[str]) -> None:
    with transaction(tail, chain.path):
        for name in columns:
            tail.execute(f"UPDATE texts SET {name} = NULL WHERE seq = ?", (seq,))


def _without(texts: pa.RecordBatch, place: int, columns: Sequence[str]) -> pa.RecordBatch:
    """The batch with a row's texts and their salts null."""
    gone = pa.array(np.arange(texts.num_rows) == place)
    arrays = []
    for name in texts.schema.names:
        column = texts.column(name)
        taken = name.removesuffix("_salt") in columns
        arrays.append(pc.if_else(gone, pa.scalar(None, column.type), column) if taken else column)
    return pa.RecordBatch.from_arrays(arrays, schema=texts.schema)


def _redact_sealed(root: Path, chain: Chain, seq: int, columns: Sequence[str]) -> None:
    import pyarrow.parquet as pq

    body = Body(root, TEXTS)
    keep = (pc.field("chain") == chain.number) & (pc.field("seq") == seq)
    for part in body.parts():
        if not part.may_hold(chain.identity.run_id):
            continue
        if not any(batch.num_rows for batch in read_parts([part], ["seq"], keep)):
            continue
        table = pq.read_table(part.path, partitioning=None)
        gone = pc.and_(pc.equal(table["chain"], chain.number), pc.equal(table["seq"], seq))
        for name in columns:
            for stored in (name, f"{name}_salt"):
                column = table[stored]
                new = pc.if_else(gone, pa.scalar(None, column.type), column)
                table = table.set_column(table.schema.get_field_index(stored), table.schema.field(stored), new)
        body.replace([part], [table], same_rows=False)
    seal.vacuum(root)
