"""Recomputes every hash of a ledger from the stored rows and events and says what does not fit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards import events
from rewards.catalog import DATABASE, TAILS, Chain, read_chains, read_lineage
from rewards.chain import EVENTS_CHAIN, EVENTS_GENESIS, ledger_head
from rewards.errors import LedgerError
from rewards.hot import holds_rows
from rewards.lineage import Lineage
from rewards.parts import SESSIONS, TEXTS
from rewards.reading import retried
from rewards.sealed import Body
from rewards.sqlite import snapshot
from rewards.verify_chain import Surroundings, Tail, check_chain, read_tail, unsound
from rewards.verify_files import Shelf
from rewards.verify_heads import History, check_anchor, check_checkpoints
from rewards.verify_rows import Redacted
from rewards.verify_tables import Published, wrong_tables

_EVENT_TYPES = (int, str, int | None, int | None, int | None, int, int, str, str, str)


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


def verify_ledger(root: Path, anchor: str | None = None) -> Verification:
    """Recomputes all. See `Ledger.verify`."""
    return retried(lambda: _verify(root, anchor))


def _verify(root: Path, anchor: str | None) -> Verification:
    # Others may write meanwhile: what speaks of something is read before it, and again after it where it may be gone.
    history = History()
    published = Published.read(root)
    used = _tails_with_rows(root)
    stored, lineage, chains = _claims(root, history)
    tails = [(chain, read_tail(chain)) for chain in chains]
    runs = {chain.number: chain.identity.run_id for chain in chains}
    shelves = _shelves(root, runs, history)
    newest = _newest_events(root, stored)
    _check_events(newest, history)
    if shelves is not None:
        _check_chains(tails, Surroundings(lineage, chains, shelves, _redacted(newest, chains)), history)
        history.problems += _unknown_rows(root, shelves, used, chains)
    history.problems += published.bad
    if not history.problems:
        blocks = [(chain, tail.blocks) for chain, tail in tails if isinstance(tail, Tail)]
        history.problems += wrong_tables(root, published, lineage, blocks)
        check_checkpoints(stored, history)
    head = ledger_head(history.heads)
    if anchor is not None and not history.problems:
        check_anchor(anchor, head, newest, history)
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


# -- events ------------------------------------------------------------------------------------------------------------


def _claims(root: Path, history: History) -> tuple[list[events.Event], Lineage, list[Chain]]:
    """The events, and what they say of attempts and writers."""
    stored: list[events.Event] = []
    try:
        wrong = unsound(root / DATABASE)
        if wrong:
            history.problems.append(wrong)
        with snapshot(root / DATABASE) as ledger:
            stored = events.read(ledger)
            lineage = read_lineage(ledger)
            return stored, lineage, read_chains(ledger, root, lineage)
    except (LedgerError, KeyError, TypeError, ValueError) as error:
        history.problems.append(f"the events cannot be read: {error}")
        return stored, Lineage([]), []


def _newest_events(root: Path, stored: list[events.Event]) -> list[events.Event]:
    """The events as of now: a text that was taken out since `stored` was read is on record in them."""
    try:
        with snapshot(root / DATABASE) as ledger:
            return events.read(ledger)
    except LedgerError:
        return stored


def _check_events(stored: list[events.Event], history: History) -> None:
    previous = EVENTS_GENESIS
    wrong = []
    for place, event in enumerate(stored, start=1):
        if event.seq != place:
            wrong.append(f"event {event.seq} ({event.kind}) stands where event {place} was recorded")
        elif not _is_event(event) or event.hash != event.expected_hash(previous):
            wrong.append(f"event {event.seq} ({event.kind}) or its hash is not the one that was recorded")
        if wrong:
            where = f"run {event.run_id}, attempt {event.attempt}, writer {event.writer}, step {event.step}"
            history.problems.insert(0, f"{where}: {wrong[0]}")
            break
        history.commits.append((event.time, EVENTS_CHAIN, event.hash))
        previous = event.hash
    if stored:
        history.heads[EVENTS_CHAIN] = str(stored[-1].hash)


def _is_event(event: events.Event) -> bool:
    """Whether every value has its type: the same text as a blob has the same hash, and readers pass it over."""
    return all(isinstance(value, kind) for value, kind in zip(vars(event).values(), _EVENT_TYPES, strict=True))


def _redacted(stored: Iterable[events.Event], chains: Sequence[Chain]) -> Redacted:
    """Which texts were taken out, as the events say."""
    numbers = {chain.identity.key: chain.number for chain in chains}
    found: dict[tuple[int, int], frozenset[str]] = {}
    for event in stored:
        if event.kind != "text_redacted":
            continue
        try:
            content = event.content()
            number = numbers[event.run_id, content["attempt"], content["writer"]]
            key, columns = (number, content["seq"]), frozenset(content["columns"])
            found[key] = found.get(key, frozenset()) | columns
        except (LedgerError, KeyError, TypeError):
            continue  # it speaks of no row of this ledger
    return found


# -- rows --------------------------------------------------------------------------------------------------------------


def _shelves(root: Path, runs: dict[int, str], history: History) -> tuple[Shelf, Shelf] | None:
    try:
        shelves = Shelf.of(Body(root, SESSIONS), runs), Shelf.of(Body(root, TEXTS), runs)
    except LedgerError as error:
        history.problems.append(str(error))
        return None
    for shelf in shelves:
        history.problems += shelf.bad
    return shelves


def _check_chains(tails: Sequence[tuple[Chain, Tail | str]], around: Surroundings, history: History) -> None:
    for chain, tail in tails:
        if isinstance(tail, Tail):
            check_chain(tail, around, history)
        else:
            key = chain.identity
            history.problems.append(f"run {key.run_id}, attempt {key.attempt}, writer {key.writer}: {tail}")


def _unknown_rows(root: Path, shelves: tuple[Shelf, Shelf], used: set[Path], chains: Sequence[Chain]) -> list[str]:
    """Files with rows of writers that are not on record, and were not even a moment later."""
    known = {chain.number for chain in chains}
    strangers = [
        place.part.path
        for shelf in shelves
        for number, places in shelf.holds.items()
        if number not in known and number not in _joined(root)
        for place in places
    ]
    files = sorted(used - {chain.path for chain in chains}) + sorted(set(strangers))
    return [f"{path}: holds rows of a writer that never joined, or whose claim was removed" for path in files]


def _joined(root: Path) -> set[int]:
    try:
        with snapshot(root / DATABASE) as ledger:
            return {event.seq for event in events.read(ledger, kinds=["writer_joined"])}
    except LedgerError:
        return set()
