"""What readers get: session tables with their numbers, events that count, and an overview of the runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards import events
from rewards.blocks import last_row, place_keys
from rewards.catalog import DATABASE, Chain, read_chains, read_lineage
from rewards.errors import LedgerError
from rewards.hot import live_counts
from rewards.lineage import Lineage
from rewards.reading import Look, look, retried
from rewards.schema import CLAIM_KINDS, EVENT_KINDS, TEXT_COLUMNS, arrow_schema
from rewards.sqlite import snapshot

Limits = dict[int, int | None]


def session_table(root: Path, run_id: str, live: bool, texts: bool, damaged: list[str] | None = None) -> pa.Table:
    """The sessions of a run. See `Ledger.sessions`."""

    def wanted(lineage: Lineage) -> Callable[[Chain], bool]:
        _check_run(root, lineage, run_id)
        limits = lineage.live(run_id)
        return lambda chain: chain.identity.run_id == run_id and (not live or chain.attempt.id in limits)

    return retried(lambda: _session_table(look(root, wanted, texts, damaged), run_id, live, texts, damaged))


def _session_table(seen: Look, run_id: str, live: bool, texts: bool, damaged: list[str] | None) -> pa.Table:
    schema = arrow_schema()
    names = [*schema.names, "chain", "block", "position"]
    table = pa.concat_tables([*seen.sealed(names, run_id, damaged), seen.hot.select(names)]).combine_chunks()
    blocks = seen.blocks
    if not len(blocks.keys):
        table = table.slice(0, 0)  # its first rows were committed and sealed after we looked at the tail
    where, known = blocks.find(table["block"].to_numpy())
    if damaged is not None:
        known &= _first_of_its_key(table)
    incomplete = _incomplete(seen, where[known])
    if incomplete and damaged is None:
        raise LedgerError(incomplete[0])
    (damaged or []).extend(incomplete)
    keep = known & blocks.live[where] if live else known  # unknown: committed and sealed after we looked at the tail
    table, where = table.take(pa.array(np.flatnonzero(keep))), where[keep]
    counts = blocks.live[where]
    is_train = table["position"].is_valid().to_numpy(zero_copy_only=False)
    numbered = is_train & counts
    session = blocks.offset[where] + pc.fill_null(table["position"], 0).to_numpy() + 1
    keys = [table[name].to_numpy() for name in ("seq", "attempt", "writer", "step")]
    order = np.lexsort((*keys, ~is_train))
    if texts:
        for name, column in _texts_of(table, seen, run_id, damaged).items():
            table = table.append_column(name, column)
    table = table.append_column("session", pa.array(session, pa.int64(), mask=~numbered))
    if not live:
        table = table.append_column("live", pa.array(counts))
    shown = [*arrow_schema(texts).names, "session", *([] if live else ["live"])]
    table = table.select(shown).take(pa.array(order))
    return table.cast(pa.schema([*arrow_schema(texts), *list(table.schema)[len(arrow_schema(texts)) :]]))


def _first_of_its_key(table: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether no row with the same place in the same chain comes before."""
    _, first = np.unique(place_keys(table["chain"].to_numpy(), table["seq"].to_numpy()), return_index=True)
    is_first = np.zeros(table.num_rows, np.bool_)
    is_first[first] = True
    return is_first


def _incomplete(seen: Look, where: np.ndarray[Any, Any]) -> list[str]:
    """For each chain what is missing of it, or there twice: a half restored ledger must not pass for a shorter one."""
    blocks = seen.blocks
    there = np.bincount(where, minlength=len(blocks.keys))
    wrong = np.flatnonzero(there != blocks.count)
    said = []
    for number in np.unique(blocks.chain[wrong]):
        chain = next(c for c in seen.chains if c.number == number)
        mine = wrong[blocks.chain[wrong] == number]
        first = int(mine[0])
        damage = f"; {seen.sessions.damage}" if seen.sessions.damage else ""
        said.append(
            f"run `{chain.identity.run_id}`, attempt {chain.identity.attempt}, writer {chain.identity.writer}: "
            f"{there[mine].sum():,} rows are stored of the {blocks.count[mine].sum():,} of {len(mine):,} commits, the "
            f"first of step {blocks.step[first]} (seq {blocks.first_seq[first]} on){damage}; run verify, restore the "
            "ledger from a copy, or read what is left with `rewards export --salvage`"
        )
    return said


def _texts_of(table: pa.Table, seen: Look, run_id: str, damaged: list[str] | None) -> dict[str, pa.Array]:
    """The texts of the rows, in their order."""
    names = ["chain", "seq", *TEXT_COLUMNS]
    stored = pa.concat_tables([*seen.sealed_texts(names, run_id, damaged), seen.hot_texts.select(names)])
    keys = place_keys(stored["chain"].to_numpy(), stored["seq"].to_numpy())
    order = np.argsort(keys, kind="stable")
    wanted = place_keys(table["chain"].to_numpy(), table["seq"].to_numpy())
    place = np.searchsorted(keys[order], wanted)
    found = place < len(keys)
    found[found] = keys[order][place[found]] == wanted[found]
    rows = np.zeros(len(wanted), np.int64)
    rows[found] = order[place[found]]
    take = pa.array(rows, mask=~found)
    return {name: stored[name].combine_chunks().take(take) for name in TEXT_COLUMNS}


def event_list(root: Path, run_id: str | None, kind: str | None, live: bool) -> list[dict[str, Any]]:
    """The events of a run or of all. See `Ledger.events`."""
    if kind is not None and kind not in EVENT_KINDS and kind not in CLAIM_KINDS:
        raise LedgerError(f"unknown event kind `{kind}`; the kinds are {', '.join(EVENT_KINDS)}")
    with snapshot(root / DATABASE) as ledger:
        lineage = read_lineage(ledger)
        if run_id is not None:
            _check_run(root, lineage, run_id)
        found = events.read(ledger, run_id, EVENT_KINDS if kind is None else [kind])
    if live:
        limits = {run: lineage.live(run) for run in lineage.runs}
        found = [event for event in found if _event_is_live(event, lineage, limits)]
    return [event.shown() for event in found]


def _event_is_live(event: events.Event, lineage: Lineage, limits: dict[str, Limits]) -> bool:
    """The rule of the rows; an event without a step counts as of the last step its writer had seen."""
    if event.attempt is None:
        return True
    id = lineage.runs[event.run_id][event.attempt].id
    mine = limits[event.run_id]
    if id not in mine:
        return False
    limit = mine[id]
    return limit is None or event.at_step <= limit


def run_list(root: Path) -> list[dict[str, Any]]:
    """An overview of the runs. See `Ledger.runs`."""
    with snapshot(root / DATABASE) as ledger:
        lineage = read_lineage(ledger)
        chains = read_chains(ledger, root, lineage)
        ends = events.read(ledger, kinds=["attempt_ended", "stopped"])
    return [_overview(lineage, run_id, chains, ends) for run_id in lineage.runs]


def _overview(lineage: Lineage, run_id: str, chains: list[Chain], ends: list[events.Event]) -> dict[str, Any]:
    attempts = lineage.runs[run_id]
    newest = attempts[max(attempts)]
    limits, cuts = lineage.live(run_id), lineage.last_rows(run_id)
    sessions, steps = 0, 0
    for chain in chains:
        if chain.attempt.id in limits:
            with snapshot(chain.path) as tail:
                final = last_row(cuts[chain.attempt.id], chain.identity.writer)
                count, highest = live_counts(tail, limits[chain.attempt.id], final)
            sessions, steps = sessions + count, max(steps, highest)
    last = [event for event in ends if event.run_id == run_id and event.attempt == newest.number][-1:]
    status = "open"
    if last:
        status = "stopped" if last[0].kind == "stopped" else str(last[0].content().get("status", "ended"))
    return {
        "run_id": run_id,
        "pipeline_id": newest.pipeline_id,
        "attempts": len(attempts),
        "newest_attempt": newest.number,
        "sessions": sessions,
        "steps": steps,
        "started": events.iso(min(attempt.started for attempt in attempts.values())),
        "ended": events.iso(last[0].time) if last else None,
        "status": status,
    }


def _check_run(root: Path, lineage: Lineage, run_id: str) -> None:
    if run_id not in lineage.runs:
        known = ", ".join(f"`{name}`" for name in sorted(lineage.runs)) or "none yet"
        raise LedgerError(f"{root}: no run `{run_id}`; the runs are: {known}")
