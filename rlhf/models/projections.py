"""Queries, keys and values of a layer in one product, in half precision on a processor.

Three narrow products read the same states three times, and their gradients are three tensors to add up. The modules
stay what they are: the first of them that is called with some states computes for all three, the others hand it out.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

_NAMES = ("q_proj", "k_proj", "v_proj")
# Where the first of them finds the others, and these what it has computed for them.
OTHERS, READY = "_projected_with", "_projected"


class _Joint(torch.autograd.Function):
    """states W^T for several W. Shapes: states (..., H), weights (out, H) each; returns (..., out) each."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        rows = states.reshape(-1, states.shape[-1]).to(dtype)
        ctx.sizes = [len(weight) for weight in weights]
        whole = rows.new_empty(sum(ctx.sizes), rows.shape[1])
        for part, weight in zip(whole.split(ctx.sizes), weights, strict=True):
            part.copy_(weight)
        ctx.save_for_backward(rows, whole)
        ctx.given, ctx.dtypes = (states.shape, states.dtype), [weight.dtype for weight in weights]
        return (rows @ whole.t()).view(*states.shape[:-1], -1).split(ctx.sizes, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, whole = ctx.saved_tensors
        grad = torch.cat([part.reshape(len(rows), -1) for part in grads], dim=1)
        shape, dtype = ctx.given
        of_states = (grad @ whole).view(shape).to(dtype) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):
            return of_states, None, *(None for _ in grads)
        parts = zip((grad.t() @ rows).split(ctx.sizes), ctx.dtypes, strict=True)
        return of_states, None, *(part.to(own) for part, own in parts)


def quicken_projections(core: nn.Module) -> int:
    """Gives the attention modules of a model the product above; returns how many.

    The last layer keeps its own: its queries are only computed where they are read.
    """
    found = 0
    for stack in (module for module in core.modules() if isinstance(module, nn.ModuleList)):
        for layer in list(stack)[:-1]:
            modules = [getattr(getattr(layer, "self_attn", None), name, None) for name in _NAMES]
            if all(_is_plain(module) for module in modules):
                _join(modules)
                found += 1
    return found


def _is_plain(module: Any) -> bool:
    """A linear layer without a bias whose forward pass is its own, or that of another policy over the model."""
    if type(module) is not nn.Linear or module.bias is not None:
        return False
    replaced = vars(module).get("forward")
    return replaced is None or getattr(replaced, "__func__", None) in (_for_all, _handed_out)


def _join(modules: list[Any]) -> None:
    first, *others = modules
    # Beside the registered modules, of which these are no part. A method, so that a copy of a module is bound to it.
    vars(first)[OTHERS] = tuple(others)
    first.forward = MethodType(_for_all, first)
    for module in others:
        module.forward = MethodType(_handed_out, module)


def _for_all(self: Any, states: Tensor) -> Tensor:
    """The first module's own result; those of the others are left with them."""
    others = vars(self)[OTHERS]
    weights = [module.weight for module in (self, *others)]
    device = states.device.type
    if device != "cpu" or not torch.is_autocast_enabled(device) or any(type(w) is not nn.Parameter for w in weights):
        return linear(states, self.weight)
    own, *results = _Joint.apply(states, torch.get_autocast_dtype(device), *weights)  # type: ignore[no-untyped-call]
    for module, result in zip(others, results, strict=True):
        vars(module)[READY] = (states, result)
    return own  # type: ignore[no-any-return]


def _handed_out(self: Any, states: Tensor) -> Tensor:
    known, result = vars(self).pop(READY, (None, None))
    return result if known is states else linear(states, self.weight)
