"""One writer's chain for `verify`: its file, where it starts, its blocks one after the other, and nothing besides."""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rewards import hot_v1
from rewards.blocks import number as numbered
from rewards.blocks import place_keys, read_all
from rewards.catalog import Chain
from rewards.chain import chain_name, genesis
from rewards.errors import DamagedRows, LedgerError
from rewards.heads import completed
from rewards.hot import Block, HotRows, checksum, hot_rows, is_first_version, last_block, read_blocks, read_identity
from rewards.lineage import Lineage
from rewards.schema import STORED, TEXT_FIELDS, TEXT_HASHES, Column
from rewards.sqlite import snapshot, translated
from rewards.values import has_type
from rewards.verify_files import Shelf
from rewards.verify_heads import History
from rewards.verify_rows import Finding, Redacted, verify_rows

_TEXT_PARTS = [*((field.name, field.type) for field in TEXT_FIELDS), *((name, pa.binary()) for name in TEXT_HASHES)]
_COLUMNS = {c.name: c for c in STORED if c.name != "seq"} | {n: Column(n, kind, "", "") for n, kind in _TEXT_PARTS}
_REQUIRED = {column.name for column in _COLUMNS.values() if column.required}


@dataclass(frozen=True)
class Tail:
    """A chain with what its file held when it was read.

    timed: whether its heads cover the time of a commit (not in schema version 1). damaged: rows that cannot be read,
    and those after them are left out. stray: what no commit covers, in words.
    """

    chain: Chain
    blocks: list[Block]
    hot: list[HotRows]
    timed: bool = True
    damaged: DamagedRows | None = None
    stray: str | None = None


@dataclass(frozen=True)
class Surroundings:
    """What a chain is checked against. shelves: of the tables `sessions` and `texts`."""

    lineage: Lineage
    chains: Sequence[Chain]
    shelves: tuple[Shelf, Shelf]
    redacted: Redacted


def unsound(path: Any) -> str | None:
    """What SQLite finds wrong with a database: an index that hides a row, a damaged page."""
    with translated(path, "read"), snapshot(path) as database:
        said = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return None if said == "ok" else f"{path}: the file is damaged ({said}); restore it from a copy of the ledger"


def read_tail(chain: Chain) -> Tail | str:
    """What a chain's file holds; in words why it cannot be read where that is so."""
    try:
        wrong = unsound(chain.path)
        if wrong:
            return wrong
        with translated(chain.path, "read"), snapshot(chain.path) as tail:
            if read_identity(tail) != chain.identity:
                return f"{chain.path} says it belongs to somebody else"
            hot: list[HotRows] = []
            damaged = None
            try:
                hot.extend(hot_rows(tail))
            except DamagedRows as error:
                damaged = error
            first = is_first_version(tail)
            stray = hot_v1.stray(tail) if first else None if damaged else _odd_checksum(tail)
            blocks = read_blocks(tail)
            with suppress(LedgerError):  # the block whose rows cannot be read is named later
                blocks = completed(tail, chain.identity, blocks, as_far_as_can_be=True)
            return Tail(chain, blocks, hot, not first, damaged, stray)
    except (LedgerError, sqlite3.Error, TypeError, ValueError) as error:
        return str(error)


def _odd_checksum(tail: sqlite3.Connection) -> str | None:
    """The first block whose bytes are not those that its checksum was made of, in words."""
    query = "SELECT first_seq, crc32, rows, texts FROM blocks JOIN batches USING (first_seq) ORDER BY first_seq"
    for first_seq, recorded, rows, texts in tail.execute(query):
        if recorded != checksum(rows, texts):
            return f"the bytes of the rows from seq {first_seq} on do not have the checksum that was recorded"
    return None


def check_chain(tail: Tail, around: Surroundings, history: History) -> None:
    """Adds to the history what fits, and the first thing that does not."""
    chain = tail.chain
    identity = chain.identity
    where = f"run {identity.run_id}, attempt {identity.attempt}, writer {identity.writer}"
    name = chain_name(*identity.key)
    known = history.known.setdefault(name, {identity.first_seq - 1: identity.genesis})
    if tail.blocks:
        history.heads[name] = str(tail.blocks[-1].head)
    origin = _wrong_origin(chain, around.lineage, history)
    if origin:
        history.problems.append(f"{where}: {origin}")
        return
    wrong = _first_wrong_block(tail)
    blocks = tail.blocks if wrong is None else tail.blocks[: wrong[0]]
    sound = {block.first_seq for block in blocks}
    hot = [rows for rows in tail.hot if rows.first_seq in sound]
    finding = Finding(identity.genesis)
    try:
        verify_rows(chain, blocks, tail.timed, hot, around.shelves, around.redacted, finding)
    except FileNotFoundError:
        raise
    except (LedgerError, pa.ArrowException, OSError, TypeError, ValueError, KeyError, OverflowError) as error:
        after = len(finding.good)
        finding.bad = blocks[after] if after < len(blocks) else None
        finding.reason = str(error)
    for block in finding.good:
        known[block.last_seq] = str(block.head)
        history.commits.append((block.time, name, str(block.head)))
    bad, reason = finding.bad, finding.reason
    if reason is None and wrong is not None:
        bad, reason = tail.blocks[wrong[0]], wrong[1]
    if reason is None:
        reason = _nothing_more(tail, around.shelves)
    if reason is not None:
        at = "" if bad is None else f", {_sessions_of(bad, chain, around)}"
        history.problems.append(f"{where}{at}: {reason}")


def _first_wrong_block(tail: Tail) -> tuple[int, str] | None:
    """The first block that cannot be one of the ledger's, whatever its rows are; None where there is none."""
    hot = {rows.first_seq: rows for rows in tail.hot}
    seq = tail.chain.identity.first_seq
    for number, block in enumerate(tail.blocks):
        whole = (block.first_seq, block.count, block.sessions, block.step, block.time)
        if any(type(value) is not int for value in whole) or block.count < 1:
            return number, "the record of the commit is not one that the ledger writes"
        if type(block.head) is not str or not block.head:
            return number, "its rows or its head are not those that were recorded"
        if block.first_seq != seq:
            return number, f"rows {seq} to {block.first_seq - 1} before it are missing"
        if tail.damaged is not None and tail.damaged.first_seq == block.first_seq:
            return number, tail.damaged.reason
        reason = _wrong_batch(hot[seq], block) if seq in hot else None
        if reason is not None:
            return number, reason
        seq = block.last_seq + 1
    return None


def _wrong_batch(hot: HotRows, block: Block) -> str | None:
    """Why what the tail holds of a commit is more, less or other than a commit's rows."""
    if hot.rows.num_rows != block.count:
        return f"{hot.rows.num_rows} rows are stored where {block.count} were recorded"
    if hot.texts is not None and hot.texts.num_rows != block.count:
        return f"texts of {hot.texts.num_rows} rows are stored where {block.count} were recorded"
    stored = list(hot.rows.schema) + ([] if hot.texts is None else list(hot.texts.schema))
    for column in stored:
        if column.name not in _COLUMNS or not has_type(_COLUMNS[column.name], column.type):
            return f"its rows have a column `{column.name}` of type {column.type}, which is none of the ledger's"
    lacking = _REQUIRED - set(hot.rows.schema.names)
    return f"its rows have no column `{min(lacking)}`" if lacking else None


def _nothing_more(tail: Tail, shelves: tuple[Shelf, Shelf]) -> str | None:
    """Why there are more rows than commits; None when there are not."""
    blocks = {block.first_seq for block in tail.blocks}
    if tail.damaged is not None:
        return str(tail.damaged)
    for rows in tail.hot:
        if rows.first_seq not in blocks:
            return f"rows from seq {rows.first_seq} on belong to no commit"
    if tail.stray is not None:
        return tail.stray
    with snapshot(tail.chain.path) as again:
        newest = last_block(again)
    end = tail.chain.identity.first_seq - 1 if newest is None else newest.last_seq
    for shelf in shelves:
        for place in shelf.holds.get(tail.chain.number, []):
            if place.last > end or place.first < tail.chain.identity.first_seq:
                stray = place.last if place.last > end else place.first
                return f"{place.part.path}: row {stray} belongs to no commit"
    return None


def _wrong_origin(chain: Chain, lineage: Lineage, history: History) -> str | None:
    """Why the start of a chain is not the end of its parent's at the checkpoint; None when it is."""
    identity, attempt = chain.identity, chain.attempt
    place = attempt.places.get(identity.writer)
    if place is None:
        fits = (identity.first_seq, identity.genesis) == (1, genesis(*identity.key))
        return None if fits else "its chain does not start at the genesis of its name"
    parent = lineage.by_id.get(attempt.parent or 0)
    known = history.known.get(chain_name(parent.run_id, parent.number, identity.writer), {}) if parent else {}
    if (identity.first_seq, identity.genesis) != (place.seq + 1, place.head) or known.get(place.seq) != place.head:
        return f"the rows of its parent attempt do not lead to where it starts, after seq {place.seq}"
    return None


def _sessions_of(block: Block, chain: Chain, around: Surroundings) -> str:
    """The commit in people's words: step, rows, and the sessions they are in the live view."""
    rows = f"step {block.step}, seq {block.first_seq} to {block.last_seq}"
    mine = (c for c in around.chains if c.identity.run_id == chain.identity.run_id)
    try:
        blocks = numbered(around.lineage, read_all(mine))
        (where,), _ = blocks.find(place_keys([chain.number], [block.first_seq]))
    except (LedgerError, TypeError, ValueError, OverflowError):
        return rows  # another chain of the run cannot be counted
    if not blocks.live[where]:
        return f"{rows} (superseded)"
    if not block.sessions:
        return f"{rows} (not numbered)"
    before = int(blocks.offset[where])
    return f"{rows} (sessions {before + 1} to {before + block.sessions})"
