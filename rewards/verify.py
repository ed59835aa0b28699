"""Recomputes every hash of a ledger from the stored rows and events and says what does not fit."""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from rewards import events
from rewards.catalog import DATABASE, TAILS, Chain, read_chains, read_lineage
from rewards.chain import EVENTS_CHAIN, EVENTS_GENESIS, chain_name, commit_hash, genesis, ledger_head
from rewards.errors import LedgerError
from rewards.hot import Block, block_columns, read_blocks, read_identity
from rewards.lineage import Lineage
from rewards.sqlite import snapshot


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    ok: everything fits, the anchor included. first_bad: the first commit that does not, by run, attempt, writer, step
    and sessions. problems: the first misfit of every chain. heads: chain -> head, as stored. head: of the ledger.
    """

    ok: bool
    first_bad: str | None
    problems: tuple[str, ...]
    heads: dict[str, str]
    head: str


@dataclass
class _History:
    """What was recomputed.

    problems: the first misfit of every chain. heads: chain -> last head, as stored. known: chain -> {last seq: head}
    of the commits that fit, the start included. commits: (time, chain, head) of all that fit.
    """

    problems: list[str] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)
    known: dict[str, dict[int, str]] = field(default_factory=dict)
    commits: list[tuple[int, str, str]] = field(default_factory=list)


def verify_ledger(root: Path, anchor: str | None = None) -> Verification:
    """Recomputes all. See `Ledger.verify`."""
    history = _History()
    used = _tails_with_rows(root)  # before the claims are read: rows come after their writer's claim
    stored: list[events.Event] = []
    lineage, chains = Lineage([]), list[Chain]()
    try:
        with snapshot(root / DATABASE) as ledger:
            stored = events.read(ledger)
            _verify_events(stored, history)
            lineage = read_lineage(ledger)
            chains = read_chains(ledger, root, lineage)
    except (LedgerError, KeyError, TypeError) as error:
        history.problems.append(f"the events cannot be read: {error}")
    for chain in chains:
        _verify_chain(chain, chains, lineage, history)
    for path in sorted(used - {chain.path for chain in chains}):
        history.problems.append(f"{path}: holds rows of a writer that never joined, or whose claim was removed")
    if not history.problems:
        _verify_checkpoints(stored, history)
    head = ledger_head(history.heads)
    if anchor is not None and not history.problems and not _occurs(anchor.strip().lower(), head, stored, history):
        history.problems.append(
            f"the anchor {anchor} occurs nowhere in the history of this ledger: it is another ledger's, or this one "
            "was rewritten or cut since"
        )
    first = history.problems[0] if history.problems else None
    return Verification(first is None, first, tuple(history.problems), history.heads, head)


def _tails_with_rows(root: Path) -> set[Path]:
    used = set()
    for path in (root / TAILS).glob("*.db"):
        try:
            with snapshot(path) as tail:
                if tail.execute("SELECT 1 FROM sessions LIMIT 1").fetchone():
                    used.add(path)
        except LedgerError:
            used.add(path)  # what is wrong with it is said when its chain is read
    return used


def _verify_events(stored: list[events.Event], history: _History) -> None:
    previous = EVENTS_GENESIS
    for number, event in enumerate(stored, start=1):
        where = f"run {event.run_id}, attempt {event.attempt}, writer {event.writer}, step {event.step}"
        try:
            expected = event.expected_hash(previous)
        except (TypeError, AttributeError, ValueError, OverflowError):
            expected = ""
        if event.seq != number:
            history.problems.append(
                f"{where}: event {event.seq} ({event.kind}) stands where event {number} was recorded"
            )
            break
        if event.hash != expected:
            history.problems.append(
                f"{where}: event {event.seq} ({event.kind}) or its hash is not the one that was recorded"
            )
            break
        history.commits.append((event.time, EVENTS_CHAIN, event.hash))
        previous = event.hash
    if stored:
        history.heads[EVENTS_CHAIN] = str(stored[-1].hash)


# -- rows --------------------------------------------------------------------------------------------------------------


def _verify_chain(chain: Chain, chains: list[Chain], lineage: Lineage, history: _History) -> None:
    identity = chain.identity
    name = chain_name(*identity.key)
    known = history.known.setdefault(name, {identity.first_seq - 1: identity.genesis})
    where = f"run {identity.run_id}, attempt {identity.attempt}, writer {identity.writer}"
    origin = _wrong_origin(chain, lineage, history)
    if origin:
        history.problems.append(f"{where}: {origin}")
        return
    try:
        with snapshot(chain.path) as tail:
            if read_identity(tail) != identity:
                history.problems.append(f"{where}: {chain.path} says it belongs to somebody else")
                return
            blocks = read_blocks(tail)
            if blocks:
                history.heads[name] = blocks[-1].head
            seq, head = identity.first_seq, identity.genesis
            for block in blocks:
                reason = _misfit(tail, chain, block, seq, head)
                if reason:
                    history.problems.append(f"{where}, {_sessions_of(block, chain, chains, lineage)}: {reason}")
                    return
                seq, head = block.last_seq + 1, block.head
                known[block.last_seq] = head
                history.commits.append((block.time, name, head))
            _verify_nothing_more(tail, where, identity.first_seq, seq - 1, history)
    except (LedgerError, sqlite3.Error, TypeError, ValueError) as error:
        history.problems.append(f"{where}: {error}")


def _wrong_origin(chain: Chain, lineage: Lineage, history: _History) -> str | None:
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


def _misfit(tail: sqlite3.Connection, chain: Chain, block: Block, seq: int, head: str) -> str | None:
    """Why a commit does not fit; None when it does."""
    if block.first_seq != seq:
        return f"rows {seq} to {block.first_seq - 1} before it are missing"
    try:
        count, columns = block_columns(tail, block)
        expected = commit_hash(head, chain.identity.key, block.first_seq, count, columns)
    except (LedgerError, sqlite3.Error, pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        return f"its rows are not those that were recorded: {error}"
    return None if block.head == expected else "its rows or its head are not those that were recorded"


def _verify_nothing_more(tail: sqlite3.Connection, where: str, first: int, last: int, history: _History) -> None:
    for table in ("sessions", "texts"):
        query = f"SELECT min(seq), min(step) FROM {table} WHERE seq NOT BETWEEN ? AND ?"
        seq, step = tail.execute(
            query.replace("min(step)", "NULL") if table == "texts" else query, (first, last)
        ).fetchone()
        if seq is not None:
            at = "" if step is None else f", step {step}"
            history.problems.append(f"{where}{at}: row {seq} of table {table} belongs to no commit")
            return


def _sessions_of(block: Block, chain: Chain, chains: list[Chain], lineage: Lineage) -> str:
    """The commit in people's words: step, rows, and the sessions they are in the live view."""
    rows = f"step {block.step}, seq {block.first_seq} to {block.last_seq}"
    limits = lineage.live(chain.attempt.run_id)
    limit = limits.get(chain.attempt.id)
    if chain.attempt.id not in limits or (limit is not None and block.step > limit):
        return f"{rows} (superseded)"
    if not block.sessions:
        return f"{rows} (not numbered)"
    mine = (block.step, chain.identity.writer, chain.attempt.id, block.first_seq)
    before = 0
    for other in chains:
        if other.attempt.id in limits:
            with snapshot(other.path) as tail:
                for b in read_blocks(tail, limits[other.attempt.id]):
                    if (b.step, other.identity.writer, other.attempt.id, b.first_seq) < mine:
                        before += b.sessions
    return f"{rows} (sessions {before + 1} to {before + block.sessions})"


# -- what was handed out ---------------------------------------------------------------------------------------------


def _verify_checkpoints(stored: list[events.Event], history: _History) -> None:
    """Every place and head that a checkpoint recorded occurs in the chains."""
    heads = {chain: set(known.values()) for chain, known in history.known.items()}
    for event in stored:
        content = _checkpoint(event)
        for writer, place in content["positions"].items():
            name = chain_name(event.run_id, event.attempt or 0, int(writer))
            if history.known.get(name, {}).get(place["seq"]) != place["head"]:
                history.problems.append(
                    f"run {event.run_id}, attempt {event.attempt}, writer {writer}, step {event.step}: rows up to seq "
                    f"{place['seq']}, on record at the checkpoint, are gone or others"
                )
                return
        lost = sorted(name for name, head in content["heads"].items() if head not in heads.get(name, ()))
        if lost:
            history.problems.append(
                f"run {event.run_id}, attempt {event.attempt}, step {event.step}: rows of {lost[0]} "
                "(run/attempt/writer), on record at the checkpoint, are gone or others"
            )
            return


def _checkpoint(event: events.Event) -> dict[str, Any]:
    """What a checkpoint recorded of the chains; nothing for other events, and for those that trainers wrote."""
    content = event.content() if event.kind == "checkpoint" else {}
    return content if "heads" in content else {"positions": {}, "heads": {}}


def _occurs(anchor: str, head: str, stored: list[events.Event], history: _History) -> bool:
    """Whether a head was this ledger's, or one of its chains', now or at some time before."""
    if anchor == head or any(anchor == commit[2] for commit in history.commits):
        return True
    for event in stored:
        heads = _checkpoint(event)["heads"]
        if heads and anchor == ledger_head(heads | {EVENTS_CHAIN: event.hash}):
            return True
    latest: dict[str, int] = {}
    timed = []
    for order, (time, chain, chain_head) in enumerate(history.commits):
        latest[chain] = max(time, latest.get(chain, 0))  # a clock that was set back does not reorder a chain
        timed.append((latest[chain], order, chain, chain_head))
    heads = {}
    for _, _, chain, chain_head in sorted(timed):
        heads[chain] = chain_head
        if anchor == ledger_head(heads):
            return True
    return False
