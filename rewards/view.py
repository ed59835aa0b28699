"""What readers get: session tables with their numbers, events that count, and an overview of the runs."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rewards import events
from rewards.catalog import DATABASE, Chain, read_chains, read_lineage
from rewards.errors import LedgerError
from rewards.hot import read_blocks, read_sessions, with_identity
from rewards.lineage import Lineage
from rewards.schema import CLAIM_KINDS, EVENT_KINDS, arrow_schema
from rewards.sqlite import snapshot, translated

# Snapshots are opened together up to here, so that they are of one moment; beyond it, files are read one by one.
_TOGETHER = 64

Limits = dict[int, int | None]


def session_table(root: Path, run_id: str, live: bool, texts: bool) -> pa.Table:
    """The sessions of a run. See `Ledger.sessions`."""
    with snapshot(root / DATABASE) as ledger:
        lineage = read_lineage(ledger)
        _check_run(root, lineage, run_id)
        chains = read_chains(ledger, root, lineage, run_id)
    limits = lineage.live(run_id)
    if live:
        chains = [chain for chain in chains if chain.attempt.id in limits]
    schema = arrow_schema(texts)
    batches, counts = [], []
    for chain, tail in _tails(chains):
        limit = limits.get(chain.attempt.id) if live else None
        with translated(chain.path, "read"):
            rows = read_sessions(tail, limit, texts)
        for batch in rows:
            batches.append(with_identity(batch, chain.identity).select(schema.names).cast(schema))
            counts.append((chain, batch.num_rows))
    table = pa.Table.from_batches(batches, schema)
    return _numbered(table, None if live else _live_rows(table, counts, limits))


def _tails(chains: list[Chain]) -> Iterator[tuple[Chain, Any]]:
    if len(chains) > _TOGETHER:
        for chain in chains:
            with snapshot(chain.path) as tail:
                yield chain, tail
        return
    with ExitStack() as stack:
        yield from [(chain, stack.enter_context(snapshot(chain.path))) for chain in chains]


def _live_rows(table: pa.Table, counts: list[tuple[Chain, int]], limits: Limits) -> np.ndarray[Any, Any]:
    """Of each row, whether it is in the live view."""
    top = np.iinfo(np.int64).max
    highest = [limits.get(c.attempt.id, -1) for c, _ in counts]
    bounds = np.array([top if limit is None else limit for limit in highest], dtype=np.int64)
    answer: np.ndarray[Any, Any] = table["step"].to_numpy() <= np.repeat(bounds, [count for _, count in counts])
    return answer


def _numbered(table: pa.Table, live: np.ndarray[Any, Any] | None) -> pa.Table:
    """Sorted, train rows first, with `session`; with `live` too where superseded rows are among them."""
    is_train = table["split"].to_numpy(zero_copy_only=False) == "train"
    keys = [table[name].to_numpy() for name in ("seq", "attempt", "writer", "step")]
    order = np.lexsort((*keys, ~is_train))
    counted = (is_train if live is None else is_train & live)[order]
    table = table.take(pa.array(order))
    numbers = pa.array(np.cumsum(counted), pa.int64(), mask=~counted)
    table = table.append_column("session", numbers)
    return table if live is None else table.append_column("live", pa.array(live[order]))


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
    limits = lineage.live(run_id)
    sessions, steps, pipeline_id = 0, 0, newest.pipeline_id
    for chain in chains:
        if chain.attempt.id in limits:
            with snapshot(chain.path) as tail:
                blocks = read_blocks(tail, limits[chain.attempt.id])
                row = tail.execute("SELECT pipeline_id FROM sessions ORDER BY seq LIMIT 1").fetchone()
            sessions += sum(block.sessions for block in blocks)
            steps = max([steps, *(block.step for block in blocks if block.sessions)])
            pipeline_id = pipeline_id or (row[0] if row else None)
    last = [event for event in ends if event.run_id == run_id and event.attempt == newest.number][-1:]
    status = "open"
    if last:
        status = "stopped" if last[0].kind == "stopped" else str(last[0].content().get("status", "ended"))
    return {
        "run_id": run_id,
        "pipeline_id": pipeline_id,
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
