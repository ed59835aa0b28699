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


def checked_columns(columns: Mapping[str, str | None] | None) -> dict[str, str]:
    """Ledger column -> field of the data set; a column that is given None is left out.

    Raises: ConfigError for a column that a data set cannot give.
    """
    chosen = dict(columns or {})
    for name in chosen:
        if name not in MAPPED:
            raise ConfigError(f"columns: `{name}` is none that a data set can give; those are {', '.join(MAPPED)}")
    wanted = {**{name: name for name in TAKEN}, **chosen}
    return {name: field for name, field in wanted.items() if field is not None}


def rows_of(
    batch: Batch, functions: RewardSet, pipeline: str, columns: Mapping[str, str], whole: bool
) -> dict[str, Any]:
    """The batch's columns, one value a completion or one for all of them.

    whole: whether every function answered; without, there is no baseline reward.
    """
    place: Place = batch.place
    rewards = _rewards(batch, functions) if whole else None
    fields = _fields(batch, columns)
    ids = [prompt_id(prompt) for prompt in batch.prompts]
    if "prompt_id" in fields:
        ids = [own if given is None else given for own, given in zip(ids, fields["prompt_id"], strict=True)]
    return {
        "pipeline": pipeline,
        "split": place.split,
        **fields,
        "prompt_id": ids,
        "group_id": place.groups,
        "group_size": place.group_size,
        "policy_version": place.updates,
        "baseline_reward": rewards,
        "adjusted_reward": rewards,
        "components": _components(batch, functions),
        "prompt": batch.prompts,
        "response": batch.responses,
        **_lengths(batch),
    }


def _rewards(batch: Batch, functions: RewardSet) -> list[float | None]:
    by_function = [batch.verdicts[i].values for i in range(len(functions.parts))]
    sums = [total(values, functions.weights) for values in zip(*by_function, strict=True)]
    bounds = clip_range(batch.place.trainer)
    if bounds is None:
        return sums
    return [None if value is None else min(max(value, bounds[0]), bounds[1]) for value in sums]


def _components(batch: Batch, functions: RewardSet) -> Any:
    """What the functions that answered said, row by row in their order."""
    import pyarrow as pa

    from rewards.schema import COMPONENTS_TYPE

    scored = [(functions.parts[i], functions.weights[i], batch.verdicts[i]) for i in sorted(batch.verdicts)]
    n, each = len(batch), len(scored)
    values = [value for row in zip(*(verdict.values for _, _, verdict in scored), strict=True) for value in row]
    known = {
        "name": [part.name for part, _, _ in scored] * n,
        "raw": values,
        "value": values,
        "weight": [weight for _, weight, _ in scored] * n,
        "role": [role_of(weight) for _, weight, _ in scored] * n,
        "status": [status for row in zip(*(v.status for _, _, v in scored), strict=True) for status in row],
        "scorer_id": [part.scorer_id for part, _, _ in scored] * n,
        "latency_ms": [verdict.latency_ms for _, _, verdict in scored] * n,
    }
    kinds = list(COMPONENTS_TYPE.value_type)
    arrays = [pa.array(known.get(kind.name) or [None] * (n * each), kind.type) for kind in kinds]
    entries = pa.StructArray.from_arrays(arrays, fields=kinds)
    return pa.ListArray.from_arrays(pa.array(range(0, n * each + 1, each), pa.int32()), entries, type=COMPONENTS_TYPE)


def _fields(batch: Batch, columns: Mapping[str, str]) -> dict[str, list[Any]]:
    found = {}
    for name, field in columns.items():
        values = batch.arguments.get(field)
        if isinstance(values, list | tuple) and len(values) == len(batch):
            # A category may be coded as a number; in the ledger it is a name.
            found[name] = [str(v) if isinstance(v, int) and name == "category" else v for v in values]
            _check_names(name, field, values)
        elif name != field:
            raise ConfigError(f"columns: the data set has no field `{field}` for column `{name}`")
    return found


def _check_names(name: str, field: str, values: Sequence[Any]) -> None:
    """Raises ConfigError where a field of that name means something else than the ledger's column."""
    odd = next((v for v in values if v is not None and not isinstance(v, str | int)), None)
    if name in TAKEN and odd is not None:
        raise ConfigError(
            f"columns: the data set's field `{field}` holds {type(odd).__name__}, not names; give another one with "
            f"columns={{'{name}': FIELD}}, or leave it out with columns={{'{name}': None}}"
        )


def _lengths(batch: Batch) -> dict[str, Any]:
    """Length and end of the responses. Units: tokens."""
    ids = batch.arguments.get("completion_ids")
    if ids is None or len(ids) != len(batch):
        return {}
    lengths = [len(tokens) for tokens in ids]
    ends = stop_tokens(batch.place.trainer)
    if ends is None:
        return {"response_tokens": lengths}
    cut = [not len(tokens) or int(tokens[-1]) not in ends for tokens in ids]
    return {
        "response_tokens": lengths,
        "truncated": cut,
        "stop_reason": ["length" if was else "stop" for was in cut],
    }
