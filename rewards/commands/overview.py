"""Figures about a ledger: its runs, their attempts, what counts and what was superseded, what it weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewards.places import commits

if TYPE_CHECKING:
    from rewards.ledger import Ledger

_NONE = {"sessions": 0, "eval": 0, "superseded": 0}


def overview(ledger: Ledger, run_ids: Sequence[str]) -> list[dict[str, Any]]:
    """What `Ledger.runs` says of some runs, and: eval, superseded (rows), events (kind -> count), history (attempts).

    An attempt: attempt, parent (run, attempt) or null, resume_step, arm, writers, started, ended, status, on_path
    (whether anything it recorded can count), sessions, eval, superseded. A status of null: no end is on record.
    """
    counts = _counts(ledger)
    kinds = _kinds(ledger)
    runs = {run["run_id"]: run for run in ledger.runs()}
    events = _EventsOfAttempts(ledger)
    found = []
    for run_id in run_ids:
        history = [
            attempt | {key: counts.get((run_id, attempt["attempt"]), _NONE)[key] for key in _NONE}
            for attempt in events.attempts(run_id)
        ]
        _end(history, runs[run_id])
        totals = {key: sum(attempt[key] for attempt in history) for key in ("eval", "superseded")}
        found.append(runs[run_id] | totals | {"events": kinds.get(run_id, {}), "history": history})
    return found


def _counts(ledger: Ledger) -> dict[tuple[str, int], dict[str, int]]:
    """By run and attempt: live sessions, live rows of the eval split, rows that do not count."""
    counts: dict[tuple[str, int], dict[str, int]] = {}
    for block in commits(ledger).select(["run_id", "attempt", "rows", "sessions", "live"]).to_pylist():
        count = counts.setdefault((block["run_id"], block["attempt"]), dict(_NONE))
        if block["live"]:
            count["sessions"] += block["sessions"]
            count["eval"] += block["rows"] - block["sessions"]
        else:
            count["superseded"] += block["rows"]
    return counts


def _kinds(ledger: Ledger) -> dict[str, dict[str, int]]:
    """By run: how many events of each kind, the ledger's own left out."""
    from rewards.catalog import DATABASE
    from rewards.schema import CLAIM_KINDS
    from rewards.sqlite import snapshot

    kinds: dict[str, dict[str, int]] = {}
    with snapshot(ledger.path / DATABASE) as database:
        query = "SELECT run_id, kind, count(*) FROM events GROUP BY run_id, kind ORDER BY run_id, kind"
        for run_id, kind, count in database.execute(query):
            if kind not in CLAIM_KINDS:
                kinds.setdefault(run_id, {})[kind] = count
    return kinds


class _EventsOfAttempts:
    """Attempts as the events tell of them: claimed, joined by writers, ended."""

    def __init__(self, ledger: Ledger) -> None:
        self.claims = ledger.events(kind="attempt_claimed", live=False)
        self.joins = ledger.events(kind="writer_joined", live=False)
        self.ends = ledger.events(kind="attempt_ended", live=False) + ledger.events(kind="stopped", live=False)
        self.joins_of: dict[tuple[str, int], int] = {}
        for join in self.joins:
            key = (join["run_id"], join["attempt"])
            self.joins_of[key] = self.joins_of.get(key, 0) + 1

    def attempts(self, run_id: str) -> list[dict[str, Any]]:
        """The attempts of a run, in order."""
        by_id = {claim["payload"]["id"]: claim for claim in self.claims}
        found = []
        for claim in self.claims:
            if claim["run_id"] == run_id:
                parent = by_id.get(claim["payload"]["parent"])
                end = self._end(run_id, claim["attempt"])
                found.append(
                    {
                        "attempt": claim["attempt"],
                        "parent": None
                        if parent is None
                        else {"run_id": parent["run_id"], "attempt": parent["attempt"]},
                        "resume_step": claim["payload"]["resume_step"],
                        "arm": claim["payload"]["arm"],
                        "writers": self.joins_of.get((run_id, claim["attempt"]), 0),
                        "started": claim["time"],
                        "ended": None if end is None else end["time"],
                        "status": None if end is None else _status(end),
                    }
                )
        return found

    def _end(self, run_id: str, attempt: int) -> dict[str, Any] | None:
        mine = [end for end in self.ends if (end["run_id"], end["attempt"]) == (run_id, attempt)]
        return max(mine, key=lambda end: end["seq"], default=None)


def _status(end: Mapping[str, Any]) -> str:
    return "stopped" if end["kind"] == "stopped" else str(end["payload"].get("status", "ended"))


def _end(history: Sequence[dict[str, Any]], run: Mapping[str, Any]) -> None:
    """Adds `on_path`, and the status that the run has to its newest attempt."""
    by_number = {attempt["attempt"]: attempt for attempt in history}
    here = max(by_number, default=None)
    if here is not None:
        by_number[here]["status"] = run["status"]
    path = set()
    while here is not None and here not in path:
        path.add(here)
        parent = by_number[here]["parent"] if here in by_number else None
        here = parent["attempt"] if parent and parent["run_id"] == run["run_id"] else None
    for attempt in history:
        attempt["on_path"] = attempt["attempt"] in path
