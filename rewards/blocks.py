"""The blocks of many chains as arrays: which commits count, and the session number before each one's first row."""

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rewards.catalog import Chain
from rewards.errors import LedgerError
from rewards.lineage import Lineage, Place
from rewards.sqlite import snapshot, translated

FIELDS = ("first_seq", "count", "sessions", "step")
_SEQ_BITS = 36  # chain and seq in one whole number: 68 thousand million rows a chain


@dataclass(frozen=True)
class ChainBlocks:
    """The blocks of one chain, in order: a row of `table` each, first_seq, count, sessions and step."""

    chain: Chain
    table: np.ndarray[Any, np.dtype[np.int64]]


def chain_blocks(chain: Chain, tail: sqlite3.Connection) -> ChainBlocks:
    """All blocks of a chain.

    Raises: LedgerError when one of them is no block.
    """
    rows = tail.execute(f"SELECT {', '.join(FIELDS)} FROM blocks ORDER BY first_seq").fetchall()
    try:
        return ChainBlocks(chain, np.array(rows, dtype=np.int64).reshape(-1, len(FIELDS)))
    except (TypeError, ValueError, OverflowError) as error:
        raise LedgerError(
            f"{chain.path}: a commit is not as it was written; run verify, and restore the file from a copy of the "
            "ledger"
        ) from error


def read_all(chains: Iterable[Chain]) -> list[ChainBlocks]:
    """The blocks of chains, each as of now."""
    found = []
    for chain in chains:
        with translated(chain.path, "read"), snapshot(chain.path) as tail:
            found.append(chain_blocks(chain, tail))
    return found


def place_keys(chains: Any, seqs: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Chain and seq as one number that sorts as the pair does."""
    keys: np.ndarray[Any, np.dtype[np.int64]] = (np.asarray(chains) << _SEQ_BITS) | np.asarray(seqs)
    return keys


@dataclass(frozen=True)
class Blocks:
    """The blocks of chains, sorted by chain and first row.

    keys: `place_keys` of them. live: whether the commit counts. offset: sessions of the run before its first one.
    """

    keys: np.ndarray[Any, np.dtype[np.int64]]
    chain: np.ndarray[Any, np.dtype[np.int64]]
    first_seq: np.ndarray[Any, np.dtype[np.int64]]
    count: np.ndarray[Any, np.dtype[np.int64]]
    sessions: np.ndarray[Any, np.dtype[np.int64]]
    step: np.ndarray[Any, np.dtype[np.int64]]
    live: np.ndarray[Any, np.dtype[np.bool_]]
    offset: np.ndarray[Any, np.dtype[np.int64]]

    def find(self, wanted: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The index of the block of each row, and whether there is one (the index is 0 where there is none)."""
        where = np.searchsorted(self.keys, wanted)
        known = where < len(self.keys)
        known[known] = self.keys[where[known]] == wanted[known]
        return np.where(known, where, 0), known


def number(lineage: Lineage, found: list[ChainBlocks]) -> Blocks:
    """Which blocks count, and how many sessions of their run come before them, by (step, writer, attempt, seq)."""
    found = sorted(found, key=lambda blocks: blocks.chain.number)
    lengths = [len(blocks.table) for blocks in found]
    table = np.concatenate([np.empty((0, len(FIELDS)), np.int64), *(blocks.table for blocks in found)])
    first_seq, count, sessions, step = table.T

    def spread(values: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.repeat(np.array(values, dtype=np.int64), lengths)

    runs = {run: i for i, run in enumerate(lineage.runs)}
    limits = {run: lineage.live(run) for run in {blocks.chain.identity.run_id for blocks in found}}
    top = np.iinfo(np.int64).max
    cuts = {run: lineage.last_rows(run) for run in limits}
    highest, last_rows = [], []
    for blocks in found:
        run_id, id = blocks.chain.identity.run_id, blocks.chain.attempt.id
        limit = limits[run_id].get(id, -1)
        highest.append(top if limit is None else limit)
        last_rows.append(last_row(cuts[run_id].get(id), blocks.chain.identity.writer))
    live = (step <= spread(highest)) & (first_seq <= spread(last_rows))
    chain = spread([blocks.chain.number for blocks in found])
    run = spread([runs[blocks.chain.identity.run_id] for blocks in found])
    writer = spread([blocks.chain.identity.writer for blocks in found])
    attempt = spread([blocks.chain.attempt.id for blocks in found])
    order = np.lexsort((first_seq, attempt, writer, step, run))
    counted = np.where(live, sessions, 0)[order]
    before = np.cumsum(counted) - counted
    starts = np.flatnonzero(np.diff(run[order], prepend=-1))
    before -= np.repeat(before[starts], np.diff(starts, append=len(order)))
    offset = np.empty_like(before)
    offset[order] = before
    return Blocks(place_keys(chain, first_seq), chain, first_seq, count, sessions, step, live, offset)


def last_row(places: Mapping[int, Place] | None, writer: int) -> int:
    """The last row of a writer that can count: all of an attempt that was not continued, none of one that came late."""
    if places is None:
        return int(np.iinfo(np.int64).max)
    place = places.get(writer)
    return 0 if place is None else place.seq


def block_table(lineage: Lineage, chains: list[Chain]) -> pa.Table:
    """The blocks as a table for other engines: join it on block; session = session_offset + position + 1."""
    return as_table(number(lineage, read_all(chains)), chains)


def as_table(blocks: Blocks, chains: list[Chain]) -> pa.Table:
    """The blocks with the names of their runs."""
    known = {chain.number: chain.identity for chain in chains}
    numbers = np.array(sorted(known), dtype=np.int64)
    which = pa.array(np.searchsorted(numbers, blocks.chain))

    def spread(values: list[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(which)

    identities = [known[int(n)] for n in numbers]
    return pa.table(
        {
            "chain": blocks.chain,
            "block": blocks.keys,
            "first_seq": blocks.first_seq,
            "run_id": spread([i.run_id for i in identities], pa.string()),
            "attempt": spread([i.attempt for i in identities], pa.int32()),
            "writer": spread([i.writer for i in identities], pa.int32()),
            "step": blocks.step,
            "rows": blocks.count,
            "sessions": blocks.sessions,
            "live": blocks.live,
            "session_offset": blocks.offset,
        }
    )
