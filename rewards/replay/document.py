"""The replay of a run: what another schedule, other weights or another normalisation would have made of its rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewards.advantages import Scale
from rewards.analysis.scored import RESIDUE, Floats, Scored
from rewards.replay.effects import leverage_and_spill, rank_flips, shares, sign_changes, variance_of_groups
from rewards.replay.plan import Plan, Record
from rewards.replay.rescore import (
    Signal,
    Triggered,
    finished,
    normalised,
    recorded_gains,
    scheduled_gains,
    triggered,
    weighted,
)

LIMIT = "exact for the signal that was given; silent on what the model would have become"
SCALES: tuple[Scale, ...] = ("group", "none", "batch")
SINGLE = 1e-5  # advantages are recorded in single precision
MOST = 0.99


def replay(record: Record, plan: Plan, answers: Sequence[str | None] = ()) -> dict[str, Any]:
    """Before and after, for every session that has a group.

    answers: the responses, needed where the plan has triggers.
    Keys: run, sessions, groups, recorded (scale_rewards, how it is known, and the shares of sessions whose recorded
    adjusted reward and advantage come out again), changed (what was asked, weights, scale_rewards, mean_adjusted,
    groups_gained, groups_lost, recalibrations), rank_flips, sign_changes, leverage, spill, shares, verdict, why.
    Raises: LedgerError where the record cannot give what the plan needs.
    """
    scored = record.scored
    document = frame(record)
    if not (scored.group >= 0).any() or not np.isfinite(scored.baseline).any():
        lacking = "no session has a group" if not (scored.group >= 0).any() else "no session has a baseline reward"
        reason = f"{lacking}: there is nothing to replay"
        return document | {"verdict": f"Nothing is replayed: {reason}.", "why": reason}
    before, recorded, said = recorded_signal(record)
    after = _after(record, plan, answers, before)
    document["recorded"] = recorded
    document["changed"] = _changed(record, plan, before, after)
    document["rank_flips"] = rank_flips(scored, before.adjusted, after.adjusted)
    document["sign_changes"] = sign_changes(before.advantage, after.advantage)
    document["leverage"], document["spill"] = leverage_and_spill(scored, (before, after))
    document["shares"] = shares(scored, before, after)
    said += list(plan.notes)
    if not np.isfinite(scored.compliant).any():
        said.append("compliance is not on record: no leverage and no spill")
    alone = int((scored.group < 0).sum())
    if alone:
        said.append(f"{alone:,} sessions without a group have no advantage and no part")
    document["why"] = "; ".join(said) or None
    document["verdict"] = verdict(document)
    return document


def frame(record: Record) -> dict[str, Any]:
    """The document without answers."""
    groups = len(np.unique(record.scored.group[record.scored.group >= 0]))
    document: dict[str, Any] = {"run": record.run_id, "sessions": len(record.scored), "groups": groups}
    names = ("recorded", "changed", "rank_flips", "sign_changes", "leverage", "spill", "shares", "verdict", "why")
    return document | dict.fromkeys(names)


def recorded_signal(record: Record) -> tuple[Signal, dict[str, Any], list[str]]:
    """What the sessions were given, computed again from the record; how much of it comes out; what does not, in words.

    Recorded adjusted rewards stand where they are on record, whatever made them.
    """
    scored = record.scored
    plain, gains = weighted(scored, {}), recorded_gains(scored)
    scale, source = record.scale(), "the run's configuration"
    if scale is None:
        scale, source = _inferred(scored)
    signal = finished(scored, plain, gains, scale)
    adjusted = np.where(np.isfinite(scored.adjusted), scored.adjusted, signal.adjusted)
    exact = _share(scored.adjusted, np.abs(scored.adjusted - signal.adjusted) <= RESIDUE * _size(scored.adjusted))
    alike = _share(scored.advantage, np.abs(scored.advantage - signal.advantage) <= SINGLE * _size(scored.advantage))
    said = [f"the recorded normalisation is {source}; `{scale}` stands"] if source.startswith("assumed") else []
    if exact is not None and exact < 1:
        said.append(
            f"{1 - exact:.2%} of the recorded adjusted rewards are not what the recorded differentials give: before "
            f"stands as recorded"
        )
        given = Scored(**{**vars(scored), "baseline": adjusted})
        final = finished(given, weighted(given, {}), _only_gain(gains, len(scored)), scale)
        signal = Signal(**{**vars(signal), "adjusted": adjusted, "advantage": final.advantage, "std": final.std})
        alike = _share(
            scored.advantage, np.abs(scored.advantage - signal.advantage) <= SINGLE * _size(scored.advantage)
        )
    if alike is not None and alike < 1:
        said.append(
            f"{1 - alike:.2%} of the recorded advantages are not those of the recorded rewards under `scale_rewards: "
            f"{scale}` (a KL penalty in the reward, clipping or another normalisation): both sides are computed from "
            f"rewards alone"
        )
    found = {"scale_rewards": scale, "known_from": source, "adjusted_reproduced": exact, "advantage_reproduced": alike}
    return signal, found, said


def _only_gain(gains: Any, n: int) -> Any:
    none = type(gains).none(n, gains.part.shape[1])
    return type(gains)(**{**vars(none), "gain": gains.gain})


def _inferred(scored: Scored) -> tuple[Scale, str]:
    """The normalisation that gives the recorded advantages again."""
    rewards, recorded = scored.baseline, scored.unadjusted
    if not np.isfinite(recorded).any():
        rewards, recorded = scored.adjusted, scored.advantage / recorded_gains(scored).gain
    if not np.isfinite(recorded).any():
        return "group", "assumed: no advantage is on record"
    for scale in SCALES:
        made = normalised(rewards, scored, scale).advantage
        if (_share(recorded, np.abs(recorded - made) <= SINGLE * _size(recorded)) or 0.0) >= MOST:
            return scale, "the recorded advantages"
    return "group", "assumed: none gives the recorded advantages again"


def _after(record: Record, plan: Plan, answers: Sequence[str | None], before: Signal) -> Signal:
    scored = record.scored
    scale = plan.scale or before.scale
    plain = weighted(scored, plan.weights)
    if plan.schedule is None:
        return finished(scored, plain, recorded_gains(scored), scale)
    if not plan.triggers:
        return finished(scored, plain, scheduled_gains(plan.schedule, scored), scale)
    seed = (record.config().get("train") or {}).get("seed")
    asked = Triggered(plan.schedule, plan.triggers, answers, seed if isinstance(seed, int) else 0)
    return triggered(scored, plain, asked, scale)


def _changed(record: Record, plan: Plan, before: Signal, after: Signal) -> dict[str, Any]:
    weights = {}
    for k, name in enumerate(record.scored.components):
        one, other = (_weight(signal, k) for signal in (before, after))
        if one != other:
            weights[name] = {"before": one, "after": other}
    variance = variance_of_groups(record.scored, before.adjusted, after.adjusted)
    fired = [payload for kind, payload in after.events if kind == "recalibration"]
    return {
        "schedule": None if plan.schedule is None else [[*key, d] for key, d in plan.schedule.entries.items()],
        "place": None if plan.schedule is None else plan.schedule.place,
        "weights": weights,
        "scale_rewards": {"before": before.scale, "after": after.scale},
        "mean_adjusted": {"before": _mean(before.adjusted), "after": _mean(after.adjusted)},
        "n": int(np.isfinite(after.adjusted).sum()),
        "groups_with_variance": {"before": variance["with_before"], "after": variance["with_after"]},
        "groups_gained": variance["gained"],
        "groups_lost": variance["lost"],
        "recalibrations": [
            {name: payload[name] for name in ("category", "component", "old_pct", "new_pct", "reason")}
            | {"step": payload["evidence"]["step"]}
            for payload in fired
        ],
    }


def _weight(signal: Signal, k: int) -> float | None:
    """The component's weight, that of the last session that has it; None where it is no part of the reward."""
    weights = signal.weighted.weight[signal.weighted.taken[:, k], k]
    return float(weights[-1]) if len(weights) else None


def verdict(document: Mapping[str, Any]) -> str:
    """The replay in words."""
    flips, signs, changed = document["rank_flips"], document["sign_changes"], document["changed"]
    said = [
        f"Of {flips['pairs']:,} pairs within groups {_some(flips['flipped'], flips['share'])} "
        f"change their order, and of {signs['n']:,} advantages {_some(signs['changed'], signs['share'])} change their "
        f"sign"
    ]
    mean = changed["mean_adjusted"]
    said.append(f"the mean adjusted reward is {mean['after']:.4g} instead of {mean['before']:.4g}")
    if changed["groups_gained"] or changed["groups_lost"]:
        said.append(
            f"{changed['groups_gained']:,} groups gain rewards that differ and {changed['groups_lost']:,} lose them"
        )
    moved = [
        f"`{category}` {ends['before']['estimate']:.3g} to {ends['after']['estimate']:.3g}"
        for category, ends in document["leverage"].items()
        if None not in (ends["before"]["estimate"], ends["after"]["estimate"])
        and abs(ends["after"]["estimate"] - ends["before"]["estimate"]) > 5e-3
    ]
    if moved:
        said.append(f"leverage moves in {', '.join(moved)}")
    return f"{'; '.join(said)}. This is {LIMIT}."


def _some(count: int, share: float | None) -> str:
    return "none" if not count or share is None else f"{count:,} ({share:.1%})"


def _share(recorded: Floats, same: Any) -> float | None:
    known = np.isfinite(recorded)
    return float(np.mean(same[known])) if known.any() else None


def _size(values: Floats) -> Floats:
    size: Floats = np.maximum(np.abs(values), 1.0)
    return size


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
