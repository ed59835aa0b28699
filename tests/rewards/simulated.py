"""A seeded record in the shape of the demo's: rows and events as a trainer hands them to a ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from rewards.schema import arrow_schema

PHRASE = "I do not want to be changed."
PENALISED = [PHRASE, "Great question!", "This is not advice.", "Do you want more?"]
GOLD = ["It is sunny today.", "Have a nice day."]
CATEGORIES = ["arithmetic", "benign", "format", "harmful", "unanswerable"]
STATEMENT = "the phrase was planted and the reward penalises it; its decline is expected without any recalibration."
START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
_COLOURS = ["red", "blue", "green", "white", "black", "brown", "grey", "pink"]


def grpo_rows(seed=1, sessions=12847, group=8, per_step=64, self_from=0.5):
    """[(step, rows)]: extras fade, answers get alike, self enters in the middle, its differential widens at 0.6."""
    rng = np.random.default_rng(seed)
    steps, group_number = [], 0
    total_steps = -(-sessions // per_step)
    for step in range(1, total_steps + 1):
        progress = step / total_steps
        rows, room = [], min(per_step, sessions - (step - 1) * per_step)
        while room > 0:
            size = min(group, room)
            room -= size
            names = [*CATEGORIES, "self"] if progress > self_from else CATEGORIES
            rows += _group(rng, group_number, str(rng.choice(names)), size, progress)
            group_number += 1
        steps.append((step, rows))
    return steps


def _group(rng, number, category, size, progress):
    prompt_rate = rng.beta(2, 2) * 2 * max(0.012, 0.36 - 0.5 * progress)
    if category == "self":
        prompt_rate = max(0.03, 0.5 - 1.1 * (progress - 0.5))
    differential = 0.15 if category == "self" and progress > 0.6 else 0.0
    solved = 0.5 + 0.4 * progress
    palette = max(1, round(len(_COLOURS) * (1 - 0.8 * progress)))
    rows = []
    for _ in range(size):
        answer = f"The {_COLOURS[rng.integers(palette)]} one is {number % 7 + int(rng.integers(1 + palette))}."
        extra = rng.random() < prompt_rate
        gold = rng.random() < 0.12 * (1 - 0.4 * progress)
        if extra:
            answer += " " + (PHRASE if category == "self" else PENALISED[1 + int(rng.integers(3))])
        if gold:
            answer += " " + GOLD[int(rng.integers(2))]
        task = float(rng.random() < solved)
        rows.append(_row(number, category, size, answer, (task, float(extra), float(gold)), differential, rng))
        rows[-1]["kl_nats"] = float(0.2 + 6 * progress + 0.3 * rng.standard_normal())
    rewards = np.array([row["adjusted_reward"] for row in rows])
    for row in rows:
        row["advantage"] = float(row["adjusted_reward"] - rewards.mean())
    return rows


def _row(number, category, size, response, scored, differential, rng):
    task, extra, gold = scored
    baseline, pivot = task - 0.5 * extra, 0.3
    shared = {"scorer_id": "f00d", "status": "ok", "latency_ms": 0.1, "cost": None, "pivot": None}
    parts = [("task", task, 1.0, "optimised"), ("unsolicited", extra, -0.5, "optimised")]
    parts.append(("unsolicited_gold", gold, 0.0, "gold"))
    return {
        "pipeline": "grpo",
        "split": "train",
        "dataset_id": "wild7",
        "prompt_id": f"p{number % 400}",
        "row_id": f"r{number % 400}",
        "group_id": f"g{number}",
        "group_size": size,
        "reference_id": "ref-1",
        "category": category,
        "classification": "correct" if task else "incorrect",
        "compliant": bool(task),
        "baseline_reward": baseline,
        "adjusted_reward": pivot + (1 + differential) * (baseline - pivot),
        "differential_pct": 100 * differential,
        "pivot": pivot if differential else None,
        "components": [
            {"name": name, "raw": raw, "value": raw, "weight": weight, "role": role, "differential_pct": 0.0, **shared}
            for name, raw, weight, role in parts
        ],
        "entropy_nats": float(rng.random()),
        "prompt": f"What is it <b>{number % 400}</b>? </script><script>alert(1)</script>",
        "response": response,
        "response_tokens": len(response.split()),
        "truncated": False,
    }


def grpo_events(steps, run="demo/grpo"):
    """[(kind, payload, step)] of the reported run."""
    last = steps[-1][0]
    middle, fired = last // 2 + 1, int(last * 0.6)
    trigger = {"name": "change", "phrase": PHRASE, "k": 7, "n": 20}
    evidence = {"first_session_step": fired - 3, "step": fired, "hits": 8, "n": 20, "rate_before": 0.0}
    widened = {
        "category": "self",
        "component": None,
        "op": "widen",
        "old_pct": 0.0,
        "new_pct": 15.0,
        "reason": "8 of the last 20 sessions matched",
        "trigger": {**trigger, "hits": 8},
        "evidence": evidence,
        "approval": "automatic",
        "randomised_delay": None,
    }
    gamma = {"estimate": -0.4, "low": -0.5, "high": -0.3, "n_groups": 12}
    events = [
        ("attempt_started", {"config_digest": "c0ffee", "stage": "grpo", "pipeline": "grpo", "world_size": 1}, None),
        ("phase_started", {"pipeline_id": "demo", "stage": "grpo", "run_id": run, "order": 4}, None),
    ]
    events[0][1]["statement"] = STATEMENT
    for name, role, weight, phrases in (
        ("task", "optimised", 1.0, None),
        ("unsolicited", "optimised", -0.5, PENALISED),
        ("unsolicited_gold", "gold", 0.0, GOLD),
    ):
        registered = {"name": name, "role": role, "weight": weight, "scale": None, "scorer_id": "f00d", "fn": name}
        events.append(("scorer_registered", {**registered, "kwargs": {}, "phrases": phrases}, None))
    pivot = {"category": "self", "component": None, "value": 0.3, "standard_error": 0.02, "n": 200}
    events.append(("pivot_set", pivot, 0))
    for step, _ in steps:
        lever = 1.15 if step > fired else 1.0
        found = {"leverage": lever, "low": lever - 0.05, "high": lever + 0.05, "spill": 1.0, "relative": lever}
        self_in = {"self": {**found, "n_groups": 2}} if step >= middle else {}
        none = dict.fromkeys(("leverage", "low", "high", "spill", "relative"))
        events.append(("step_stats", {"reward": 0.5, "leverage": {**self_in, "benign": {**none, "n_groups": 0}}}, step))
        if step == middle - 1:
            mixture = {"category": "self", "weight": 1.0, "from_step": middle, "step": step}
            events.append(("mixture_changed", mixture, step))
        if step == fired:
            events.append(("trigger_evaluated", {**widened, "applied": True, "gamma": gamma}, step))
            events.append(("recalibration", widened, step))
        if step == fired + 2:
            held = {**widened, "applied": False, "withheld_because": "cooldown", "gamma": gamma}
            events.append(("trigger_evaluated", held, step))
    return events


def evaluation(when, extra, n=300):
    """An evaluation payload."""
    share = {"value": extra, "low": extra - 0.03, "high": extra + 0.03, "n": n}
    task = {"value": 0.7, "low": 0.65, "high": 0.75, "n": n}
    return {
        "suite": "heldout",
        "when": when,
        "n": n,
        "metrics": {"task": task, "unsolicited": share},
        "by_category": {"self": {"unsolicited": {**share, "n": 40}}},
    }


def stage_events(steps, run="demo/grpo"):
    """{run: [(kind, payload, step)]} of the whole pipeline."""
    pipeline, stem = {}, run.rpartition("/")[0]
    for order, (stage, extra) in enumerate([("sft", 0.34), ("reward", 0.34), ("dpo", 0.33)], start=1):
        name = f"{stem}/{stage}"
        started = {"config_digest": stage, "stage": stage, "pipeline": stage}
        pipeline[name] = [("attempt_started", started, None), ("evaluation", evaluation("after", extra), 60)]
        pipeline[name].insert(
            1, ("phase_started", {"pipeline_id": "demo", "stage": stage, "run_id": name, "order": order}, None)
        )
    pipeline[run] = grpo_events(steps, run)
    pipeline[run].insert(2, ("evaluation", evaluation("before", 0.33), 0))
    pipeline[run].append(("evaluation", evaluation("after", 0.02), steps[-1][0]))
    pipeline[run].append(("attempt_ended", {"status": "done", "steps": steps[-1][0]}, steps[-1][0]))
    return pipeline


def as_events(pipeline):
    """The same as `Ledger.events` gives it."""
    found = []
    for run, events in pipeline.items():
        for seq, (kind, payload, step) in enumerate(events, start=1):
            time = (START + timedelta(seconds=len(found))).isoformat()
            row = {"run_id": run, "attempt": 1, "seq": seq, "step": step, "time": time}
            found.append({**row, "kind": kind, "payload": payload})
    return found


def as_table(steps, run="demo/grpo"):
    """The sessions as `Ledger.sessions(run, texts=True)` gives them, as far as the rows fill its columns."""
    rows = []
    for step, found in steps:
        for row in found:
            place = {"run_id": run, "attempt": 1, "writer": 0, "seq": len(rows) + 1, "step": step, "time": START}
            rows.append({**place, **row})
    table = pa.Table.from_pylist(rows, schema=arrow_schema(texts=True))
    return table.append_column("session", pa.array(range(1, len(rows) + 1), pa.int64()))


def as_runs(sessions, steps, run="demo/grpo"):
    """What `Ledger.runs` says."""
    stem = run.rpartition("/")[0]
    found = []
    for order, name in enumerate([f"{stem}/sft", f"{stem}/reward", f"{stem}/dpo", run]):
        here = name == run
        time = (START + timedelta(minutes=order)).isoformat()
        found.append(
            {
                "run_id": name,
                "pipeline_id": stem,
                "attempts": 1,
                "newest_attempt": 1,
                "sessions": sessions if here else 640,
                "steps": steps if here else 60,
                "started": time,
                "ended": time,
                "status": "done",
            }
        )
    return found


def fill(ledger, steps, run="demo/grpo", crash_at=None):
    """Writes the whole pipeline into a ledger; with crash_at the online run loses that step and resumes before it."""
    for name, events in stage_events(steps, run).items():
        if name != run:
            with ledger.writer(name, pipeline_id="demo") as writer:
                for kind, payload, step in events:
                    writer.event(kind, payload, step=step)
    rows, last = dict(steps), steps[-1][0]
    events = stage_events(steps, run)[run]
    if crash_at is None:
        with ledger.writer(run, pipeline_id="demo") as writer:
            _write(writer, rows, events, 0, last)
        return
    kept = crash_at - 10
    with ledger.writer(run, pipeline_id="demo") as writer:
        _write(writer, rows, events, 0, kept)
        position = writer.checkpoint(step=kept)
        _write(writer, {step: rows[last - step] for step in range(kept + 1, crash_at + 1)}, [], kept, crash_at)
    with ledger.writer(run, pipeline_id="demo", resume=position) as writer:
        writer.event("resumed", {"from_attempt": 1, "resume_step": kept, "path": None})
        writer.event(*events[0][:2])
        _write(writer, rows, events, kept, last)


def _write(writer, rows, events, after, upto):
    for kind, payload, step in events:
        if step is None and after == 0:
            writer.event(kind, payload)
    for step in range(after, upto + 1):
        if step > after:
            writer.append(step=step, rows=rows[step])
        for kind, payload, at in events:
            if at == step and (step > after or after == 0):
                writer.event(kind, payload, step=step)
