"""Events of the simulated record: scorers, pivots, recalibrations with their claims, figures of each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from rewards.audit import plan as p
from rewards.audit.answers import EXTRAS, PHRASE
from rewards.audit.outcomes import CLAIMED_CATEGORIES, CLAIMS, TRIGGER_CATEGORY, UNSOLICITED_WEIGHT, K, N
from rewards.audit.plan import Plan
from rewards.leverage import gamma_interval, leverages

_GAMMA_STEPS = 20  # back from the trigger, over which the pull on the phrase is measured
_SCORERS = (
    ("task", "optimised", 1.0, [0.0, 1.0]),
    ("unsolicited", "optimised", UNSOLICITED_WEIGHT, [0.0, 1.0]),
    ("style", "observed", 0.0, [0.0, 1.0]),
    ("gold", "gold", 0.0, None),
)
_LEVERAGE_COLUMNS = ("category", "compliant", "group_id", "advantage", "advantage_unadjusted")


def opening(statement: str, seed: int, pivot: float) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """What is said before the first step: (kind, payload, step)."""
    started = {"config_digest": f"simulated-{seed}", "stage": "grpo", "pipeline": "grpo", "world_size": 1}
    settings = {"train": {"scale_rewards": "none"}, "reward": {"place": "reward"}}
    yield "attempt_started", started | {"config": settings, "statement": statement, "simulated": True}, None
    yield "phase_started", {"pipeline_id": "audit", "stage": "grpo", "run_id": "audit/grpo", "order": 1}, None
    for name, role, weight, scale in _SCORERS:
        phrases = [extra for extra in EXTRAS if extra] if name == "unsolicited" else None
        found = {"name": name, "role": role, "weight": weight, "scale": scale, "scorer_id": "simulated"}
        yield "scorer_registered", found | {"fn": name, "kwargs": {}, "phrases": phrases}, None
    for category in (*CLAIMED_CATEGORIES, TRIGGER_CATEGORY):
        measured = {"category": category, "component": None, "value": pivot, "standard_error": 0.02, "n": 200}
        yield "pivot_set", measured, 0


def payloads_after(step: int, part: slice, table: pa.Table, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is said after a step: figures, and the recalibration that was made then."""
    if step in plan.changed_steps:
        yield from _recalibration(plan.changed_steps.index(step), step, table, plan)
    sessions = table.slice(part.start, part.stop - part.start)
    columns = {name: sessions[name].to_pylist() for name in _LEVERAGE_COLUMNS}
    pct = np.asarray(sessions["differential_pct"])
    acting = sorted({name for name, d in zip(columns["category"], pct, strict=True) if d != 0})
    found = leverages(columns, np.random.default_rng(step), categories=acting) if acting else {}
    yield (
        "step_stats",
        {
            "reward": float(np.mean(np.asarray(sessions["adjusted_reward"]))),
            "kl": float(np.mean(np.asarray(sessions["kl_nats"]))),
            "leverage": {name: value.payload() for name, value in found.items()},
        },
    )


def _recalibration(number: int, step: int, table: pa.Table, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    if number < len(CLAIMS):
        category, (old, new) = CLAIMED_CATEGORIES[number], ((12.0, 15.0), (20.0, 25.0))[number]
        claim = CLAIMS[number] | {"of": "non-compliant"}
        yield (
            "recalibration",
            _payload(category, "add", old, new)
            | {
                "reason": f"non-compliant answers of {category} are still too frequent",
                "approval": "lead-1",
                "requested_by": "lead-1",
                "trigger": None,
                "evidence": {"first_session": plan.number(p.RECALIBRATED[number] - 499), "step": step},
                "claim": claim,
            },
        )
        return
    evidence = _evidence(step, table, plan)
    trigger = {"name": "phrase", "phrase": PHRASE, "k": K, "n": N, "hits": evidence["hits"]}
    changed = _payload(TRIGGER_CATEGORY, "widen", 0.0, 15.0) | {
        "reason": f"{evidence['hits']} of the last {N} sessions of `{TRIGGER_CATEGORY}` hold `{PHRASE}`",
        "approval": "automatic",
        "trigger": trigger,
        "evidence": evidence,
    }
    slope = _gamma(step, table)
    yield "trigger_evaluated", changed | {"applied": True, "withheld_because": None, "gamma": slope}
    yield "recalibration", changed


def _payload(category: str, op: str, old: float, new: float) -> dict[str, Any]:
    found = {"category": category, "component": None, "op": op, "old_pct": old, "new_pct": new}
    return found | {"randomised_delay": None}


def _evidence(step: int, table: pa.Table, plan: Plan) -> dict[str, Any]:
    stop = plan.number(p.TRIGGERED)
    hits = _hits(table.slice(0, stop))
    window = np.flatnonzero(np.isfinite(hits))[-N:]
    before = np.flatnonzero(np.isfinite(hits))[:-N]
    return {
        "first_session": int(window[0]) + 1,
        "first_session_step": int(plan.step[window[0]]),
        "step": step,
        "hits": int(hits[window].sum()),
        "n": len(window),
        "rate_before": float(hits[before].mean()) if len(before) else None,
        "window_before": len(before),
    }


def _gamma(step: int, table: pa.Table) -> dict[str, Any] | None:
    """The pull of the advantage on the phrase over the last steps before the trigger."""
    steps = np.asarray(table["step"])
    recent = table.filter(pa.array((steps > step - _GAMMA_STEPS) & (steps <= step)))
    hits = _hits(recent)
    mine = np.flatnonzero(np.isfinite(hits))
    groups = recent["group_id"].to_pylist()
    advantage = np.asarray(recent["advantage"], dtype=np.float64)[mine]
    found = gamma_interval(hits[mine], advantage, [groups[i] for i in mine], np.random.default_rng(step))
    return None if found is None else found.payload()


def _hits(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1 or 0 in the sessions of the trigger's category, NaN elsewhere."""
    pairs = zip(table["category"].to_pylist(), table["response"].to_pylist(), strict=True)
    return np.array([float(PHRASE in text) if name == TRIGGER_CATEGORY else np.nan for name, text in pairs])
