"""Claims: who may write. Writer 0 claims the next attempt of a run, the others join it; each place is taken once."""

import json
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards import events
from rewards.catalog import DATABASE, TAILS, mark_version, place_at, read_chains, read_lineage
from rewards.chain import genesis
from rewards.errors import LedgerError
from rewards.hot import TailIdentity, read_blocks
from rewards.lineage import Attempt, Lineage, Place, Position, places_payload
from rewards.sqlite import snapshot, transaction, translated
from rewards.tail import TailWriter


@dataclass(frozen=True)
class Claim:
    """What a process asks for when it opens a writer."""

    run_id: str
    writer: int
    attempt: int | None = None
    resume: Position | None = None
    fork_of: Position | tuple[str, int, int] | None = None
    arm: str | None = None
    pipeline_id: str | None = None


def claim(ledger: sqlite3.Connection, root: Path, wanted: Claim) -> tuple[Attempt, TailWriter]:
    """Claims the next attempt (writer 0) or joins one, and creates the writer's file.

    Raises: LedgerError when the attempt or the writer's place in it is taken, or when the ledger does not hold what
    the position speaks of.
    """
    with translated(root / DATABASE, "claim an attempt"), transaction(ledger, root / DATABASE):
        mark_version(ledger)
        lineage = read_lineage(ledger)
        drafts = []
        if wanted.attempt is None:
            attempt = _next_attempt(ledger, root, lineage, wanted)
            drafts.append(_draft(attempt, 0, "attempt_claimed", attempt.payload()))
        else:
            attempt = _joined_attempt(ledger, lineage, wanted)
        place = attempt.places.get(wanted.writer)
        identity = TailIdentity(
            attempt.run_id,
            attempt.number,
            wanted.writer,
            place.seq + 1 if place else 1,
            place.head if place else genesis(attempt.run_id, attempt.number, wanted.writer),
        )
        file = f"{attempt.id:06d}-{wanted.writer:03d}.db"
        tail = TailWriter(root / TAILS / file, identity)
        try:
            content = {"file": file, "first_seq": identity.first_seq, "genesis": identity.genesis}
            drafts.append(_draft(attempt, wanted.writer, "writer_joined", content | {"pid": os.getpid()}))
            events.insert(ledger, drafts)
        except BaseException:
            tail.close()
            raise
    return attempt, tail


def _draft(attempt: Attempt, writer: int, kind: str, content: dict[str, Any]) -> events.Draft:
    return events.Draft(
        attempt.run_id, attempt.number, writer, None, attempt.resume_step or 0, kind, events.encode(kind, content)
    )


def _joined_attempt(ledger: sqlite3.Connection, lineage: Lineage, wanted: Claim) -> Attempt:
    number = wanted.attempt or 0
    attempt = lineage.runs.get(wanted.run_id, {}).get(number)
    if attempt is None:
        raise LedgerError(
            f"run `{wanted.run_id}` has no attempt {number}; writer 0 claims one with attempt=None and tells the others"
        )
    taken = ledger.execute(
        "SELECT 1 FROM events WHERE kind = 'writer_joined' AND run_id = ? AND attempt = ? AND writer = ?",
        (wanted.run_id, number, wanted.writer),
    )
    if taken.fetchone():
        raise LedgerError(
            f"writer {wanted.writer} of attempt {number} of run `{wanted.run_id}` is taken; a process that starts "
            "again claims a new attempt (writer 0 with attempt=None)"
        )
    agrees = {
        "resume": wanted.resume is None or wanted.resume.step == attempt.resume_step,
        "fork_of": wanted.fork_of is None or attempt.parent is not None,
        "arm": wanted.arm in (None, attempt.arm),
        "pipeline_id": wanted.pipeline_id in (None, attempt.pipeline_id),
    }
    for name, same in agrees.items():
        if not same:
            raise LedgerError(
                f"attempt {number} of run `{wanted.run_id}` was claimed with another {name}; leave it out when joining"
            )
    return attempt


def _next_attempt(ledger: sqlite3.Connection, root: Path, lineage: Lineage, wanted: Claim) -> Attempt:
    newest = lineage.newest(wanted.run_id)
    parent: Attempt | None = None
    step: int | None = None
    places: dict[int, Place] = {}
    if wanted.resume is not None:
        if wanted.resume.run_id != wanted.run_id:
            raise LedgerError(
                f"the position belongs to run `{wanted.resume.run_id}`, not to `{wanted.run_id}`; a fork takes it as "
                "fork_of="
            )
        parent, step, places = _from_position(ledger, root, lineage, wanted.resume)
    elif wanted.fork_of is not None:
        if isinstance(wanted.fork_of, Position):
            parent, step, places = _from_position(ledger, root, lineage, wanted.fork_of)
        else:
            parent, step, places = _from_step(ledger, root, lineage, wanted.fork_of)
        if parent.run_id == wanted.run_id:
            raise LedgerError(f"a fork of run `{wanted.run_id}` needs another run id; to continue the run use resume=")
    same_run = parent is not None and parent.run_id == wanted.run_id
    return Attempt(
        id=max(lineage.by_id, default=0) + 1,
        run_id=wanted.run_id,
        number=newest.number + 1 if newest else 1,
        parent=parent.id if parent else None,
        resume_step=step,
        arm=wanted.arm if wanted.arm is not None or not same_run or parent is None else parent.arm,
        pipeline_id=wanted.pipeline_id if wanted.pipeline_id is not None or parent is None else parent.pipeline_id,
        places=places,
        started=time.time_ns() // 1000,
    )


def _find(lineage: Lineage, root: Path, run_id: str, number: int) -> Attempt:
    attempt = lineage.runs.get(run_id, {}).get(number)
    if attempt is None:
        raise LedgerError(f"{root}: holds no attempt {number} of run `{run_id}`; was the position made in this ledger?")
    return attempt


_Start = tuple[Attempt, int, dict[int, Place]]


def _from_position(ledger: sqlite3.Connection, root: Path, lineage: Lineage, position: Position) -> _Start:
    """Checks that the ledger holds what the position speaks of: its events and every writer's rows."""
    parent = _find(lineage, root, position.run_id, position.attempt)
    query = "SELECT payload FROM events WHERE hash = ? AND run_id = ? AND attempt = ? AND kind = 'checkpoint'"
    stored = ledger.execute(query, (position.event_head, position.run_id, position.attempt)).fetchone()
    if stored is None:
        raise LedgerError(
            f"{root}: the events of this ledger are not those of the checkpoint at step {position.step} of run "
            f"`{position.run_id}`; was the ledger replaced by an older copy?"
        )
    recorded = json.loads(stored[0])
    if (recorded["step"], recorded["positions"]) != (position.step, places_payload(position.places)):
        raise LedgerError(
            f"the position is not the one that the checkpoint at step {recorded['step']} of run `{position.run_id}` "
            "handed out; pass it unchanged"
        )
    chains = {c.identity.writer: c for c in read_chains(ledger, root, lineage, parent.run_id) if c.attempt == parent}
    for writer, place in position.places.items():
        chain = chains.get(writer)
        if chain is None or place != place_at(chain, place.seq):
            raise LedgerError(
                f"{root}: the rows of writer {writer} of attempt {parent.number} of run `{parent.run_id}` are not "
                f"those of the checkpoint at step {position.step}; run verify"
            )
    return parent, position.step, dict(position.places)


def _from_step(ledger: sqlite3.Connection, root: Path, lineage: Lineage, fork_of: tuple[str, int, int]) -> _Start:
    """The parent's state at a step: every chain as of its last block up to that step."""
    run_id, number, step = fork_of
    if step < 0:
        raise LedgerError(f"fork_of= names step {step}; steps count from 0")
    parent = _find(lineage, root, run_id, number)
    path = {lineage.by_id[id].number for id in lineage.path(parent) if lineage.by_id[id].run_id == run_id}
    seen = [event.at_step for event in events.read(ledger, run_id) if event.attempt in path]
    places: dict[int, Place] = {}
    for chain in read_chains(ledger, root, lineage, run_id):
        if chain.attempt.number in path:
            with snapshot(chain.path) as tail:
                blocks = read_blocks(tail)
            seen += [block.step for block in blocks]
            if chain.attempt == parent:
                before = [block.last_seq for block in blocks if block.step <= step]
                places[chain.identity.writer] = place_at(chain, max(before, default=0))
    if step > max(seen, default=0):
        raise LedgerError(f"{root}: run `{run_id}` has recorded nothing at step {step}; fork at a step it reached")
    return parent, step, places
