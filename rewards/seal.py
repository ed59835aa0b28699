"""Sealing: rows move from the hot tails into the Delta tables, and what other engines need beside them.

One process at a time does any of this in a ledger: a lock on a file, which the system lets go when a process dies.
"""

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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
from rewards.hot import HotRows, drop_rows, hot_rows, with_hashes
from rewards.lineage import Lineage
from rewards.parts import SESSIONS, TEXTS
from rewards.schema import BY_NAME, TEXT_FIELDS, sealed_schema, texts_schema
from rewards.sealed import Body
from rewards.sqlite import connect_writable, snapshot, transaction, translated
from rewards.values import full_components

LOCK = "seal.lock"
DERIVED = ("attempts", "blocks")  # written anew at each seal, for other engines
TABLES = (SESSIONS, TEXTS, *DERIVED)
_ROWS_A_SEAL = 500_000  # held in memory at once
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
    for name in DERIVED:
        try:
            Body(root, name)
        except LedgerError as error:
            aside = root / f"{name}.damaged-{time.time_ns()}"
            (root / name).rename(aside)
            print(f"warning: {error}; the folder is now {aside.name}, and written anew", file=sys.stderr)


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
    found = [sealed_texts(chain, hot) for hot in batches if hot.first_seq > above_texts and hot.texts is not None]
    salted = pa.concat_tables([texts_schema().empty_table(), *found])
    if salted.num_rows:  # all of them may have been taken out
        texts.append(salted, chain.number, up_to)
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
    for field in TEXT_FIELDS[1:]:  # a salt without a text is for verify to find
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
