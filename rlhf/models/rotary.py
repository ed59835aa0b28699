"""Rotary positions in five passes over queries and keys instead of about twenty.

transformers writes the rotation out in single operations on tensors of two precisions, each of which is converted for
each of them. An attention module is only given the rotation below where a trial shows that its own is that one.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf.models.flat import close

# What the modules of transformers call; it is found among the globals of their forward pass.
NAME = "apply_rotary_pos_emb"


class _Rotate(torch.autograd.Function):
    """x cos + (-second half of x, first half of x) sin.

    Shapes: query, key (B, heads, T, D); cos, sin (B or 1, T, D).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turned(query, cos, sin), _turned(key, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(of_query, cos, sin, back=True), _turned(of_key, cos, sin, back=True), None, None


def _turned(states: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """The rotation or its transpose, computed in the precision of `cos`, in the precision and layout of the states."""
    # Heads are innermost where a projection made the states, and two halves of a head are two rows.
    given = states.transpose(1, 2).to(cos.dtype).unflatten(-1, (2, -1))
    cos, sin = (part.unsqueeze(2).unflatten(-1, (2, -1)) for part in (cos, sin))
    result = given * cos
    (first, second), (to_first, to_second), (sin_first, sin_second) = (
        part.unbind(dim=3) for part in (given, result, sin)
    )
    if back:
        to_first.addcmul_(second, sin_second)
        to_second.addcmul_(first, sin_first, value=-1)
    else:
        to_first.addcmul_(second, sin_first, value=-1)
        to_second.addcmul_(first, sin_second)
    return result.flatten(3).to(states.dtype).transpose(1, 2)


def quicken_rotations(core: nn.Module) -> int:
    """Gives the attention modules of a model the rotation above where that changes nothing; returns how many."""
    found = 0
    known: dict[Any, Any] = {}
    for module in core.modules():
        plain = type(module).forward
        if NAME not in getattr(getattr(plain, "__code__", None), "co_names", ()) or "forward" in vars(module):
            continue
        if plain not in known:
            own = plain.__globals__.get(NAME)  # type: ignore[attr-defined]
            known[plain] = _with(plain, own) if callable(own) and _is_the_known(own) else None
        if known[plain] is not None:
            # A method, so that a copy of the module is bound to the copy.
            module.forward = MethodType(known[plain], module)  # type: ignore[method-assign]
            found += 1
    return found


def _with(plain: Any, own: Any) -> FunctionType:
    """A module's forward pass with the rotation above, which leaves what it is not meant for to the module's own."""

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> Any:
        if rest or named or not _suits(query, key, cos):
            return own(query, key, cos, sin, *rest, **named)
        return _Rotate.apply(query, key, cos, sin)  # type: ignore[no-untyped-call]

    seen = {**plain.__globals__, NAME: rotate}
    forward = FunctionType(plain.__code__, seen, plain.__name__, plain.__defaults__, plain.__closure__)
    forward.__kwdefaults__ = plain.__kwdefaults__
    return forward


def _suits(query: Tensor, key: Tensor, cos: Tensor) -> bool:
    """Whether single precision turns whole heads here, of states in it or in what autocast would make of them."""
    dtype, width = query.dtype, query.shape[-1]
    device = query.device.type
    half = torch.is_autocast_enabled(device) and dtype == torch.get_autocast_dtype(device)
    return (
        cos.dtype == torch.float32
        and (dtype == torch.float32 or half)
        and key.dtype == dtype
        and query.ndim == 4
        and cos.ndim == 3
        and cos.shape[-1] == width == key.shape[-1]
        and width % 2 == 0
    )


def _is_the_known(own: Any) -> bool:
    """Whether a function rotates as above, tried on a few numbers whose halves differ."""
    draw = torch.linspace(-1.0, 2.0, 2 * 3 * 5 * 8).sin().view(2, 3, 5, 8)
    query, key, cos, sin = draw, draw[:, :1] * 2.0 - 0.3, draw[:, 1].cos(), draw[:, 2].tan()
    try:
        found = own(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError):  # a rotation of another kind takes other things
        return False
    wanted = _turned(query, cos, sin), _turned(key, cos, sin)
    return len(found) == 2 and all(close(one, two) for one, two in zip(wanted, found, strict=True))
