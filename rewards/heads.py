"""Heads of the newest commits, which may not be stored yet: computed from the rows, and stored where one may."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rewards.chain import ChainHasher
from rewards.errors import LedgerError
from rewards.hot import (
    Block,
    TailIdentity,
    check_blocks,
    checksum,
    hot_rows,
    is_first_version,
    read_blocks,
    with_hashes,
)
from rewards.sqlite import connect_writable, transaction, translated


def completed(
    tail: sqlite3.Connection, identity: TailIdentity, blocks: list[Block], as_far_as_can_be: bool = False
) -> list[Block]:
    """The blocks of a tail, all with their heads; with `as_far_as_can_be` up to the first that does not fit.

    Raises: LedgerError when the rows of a block without a head are not those that were written.
    """
    check_blocks(tail, blocks)
    first = next((i for i, block in enumerate(blocks) if not block.head), None)
    if first is None:
        return blocks
    head = blocks[first - 1].head if first else identity.genesis
    done = blocks[:first]
    rows = {hot.first_seq: hot for hot in hot_rows(tail, above=blocks[first].first_seq - 1)}
    for block in blocks[first:]:
        hot = rows.get(block.first_seq)
        if block.head or not head or hot is None or not _is_whole(tail, block):
            if as_far_as_can_be:
                return [*done, *blocks[len(done) :]]
            raise LedgerError(
                f"step {block.step}, seq {block.first_seq} to {block.last_seq}: its rows or its head are not those "
                "that were recorded"
            )
        hasher = ChainHasher(identity.key, with_hashes(hot))
        head = hasher.commit(head, block.time, block.first_seq, 0, block.count)
        done.append(replace(block, head=head))
    return done


def _is_whole(tail: sqlite3.Connection, block: Block) -> bool:
    query = "SELECT crc32, rows, texts FROM blocks JOIN batches USING (first_seq) WHERE first_seq = ?"
    recorded, rows, texts = tail.execute(query, (block.first_seq,)).fetchone()
    return bool(recorded == checksum(rows, texts))


def complete(path: Path, identity: TailIdentity) -> None:
    """Stores the heads that a tail lacks: its writer ended before it could, or is about to store the same.

    Raises: LedgerError as `completed` does.
    """
    with translated(path, "store heads"), closing(connect_writable(path)) as tail:
        if is_first_version(tail) or not tail.execute("SELECT 1 FROM blocks WHERE head IS NULL LIMIT 1").fetchone():
            return
        with transaction(tail, path):
            for block in completed(tail, identity, read_blocks(tail)):
                query = "UPDATE blocks SET head = ? WHERE first_seq = ? AND head IS NULL"
                tail.execute(query, (block.head, block.first_seq))
