"""A policy's distributions beside another's at the counted tokens, block by block: no logits of a whole batch.

What a divergence over the vocabulary needs are the logits of both at each counted token, which at a vocabulary of
150,000 are 600 kB a token each. They are made for a block of tokens at a time; what backward needs of a block is kept
while all kept blocks' logits stay below `readout.KEEP` bytes, and computed again beyond that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf.ops import readout
from rlhf.ops.logprobs import gather_logprobs, position_collision, position_entropy
from rlhf.ops.readout import Head

WHOLE = slice(None)


@dataclass(frozen=True)
class Distributions:
    """Next-token distributions of X positions before their logits are there: states and the head that reads them.

    Shapes: states_XH; logits_XV where no head can be applied alone, else None.
    """

    states_XH: Tensor
    head: Head | None
    logits_XV: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(X, V)."""
        if self.head is not None:
            return len(self.states_XH), len(self.head.weight_VH)
        assert self.logits_XV is not None
        return len(self.logits_XV), self.logits_XV.shape[1]

    def logits(self, here: slice = WHOLE) -> Tensor:
        """Logits of some of the positions. Shapes: returns logits_XV."""
        if self.head is None:
            assert self.logits_XV is not None
            return self.logits_XV[here]
        with torch.autocast(self.states_XH.device.type, enabled=False):
            return self.head.logits(self.states_XH[here])

    def logps(self, ids_X: Tensor) -> Tensor:
        """Log-probabilities of `ids_X`. Shapes: returns logps_X. Units: nats."""
        if self.head is None:
            return gather_logprobs(self.logits(), ids_X)
        return readout.read(self.states_XH, self.head, ids_X).logps_X

    def detached(self, *, copied: bool) -> Distributions:
        """Without a graph. copied: with a head of its own, where the model lets go of its weights after a pass."""
        head = self.head
        if head is not None:
            weight_VH, bias_V = head.weight_VH.detach(), None if head.bias_V is None else head.bias_V.detach()
            head = replace(head, weight_VH=weight_VH, bias_V=bias_V)
            head = copy.deepcopy(head) if copied else head
        return Distributions(self.states_XH.detach(), head, None if self.logits_XV is None else self.logits_XV.detach())


class Beside(NamedTuple):
    """What a policy is compared with: distributions of the same tokens, and a divergence of `full_vocabulary`."""

    other: Distributions
    measure: Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Compared(NamedTuple):
    """What was read of each position; None where it was not asked for. Shapes: (X,) each. Units: nats."""

    divergence_X: Tensor
    logps_X: Tensor | None
    entropy_X: Tensor | None
    collision_X: Tensor | None


def compare(
    own: Distributions, beside: Beside, ids_X: Tensor, temperature: float, *, logps: bool, spread: bool
) -> Compared:
    """The divergence of softmax(logits / temperature) from the other's at each position, and what else is asked for.

    The divergence and logps have a gradient. Shapes: ids_X the counted tokens.
    Raises: ValueError when the positions or vocabularies of the two differ.
    """
    if beside.other.shape != own.shape:
        raise ValueError(f"distributions of shape {own.shape} and of shape {beside.other.shape} cannot be compared")
    count, vocabulary = own.shape
    rows = max(1, readout.block_of(ids_X.device.type) // vocabulary)
    # Of logits that are there as a whole nothing is gained.
    most = count if own.head is None else readout.KEEP // (vocabulary * own.head.dtype.itemsize)
    block = partial(_block, own, beside, ids_X, temperature, logps, spread)
    found = []
    for start in range(0, max(1, count), rows):
        here = slice(start, min(start + rows, count))
        if here.stop <= most or not torch.is_grad_enabled():
            found.append(block(here))
        else:
            found.append(checkpoint(block, here, use_reentrant=False, preserve_rng_state=False))
    return Compared(*(None if part[0] is None else torch.cat(part) for part in zip(*found, strict=True)))  # type: ignore[arg-type]


def _block(
    own: Distributions, beside: Beside, ids_X: Tensor, temperature: float, logps: bool, spread: bool, here: slice
) -> tuple[Tensor | None, ...]:
    logits_XV = own.logits(here)
    with torch.no_grad():
        other_XV = beside.other.logits(here)
        entropy_X = position_entropy(logits_XV, temperature) if spread else None
        collision_X = position_collision(logits_XV, temperature) if spread else None
    counted = torch.ones(1, len(logits_XV), dtype=torch.bool, device=logits_XV.device)
    values_X = beside.measure(logits_XV, other_XV, counted, temperature)[0]
    logps_X = gather_logprobs(logits_XV, ids_X[here], temperature) if logps else None
    return values_X, logps_X, entropy_X, collision_X
