"""A batch that was scored as session rows of the ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.errors import ConfigError
from rewards.recording.batches import Batch, total
from rewards.recording.reward_set import RewardSet, role_of
from rewards.recording.texts import prompt_id
from rewards.recording.trainer import clip_range, stop_tokens

# Fields of the data set that are taken over under the same name; others by `columns`.
TAKEN = ("category", "dataset_id", "prompt_id", "row_id")
MAPPED = (*TAKEN, "trajectory_id", "turn", "classification", "compliant")

# Columns that nothing a trainer hands to a reward function could fill, and why; told to readers by attempt_started.
_LOGPS = "reward functions and callbacks see no log-probabilities"
NOT_RECORDED = {
    **dict.fromkeys(("kl_nats", "kl_k3_nats", "log_ratio_nats", "logp_nats", "entropy_nats"), _LOGPS),
    "sampler_mismatch_max_nats": _LOGPS,
    "reference_id": "the trainer does not say which reference it holds the policy to",
    "prompt_tokens": "reward functions get the completion's tokens, not the prompt's",
    "sample_seed": "the trainer draws all completions from one generator",
}


@dataclass(frozen=True)
class Place:
    """Where a batch belongs. updates: optimizer steps behind the policy. groups: one id a completion."""

    step: int
    split: str
    updates: int | None
    groups: Sequence[str]
    group_size: int | None
    trainer: Any


def checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Ledger column -> field of the data set.

    Raises: ConfigError for a column that a data set cannot give.
    """
    chosen = dict(columns or {})
    for name in chosen:
        if name not in MAPPED:
            raise ConfigError(f"columns: `{name}` is none that a data set can give; those are {', '.join(MAPPED)}")
    return {**{name: name for name in TAKEN}, **chosen}


def rows_of(
    batch: Batch, functions: RewardSet, pipeline: str, columns: Mapping[str, str], whole: bool
) -> list[dict[str, Any]]:
    """One row a completion. whole: whether every function answered; without, there is no baseline reward."""
    place: Place = batch.place
    parts, weights = functions.parts, functions.weights
    scored = [(i, parts[i], batch.verdicts[i]) for i in sorted(batch.verdicts)]
    fields = _fields(batch, columns)
    lengths = _lengths(batch)
    bounds = clip_range(place.trainer)
    rows = []
    for row in range(len(batch)):
        components = [
            {
                "name": part.name,
                "raw": verdict.values[row],
                "value": verdict.values[row],
                "weight": weights[i],
                "role": role_of(weights[i]),
                "status": verdict.status[row],
                "scorer_id": part.scorer_id,
                "latency_ms": verdict.latency_ms,
            }
            for i, part, verdict in scored
        ]
        reward = total([v.values[row] for _, _, v in scored], [weights[i] for i, _, _ in scored]) if whole else None
        if reward is not None and bounds is not None:
            reward = min(max(reward, bounds[0]), bounds[1])
        rows.append(
            {
                "pipeline": pipeline,
                "split": place.split,
                "prompt_id": prompt_id(batch.prompts[row]),
                "group_id": place.groups[row],
                "group_size": place.group_size,
                "policy_version": place.updates,
                "baseline_reward": reward,
                "adjusted_reward": reward,
                "components": components,
                "prompt": batch.prompts[row],
                "response": batch.responses[row],
                **lengths[row],
                **{name: values[row] for name, values in fields.items() if values[row] is not None},
            }
        )
    return rows


def _fields(batch: Batch, columns: Mapping[str, str]) -> dict[str, list[Any]]:
    found = {}
    for name, field in columns.items():
        values = batch.arguments.get(field)
        if values is None:
            if name != field:
                raise ConfigError(f"columns: the data set has no field `{field}` for column `{name}`")
            continue
        if isinstance(values, list | tuple) and len(values) == len(batch):
            # A category may be coded as a number; in the ledger it is a name.
            found[name] = [str(v) if isinstance(v, int) and name == "category" else v for v in values]
    return found


def _lengths(batch: Batch) -> list[dict[str, Any]]:
    """Length and end of the responses. Units: tokens."""
    ids = batch.arguments.get("completion_ids")
    if ids is None or len(ids) != len(batch):
        return [{}] * len(batch)
    ends = stop_tokens(batch.place.trainer)
    if ends is None:
        return [{"response_tokens": len(tokens)} for tokens in ids]
    cut = [not len(tokens) or int(tokens[-1]) not in ends for tokens in ids]
    return [
        {"response_tokens": len(tokens), "truncated": was, "stop_reason": "length" if was else "stop"}
        for tokens, was in zip(ids, cut, strict=True)
    ]
