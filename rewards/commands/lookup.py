"""Finds the run that a command is about; every refusal says what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.errors import LedgerError

Runs = Sequence[Mapping[str, Any]]


def chosen_runs(name: str | None, runs: Runs) -> list[str]:
    """The run of that name, or all of them.

    Raises: LedgerError when the ledger has no such run.
    """
    known = [str(run["run_id"]) for run in runs]
    if name is not None and name not in known:
        raise LedgerError(f"no run `{name}` in this ledger; it holds: {_names(known)}")
    return known if name is None else [name]


def only_run(name: str | None, runs: Runs) -> str:
    """The run of that name, or the only one.

    Raises: LedgerError when there is no such run, or more than one to choose from.
    """
    chosen = chosen_runs(name, runs)
    if len(chosen) != 1:
        raise LedgerError(f"name the run with --run; the ledger holds: {_names(chosen)}")
    return chosen[0]


def _names(known: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in known) or "no run yet"
