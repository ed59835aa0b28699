"""An import from the first look at the ledger to the summary."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rewards.errors import LedgerError, UserError
from rewards.importers.staging import Staging
from rewards.importers.work import Import, Request

if TYPE_CHECKING:
    from rewards.ledger import Ledger


def import_run(ledger: Path, request: Request) -> dict[str, Any]:
    """Imports a whole run into a ledger, which is made where there is none; says what was done.

    Nothing is written before everything was read and fits. A run that exists is refused, unless it is an import that
    never came to its end: its rows stay for audit and do not count.
    Raises: UserError naming the file, the place and what to do.
    """
    from rewards.ledger import Ledger

    if not request.run_id.strip() or not request.run_id.isprintable():
        raise UserError(f"run_id is {request.run_id!r}; give a name in printable characters")
    if (ledger / "ledger.db").exists():
        with Ledger.open(ledger) as opened:
            _check_free(opened, request.run_id)
    work = Import(request)
    with TemporaryDirectory(prefix="rewards-import-") as folder:
        staging = Staging(Path(folder))
        work.check(staging)
        with Ledger.open(ledger, create=True) as opened:
            _check_free(opened, request.run_id)
            work.write(opened, staging)
            head = _check_written(opened, work)
    return _summary(work, ledger, head)


def _check_free(ledger: Ledger, run_id: str) -> None:
    run = next((run for run in ledger.runs() if run["run_id"] == run_id), None)
    if run is None:
        return
    started = ledger.events(run_id, kind="attempt_started", live=False)
    newest = [event["payload"] for event in started if event["attempt"] == run["newest_attempt"]]
    if run["status"] in ("open", "stopped") and newest and "import" in newest[-1]:
        return
    raise LedgerError(
        f"{ledger.path}: run `{run_id}` exists ({run['sessions']:,} sessions, {run['status']}); "
        "an import is a whole run: choose another --run-id"
    )


def _check_written(ledger: Ledger, work: Import) -> str:
    run = next(run for run in ledger.runs() if run["run_id"] == work.request.run_id)
    if run["sessions"] != work.numbering.sessions:
        raise LedgerError(
            f"{ledger.path}: run `{run['run_id']}` counts {run['sessions']:,} of the {work.numbering.sessions:,} "
            "imported sessions: another import of the same name took its place"
        )
    return ledger.head()


def _summary(work: Import, ledger: Path, head: str) -> dict[str, Any]:
    numbering, options = work.numbering, work.request.options
    return {
        "run": work.request.run_id,
        "ledger": str(ledger),
        "format": work.form,
        "files": [str(file.path) for file in work.files],
        "rows": numbering.rows,
        "sessions": numbering.sessions,
        "evaluation_rows": numbering.rows - numbering.sessions,
        "superseded_rows": work.superseded,
        "steps": numbering.last_step,
        "events": len(work.events),
        "foreign_events": work.foreign_events,
        "sorted": not numbering.ordered,
        "mapped": dict(options.columns),
        "constants": dict(options.constants),
        "dropped": sorted(options.drop),
        "renumbered": sorted(work.fields.renumbered),
        "defaults": work.defaults,
        "notes": list(work.source.notes.values()),
        "cannot_contain": list(work.source.limits),
        "head": head,
        "seconds": round(time.monotonic() - work.began, 3),
    }
