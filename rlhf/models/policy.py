"""The trained model as the stages see it: token batches in, log-probabilities out, over any causal LM."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.models.encoded import Encoded, HeadForm, compute_dtype, counted, head_form
from rlhf.models.flat import NAME as FLAT
from rlhf.models.flat import flat_reach, narrowing, shape_step
from rlhf.models.layout import Layout
from rlhf.models.narrow import LastLayer
from rlhf.models.norms import quicken_norms
from rlhf.models.projections import quicken_projections
from rlhf.models.rotary import quicken_rotations
from rlhf.ops.compared import Beside, Distributions, compare
from rlhf.ops.logprobs import PolicyOutput, gather_logprobs, position_collision, position_entropy, scatter
from rlhf.ops.readout import read
from rlhf.reference.policy import quiet

BASE_FOLDER = "base"
ADAPTER_FILE = "adapter_model.safetensors"
LANGUAGE = frozenset({"logps", "entropy", "collision", "divergence", "distributions"})


class Policy(nn.Module):
    """A causal LM, full or with a LoRA adapter.

    Padding may stand on either side: positions are counted from each row's first real token. `model` is the wrapped
    transformers or peft model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        core = self._core()
        arguments = inspect.signature(core.forward).parameters
        self._takes_positions = "position_ids" in arguments
        self._takes_kept_places = "logits_to_keep" in arguments
        self._shortcuts: tuple[int, HeadForm | None] | None = None
        self._last_layer: LastLayer | None = None
        # Here, so that sampling before the first pass rounds as sampling after it.
        quicken_norms(core)
        quicken_rotations(core)
        quicken_projections(core)
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
        self,
        tokens: TokenBatch,
        need: frozenset[str] = frozenset({"logps"}),
        temperature: float = 1.0,
        beside: Beside | None = None,
    ) -> PolicyOutput:
        """What `need` names of: logps, entropy, collision, divergence, distributions. The others are None.

        Shapes: logps_BT, entropy_BT, collision_BT, divergence_BT, 0 outside `tokens.mask_BT`; index t speaks of token
        t; distributions of the counted tokens in row order, not beside others. Only logps and the divergence, which is
        that from `beside`, have a gradient. No logits of a whole batch are made where the head can be applied alone.
        Units: nats, of softmax(logits / temperature); distributions are the model's.
        """
        self._check(need, LANGUAGE)
        return self._language(self._encode(tokens, language=True), need, temperature, beside)

    def _encode(self, tokens: TokenBatch, *, language: bool = False, last: bool = False) -> Encoded:
        """One pass of the backbone; with `language`, logits come with it where the head cannot be applied alone.

        last: each row's last state is read, else those that predict (language) or are the marked tokens; others are
        whatever the last layer makes of them.
        """
        reach, form = self.shortcuts()
        core = self._core()
        flat = int(tokens.attention_BT.sum(1).max()) <= reach
        layout = Layout.of(tokens, multiple=self._shape_step()) if flat else None
        inputs = self._inputs(tokens) if layout is None else layout.inputs(tokens)
        if form is not None or not language:
            with self._narrowed(tokens, layout, language=language, last=last):
                states = core.base_model(**inputs).last_hidden_state
            return Encoded(tokens, layout, states if layout is None else states[0])
        if layout is None or not self._takes_kept_places:
            output = core(**inputs, output_hidden_states=True)
            logits = output.logits if layout is None else output.logits[0]
            logits_XV = counted(logits, tokens, layout)
        else:
            keep = layout.predictors(tokens.mask_BT, tokens.attention_BT)
            output = core(**inputs, output_hidden_states=True, logits_to_keep=keep)
            logits_XV = output.logits[0]
        states = output.hidden_states[-1]
        return Encoded(tokens, layout, states if layout is None else states[0], logits_XV)

    @contextmanager
    def _narrowed(self, tokens: TokenBatch, layout: Layout | None, *, language: bool, last: bool) -> Iterator[None]:
        """The last layer works only where it is read, where that can be told apart."""
        # A checkpointed layer runs again in the backward pass, when another batch may be the one that is read.
        core = self._core()
        again = getattr(core, "is_activation_checkpointing", None)  # its name since transformers 5
        again = getattr(core, "is_gradient_checkpointing", False) if again is None else again
        if self._last_layer is None or layout is None or again or self._last_layer.drops():
            yield
            return
        read = [layout.last_B] if last else []
        if language:
            read.append(layout.predictors(tokens.mask_BT, tokens.attention_BT))
        elif not last:
            read.append(layout.at(tokens.mask_BT, tokens.attention_BT))
        rows_X = torch.cat(read)
        if not len(rows_X):  # every parameter keeps its place in the graph, which other ranks wait for
            yield
            return
        with self._last_layer.only(rows_X, len(layout.source_N), self._shape_step()):
            yield

    def _shape_step(self) -> int:
        """What the number of rows of this pass's matrices should be a multiple of."""
        return shape_step(self.device.type, compute_dtype(self.model))

    def _language(
        self, encoded: Encoded, need: frozenset[str], temperature: float, beside: Beside | None = None
    ) -> PolicyOutput:
        """What the language-model head says of the counted tokens."""
        if ("divergence" in need) != (beside is not None):
            raise ValueError("a divergence is one from `beside`, which is given where it is asked for and only there")
        form, mask_BT = self.shortcuts()[1], encoded.tokens.mask_BT
        ids_X = encoded.tokens.ids_BT[mask_BT]
        logits_XV, spread = encoded.logits_XV, bool(need & {"entropy", "collision"})
        head = form.of(self._core()) if form is not None and logits_XV is None else None
        if "distributions" in need or beside is not None:
            own = Distributions(encoded.counted(), head, logits_XV)
            if beside is None:
                # The parts of a sharded model let go of their whole weights after the pass.
                return PolicyOutput(distributions=own.detached(copied=isinstance(self, FSDPModule)))
            divergence_X, *rest = compare(own, beside, ids_X, temperature, logps="logps" in need, spread=spread)
            return _placed(need, mask_BT, *rest)._replace(divergence_BT=scatter(divergence_X, mask_BT))
        if head is not None:
            return _placed(need, mask_BT, *read(encoded.counted(), head, ids_X, temperature, spread=spread))
        assert logits_XV is not None
        logps_X = gather_logprobs(logits_XV, ids_X, temperature) if "logps" in need else None
        with torch.no_grad():
            entropy_X = position_entropy(logits_XV, temperature) if "entropy" in need else None
            collision_X = position_collision(logits_XV, temperature) if "collision" in need else None
        return _placed(need, mask_BT, logps_X, entropy_X, collision_X)

    def shortcuts(self) -> tuple[int, HeadForm | None]:
        """How long flat rows may be, and how the head makes logits; found out once per attention implementation."""
        changed = self._shortcuts is not None and self._shortcuts[0] and self.config._attn_implementation != FLAT
        if self._shortcuts is None or changed:
            core = self._core()
            with torch.autocast(self.device.type, enabled=False), quiet(self.model):
                self._shortcuts = (flat_reach(core) if self._takes_positions else 0, head_form(core))
                if self._last_layer is None and self._shortcuts[0]:
                    self._last_layer = narrowing(core)
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


def _placed(
    need: frozenset[str], mask_BT: Tensor, logps_X: Tensor | None, entropy_X: Tensor | None, collision_X: Tensor | None
) -> PolicyOutput:
    found = {"logps": logps_X, "entropy": entropy_X, "collision": collision_X}
    values = {f"{name}_BT": scatter(part, mask_BT) for name, part in found.items() if name in need and part is not None}
    return PolicyOutput(**values)


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
