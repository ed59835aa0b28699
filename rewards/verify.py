"""Recomputes every hash of a ledger from the stored rows and events and says what does not fit."""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from rewards import events
from rewards.blocks import number as numbered
from rewards.blocks import place_keys, read_all
from rewards.catalog import DATABASE, TAILS, Chain, read_chains, read_lineage
from rewards.chain import EVENTS_CHAIN, EVENTS_GENESIS, chain_name, genesis, ledger_head
from rewards.errors import LedgerError
from rewards.hot import Block, HotRows, holds_rows, hot_rows, last_block, read_blocks, read_identity
from rewards.lineage import Lineage
from rewards.sealed import SESSIONS, TEXTS, Body
from rewards.sqlite import snapshot, translated
from rewards.verify_rows import Redacted, Shelf, verify_rows


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
    _verify_chains(root, chains, lineage, stored, history)
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
                if holds_rows(tail):
                    used.add(path)
        except LedgerError:
            used.add(path)  # what is wrong with it is said when its chain is read
    return used


def _verify_events(stored: list[events.Event], history: _History) -> None:
    previous = EVENTS_GENESIS
    for place, event in enumerate(stored, start=1):
        where = f"run {event.run_id}, attempt {event.attempt}, writer {event.writer}, step {event.step}"
        try:
            expected = event.expected_hash(previous)
        except (TypeError, AttributeError, ValueError, OverflowError):
            expected = ""
        if event.seq != place:
            history.problems.append(
                f"{where}: event {event.seq} ({event.kind}) stands where event {place} was recorded"
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


@dataclass(frozen=True)
class _Tail:
    """A chain with what its file held when it was read."""

    chain: Chain
    blocks: list[Block]
    hot: list[HotRows]


def _read_tail(chain: Chain) -> _Tail:
    with translated(chain.path, "read"), snapshot(chain.path) as tail:
        if read_identity(tail) != chain.identity:
            raise LedgerError(f"{chain.path} says it belongs to somebody else")
        return _Tail(chain, read_blocks(tail), list(hot_rows(tail)))


def _verify_chains(
    root: Path, chains: list[Chain], lineage: Lineage, stored: list[events.Event], history: _History
) -> None:
    tails: dict[int, _Tail | str] = {}
    for chain in chains:  # before the tables are opened: what leaves a tail then is found in them
        try:
            tails[chain.number] = _read_tail(chain)
        except (LedgerError, sqlite3.Error, TypeError, ValueError) as error:
            tails[chain.number] = str(error)
    try:
        shelves = Shelf.of(Body(root, SESSIONS)), Shelf.of(Body(root, TEXTS))
    except LedgerError as error:
        history.problems.append(str(error))
        return
    for shelf in shelves:
        history.problems += [bad for bad in (shelf.body.damage, *shelf.bad) if bad]
    redacted = _redacted(stored, chains)
    for chain in chains:
        tail = tails[chain.number]
        where = f"run {chain.identity.run_id}, attempt {chain.identity.attempt}, writer {chain.identity.writer}"
        if isinstance(tail, str):
            history.problems.append(f"{where}: {tail}")
        else:
            _verify_chain(tail, where, shelves, redacted, chains, lineage, history)
    for number in sorted(set(shelves[0].holds) - {chain.number for chain in chains}):
        path = shelves[0].holds[number][0][3].path
        history.problems.append(f"{path}: holds rows of a writer that never joined, or whose claim was removed")


def _verify_chain(
    tail: _Tail,
    where: str,
    shelves: tuple[Shelf, Shelf],
    redacted: Redacted,
    chains: list[Chain],
    lineage: Lineage,
    history: _History,
) -> None:
    chain = tail.chain
    identity = chain.identity
    name = chain_name(*identity.key)
    known = history.known.setdefault(name, {identity.first_seq - 1: identity.genesis})
    if tail.blocks:
        history.heads[name] = tail.blocks[-1].head
    origin = _wrong_origin(chain, lineage, history)
    if origin:
        history.problems.append(f"{where}: {origin}")
        return
    gap = _gap(tail)
    try:
        finding = verify_rows(chain, tail.blocks[: gap[0]] if gap else tail.blocks, tail.hot, shelves, redacted)
    except (LedgerError, pa.ArrowException, OSError, TypeError, ValueError, OverflowError) as error:
        history.problems.append(f"{where}: {error}")
        return
    for block in finding.good:
        known[block.last_seq] = block.head
        history.commits.append((block.time, name, block.head))
    bad, reason = finding.bad, finding.reason
    if reason is None and gap:
        bad, reason = tail.blocks[gap[0]], gap[1]
    if reason is None:
        reason = _nothing_more(tail, shelves)
    if reason is not None:
        at = "" if bad is None else f", {_sessions_of(bad, chain, chains, lineage)}"
        history.problems.append(f"{where}{at}: {reason}")


def _gap(tail: _Tail) -> tuple[int, str] | None:
    """The first block that does not start where the one before it ends."""
    seq = tail.chain.identity.first_seq
    for number, block in enumerate(tail.blocks):
        if block.first_seq != seq:
            return number, f"rows {seq} to {block.first_seq - 1} before it are missing"
        seq = block.last_seq + 1
    return None


def _nothing_more(tail: _Tail, shelves: tuple[Shelf, Shelf]) -> str | None:
    """Why there are more rows than commits; None when there are not."""
    blocks = {block.first_seq for block in tail.blocks}
    for hot in tail.hot:
        if hot.first_seq not in blocks:
            return f"rows from seq {hot.first_seq} on belong to no commit"
    with snapshot(tail.chain.path) as again:
        newest = last_block(again)
    end = tail.chain.identity.first_seq - 1 if newest is None else newest.last_seq
    for shelf in shelves:
        for first, last, _, part in shelf.holds.get(tail.chain.number, []):
            if last > end or first < tail.chain.identity.first_seq:
                return f"{part.path}: row {last if last > end else first} belongs to no commit"
    return None


def _redacted(stored: list[events.Event], chains: list[Chain]) -> Redacted:
    """Which texts were taken out, as the events say."""
    numbers = {chain.identity.key: chain.number for chain in chains}
    found: dict[tuple[int, int], frozenset[str]] = {}
    for event in stored:
        if event.kind == "text_redacted":
            content = event.content()
            number = numbers.get((event.run_id, content["attempt"], content["writer"]))
            if number is not None:
                key = (number, content["seq"])
                found[key] = found.get(key, frozenset()) | frozenset(content["columns"])
    return found


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


def _sessions_of(block: Block, chain: Chain, chains: list[Chain], lineage: Lineage) -> str:
    """The commit in people's words: step, rows, and the sessions they are in the live view."""
    rows = f"step {block.step}, seq {block.first_seq} to {block.last_seq}"
    limits = lineage.live(chain.attempt.run_id)
    limit = limits.get(chain.attempt.id)
    if chain.attempt.id not in limits or (limit is not None and block.step > limit):
        return f"{rows} (superseded)"
    if not block.sessions:
        return f"{rows} (not numbered)"
    blocks = numbered(lineage, read_all(c for c in chains if c.identity.run_id == chain.identity.run_id))
    where, _ = blocks.find(place_keys([chain.number], [block.first_seq]))
    before = int(blocks.offset[where[0]])
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
