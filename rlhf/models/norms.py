"""Root mean square norms in four passes over memory instead of eleven on a processor, in one on a GPU.

transformers writes the norm out in single operations, each of which reads and writes the whole batch; that is a tenth
of a step of a small model. A module is only replaced where a trial shows that it computes one of the two known forms.

Under autocast what reads a layer's norm is matrix products, each of which would turn it into half precision and its
gradient back: a norm inside a layer gives it in half precision then. The last norm of a model stays as it is.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.functional import rms_norm

from rlhf.models.flat import close


class _RootMeanSquare(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * scale over the last dimension. Shapes: x (..., H), scale (H,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale_H: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        inverse = length.square_().div_(rows.shape[1]).add_(eps).rsqrt_()
        ctx.save_for_backward(rows, scale_H, inverse)
        return (rows * inverse).mul_(scale_H).to(dtype).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, scale_H, inverse = ctx.saved_tensors
        grad_rows, width = grad.reshape(rows.shape).to(rows.dtype), rows.shape[1]
        # The layer norm's own kernel, told that the mean is 0. It then subtracts the gradient of a mean that this norm
        # does not take; that part is put back.
        of_rows, of_scale, _ = torch.ops.aten.native_layer_norm_backward(
            grad_rows, rows, [width], torch.zeros_like(inverse), inverse, scale_H, None, [True, True, False]
        )
        of_rows.add_(torch.mv(grad_rows, scale_H).unsqueeze_(-1).mul_(inverse).div_(width))
        return of_rows.view(grad.shape), of_scale, None, None


def quicken_norms(core: nn.Module) -> int:
    """Gives the norms of a model the forward pass above where that changes nothing; returns how many."""
    found = 0
    for name, module in core.named_modules():
        known = _form(module)
        if known is not None:
            in_layer = any(part.isdecimal() for part in name.split("."))
            # A method, so that a copy of the module is bound to the copy.
            module.forward = MethodType(_forward(type(module).forward, *known, in_layer), module)  # type: ignore[method-assign]
            found += 1
    return found


def _forward(plain: Any, eps: float, offset: float, in_layer: bool) -> Any:
    def forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
        weight: Tensor = self.weight  # type: ignore[assignment]
        if hidden_states.dtype != torch.float32 or weight.dtype != torch.float32:
            return plain(self, hidden_states)  # type: ignore[no-any-return]
        scale, device = weight + offset if offset else weight, hidden_states.device.type
        half = in_layer and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else torch.float32
        if device != "cpu":
            return rms_norm(hidden_states, scale.shape, scale, eps).to(dtype)
        return _RootMeanSquare.apply(hidden_states, scale, eps, dtype)  # type: ignore[no-any-return, no-untyped-call]

    return forward


def _form(module: nn.Module) -> tuple[float, float] | None:
    """(eps, what is added to the weight) of a norm that computes the known form; None of any other module."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    if "forward" in vars(module) or not isinstance(eps, float) or len(list(module.parameters())) != 1:
        return None
    width = weight.shape[0]
    rows = torch.linspace(-1.0, 2.0, 3 * width).sin().view(3, width) * torch.tensor([[1.0], [30.0], [1e-3]])
    trial = torch.linspace(0.5, 1.5, width)
    with torch.no_grad():
        found = functional_call(module, {"weight": trial}, (rows,))
        for offset in (0.0, 1.0):
            if close(_RootMeanSquare.apply(rows, trial + offset, eps, rows.dtype), found):  # type: ignore[no-untyped-call]
                return eps, offset
    return None
