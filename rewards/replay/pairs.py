"""Replay of pairs and labelled completions: the adjusted margin and the loss weight under other differentials."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewards.errors import ConfigError
from rewards.replay.document import LIMIT, frame
from rewards.replay.effects import sign_changes
from rewards.replay.plan import Record
from rewards.replay.schedule import ScheduleFile

PAIRED = frozenset({"dpo", "reward", "kto"})


def replay_pairs(record: Record, file: ScheduleFile, name: object) -> dict[str, Any]:
    """The margins (z - m) / (1 + d) and the loss weights under the file's differentials.

    There are no groups, so no ranks, no advantages and no leverage: these are null, and `why` says so. sign_changes
    counts adjusted margins; shares: of the loss weights by category.
    Raises: ConfigError for what only online RL has, naming file and key.
    """
    section = file.reward
    for key in section.changed("reward_funcs", "reward_weights", "place", "pivot", "triggers"):
        raise ConfigError(f"{name}: reward.{key}: applies to online RL only: here a differential is a gain of the loss")
    if file.train.scale_rewards is not None:
        raise ConfigError(f"{name}: train.scale_rewards: applies to online RL only: margins are not normalised")
    scored = record.scored
    gain = np.ones(len(scored))
    for i, rule in enumerate(section.differentials):
        for key in rule.changed("component", "pivot"):
            raise ConfigError(f"{name}: reward.differentials.{i}.{key}: applies to online RL only")
        if rule.category not in scored.categories:
            there = ", ".join(f"`{category}`" for category in scored.categories) or "none"
            raise ConfigError(
                f"{name}: reward.differentials.{i}.category: no category `{rule.category}` on record; there are {there}"
            )
        gain[scored.category == scored.categories.index(rule.category)] = 1.0 + rule.differential
    offset = np.nan_to_num(scored.pivot)  # no margin on record is an offset of 0
    after = (scored.baseline - offset) / gain
    old_gain = 1.0 + np.round(np.nan_to_num(scored.differential_pct) / 100, 12)
    weight = np.where(np.isfinite(scored.loss_weight), scored.loss_weight, old_gain)
    weights = (weight, weight / old_gain * gain)
    known = np.isfinite(scored.baseline)
    ends = {"before": scored.adjusted[known], "after": after[known]}
    document = frame(record)
    document["changed"] = {
        "schedule": [[rule.category, None, rule.differential] for rule in section.differentials],
        "mean_adjusted": {end: float(values.mean()) if len(values) else None for end, values in ends.items()},
        "n": int(known.sum()),
    }
    document["sign_changes"] = sign_changes(scored.adjusted, after)
    document["shares"] = {
        "category": {
            category: {
                end: float(w[scored.category == code].sum() / w.sum())
                for end, w in zip(("before", "after"), weights, strict=True)
            }
            for code, category in enumerate(scored.categories)
        }
    }
    document["why"] = (
        "its sessions have no groups: no ranks, no advantages and no leverage; the shares are of loss weights"
    )
    mean = document["changed"]["mean_adjusted"]
    if mean["after"] is None:
        return document | {"verdict": "Nothing is replayed: no session has a margin."}
    document["verdict"] = (
        f"The mean adjusted margin of {int(known.sum()):,} sessions is {mean['after']:.4g} instead of "
        f"{mean['before']:.4g}; a positive gain never changes its sign. This is {LIMIT}."
    )
    return document
