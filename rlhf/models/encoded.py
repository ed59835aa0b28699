"""What a backbone makes of a batch, flat or padded, and how a language-model head reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.batch import TokenBatch
from rlhf.models.flat import close, padded_inputs, trial_batch
from rlhf.models.layout import Layout
from rlhf.ops.logprobs import predictors
from rlhf.ops.readout import Head


@dataclass(frozen=True)
class Encoded:
    """Hidden states of a batch: (N, H) where it was read flat, else (B, T, H); logits_XV where no head could wait."""

    tokens: TokenBatch
    layout: Layout | None
    states: Tensor
    logits_XV: Tensor | None = None

    def counted(self) -> Tensor:
        """States that predict the counted tokens, in row order. Shapes: returns states_XH."""
        return counted(self.states, self.tokens, self.layout)

    def last(self) -> Tensor:
        """The state at each row's last real token. Shapes: returns states_BH."""
        if self.layout is not None:
            return self.states[self.layout.last_B]
        index_T = torch.arange(self.tokens.attention_BT.shape[1], device=self.states.device)
        last_B = torch.where(self.tokens.attention_BT, index_T, -1).amax(dim=1)
        return self.states[torch.arange(self.tokens.size, device=self.states.device), last_B]

    def at(self, where_BT: Tensor) -> Tensor:
        """States at the marked real tokens, in row order. Shapes: returns states_XH."""
        if self.layout is not None:
            return self.states[self.layout.at(where_BT, self.tokens.attention_BT)]
        return self.states[where_BT]


def counted(values: Tensor, tokens: TokenBatch, layout: Layout | None) -> Tensor:
    """Of values at every position (N, ...) or (B, T, ...), those that predict the counted tokens."""
    if layout is None:
        return predictors(values, tokens.mask_BT)
    return values.index_select(0, layout.predictors(tokens.mask_BT, tokens.attention_BT))


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The precision in which matrices are multiplied now: autocast's, or that of the module's weights."""
    weight = next(module.parameters())
    if torch.is_autocast_enabled(weight.device.type) and weight.dtype == torch.float32:
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


@dataclass(frozen=True)
class HeadForm:
    """That logits are scale * (W h + b) with a soft cap, 0 for none."""

    scale: float
    softcap: float

    def of(self, core: Any) -> Head:
        """The head as it is now, in the precision of compute."""
        linear = core.get_output_embeddings()
        return Head(linear.weight, linear.bias, compute_dtype(linear), self.scale, self.softcap)


def head_form(core: Any) -> HeadForm | None:
    """What the model does with its head's output, tried on a few rows; None where it is none of the known things."""
    linear, inputs = core.get_output_embeddings(), padded_inputs(trial_batch(core))
    if type(linear) is not nn.Linear:  # an adapted one has weights that a plain product would miss
        return None
    states, wanted = core.base_model(**inputs).last_hidden_state, core(**inputs).logits
    config = core.config.get_text_config()
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    times, over = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    scales = [1.0, *([float(times)] if times else []), *([1.0 / float(over)] if over else [])]
    for form in (HeadForm(scale, cap) for scale in scales for cap in sorted({0.0, softcap})):
        found = form.of(core).logits(states)
        if close(found, wanted):
            return form
    return None
