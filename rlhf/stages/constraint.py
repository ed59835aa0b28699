"""Opens the reference that a configuration names; every pipeline comes here for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch, to_device
from rlhf.config import ModelSection, ReferenceSection
from rlhf.config.constraint import FOLLOWING
from rlhf.models.load import KEY, load_policy
from rlhf.models.policy import Policy
from rlhf.reference.following import Following
from rlhf.reference.policy import AdapterOff, FrozenCopy, Reference
from rlhf.reference.precomputed import Fingerprint, Precomputed, tokens_digest
from rlhf.stages.work import Run


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's vocabulary and rules, and of its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(json.dumps([rules, tokenizer.chat_template]).encode()).hexdigest()


def open_reference(
    run: Run,
    section: ReferenceSection,
    policy: Policy,
    batches: Callable[[], Iterable[TokenBatch]] | None = None,
) -> Reference:
    """The reference, made from the policy as it is now, which is how the stage starts.

    batches: all texts that will be scored, for source `precomputed`; each call gives them anew.
    Raises: ConfigError for a source that the stage or the policy cannot have.
    """
    source = section.source or ("adapter_off" if policy.has_adapter and section.reference_model is None else "frozen")
    if source == "none":
        raise ConfigError("reference.source is `none`, and this run needs a reference")
    if source in FOLLOWING:
        return _following(run, section, policy, source)
    live: Reference
    if source == "adapter_off":
        live = AdapterOff(policy, run.accelerator.autocast)
    elif section.reference_model is not None:
        live = FrozenCopy(_other_model(run, section.reference_model), run.accelerator.autocast)
    else:
        live = FrozenCopy.of(policy, run.accelerator.autocast)
    if source != "precomputed":
        return live
    if batches is None:
        raise ConfigError("reference.source is `precomputed`, which needs texts that are known in advance")
    return _precomputed(run, section, live, batches)


def _following(run: Run, section: ReferenceSection, policy: Policy, source: str) -> Following:
    if source == "ema":
        return Following(policy, source, 1.0 - section.ema_decay, context=run.accelerator.autocast)
    every = section.ref_model_sync_steps
    return Following(policy, source, section.ref_model_mixup_alpha, every, run.accelerator.autocast)


def _other_model(run: Run, name: str) -> Policy:
    section = ModelSection(model_name_or_path=name, dtype=run.config.model.dtype)
    try:
        other, tokenizer = load_policy(section, seed=run.config.train.seed, device=run.accelerator.device)
    except ConfigError as error:
        raise ConfigError(str(error).replace(KEY, "reference.reference_model")) from error
    if tokenizer.get_vocab() != run.tokenizer.get_vocab():
        raise ConfigError(
            f"reference.reference_model {name} has another vocabulary than the policy: "
            "its log-probabilities are those of other tokens"
        )
    return other


def _precomputed(
    run: Run, section: ReferenceSection, live: Reference, batches: Callable[[], Iterable[TokenBatch]]
) -> Reference:
    precision = f"{run.config.model.dtype}/{run.accelerator.mixed_precision}"
    fingerprint = Fingerprint(live.identity, tokens_digest(batches()), tokenizer_digest(run.tokenizer), precision)
    folder = Path(section.cache_dir) if section.cache_dir else run.output_dir / "reference"
    device = run.accelerator.device
    # The main rank computes and writes; the others then read the whole column.
    with run.accelerator.main_process_first():
        return Precomputed.build(
            live,
            (to_device(batch, device) for batch in batches()),
            fingerprint,
            folder,
            lambda line: run.say([line]),
        )
