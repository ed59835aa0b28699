"""Summary tables of a run: outcomes by stage, reward by category, unsolicited content along it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rewards.analysis.columns import component, component_roles, floats, strings, where
from rewards.analysis.convergence import Bin, mean_series
from rewards.analysis.intervals import first_last, mean_estimate, share_estimate
from rewards.analysis.recalibrations import of_kind

WINDOW = 1000

Event = Mapping[str, Any]


def end_windows(n: int) -> tuple[slice, slice] | None:
    """The first and the last thousand sessions, or halves of a run too short for both; None for fewer than two."""
    width = min(WINDOW, n // 2)
    return (slice(0, width), slice(n - width, n)) if width else None


def stages(events: Sequence[Event], order: Sequence[str]) -> list[dict[str, Any]]:
    """Outcomes of each run's evaluations before and after its training, in the order in which the runs came.

    A repeated evaluation (a resumed run evaluates again) replaces the earlier one.
    """
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {run: {} for run in order}
    during: dict[str, int] = {}
    names: dict[str, str] = {}
    for event in events:
        run, payload = event["run_id"], event["payload"]
        if event["kind"] in ("attempt_started", "phase_started") and payload.get("stage"):
            names[payload.get("run_id") or run] = payload["stage"]
        if event["kind"] != "evaluation" or run not in found:
            continue
        when = payload.get("when")
        if when not in ("before", "after"):
            during[run] = during.get(run, 0) + 1
            continue
        kept = ("suite", "when", "n", "metrics", "by_category")
        found[run][(str(payload.get("suite")), when)] = {"step": event.get("step")} | {
            name: payload.get(name) for name in kept
        }
    return [
        {
            "run_id": run,
            "stage": names.get(run, run.rpartition("/")[2]),
            "evaluations": list(found[run].values()),
            "evaluations_during": during.get(run, 0),
        }
        for run in order
    ]


def reward_ends(table: pa.Table, pairs: bool = False) -> dict[str, Any]:
    """Mean rewards in the first and the last sessions; for pairs also the share whose margin is above 0."""
    windows = end_windows(table.num_rows)
    if windows is None:
        nothing = {"first": None, "last": None, "why": "fewer than two sessions"}
        return {"baseline": nothing, "adjusted": nothing, "ranked_right": nothing}
    baseline, adjusted = floats(table, "baseline_reward"), floats(table, "adjusted_reward")
    right = np.where(np.isfinite(baseline) & pairs, baseline > 0, np.nan)
    ends = {
        name: first_last(*(mean_estimate(values[window]) for window in windows))
        for name, values in (("baseline", baseline), ("adjusted", adjusted))
    }
    ranked = first_last(*(share_estimate(right[window]) for window in windows))
    return ends | {"ranked_right": ranked if pairs else ranked | {"why": "its sessions are not pairs"}}


def categories(table: pa.Table) -> list[dict[str, Any]]:
    """Reward, compliance and classifications by category in the first and the last sessions of the run."""
    windows = end_windows(table.num_rows)
    names = strings(table, "category")
    found = []
    for name in sorted(set(names), key=lambda value: (value is None, value)):
        mine = where(names, name)
        row: dict[str, Any] = {"category": name, "n": int(mine.sum())}
        for end, window in zip(("first", "last"), windows or (), strict=False):
            row[end] = _category_window(table.slice(window.start, window.stop - window.start), mine[window])
        found.append(row)
    return found


def _category_window(part: pa.Table, mine: Any) -> dict[str, Any]:
    reward, compliant = floats(part, "baseline_reward"), floats(part, "compliant")
    labels = strings(part, "classification")
    classes = []
    for label in sorted({value for value, own in zip(labels, mine, strict=True) if own and value is not None}):
        these = mine & where(labels, label)
        classes.append(
            {
                "classification": label,
                "share": share_estimate(where(labels, label)[mine].astype(np.float64)).as_dict(),
                "baseline": mean_estimate(reward[these]).as_dict(),
            }
        )
    return {
        "n": int(mine.sum()),
        "baseline": mean_estimate(reward[mine]).as_dict(),
        "compliant": share_estimate(compliant[mine]).as_dict(),
        "classifications": classes,
    }


def unsolicited_curve(table: pa.Table, bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """Share of answers in which each component of unsolicited content found something, per bin."""
    curves = {}
    for name in ("unsolicited", "unsolicited_gold"):
        if name in component_roles(table):
            raw = component(table, name)
            curves[name] = mean_series(np.where(np.isfinite(raw), raw > 0, np.nan), bins, share=True)
    return [
        found.place() | {name: series[i].as_dict() for name, series in curves.items()} for i, found in enumerate(bins)
    ]


def phrases_of(events: Sequence[Event], run_id: str) -> list[str]:
    """The literal sentences that the run's reward functions look for."""
    found: dict[str, None] = {}
    for event in of_kind(events, "scorer_registered"):
        if event["run_id"] == run_id:
            found.update(dict.fromkeys(event["payload"].get("phrases") or []))
    return list(found)
