"""Sealing: rows move from the hot tails into the Delta tables; small files become large ones; other engines' tables.

One process at a time does any of this in a ledger: a lock on a file, which the system lets go when a process dies.
"""

import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.blocks import block_table, place_keys
from rewards.catalog import DATABASE, Chain, read_chains, read_lineage
from rewards.delta_log import set_aside
from rewards.errors import LedgerError
from rewards.filesystem import check_local
from rewards.heads import complete
from rewards.hot import HotRows, drop_rows, hot_rows, is_first_version, with_hashes
from rewards.lineage import Lineage
from rewards.schema import BY_NAME, TEXT_FIELDS, sealed_schema, texts_schema
from rewards.sealed import SESSIONS, TEXTS, Body, Keys, Part, read_parts
from rewards.sqlite import connect_writable, snapshot, transaction, translated
from rewards.values import full_components

LOCK = "seal.lock"
TABLES = (SESSIONS, TEXTS, "attempts", "blocks")
_ROWS_A_SEAL = 500_000  # held in memory at once
_SMALL_ROWS, _LARGE_ROWS = 250_000, 1_000_000
_FEW_FILES = 8
_PATIENCE_SECONDS = 300.0


_HELD: set[int] = set()  # handles of locks


def _forget_locks() -> None:
    """In a forked process: the lock is its parent's, and must not outlive it here."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def lock(root: Path, patience: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Only one process at a time moves, rewrites or deletes files of a ledger's tables.

    Raises: LedgerError when another one does not end within `patience` seconds.
    """
    check_local(root)
    path = root / LOCK
    with translated(path, "take the lock of the sealed tables"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _HELD.add(handle)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LedgerError(
                        f"{path}: another process has been sealing this ledger for {patience:.0f} s; wait for it, or "
                        "end it"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: a process that was forked meanwhile has it open
        _HELD.discard(handle)
        os.close(handle)


def recover(root: Path) -> None:
    """Sets aside what is damaged in the tables' logs and not needed: entries cut short by a power loss, checkpoints."""
    for name in TABLES:
        for said in set_aside(root / name):
            print(f"warning: {said}", file=sys.stderr)


def seal_chains(root: Path, wanted: Callable[[Chain], bool], *, always_publish: bool = False) -> int:
    """Moves the hot rows of the wanted chains into the tables; returns how many rows. Under the lock of the caller.

    Raises: LedgerError for the first chain that cannot be sealed, after the others were.
    """
    moved = 0
    with snapshot(root / DATABASE) as ledger:
        lineage = read_lineage(ledger)
        chains = read_chains(ledger, root, lineage)
    sessions, texts = Body(root, SESSIONS), Body(root, TEXTS)
    failures: list[LedgerError] = []
    for chain in filter(wanted, chains):
        try:
            moved += _seal_chain(chain, sessions, texts)
        except LedgerError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    if moved or always_publish:
        publish(root, lineage, chains)
    return moved


def _seal_chain(chain: Chain, sessions: Body, texts: Body) -> int:
    moved = 0
    while True:
        complete(chain.path, chain.identity)
        batches, up_to = _next_batches(chain)
        if not batches:
            return moved
        moved += _move(chain, batches, up_to, sessions, texts)


def _next_batches(chain: Chain) -> tuple[list[HotRows], int]:
    batches: list[HotRows] = []
    count = 0
    with translated(chain.path, "read"), snapshot(chain.path) as tail:
        headed = tail.execute("SELECT max(first_seq) FROM blocks WHERE head IS NOT NULL").fetchone()[0] or 0
        for hot in hot_rows(tail):
            if hot.first_seq > headed:
                break  # its head is computed from the rows in the tail
            batches.append(hot)
            count += hot.rows.num_rows
            if count >= _ROWS_A_SEAL:
                break
    return batches, batches[-1].first_seq + batches[-1].rows.num_rows - 1 if batches else 0


def _move(chain: Chain, batches: list[HotRows], up_to: int, sessions: Body, texts: Body) -> int:
    """Texts first, then rows, then the tail lets go: whoever reads in between finds each row once."""
    above_texts, above_rows = texts.sealed_up_to(chain.number), sessions.sealed_up_to(chain.number)
    salted = [sealed_texts(chain, hot) for hot in batches if hot.first_seq > above_texts and hot.texts is not None]
    if salted:
        texts.append(pa.concat_tables(salted), chain.number, up_to)
    else:
        texts.make_durable()  # they may be there from a process that was killed before it had synced them
    rows = [sealed_rows(chain, hot) for hot in batches if hot.first_seq > above_rows]
    if rows:
        sessions.append(pa.concat_tables(rows), chain.number, up_to)
    else:
        sessions.make_durable()
    with (
        translated(chain.path, "let go of sealed rows"),
        closing(connect_writable(chain.path)) as tail,
        transaction(tail, chain.path),
    ):
        drop_rows(tail, up_to)
    return sum(table.num_rows for table in rows)


def sealed_rows(chain: Chain, hot: HotRows, hashes: bool = True) -> pa.Table:
    """A block's rows with all columns of the table `sessions`; hashes of texts are null unless they are asked for."""
    count = hot.rows.num_rows
    given = with_hashes(hot) if hashes else dict(zip(hot.rows.schema.names, hot.rows.columns, strict=True))
    given |= _keys(chain, hot.first_seq, count)
    train = pc.equal(given["split"], "train").to_numpy(zero_copy_only=False)
    given["block"] = pa.repeat(pa.scalar(int(place_keys(chain.number, hot.first_seq)), pa.int64()), count)
    given["position"] = pa.array(np.cumsum(train) - 1, pa.int32(), mask=~train)
    if "components" in given:
        given["components"] = full_components(given["components"])
    schema = sealed_schema()
    arrays = [given[f.name] if f.name in given else pa.nulls(count, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def sealed_texts(chain: Chain, hot: HotRows) -> pa.Table:
    """A block's texts with the keys of the table `texts`; rows without any text are left out."""
    assert hot.texts is not None
    count = hot.rows.num_rows
    given = {name: hot.texts.column(name) for name in hot.texts.schema.names} | _keys(chain, hot.first_seq, count)
    schema = texts_schema()
    arrays = [given[f.name] if f.name in given else pa.nulls(count, f.type) for f in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    some = pc.is_valid(table[TEXT_FIELDS[0].name])
    for field in TEXT_FIELDS[2::2]:
        some = pc.or_(some, pc.is_valid(table[field.name]))
    return table.filter(some)


def _keys(chain: Chain, first_seq: int, count: int) -> dict[str, pa.Array]:
    identity = chain.identity
    return {
        "run_id": pa.repeat(identity.run_id, count),
        "attempt": pa.repeat(pa.scalar(identity.attempt, pa.int32()), count),
        "writer": pa.repeat(pa.scalar(identity.writer, pa.int32()), count),
        "seq": pa.array(np.arange(first_seq, first_seq + count)),
        "chain": pa.repeat(pa.scalar(chain.number, pa.int64()), count),
    }


# -- what other engines need -----------------------------------------------------------------------------------------


def attempt_table(lineage: Lineage) -> pa.Table:
    """The attempts as a table: live_up_to_step is the highest step that counts, null where all do."""
    limits = {run: lineage.live(run) for run in lineage.runs}
    attempts = [
        {
            "attempt_id": a.id,
            "run_id": a.run_id,
            "attempt": a.number,
            "parent_id": a.parent,
            "resume_step": a.resume_step,
            "arm": a.arm,
            "pipeline_id": a.pipeline_id,
            "started": a.started,
            "live": a.id in limits[a.run_id],
            "live_up_to_step": limits[a.run_id].get(a.id),
        }
        for a in lineage.by_id.values()
    ]
    i64, text = pa.int64(), pa.string()
    kinds = {"attempt_id": i64, "run_id": text, "attempt": pa.int32(), "parent_id": i64, "resume_step": i64}
    kinds |= {"arm": text, "pipeline_id": text, "started": BY_NAME["time"].type, "live": pa.bool_()}
    schema = pa.schema(list((kinds | {"live_up_to_step": i64}).items()))
    return pa.Table.from_pylist(attempts, schema)


def publish(root: Path, lineage: Lineage, chains: list[Chain]) -> None:
    """Writes the tables `attempts` and `blocks` anew: with them any engine has the live view, as of this seal."""
    Body(root, "attempts").overwrite(attempt_table(lineage))
    Body(root, "blocks").overwrite(block_table(lineage, chains))


# -- compaction ------------------------------------------------------------------------------------------------------


def compact(root: Path) -> int:
    """Puts many small files of a table together; returns how many were replaced. Under the lock of the caller."""
    replaced = 0
    for name in (SESSIONS, TEXTS):
        body = Body(root, name)
        for group in _groups([part for part in body.parts() if part.rows < _SMALL_ROWS]):
            body.replace(group, [_merged(group)], same_rows=True)
            replaced += len(group)
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


def _merged(group: Iterable[Part]) -> pa.Table:
    import pyarrow.parquet as pq

    group = list(group)
    columns = pq.read_schema(group[0].path).names
    table = pa.Table.from_batches(list(read_parts(group, columns)))
    return table.sort_by([("chain", "ascending"), ("seq", "ascending")])


def vacuum(root: Path, keep_seconds: float = 0.0) -> int:
    """Deletes files that no table needs, and whose rows are all in the tables or the tails; returns how many.

    keep_seconds: those that went out of use later than that stay for readers of an older snapshot. A reader that
    misses a file tries again on a new one; what it handed out, a connection for SQL, cannot.
    """
    rows = sum(Body(root, name).vacuum(keep_seconds, lambda: _hot_keys(root)) for name in (SESSIONS, TEXTS))
    return rows + sum(Body(root, name).vacuum(keep_seconds) for name in ("attempts", "blocks"))


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
