"""The last layer's work only at the positions that are read: nobody sees what it makes of the others.

Keys and values of every position are needed, its queries, its output projection and its feed-forward block only where
something is read: completions in DPO, one token a text in a reward model. Each of those modules works position by
position, so it is given the positions that are read, and the others become 0. Which models that suits is tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

# Where the modules keep the positions that are read in the pass that runs.
ROWS = "_rows_that_are_read"
_QUERY, _OUTPUT, _FEED_FORWARD = "q_proj", "o_proj", "mlp"


@dataclass(frozen=True)
class LastLayer:
    """The modules of a model's last layer that take single positions, and its attention."""

    modules: tuple[nn.Module, ...]
    attention: nn.Module

    def drops(self) -> bool:
        """Whether dropout acts in them now: which numbers it draws would depend on how many positions it sees."""
        inside = (part for module in self.modules for part in module.modules())
        return any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in inside)

    @contextmanager
    def only(self, rows_X: Tensor, positions: int, multiple: int = 1) -> Iterator[None]:
        """Inside, the last layer serves these flat positions alone.

        positions: how many there are. multiple: what the number of rows that a matrix is multiplied with should be a
        multiple of; other positions make it up where there are enough.
        """
        rows_X = torch.unique(rows_X)
        setattr(self.attention, ROWS, rows_X)
        filled_X = _filled(rows_X, positions, multiple)
        for module in self.modules:
            setattr(module, ROWS, filled_X)
        try:
            yield
        finally:
            for module in (*self.modules, self.attention):
                setattr(module, ROWS, None)


def last_layer(base: nn.Module) -> LastLayer | None:
    """The last layer of a decoder whose modules have the usual names and can be given single positions; else None."""
    stacks = [module for module in base.children() if isinstance(module, nn.ModuleList) and len(module)]
    if len(stacks) != 1:
        return None
    layer = stacks[0][-1]
    attention, feed_forward = getattr(layer, "self_attn", None), getattr(layer, _FEED_FORWARD, None)
    if attention is None or feed_forward is None:
        return None
    modules = (getattr(attention, _QUERY, None), getattr(attention, _OUTPUT, None), feed_forward)
    ours = [module is not None and ROWS in vars(module) for module in modules]  # of another policy over this model
    if any(m is None or ("forward" in vars(m) and not known) for m, known in zip(modules, ours, strict=True)):
        return None
    for module, known in zip(modules, ours, strict=True):
        if not known:
            # A method, so that a copy of the module is bound to the copy.
            module.forward = MethodType(_forward(type(module).forward), module)
        setattr(module, ROWS, None)
    setattr(attention, ROWS, None)
    return LastLayer(tuple(modules), attention)


def rows_of(module: nn.Module) -> Tensor | None:
    """The positions that this attention need serve; None for all."""
    rows: Tensor | None = getattr(module, ROWS, None)
    return rows


def _filled(rows_X: Tensor, positions: int, multiple: int) -> Tensor:
    lacking = -len(rows_X) % multiple
    if not lacking:
        return rows_X
    others = torch.ones(positions, dtype=torch.bool, device=rows_X.device).index_fill_(0, rows_X, False)
    return torch.cat([rows_X, others.nonzero()[:, 0][-lacking:]])


def _forward(plain: Any) -> Any:
    def forward(self: nn.Module, states: Tensor, *args: Any, **options: Any) -> Tensor:
        rows_X: Tensor | None = getattr(self, ROWS)
        if rows_X is None:
            return plain(self, states, *args, **options)  # type: ignore[no-any-return]
        part: Tensor = plain(self, states.index_select(1, rows_X), *args, **options)
        whole = part.new_zeros(1, states.shape[1], part.shape[2])
        return whole.index_copy(1, rows_X, part)

    return forward
