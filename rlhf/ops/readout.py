"""From hidden states to log-probabilities through a language-model head, without logits for the whole batch.

The head is applied to blocks of counted positions. A block's logits are kept for the backward pass while all kept ones
stay below `KEEP` bytes and are computed again beyond that, so that memory does not grow with the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from rlhf.ops.logprobs import upcast

# Elements of the logits that are reduced at a time (16 MiB in float32), and bytes of them that backward may find again.
BLOCK = 1 << 22
KEEP = 1 << 28
# oneDNN, which multiplies half-precision matrices on a processor, prepares each new shape for about two milliseconds
# and holds on to it: lengths are rounded up to multiples of this, so that shapes come back.
STEP = 64
# Rows of a block of such a head: with what is left over, four shapes for all batches.
HALF_ROWS = 4 * STEP


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states: softcap * tanh(scale * (W h + b) / softcap), without tanh where softcap is 0.

    Shapes: weight_VH; bias_V or None. dtype: in which the products are computed.
    """

    weight_VH: Tensor
    bias_V: Tensor | None
    dtype: torch.dtype
    scale: float = 1.0
    softcap: float = 0.0

    def logits(self, states_XH: Tensor) -> Tensor:
        """Logits of some positions, with their graph. Shapes: returns logits_XV in `dtype`."""
        bias_V = None if self.bias_V is None else self.bias_V.to(self.dtype)
        raw_XV = linear(states_XH.to(self.dtype), self.weight_VH.to(self.dtype), bias_V)
        scaled_XV = raw_XV if self.scale == 1.0 else raw_XV * self.scale
        return torch.tanh(scaled_XV / self.softcap) * self.softcap if self.softcap else scaled_XV


class Readout(NamedTuple):
    """What was read of each position; None where it was not asked for.

    Shapes: logps_X of the given tokens; entropy_X of the distribution; collision_X = log sum_v p_v^2. Only logps_X has
    a gradient. Units: nats.
    """

    logps_X: Tensor
    entropy_X: Tensor | None = None
    collision_X: Tensor | None = None


def read(states_XH: Tensor, head: Head, ids_X: Tensor, temperature: float = 1.0, *, spread: bool = False) -> Readout:
    """Log-probability of `ids_X` under softmax(logits / temperature), and with `spread` entropy and collision.

    Shapes: states_XH of the positions that predict `ids_X`; values in float32 for half-precision products.
    Raises: ValueError when the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not positive")
    count = len(ids_X)
    filling = -count % STEP if _prepares_shapes(states_XH, head.dtype) else 0
    if filling:  # rows whose values are cut off below: their gradient is 0
        states_XH, ids_X = pad(states_XH, (0, 0, 0, filling)), pad(ids_X, (0, filling))
    with torch.autocast(states_XH.device.type, enabled=False):
        found = _Read.apply(  # type: ignore[no-untyped-call]
            states_XH, head.weight_VH, head.bias_V, ids_X, head, temperature, spread
        )
    logps_X, *rest = found
    return Readout(logps_X[:count], *(part if part is None else part[:count] for part in rest))


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_XH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        ids_X: Tensor,
        head: Head,
        temperature: float,
        spread: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        head = Head(weight_VH.to(head.dtype), _as(bias_V, head.dtype), head.dtype, head.scale, head.softcap)
        states_XH = states_XH.to(head.dtype)
        kept: list[Tensor | None] = []
        bytes_kept = 0
        parts: list[list[Tensor]] = [[], [], [], []]
        for states, ids in zip(*_blocks(states_XH, ids_X, head), strict=True):
            logits = head.logits(states)
            bytes_kept += logits.nbytes
            kept.append(logits if bytes_kept <= KEEP and any(ctx.needs_input_grad) else None)
            scaled = _scaled(logits, temperature)
            normaliser = scaled.logsumexp(dim=-1)
            parts[0].append(normaliser)
            parts[1].append(scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normaliser)
            if spread:
                entropy, collision = _spread(scaled, normaliser)
                parts[2].append(entropy)
                parts[3].append(collision)
        ctx.save_for_backward(states_XH, weight_VH, bias_V, ids_X, torch.cat(parts[0]))
        ctx.kept, ctx.temperature = kept, temperature
        ctx.dtype, ctx.scale, ctx.softcap = head.dtype, head.scale, head.softcap
        rest = [torch.cat(part) if spread else None for part in parts[2:]]
        ctx.mark_non_differentiable(*(part for part in rest if part is not None))
        return torch.cat(parts[1]), rest[0], rest[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        states_XH, weight_VH, bias_V, ids_X, normalisers_X = ctx.saved_tensors
        need_states, need_weight, need_bias = ctx.needs_input_grad[:3]
        head = Head(weight_VH.to(ctx.dtype), _as(bias_V, ctx.dtype), ctx.dtype, ctx.scale, ctx.softcap)
        grad_XH = torch.empty_like(states_XH) if need_states else None
        wide = torch.promote_types(weight_VH.dtype, torch.float32)
        grad_VH = torch.zeros_like(weight_VH, dtype=wide) if need_weight else None
        grad_V = torch.zeros_like(bias_V, dtype=wide) if need_bias else None
        start = 0
        for states, ids, logits in zip(*_blocks(states_XH, ids_X, head), ctx.kept, strict=True):
            here = slice(start, start + len(ids))
            logits = head.logits(states) if logits is None else logits
            slope = _slope(logits, ids, normalisers_X[here], grad_X[here], ctx)
            if grad_V is not None:
                grad_V += slope.sum(dim=0)
            slope = slope.to(ctx.dtype)
            if grad_XH is not None:
                torch.mm(slope, head.weight_VH, out=grad_XH[here])
            if grad_VH is not None:
                _accumulate(grad_VH, slope, states)
            start = here.stop
        return grad_XH, _as(grad_VH, weight_VH.dtype), _as(grad_V, weight_VH.dtype), None, None, None, None


def _prepares_shapes(states_XH: Tensor, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and states_XH.device.type == "cpu"


def _blocks(states_XH: Tensor, ids_X: Tensor, head: Head) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    rows = max(1, BLOCK // head.weight_VH.shape[0])
    if _prepares_shapes(states_XH, head.dtype):
        rows = min(HALF_ROWS, max(STEP, rows // STEP * STEP))
    return torch.split(states_XH, rows), torch.split(ids_X, rows)


def _scaled(logits_XV: Tensor, temperature: float) -> Tensor:
    return upcast(logits_XV) if temperature == 1.0 else upcast(logits_XV) / temperature


def _slope(logits_XV: Tensor, ids_X: Tensor, normalisers_X: Tensor, grad_X: Tensor, ctx: Any) -> Tensor:
    """Gradient with respect to W h + b: (one-hot - softmax) times what scale, soft cap and temperature do to it."""
    grad = (grad_X.to(normalisers_X.dtype) / ctx.temperature).unsqueeze(-1)
    slope = (_scaled(logits_XV, ctx.temperature) - normalisers_X.unsqueeze(-1)).exp_()
    slope.mul_(-grad).scatter_add_(-1, ids_X.unsqueeze(-1), grad)
    if ctx.softcap:
        slope.mul_(1 - (upcast(logits_XV) / ctx.softcap).square())
    return slope if ctx.scale == 1.0 else slope.mul_(ctx.scale)


def _accumulate(grad_VH: Tensor, slope_XV: Tensor, states_XH: Tensor) -> None:
    if slope_XV.dtype == grad_VH.dtype:
        grad_VH.addmm_(slope_XV.t(), states_XH)
    else:
        grad_VH += slope_XV.t() @ states_XH


def _spread(scaled_XV: Tensor, normaliser_X: Tensor) -> tuple[Tensor, Tensor]:
    probabilities_XV = (scaled_XV - normaliser_X.unsqueeze(-1)).exp_()
    # A token that cannot be drawn has a logit of -inf and adds nothing, where 0 * -inf would give NaN.
    mean_X = (probabilities_XV * scaled_XV.masked_fill(scaled_XV.isneginf(), 0.0)).sum(dim=-1)
    return normaliser_X - mean_X, probabilities_XV.square_().sum(dim=-1).log()


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
