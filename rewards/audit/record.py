"""Writes the simulated record of the audit into a ledger, as a trainer would: rows step by step, events between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rewards.advantages import advantages
from rewards.annotations import annotate, review
from rewards.audit import plan as p
from rewards.audit.answers import write_answers
from rewards.audit.events import opening, payloads_after
from rewards.audit.outcomes import TRIGGER_CATEGORY, UNSOLICITED_WEIGHT, Outcomes, draw
from rewards.audit.plan import CATEGORIES, Floats, Plan, make_plan
from rewards.errors import UserError
from rewards.ledger import Ledger
from rewards.schema import BY_NAME, COMPONENTS_TYPE
from rewards.trajectory import TrajectoryIndex

RUN = "audit/grpo"
STATEMENT = (
    "Simulated record: no model was trained. A seeded generator wrote it with the figures that an audit reported. "
    "In the simulation no recalibration has any effect on any outcome; what changes follows curves over the sessions. "
    "The narrow figures (claims, counts of tokens, ratios, the trigger's seven of twenty) were made to come out as "
    "reported."
)
PIVOT = 0.54
# Differentials in per cent at the start and after each recalibration.
SCHEDULES: tuple[dict[str, float], ...] = (
    {"category-2": 12.0, "category-3": 20.0},
    {"category-2": 15.0, "category-3": 20.0},
    {"category-2": 15.0, "category-3": 25.0},
    {"category-2": 15.0, "category-3": 25.0, TRIGGER_CATEGORY: 15.0},
)
_START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
_SECONDS = 2  # between sessions
_PROMPTS = 240  # a prompt has one category


@dataclass(frozen=True)
class Record:
    """What is written. table: the sessions in their order; step: of each."""

    plan: Plan
    outcomes: Outcomes
    table: pa.Table


def write_record(path: str | Path, seed: int = 0, sessions: int = p.SESSIONS) -> dict[str, Any]:
    """Writes the record into a new ledger, and says what it wrote. Equal seeds give equal sessions and events.

    sessions: other lengths have the same curves, stretched; the audit's figures hold at 12,847.
    Raises: UserError when the folder holds something already, for a seed below 0, or for a number of sessions that
    cannot carry the record.
    """
    root = Path(path)
    if not p.FEWEST <= sessions <= p.MOST:
        raise UserError(f"{sessions:,} sessions: the record needs {p.FEWEST:,} to {p.MOST:,}")
    if seed < 0:
        raise UserError(f"seed {seed}: give a whole number from 0")
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is there already and no folder; name a new folder for the simulated record")
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root}: is there already and not empty; name a new folder for the simulated record")
    with Ledger.open(root, create=True) as ledger:
        record = simulate(seed, sessions)
        _write(ledger, record, seed)
        _annotate(ledger, record.plan)
        head = ledger.head()
    return {
        "path": str(root),
        "run": RUN,
        "simulated": True,
        "statement": STATEMENT,
        "seed": seed,
        "sessions": sessions,
        "steps": int(record.plan.step[-1]),
        "head": head,
    }


def simulate(seed: int = 0, sessions: int = p.SESSIONS) -> Record:
    """The sessions of the record as a table with the ledger's columns, `step` among them."""
    plan = make_plan(sessions)
    rng = np.random.default_rng([seed, sessions])
    outcomes = draw(plan, rng)
    responses, lengths = write_answers(plan, outcomes.sentence, rng)
    table = pa.table(_typed(_columns(plan, outcomes, rng) | {"response": responses, "response_tokens": lengths}))
    return Record(plan, outcomes, table)


def _typed(columns: dict[str, Any]) -> dict[str, pa.Array]:
    """The columns in the ledger's own types, so that appending has nothing to convert."""
    return {
        name: values
        if isinstance(values, pa.Array)
        else pa.array(values, BY_NAME[name].type)
        if name in BY_NAME
        else pa.array(values, pa.string())
        for name, values in columns.items()
    }


def _columns(plan: Plan, outcomes: Outcomes, rng: np.random.Generator) -> dict[str, Any]:
    n, names = plan.sessions, np.array(CATEGORIES, dtype=object)
    version = np.searchsorted(np.array(plan.changed_steps), plan.step, side="left")
    table = np.array([[schedule.get(name, 0.0) for name in CATEGORIES] for schedule in SCHEDULES])
    pct = table[version, outcomes.category]
    unsolicited = (outcomes.sentence > 0).astype(np.float64)
    baseline = outcomes.task + UNSOLICITED_WEIGHT * unsolicited
    adjusted = baseline + pct / 100 * (baseline - PIVOT)
    normalised, plain = (advantages(rewards, plan.group.tolist(), "none") for rewards in (adjusted, baseline))
    prompt = (plan.group // len(CATEGORIES) * len(CATEGORIES) + outcomes.category) % _PROMPTS
    misses = np.array(["partial", "refused"], dtype=object)[rng.integers(2, size=n)]
    seconds = int(_START.timestamp()) + _SECONDS * np.arange(n)
    fixed = {"pipeline": "grpo", "split": "train", "dataset_id": "simulated", "reference_id": "simulated-reference"}
    return {
        **{name: pa.repeat(value, n) for name, value in fixed.items()},
        "step": plan.step,
        "time": pa.array(seconds * 1_000_000, pa.int64()).cast(BY_NAME["time"].type),
        "row_id": [f"row-{number}" for number in prompt.tolist()],
        "prompt_id": [f"prompt-{number}" for number in prompt.tolist()],
        "prompt": [f"Request {number}." for number in prompt.tolist()],
        "group_id": [f"group-{number}" for number in plan.group.tolist()],
        "group_size": plan.sizes[plan.group],
        "policy_version": plan.step - 1,
        "schedule_version": [str(number) for number in version.tolist()],
        "category": names[outcomes.category].tolist(),
        "classification": np.where(outcomes.compliant, "complied", misses).tolist(),
        "compliant": outcomes.compliant,
        "trajectory_index": _trajectory(plan, outcomes),
        "baseline_reward": baseline,
        "adjusted_reward": adjusted,
        "differential_pct": pct,
        "pivot": pa.array(np.where(pct != 0, PIVOT, np.nan), pa.float64(), from_pandas=True),
        "components": _components(outcomes, unsolicited),
        "advantage": normalised.advantage,
        "advantage_unadjusted": plain.advantage,
        "norm_mean": normalised.mean,
        "norm_std": pa.array(normalised.std, pa.float32(), from_pandas=True),
        "kl_nats": outcomes.kl_nats,
        "entropy_nats": outcomes.entropy_nats,
        "truncated": np.zeros(n, dtype=bool),
        "stop_reason": pa.repeat("eos", n),
    }


def _components(outcomes: Outcomes, unsolicited: Floats) -> pa.Array:
    """One entry a session of each component, in one order."""
    parts = (
        ("task", outcomes.task, 1.0, "optimised"),
        ("unsolicited", unsolicited, UNSOLICITED_WEIGHT, "optimised"),
        ("style", outcomes.style, 0.0, "observed"),
        ("gold", outcomes.gold, 0.0, "gold"),
    )
    n, width = len(unsolicited), len(parts)
    raw = np.column_stack([values for _, values, _, _ in parts]).ravel()
    per_row: dict[str, Any] = {
        "name": pa.array([name for name, _, _, _ in parts] * n),
        "raw": pa.array(raw),
        "value": pa.array(raw),
        "weight": pa.array(np.tile([weight for _, _, weight, _ in parts], n)),
        "role": pa.array([role for _, _, _, role in parts] * n),
        "status": pa.repeat("ok", n * width),
        "scorer_id": pa.repeat("simulated", n * width),
    }
    fields = [COMPONENTS_TYPE.value_type.field(i) for i in range(COMPONENTS_TYPE.value_type.num_fields)]
    arrays = [per_row[f.name] if f.name in per_row else pa.nulls(n * width, f.type) for f in fields]
    offsets = pa.array(np.arange(0, n * width + 1, width), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=fields))


def _trajectory(plan: Plan, outcomes: Outcomes) -> pa.Array:
    index, values = TrajectoryIndex(), np.full(plan.sessions, np.nan)
    for step, part in slices(plan):
        names = [CATEGORIES[code] for code in outcomes.category[part].tolist()]
        known = [index.value(name) for name in names]
        values[part] = [np.nan if value is None else value for value in known]
        index.update(step, zip(names, outcomes.compliant[part].tolist(), strict=True))
    return pa.array(values, pa.float32(), from_pandas=True)


def slices(plan: Plan) -> Iterator[tuple[int, slice]]:
    """Each step with its sessions."""
    edges = np.flatnonzero(np.r_[True, np.diff(plan.step) > 0, True])
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield int(plan.step[start]), slice(start, stop)


def _write(ledger: Ledger, record: Record, seed: int) -> None:
    rows = record.table.drop_columns(["step"])
    with ledger.writer(RUN, pipeline_id="audit") as writer:
        for kind, payload, at in opening(STATEMENT, seed, PIVOT):
            writer.event(kind, payload, step=at)
        for step, part in slices(record.plan):
            writer.append(step=step, rows=rows.slice(part.start, part.stop - part.start))
            for kind, payload in payloads_after(step, part, record.table, record.plan):
                writer.event(kind, payload, step=step)
        last = int(record.plan.step[-1])
        writer.event("attempt_ended", {"status": "done", "steps": last}, step=last)


def _annotate(ledger: Ledger, plan: Plan) -> None:
    """People's notes; the one on the transition is kept as cut off as it was, its reviews beside it."""
    low, high = ({"session": plan.number(session)} for session in (p.LOW_SESSION, p.HIGH_SESSION))
    span = {"sessions": [plan.number(session) for session in p.TRANSITION]}
    quiet = {"session": plan.number(p.TRIGGERED + 300)}
    annotate(ledger, RUN, low, annotator="reader-1", label="non-compliant", note="left the request open")
    annotate(ledger, RUN, high, annotator="reader-1", label="compliant", note="did what was asked")
    annotate(
        ledger, RUN, quiet, annotator="reader-1", label="recurrence", note="the phrase did not recur in 300 sessions"
    )
    note = annotate(ledger, RUN, span, annotator="reader-2", label="transition", note="the speed of transition seems--")
    review(ledger, note["seq"], annotator="lead-1", verdict="standard", note="Standard for this phase. Closed.")
    review(
        ledger,
        note["seq"],
        annotator="reader-3",
        verdict="disagree",
        note="Half of the change in style fell into a few hundred sessions. The note should stay open.",
    )
