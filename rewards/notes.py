"""Events of people and programs that are no writers: they belong to a run, not to an attempt, and always count."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rewards import events
from rewards.catalog import DATABASE, read_lineage
from rewards.errors import LedgerError
from rewards.filesystem import check_local
from rewards.schema import EVENT_KINDS
from rewards.sqlite import connect_writable, transaction, translated

# What only the process that trains can say.
_WRITERS_ONLY = ("attempt_started", "attempt_ended", "checkpoint", "resumed", "stopped", "step_stats")


def add(root: Path, kind: str, payload: Mapping[str, Any], run_id: str, step: int | None = None) -> dict[str, Any]:
    """Records an event without an attempt. See `Ledger.note`."""
    if kind not in EVENT_KINDS:
        raise LedgerError(f"unknown event kind `{kind}`; the kinds are {', '.join(EVENT_KINDS)}")
    if kind in _WRITERS_ONLY:
        raise LedgerError(f"event `{kind}` is for the writer of the run: use Writer.event")
    if step is not None and (type(step) is not int or step < 0):
        raise LedgerError(f"step is {step!r}, not a whole number from 0")
    text = events.encode(kind, payload)
    check_local(root)
    path = root / DATABASE
    with translated(path, "write an event"), closing(connect_writable(path)) as ledger, transaction(ledger, path):
        lineage = read_lineage(ledger)
        if run_id not in lineage.runs:
            known = ", ".join(f"`{name}`" for name in sorted(lineage.runs)) or "none yet"
            raise LedgerError(f"{root}: no run `{run_id}`; the runs are: {known}")
        (event,) = events.insert(ledger, [events.Draft(run_id, None, None, step, step or 0, kind, text)])
    return event.shown()
