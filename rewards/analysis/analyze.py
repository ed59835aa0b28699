"""The whole analysis of one run: every section, and what deserves attention first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.analysis import (
    agreement,
    behaviour_section,
    dose_response,
    forks,
    overoptimization,
    phases,
    plateau,
    recalibration_effect,
    transition,
)
from rewards.analysis.alerts import alerts
from rewards.analysis.data import RunData
from rewards.analysis.intervals import share_estimate
from rewards.analysis.summary import end_windows

if TYPE_CHECKING:
    from rewards.ledger import Ledger

SCHEMA = 1
Data = Mapping[str, Any]


def analyze(data: RunData, found_forks: Data | None = None) -> dict[str, Any]:
    """One document about a run. Sections that the record cannot support say why under `why`.

    found_forks: what forks of the run showed, which stand in other runs of its ledger.
    """
    effects = recalibration_effect.section(data)
    segmentation, flat = phases.section(data), plateau.section(data)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "run": data.run_id,
        "pipeline": data.pipeline,
        "sessions": data.sessions,
        "steps": int(data.steps[-1]) if data.sessions else 0,
        "phases": segmentation.pop("phases", []),
        "segmentation": segmentation,
        "converged": flat.get("converged"),
        "plateau": flat,
        "recalibrations": effects,
        "dose_response": dose_response.section(data, effects),
        "forks": found_forks or {"forks": [], "why": "no fork of this run is on record"},
        "overoptimization": overoptimization.section(data),
        "behaviour": behaviour_section.section(data),
        "transitions": transition.section(data),
        "agreement": agreement.section(data),
    }
    document["compliance"] = _compliance(data)
    document["alerts"] = alerts(document)
    cleaned: dict[str, Any] = plain(document)
    return cleaned


def analyze_run(ledger: Ledger, run_id: str) -> dict[str, Any]:
    """The same for a run of a ledger, with the forks that were made of it.

    Raises: LedgerError for an unknown run, or naming the file that cannot be read.
    """
    with RunData.read(ledger, run_id) as data:
        return analyze(data, forks.section(ledger, run_id))


def _compliance(data: RunData) -> dict[str, Any]:
    """The share of compliant sessions at both ends, among those that were judged."""
    windows = end_windows(data.sessions)
    if windows is None:
        return {"first": None, "last": None, "why": "fewer than two sessions"}
    compliant = data.column("compliant")
    ends = [share_estimate(compliant[window]) for window in windows]
    return {"first": ends[0].as_dict(), "last": ends[1].as_dict(), "why": ends[0].why or ends[1].why}


def plain(value: Any) -> Any:
    """Only what JSON has: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(name): plain(found) for name, found in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(found) for found in value]
    if isinstance(value, np.ndarray):
        return [plain(found) for found in value.tolist()]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return str(value)
