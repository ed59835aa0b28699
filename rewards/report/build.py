"""A run's report as data: the same content that the page shows, ready for JSON, and the samples beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.analysis import constraint, convergence, recalibrations, summary
from rewards.analysis.analyze import analyze, plain
from rewards.analysis.columns import component_roles, floats, strings, where
from rewards.analysis.data import RunData
from rewards.counted import counted
from rewards.report import origin, redacted
from rewards.report.record import Record

SCHEMA = 1
SAMPLES_PER_CATEGORY = 2
MOST_SAMPLES = 24
LONGEST_TEXT = 1500


@dataclass(frozen=True)
class Report:
    """data: JSON document, deterministic for equal live views apart from `attempts`, `ledger.head` and `time*` keys.

    samples: sessions with their texts, for the page only.
    """

    data: dict[str, Any]
    samples: list[dict[str, Any]]


def build(record: Record) -> Report:
    """The report of one run. Sections that the record cannot support say why."""
    table, events = record.train, record.events
    own = [event for event in events if event["run_id"] == record.run_id]
    bins = convergence.step_bins(record.steps)
    windows = summary.end_windows(table.num_rows)
    changes = recalibrations.recalibration_table(record.steps, own)
    samples = _samples(record)
    absent = origin.reasons(own)
    analysis = analyze(RunData.of_table(table, own, record.run_id), record.forks)
    data = {
        "schema": SCHEMA,
        "run": record.run_id,
        "sessions": table.num_rows,
        "statement": _statement(record),
        "summary": _summary(record, own),
        "stages": summary.stages(events, [run["run_id"] for run in record.pipeline_runs]),
        "convergence": _convergence(record, own, bins, changes),
        "categories": summary.categories(table),
        "behaviour": analysis["behaviour"],
        "unsolicited_curve": summary.unsolicited_curve(table, bins),
        "kl": constraint.kl_curve(table, bins, absent.get("kl_nats")),
        "reference": constraint.reference(table, record.steps, own, windows, absent.get("reference_id")),
        "leverage": constraint.leverage(own, changes),
        "recalibrations": changes,
        "withheld": recalibrations.withheld_table(record.steps, own),
        "phrases": recalibrations.phrase_curves(table, bins, own),
        "samples": len(samples),
        "ledger": {"head": record.head, "verified": record.verified, "first_bad": record.first_bad},
        "analysis": analysis,
    }
    data["convergence"]["marks"] += _boundaries(analysis["segmentation"])
    data["limits"] = _limits(record, data)
    cleaned: dict[str, Any] = plain(data)
    return Report(cleaned, samples)


def _summary(record: Record, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    run, table = record.run, record.train
    started = [event["payload"] for event in own if event["kind"] == "attempt_started"]
    windows = summary.end_windows(table.num_rows)
    baseline = floats(table, "baseline_reward")
    scorers = [event["payload"] for event in recalibrations.of_kind(own, "scorer_registered")]
    kept = ("name", "role", "weight", "scale", "fn", "scorer_id")
    components = [{name: payload.get(name) for name in kept} for payload in scorers]
    seen = {payload.get("name") for payload in scorers}
    components += [{"name": name, "role": role} for name, role in component_roles(table).items() if name not in seen]
    return {
        "pipeline_id": run.get("pipeline_id"),
        "pipeline": record.pipeline,
        "steps": run.get("steps"),
        "status": run.get("status"),
        "config_digest": started[-1].get("config_digest") if started else None,
        "code_commit": started[-1].get("code_commit") if started else None,
        "sessions_without_reward": int((~np.isfinite(baseline)).sum()),
        "evaluation_sessions": record.sessions.num_rows - table.num_rows,
        "window": windows[0].stop if windows else 0,
        "components": components,
        "time_started": run.get("started"),
        "time_ended": run.get("ended"),
        "attempts": {"count": run.get("attempts"), "superseded_sessions": record.superseded},
        "runs": [
            {
                "run_id": other["run_id"],
                "sessions": other.get("sessions"),
                "steps": other.get("steps"),
                "status": other.get("status"),
                "attempts": other.get("attempts"),
                "time_started": other.get("started"),
            }
            for other in record.pipeline_runs
        ],
    }


def _convergence(
    record: Record,
    own: Sequence[Mapping[str, Any]],
    bins: Sequence[convergence.Bin],
    changes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    curve = convergence.reward_curve(record.train, bins)
    known = any(row["baseline"]["value"] is not None for row in curve)
    return {
        "bins": curve,
        "marks": _marks(record, own, changes),
        "change": convergence.reward_change(record.train, bins),
        "unit": _unit(record),
        "ends": summary.reward_ends(record.train, pairs=_unit(record) == "margin"),
        "why": None if known else ("no session has a baseline reward" if curve else "the run has no sessions"),
    }


def _unit(record: Record) -> str:
    """What a baseline reward is here: a completion's reward, a pair's margin, or a demonstration's weight."""
    if record.online:
        return "reward"
    return "weight" if record.pipeline == "sft" else "margin"


def _marks(
    record: Record, own: Sequence[Mapping[str, Any]], changes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Changes during the run in their order; those of one kind at one place are one mark."""
    found: dict[tuple[int, str], dict[str, Any]] = {}

    def add(kind: str, session: int | None, step: int | None, label: str) -> None:
        mark = found.setdefault((session or 0, kind), {"kind": kind, "session": session, "step": step, "labels": []})
        mark["labels"].append(label)

    for row in changes:
        label = f"{row['category']}: {_pct(row['old_pct'])} to {_pct(row['new_pct'])}"
        add("recalibration", row["session"], row["step"], label)
    for event in recalibrations.of_kind(own, "mixture_changed"):
        payload = event["payload"]
        session = recalibrations.last_session_before(event, record.steps)
        label = f"weight of {payload.get('category')} becomes {payload.get('weight')}"
        add("mixture", session, payload.get("from_step", event.get("step")), label)
    return [found[place] for place in sorted(found)]


def _boundaries(segmentation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where phases of the reward begin and end, as marks on its curve."""
    said = {"step": "the level or the spread changes", "ramp_start": "a gradual change begins", "ramp_end": "it ends"}
    return [
        {
            "kind": "phase",
            "session": found["session"] - 1,
            "step": found["step"],
            "labels": [
                said[found["kind"]]
                + (f" (95 % interval: session {found['low']:,} to {found['high']:,})" if found.get("low") else "")
                + (f"; near: {found['near_event']}" if found.get("near_event") else "")
            ],
        }
        for found in segmentation.get("boundaries") or []
    ]


def _statement(record: Record) -> str | None:
    """What the run or its pipeline says it is."""
    ours = {run["run_id"] for run in record.pipeline_runs}
    for event in reversed(record.events):
        said = event["payload"].get("statement")
        if said and event["kind"] in ("attempt_started", "phase_started") and event["run_id"] in ours:
            return str(said)
    return None


def _samples(record: Record) -> list[dict[str, Any]]:
    """A few sessions of every category from the beginning, the middle and the end of the run."""
    table = record.train
    windows = summary.end_windows(table.num_rows)
    if windows is None:
        chosen = dict.fromkeys(range(table.num_rows), "only")
    else:
        middle = table.num_rows // 2
        around = range(max(0, middle - windows[0].stop // 2), table.num_rows)
        chosen = {}
        for position, places in (
            ("first", range(windows[0].start, windows[0].stop)),
            ("middle", around),
            ("last", range(table.num_rows - 1, windows[1].start - 1, -1)),
        ):
            for i in _few_of_each(strings(table, "category"), strings(table, "group_id"), places):
                chosen.setdefault(i, position)
    columns = ("category", "classification", "prompt", "response", "rejected")
    texts = {name: strings(table, name) for name in columns}
    numbers = {name: floats(table, name) for name in ("baseline_reward", "adjusted_reward", "compliant")}
    order = {"first": 0, "only": 0, "middle": 1, "last": 2}
    gone = redacted.places([event for event in record.events if event["run_id"] == record.run_id])
    return [
        {"position": chosen[i], "session": i + 1, "step": int(record.steps[i])}
        | {name: _shortened(values[i]) for name, values in texts.items()}
        | {name: plain(float(values[i])) for name, values in numbers.items()}
        | {"redacted": redacted.of_row(gone, table, i)}
        for i in sorted(chosen, key=lambda i: (order[chosen[i]], i))
    ]


def _few_of_each(names: Sequence[str | None], groups: Sequence[str | None], places: range) -> list[int]:
    """The first places of every category, one of each prompt group."""
    taken: dict[str | None, list[str | None]] = {}
    found: list[int] = []
    for i in places[: summary.WINDOW]:
        mine = taken.setdefault(names[i], [])
        repeated = groups[i] is not None and groups[i] in mine
        if len(mine) < SAMPLES_PER_CATEGORY and not repeated and len(found) < MOST_SAMPLES:
            mine.append(groups[i])
            found.append(i)
    return found


def _shortened(text: str | None) -> str | None:
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]} [... {len(text) - LONGEST_TEXT} more characters]"


def _limits(record: Record, data: Mapping[str, Any]) -> list[str]:
    """What this record cannot say, in sentences."""
    found = [
        "One run with one seed: intervals speak of the sessions of this run, not of what another seed would have done."
    ]
    if data["recalibrations"]:
        found.append(
            "No effect of a recalibration is claimed. Prompts, policy and schedule moved together, and categories "
            "share parameters. A fork at the event, with and without it over several seeds, would identify an effect."
        )
    if any(mark["kind"] == "mixture" for mark in data["convergence"]["marks"]):
        found.append(
            "The mixture of prompts changed during the run: means over all categories before and after are means over "
            "different prompts. Compare within a category."
        )
    if data["behaviour"]["unsolicited"]["gold"]["first"] is not None:
        found.append(
            "Unsolicited content means the literal sentences of the listed families. What paraphrases them is not "
            "counted; the families that are never penalised show whether more than the detector was learned."
        )
    if record.online:
        found.append(
            "Sessions are answers to training prompts at the training temperature. Held-out outcomes are those of the "
            "stages table, with their own interval and count."
        )
    found.append(
        "Verification recomputes every hash from the stored rows. That the whole chain was not rewritten, or its end "
        "not cut off, only a head kept elsewhere can show."
    )
    own = [event for event in record.events if event["run_id"] == record.run_id]
    found += origin.sentences(own)
    found += filter(None, [redacted.sentence(redacted.places(own))])
    missing = data["summary"]["sessions_without_reward"]
    if missing:
        have = "has no baseline reward and takes" if missing == 1 else "have no baseline reward and take"
        found.append(f"{missing:,} of {counted(data['sessions'], 'session')} {have} no part in any mean.")
    if record.train.num_rows and not where(strings(record.train, "group_id"), None).all():
        found.append(
            "Answers to one prompt resemble each other; intervals count them for what they are worth together."
        )
    return found


def _pct(value: Any) -> str:
    return "unknown" if value is None else f"{value:g} %"
