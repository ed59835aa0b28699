"""Which run a reader is about, and what kind of training it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.errors import LedgerError

ONLINE = frozenset({"grpo", "rloo", "ppo", "rl"})  # rl: recorded from a trainer that does not say which


def pipeline_kinds(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Run -> kind of training, as its start declared it; without the arms of forks, which nobody takes unasked."""
    return {
        event["run_id"]: event["payload"]["pipeline"]
        for event in events
        if event["kind"] == "attempt_started"
        and event["payload"].get("pipeline")
        and not event["payload"].get("fork_of")
    }


def unknown_run(run_id: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The error line for a run that a ledger does not hold."""
    return f"no run `{run_id}` in this ledger; it holds: {', '.join(run['run_id'] for run in runs) or 'no run'}"


def choose_run(runs: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> str:
    """The newest online-RL run with sessions, else the newest with sessions, else the newest.

    Raises: LedgerError for a ledger without runs.
    """
    if not runs:
        raise LedgerError("the ledger holds no run yet: there is nothing to report")

    def rank(place: int) -> tuple[bool, bool, str, int]:
        run = runs[place]
        some = bool(run.get("sessions"))
        return some and kinds.get(run["run_id"]) in ONLINE, some, str(run.get("started") or ""), place

    chosen: str = runs[max(range(len(runs)), key=rank)]["run_id"]
    return chosen
