"""The trained model as the stages see it: token batches in, log-probabilities out, over any causal LM."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.models.flat import NAME as FLAT
from rlhf.models.flat import Layout, flat_reach, head_is_all
from rlhf.ops.logprobs import PolicyOutput, aligned, entropy, gather_logprobs, predictors, scatter
from rlhf.reference.policy import quiet

BASE_FOLDER = "base"
ADAPTER_FILE = "adapter_model.safetensors"
_log = logging.getLogger(__name__)
LANGUAGE = frozenset({"logps", "logits", "entropy"})


class Policy(nn.Module):
    """A causal LM, full or with a LoRA adapter.

    Padding may stand on either side: positions are counted from each row's first real token. `model` is the wrapped
    transformers or peft model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        core = self._core()
        self._takes_positions = "position_ids" in inspect.signature(core.forward).parameters
        self._shortcuts: tuple[int, bool] | None = None
        # An embedding gives its padding row no gradient, and many models pad with their end token: it must be learned
        # where it is real. Positions that are padding are outside every mask and need no such protection.
        embeddings = core.get_input_embeddings()
        if getattr(embeddings, "padding_idx", None) is not None:
            embeddings.padding_idx = None

    def _core(self) -> Any:
        """The transformers model, under the adapter where there is one."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def config(self) -> Any:
        """The transformers configuration of the model."""
        return self._core().config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter is trained, the rest being frozen."""
        return hasattr(self.model, "peft_config")

    def forward(
        self, tokens: TokenBatch, need: frozenset[str] = frozenset({"logps"}), temperature: float = 1.0
    ) -> PolicyOutput:
        """What `need` names of: logps, logits, entropy. The others are None.

        Shapes: logps_BT, entropy_BT, 0 outside `tokens.mask_BT`; logits_BTV, every position; index t speaks of token t.
        Units: nats; logps and entropy of softmax(logits / temperature), logits as the model gives them.
        """
        self._check(need, LANGUAGE)
        if "logits" in need:
            return self._with_logits(self._core()(**self._inputs(tokens)).logits, tokens, need, temperature)
        layout = self._layout(tokens)
        inputs = self._inputs(tokens) if layout is None else layout.inputs(tokens)
        mask = tokens.mask_BT if layout is None else layout.flat(tokens.mask_BT)
        if self._tried()[1]:
            states = self._core().base_model(**inputs).last_hidden_state
            logits_XV = self._core().get_output_embeddings()(predictors(states, mask))
        else:
            logits_XV = predictors(self._core()(**inputs).logits, mask)
        return _of_counted(logits_XV, tokens, need, temperature)

    def _with_logits(
        self, logits_BTV: Tensor, tokens: TokenBatch, need: frozenset[str], temperature: float
    ) -> PolicyOutput:
        output = PolicyOutput()
        if need & {"logps", "entropy"}:
            output = _of_counted(predictors(logits_BTV, tokens.mask_BT), tokens, need, temperature)
        return output._replace(logits_BTV=aligned(logits_BTV)) if "logits" in need else output

    def _layout(self, tokens: TokenBatch) -> Layout | None:
        """Where the model takes this batch without its padding: the layout."""
        return Layout.of(tokens) if tokens.ids_BT.shape[1] <= self._tried()[0] else None

    def _tried(self) -> tuple[int, bool]:
        """How long flat rows may be, and whether the head can be applied alone; found out once per attention."""
        changed = self._shortcuts is not None and self._shortcuts[0] and self.config._attn_implementation != FLAT
        if self._shortcuts is None or changed:
            core = self._core()
            with torch.autocast(self.device.type, enabled=False), quiet(self.model):
                self._shortcuts = (flat_reach(core) if self._takes_positions else 0, head_is_all(core))
            if not self._shortcuts[0]:
                _log.info("%s is given padded rows: it does not take flat ones", type(core).__name__)
        return self._shortcuts

    def _inputs(self, tokens: TokenBatch) -> dict[str, Any]:
        inputs = {"input_ids": tokens.ids_BT, "attention_mask": tokens.attention_BT.long(), "use_cache": False}
        if self._takes_positions:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        return inputs

    def _check(self, need: frozenset[str], known: frozenset[str]) -> None:
        if not need or not need <= known:
            raise ValueError(f"{type(self).__name__} gives {sorted(known)}, asked for {sorted(need)}")

    @contextmanager
    def disabled_adapter(self) -> Iterator[None]:
        """The model as it was before its adapter: the reference policy of a LoRA run.

        Raises: ConfigError without an adapter.
        """
        if not self.has_adapter:
            raise ConfigError("reference.source adapter_off needs model.use_peft: there is no adapter to switch off")
        with self.model.disable_adapter():
            yield

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time, the same gradients."""
        self._core().gradient_checkpointing_enable({"use_reentrant": False})

    def disable_dropout(self) -> None:
        """Switch off all dropout, the adapter's too, for objectives that compare two passes over one text."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in list(vars(module).items()):
                if name.endswith("dropout") and isinstance(value, float):
                    setattr(module, name, 0.0)

    def save(self, folder: Path | str, tokenizer: Any = None) -> None:
        """Write the weights with `save_pretrained`; of a LoRA model the adapter only.

        With a tokenizer the folder is complete: `load_policy` reads it, and for an adapter over a model that is in no
        folder of its own (the built-in model, a merged adapter) that model is put into the sub-folder `base`. Without
        one it holds what `load_weights` needs.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with without_progress_bars():
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
                if self.has_adapter and not self._adapter_config().base_model_name_or_path:
                    self._save_base(folder / BASE_FOLDER)
            self.model.save_pretrained(folder)

    def load_weights(self, folder: Path | str) -> None:
        """Read back in place what `save` wrote, bit for bit.

        Raises: ConfigError when the folder is missing or holds other weights than this model's.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder of weights")
        if self.has_adapter:
            self._load_adapter(folder)
        else:
            self._load_model(folder)

    def _adapter_config(self) -> Any:
        return self.model.peft_config[self.model.active_adapter]

    def _load_model(self, folder: Path) -> None:
        # Through from_pretrained, because save_pretrained renames and splits the weights of some architectures.
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder}: no model is saved here (there is no config.json)")
        with without_progress_bars():
            saved, report = type(self.model).from_pretrained(  # type: ignore[attr-defined]
                folder, dtype=self.model.dtype, output_loading_info=True, local_files_only=True
            )
        wrong = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind]]
        self._same_shapes(saved.state_dict(), self.model.state_dict(), folder, wrong)
        self.model.load_state_dict(saved.state_dict())

    def _load_adapter(self, folder: Path) -> None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        if not (folder / ADAPTER_FILE).is_file():
            raise ConfigError(f"{folder}: no adapter is saved here (there is no {ADAPTER_FILE})")
        saved, name = load_file(folder / ADAPTER_FILE), self.model.active_adapter
        self._same_shapes(saved, get_peft_model_state_dict(self.model, adapter_name=name), folder, [])
        set_peft_model_state_dict(self.model, saved, adapter_name=name)

    @staticmethod
    def _same_shapes(saved: dict[str, Tensor], own: dict[str, Tensor], folder: Path, wrong: list[str]) -> None:
        wrong = wrong + sorted(set(saved) ^ set(own))
        wrong += [key for key in sorted(set(saved) & set(own)) if saved[key].shape != own[key].shape]
        if wrong:
            raise ConfigError(f"{folder}: holds the weights of another model ({len(wrong)} differ, first {wrong[0]})")

    def _save_base(self, folder: Path) -> None:
        """The frozen model alone: its state without the adapter's tensors and wrapper names."""
        state = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self._core().state_dict().items()
            if ".lora_" not in name
        }
        self._core().save_pretrained(folder, state_dict=state)


def _of_counted(logits_XV: Tensor, tokens: TokenBatch, need: frozenset[str], temperature: float) -> PolicyOutput:
    mask_BT = tokens.mask_BT
    logps_BT = entropy_BT = None
    if "logps" in need:
        logps_BT = scatter(gather_logprobs(logits_XV, tokens.ids_BT[mask_BT], temperature), mask_BT)
    if "entropy" in need:
        # `entropy` takes aligned rows, in which position 0 predicts nothing: one is put before the counted ones.
        row_XV = torch.cat([logits_XV[:1], logits_XV])
        entropy_BT = scatter(entropy(row_XV[None], temperature)[0, 1:], mask_BT)
    return PolicyOutput(logps_BT=logps_BT, entropy_BT=entropy_BT)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers' bars off the terminal, which belongs to the run's own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
