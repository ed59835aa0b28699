"""What can be read from a trainer without importing it: its configuration, its mode, its ranks, its advantages.

Everything is asked of objects that TRL and transformers hand to reward functions and callbacks, and is None where an
object does not answer.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.errors import ConfigError

PACKAGES = ("rlhf-ledger", "trl", "transformers", "torch", "accelerate", "datasets", "peft", "vllm", "pyarrow")


def trainer_of(arguments: Mapping[str, Any]) -> Any:
    """The trainer behind a call of a reward function: TRL passes one of its methods, `log_extra`."""
    found = getattr(arguments.get("log_extra"), "__self__", None)
    return found if hasattr(found, "model") and hasattr(found, "args") else None


def training(model: Any) -> bool | None:
    """Whether the model is in training mode: what TRL itself decides by whether a batch is trained on."""
    found = getattr(model, "training", None)
    return found if isinstance(found, bool) else None


def pipeline_of(arguments: Any) -> str | None:
    """Kind of training by the name of TRL's configuration class: GRPOConfig gives `grpo`."""
    for kind in type(arguments).__mro__:
        if kind.__module__.split(".")[0] == "trl" and kind.__name__.endswith("Config"):
            return kind.__name__.removesuffix("Config").lower()
    return None


def configuration(arguments: Any) -> dict[str, Any] | None:
    """The trainer's arguments in JSON's types; they hide tokens themselves."""
    if not hasattr(arguments, "to_dict"):
        return None
    plain: dict[str, Any] = json.loads(json.dumps(arguments.to_dict(), default=str))
    return plain


def digest(config: Mapping[str, Any] | None) -> str | None:
    """Short digest of a configuration."""
    if config is None:
        return None
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def generations(source: Any, split: str) -> int | None:
    """Completions of one prompt, as a trainer or its arguments say."""
    names = ("num_generations_eval", "num_generations") if split == "eval" else ("num_generations",)
    return next((n for name in names if isinstance(n := getattr(source, name, None), int) and n > 0), None)


def stop_tokens(trainer: Any) -> set[int] | None:
    """The tokens by which a response may end, as TRL tells a truncated one: end of sequence, and padding."""
    ends = getattr(trainer, "eos_token_ids", None)
    processor = getattr(trainer, "processing_class", None)
    pad = getattr(getattr(processor, "tokenizer", processor), "pad_token_id", None)
    if not isinstance(ends, list):
        return None
    return {*ends, pad} - {None}


def clip_range(trainer: Any) -> tuple[float, float] | None:
    """The bounds into which RLOO brings the weighted sum of the rewards."""
    found = getattr(trainer, "reward_clip_range", None)
    return (float(found[0]), float(found[1])) if found else None


def advantages(trainer: Any, completions: Sequence[Any], rank: int, world: int) -> list[float] | None:
    """The advantages of a rank's last training batch, from what the trainer keeps to log it.

    None unless the completions that the trainer keeps at their places are these.
    """
    try:
        kept, values = trainer._logs["completion"], trainer._logs["advantages"]
        first = len(values) - (world - rank) * len(completions)
        place = slice(first, first + len(completions))
        if first < 0 or len(kept) != len(values) or list(kept)[place] != list(completions):
            return None
        return [float(value) for value in list(values)[place]]
    except (AttributeError, KeyError, TypeError, ValueError):  # another version keeps them elsewhere
        return None


# -- ranks -----------------------------------------------------------------------------------------------------------


def _group() -> Any:
    """torch.distributed where somebody else has loaded it and formed a group."""
    found = sys.modules.get("torch.distributed")
    return found if found is not None and found.is_available() and found.is_initialized() else None


def ranks() -> tuple[int, int]:
    """This process's rank, and how many there are.

    Raises: ConfigError where the environment speaks of several and they cannot talk to each other yet.
    """
    group = _group()
    if group is not None:
        return int(group.get_rank()), int(group.get_world_size())
    world = int(os.environ.get("WORLD_SIZE") or 1)
    if world > 1:
        raise ConfigError(
            f"this is one of {world} processes (WORLD_SIZE) and torch.distributed has no group yet, by which the ranks "
            "agree on an attempt; create the trainer before the first reward is asked for"
        )
    return 0, 1


def shared(value: Any) -> Any:
    """Rank 0's value, on all ranks."""
    group = _group()
    if group is None or group.get_world_size() == 1:
        return value
    box = [value]
    group.broadcast_object_list(box, src=0)
    return box[0]


def everyone() -> None:
    """Returns when all ranks have come here."""
    group = _group()
    if group is not None and group.get_world_size() > 1:
        group.barrier()
