"""From a configuration or a folder to a model and its tokenizer."""

from __future__ import annotations

import json
import logging
import socket
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards.errors import ConfigError
from rlhf.config import ModelSection
from rlhf.models.heads import RewardModel, read_head
from rlhf.models.policy import BASE_FOLDER, Policy, without_progress_bars
from rlhf.models.tiny import build_model, build_tokenizer

KEY = "model.model_name_or_path"
ADAPTER_CONFIG = "adapter_config.json"
_log = logging.getLogger(__name__)


def load_policy(
    section: ModelSection, *, texts: Iterable[str] | None = None, seed: int, device: torch.device | str | None = None
) -> tuple[Policy, Any]:
    """The policy a configuration names, and its tokenizer.

    `tiny` is the built-in model, its tokenizer made from `texts`; anything else is a folder or a hub id. A folder that
    holds only an adapter is that adapter merged into its base: a new stage starts from the policy it ended with, and
    a new adapter's switched-off state is that policy. The adapter's initial weights depend on `seed` alone.

    Raises: ConfigError, one line, for a model, tokenizer, chat template or extra that is not there.
    """
    name = section.model_name_or_path
    if name == "tiny":
        if texts is None:
            raise ConfigError(f"{KEY}: `tiny` makes its tokenizer from training data, and there is none here")
        tokenizer = build_tokenizer(texts, section.tiny_vocab_size)
        model: nn.Module = build_model(section, tokenizer, seed).to(getattr(torch, section.dtype))
    else:
        tokenizer = _load_tokenizer(section)
        model = _load_model(name, section)
    if section.chat_template_path is not None:
        tokenizer.chat_template = _read_template(Path(section.chat_template_path))
    if section.use_peft:
        model = _add_adapter(model, section, seed)
    return Policy(model if device is None else model.to(device)), tokenizer


def load_reward_model(
    folder: Path | str, *, device: torch.device | str | None = None, dtype: str = "float32"
) -> tuple[RewardModel, Any]:
    """A reward model that `RewardModel.save` wrote with its tokenizer, in eval mode; an adapter stays an adapter.

    Raises: ConfigError when the folder holds none.
    """
    folder = Path(folder)
    spec, _ = read_head(folder)
    section = ModelSection(model_name_or_path=str(folder), dtype=dtype)  # type: ignore[arg-type]
    model = RewardModel(_load_model(str(folder), section, merge=False), seed=0, spec=spec)
    model.load_weights(folder)
    return model.to(device or "cpu").eval(), _load_tokenizer(section)


def _load_model(name: str, section: ModelSection, *, merge: bool = True) -> Any:
    folder = Path(name)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return _load_adapter(folder, section, merge=merge)
    with without_progress_bars():
        model, report = _from_pretrained(
            AutoModelForCausalLM,
            name,
            section,
            dtype=section.dtype,
            attn_implementation=section.attn_implementation,
            output_loading_info=True,
        )
    if report["missing_keys"]:
        # transformers would give them random values and go on.
        raise ConfigError(
            f"{KEY}: `{name}` holds no causal LM: {sorted(report['missing_keys'])[0]} is not in its weights"
        )
    return model


def _load_adapter(folder: Path, section: ModelSection, *, merge: bool) -> nn.Module:
    peft = _import_peft(f"{folder} holds a LoRA adapter")
    base = folder / BASE_FOLDER
    name = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base.is_dir() and not name:
        raise ConfigError(f"{folder / ADAPTER_CONFIG}: names no base model, and there is no {base}")
    model = _load_model(str(base) if base.is_dir() else name, section)
    adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=not merge)
    if not merge:
        return adapted
    # Under an adapter everything else stood still; what it is merged into may be trained.
    merged = adapted.merge_and_unload().requires_grad_(True)
    # It equals no folder any more: whoever saves an adapter over it must save it too.
    merged.config._name_or_path = merged.name_or_path = ""
    return merged


def _add_adapter(model: nn.Module, section: ModelSection, seed: int) -> nn.Module:
    peft = _import_peft("model.use_peft")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=section.lora_target_modules,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers by a name that it has retired; nobody who runs this can do anything about it.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            raise ConfigError(f"model.lora_target_modules: {_one_line(error)}") from error


def _import_peft(what: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(f"{what}: needs peft; install it with `pip install 'rlhf-ledger[peft]'`") from error
    return peft


def _load_tokenizer(section: ModelSection) -> Any:
    name = section.model_name_or_path
    tokenizer = _from_pretrained(AutoTokenizer, name, section)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{KEY}: the tokenizer of `{name}` has no end token, so that no answer could end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        _log.warning("%s has no pad token: rows are filled up with %s, outside every mask", name, tokenizer.eos_token)
    return tokenizer


def _from_pretrained(auto: Any, name: str, section: ModelSection, **options: Any) -> Any:
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(name).is_dir():
        raise ConfigError(f"{KEY}: there is no folder {name}")
    in_folder = Path(name).is_dir()
    try:
        return auto.from_pretrained(
            name,
            revision=section.model_revision,
            trust_remote_code=section.trust_remote_code,
            local_files_only=in_folder or _hub_is_out_of_reach(),
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        where = "could not be read" if in_folder else "is no folder here and could not be had from the hub"
        raise ConfigError(f"{KEY}: `{name}` {where}: {_one_line(error)}") from error


def _hub_is_out_of_reach() -> bool:
    """Whether the hub's name has no address: then only its cache is asked, without a minute of retries."""
    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def _read_template(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"model.chat_template_path: there is no file {path}")
    return path.read_text(encoding="utf-8")


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
