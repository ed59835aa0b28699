"""Copies of a configured model with few layers and random weights: what a layer costs is the difference of two."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rewards.errors import ConfigError
from rlhf.config import ModelSection
from rlhf.models.load import ADAPTER_CONFIG, load_policy
from rlhf.models.policy import BASE_FOLDER, without_progress_bars

_log = logging.getLogger(__name__)
# With fewer layers than this a backward pass has no beginning that can be told from its end.
LEAST_LAYERS = 2


@dataclass(frozen=True)
class Shallow:
    """Where a copy lies, and how many layers it and the whole model have."""

    folder: Path
    layers: int


def depths(section: ModelSection) -> tuple[int, int, int]:
    """Layers of the two copies and of the model itself. Layers of several kinds are taken in whole periods."""
    if section.model_name_or_path == "tiny":
        return LEAST_LAYERS, 2 * LEAST_LAYERS, section.tiny_num_layers
    text = _config(section).get_text_config()
    period = _period(list(getattr(text, "layer_types", None) or ["one"]))
    least = period * -(-LEAST_LAYERS // period)
    return least, 2 * least, int(text.num_hidden_layers)


def _period(kinds: list[str]) -> int:
    for period in range(1, len(kinds)):
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds)):
            return period
    return len(kinds)


def make(section: ModelSection, layers: int, texts: Iterable[str], seed: int, folder: Path) -> ModelSection:
    """Writes a copy with `layers` layers and gives the section that loads it.

    Raises: ConfigError where the model's configuration or tokenizer cannot be had.
    """
    plain = {"use_peft": False, "chat_template_path": None}
    if section.model_name_or_path == "tiny":
        small = section.model_copy(update={**plain, "tiny_num_layers": layers})
        policy, tokenizer = load_policy(small, texts=texts, seed=seed)
        policy.save(folder, tokenizer)
    else:
        with torch.random.fork_rng(devices=[]), without_progress_bars():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                _cut(_config(section), layers),
                dtype=getattr(torch, section.dtype),
                trust_remote_code=section.trust_remote_code,
            )
            model.save_pretrained(folder)
        _read(AutoTokenizer, section).save_pretrained(folder)
    return section.model_copy(update={"model_name_or_path": str(folder), "model_revision": None})


def _config(section: ModelSection) -> Any:
    return _read(AutoConfig, section)


def _read(auto: Any, section: ModelSection) -> Any:
    name = _base(section.model_name_or_path)
    try:
        return auto.from_pretrained(name, revision=section.model_revision, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"model.model_name_or_path: `{name}` cannot be read: {first}") from error


def _base(name: str) -> str:
    """The model under an adapter, where the folder holds only that."""
    folder = Path(name)
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return name
    if (folder / BASE_FOLDER).is_dir():
        return str(folder / BASE_FOLDER)
    return str(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])


def _cut(config: Any, layers: int) -> Any:
    """The configuration of the first `layers` layers; lists with an entry a layer are cut too."""
    values = config.to_dict()
    for part in (values, *(value for value in values.values() if isinstance(value, dict))):
        count = part.get("num_hidden_layers", part.get("n_layer", part.get("num_layers")))
        if not isinstance(count, int):
            continue
        for key, value in list(part.items()):
            if key in ("num_hidden_layers", "n_layer", "num_layers"):
                part[key] = layers
            elif isinstance(value, list) and len(value) == count:
                part[key] = (value * -(-layers // count))[:layers]
    return type(config).from_dict(values)
