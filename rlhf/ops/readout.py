"""From hidden states to log-probabilities through a language-model head, without logits for the whole batch.

The head is applied to blocks of counted positions. A block's probabilities, which take the place of its logits, are
kept for the backward pass while all kept ones stay below `KEEP` bytes and are computed again beyond that, so that
memory does not grow with the number of tokens. On a processor a block is reduced in tiles that its cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

# Elements of the logits that are there at a time (16 MiB in float32; 128 on a GPU, which small blocks keep waiting),
# those of them that a processor reduces at a time (1 MiB), and bytes that backward may find again.
BLOCK = 1 << 22
GPU_BLOCK = 1 << 25
TILE = 1 << 18
KEEP = 1 << 28
# oneDNN, which multiplies half-precision matrices on a processor, prepares each new shape for about two milliseconds
# and holds on to it: lengths are rounded up to multiples of this, so that shapes come back.
STEP = 64
# Rows that a larger block of such a head is rounded up to: four shapes for all batches.
HALF_ROWS = 4 * STEP


def block_of(device: str) -> int:
    """Elements of the logits that are there at a time."""
    return BLOCK if device == "cpu" else GPU_BLOCK


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
    with torch.autocast(states_XH.device.type, enabled=False):
        return Readout(
            *_Read.apply(  # type: ignore[no-untyped-call]
                states_XH, head.weight_VH, head.bias_V, ids_X, head, temperature, spread
            )
        )


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
        rows, filling = _rows_of(states_XH, head)
        states_XH = pad(states_XH.to(head.dtype), (0, 0, 0, filling)) if filling else states_XH.to(head.dtype)
        kept: list[Tensor | None] = []
        bytes_kept = 0
        found = [ids_X.new_empty(len(ids_X), dtype=_wide(head.dtype)) for _ in range(4 if spread else 2)]
        for start, states in _blocks(states_XH, rows):
            here = slice(start, start + rows)
            logits = head.logits(states)
            bytes_kept += logits.nbytes
            again = bytes_kept <= KEEP and any(ctx.needs_input_grad)
            kept.append(logits if again else None)
            # What a soft cap does to the gradient depends on the logits, so they are kept then.
            keep = ("logits" if head.softcap else "probabilities") if again else ""
            _reduce(logits, ids_X[here], temperature, [part[here] for part in found], keep)
        ctx.save_for_backward(states_XH, weight_VH, bias_V, ids_X, *found[:2])
        ctx.kept, ctx.temperature, ctx.rows = kept, temperature, rows
        ctx.dtype, ctx.scale, ctx.softcap = head.dtype, head.scale, head.softcap
        ctx.mark_non_differentiable(*found[2:])
        return found[0], found[2] if spread else None, found[3] if spread else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        states_XH, weight_VH, bias_V, ids_X, logps_X, normalisers_X = ctx.saved_tensors
        need_states, need_weight, need_bias = ctx.needs_input_grad[:3]
        head = Head(weight_VH.to(ctx.dtype), _as(bias_V, ctx.dtype), ctx.dtype, ctx.scale, ctx.softcap)
        count, wide = len(ids_X), _wide(weight_VH.dtype)
        # Each row's slope is (softmax - one-hot) times this, and 0 where rows were filled up.
        by_X1 = pad(grad_X.to(logps_X.dtype) * (-ctx.scale / ctx.temperature), (0, len(states_XH) - count)).unsqueeze(1)
        grad_XH = torch.empty_like(states_XH) if need_states else None
        grad_VH = grad_V = None
        for (start, states), kept in zip(_blocks(states_XH, ctx.rows), ctx.kept, strict=True):
            here = slice(start, min(start + ctx.rows, count))
            slope = _slope(kept, head, states, ids_X[here], normalisers_X[here], logps_X[here], ctx.temperature)
            by = by_X1[start : start + len(states)]
            if need_bias:
                grad_V = _plus(grad_V, torch.mv(slope.t(), by.squeeze(1).to(slope.dtype)), wide)
            if grad_XH is not None:
                torch.mm(slope, head.weight_VH, out=grad_XH[start : start + len(states)]).mul_(by)
            if need_weight:
                grad_VH = _plus(grad_VH, slope.t() @ (states * by).to(slope.dtype), wide)
        ctx.kept = [None] * len(ctx.kept)  # they are slopes now: a second backward pass makes its own
        grad_XH = grad_XH if grad_XH is None else grad_XH[:count]
        return grad_XH, _as(grad_VH, weight_VH.dtype), _as(grad_V, weight_VH.dtype), None, None, None, None


def _rows_of(states_XH: Tensor, head: Head) -> tuple[int, int]:
    """Rows of a block, and how many rows the last one is filled up with."""
    device = states_XH.device.type
    rows = max(1, block_of(device) // head.weight_VH.shape[0])
    if head.dtype != torch.bfloat16 or device != "cpu":
        return rows, 0
    unit = HALF_ROWS if rows >= 2 * HALF_ROWS else STEP
    return min(max(rows // unit, 1), 4) * unit, -len(states_XH) % unit


def _blocks(states_XH: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Where each block begins, and its states; without any rows one empty block, so that gradients are there."""
    return zip(range(0, max(1, len(states_XH)), rows), torch.split(states_XH, rows), strict=True)


def _tiles(logits_XV: Tensor, count: int) -> Iterator[slice]:
    """Rows that are reduced together, of the first `count`."""
    rows = max(1, TILE // logits_XV.shape[1]) if logits_XV.device.type == "cpu" else max(1, count)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _reduce(logits_XV: Tensor, ids_X: Tensor, temperature: float, found: list[Tensor], keep: str) -> None:
    """What is read of a block is put into `found`.

    found: log-probabilities of `ids_X` and normalisers; if there are four, entropies and collisions too. keep: what is
    to stand where the logits stood, `logits` or `probabilities`; else anything may.
    """
    for here in _tiles(logits_XV, len(ids_X)):
        tile = logits_XV[here]
        work = _widened(tile, temperature, afresh=keep == "logits")
        chosen_X1, top_X1 = work.gather(-1, ids_X[here].unsqueeze(-1)), work.amax(dim=-1, keepdim=True)
        total_X1 = work.sub_(top_X1).exp_().sum(dim=-1, keepdim=True)
        normaliser_X1 = total_X1.log().add_(top_X1)
        found[0][here] = (chosen_X1 - normaliser_X1).squeeze(-1)
        found[1][here] = normaliser_X1.squeeze(-1)
        if keep == "probabilities" or len(found) == 4:
            work.div_(total_X1)
        if len(found) == 4:
            # A token that cannot be drawn has a probability of 0 and adds nothing.
            logs = work.clamp_min(torch.finfo(work.dtype).tiny).log_()
            found[2][here] = logs.mul_(work).sum(dim=-1).neg_()
            found[3][here] = work.square().sum(dim=-1).log_()
        if keep == "probabilities" and work is not tile:
            tile.copy_(work)


def _slope(
    kept: Tensor | None,
    head: Head,
    states_XH: Tensor,
    ids_X: Tensor,
    normalisers_X: Tensor,
    logps_X: Tensor,
    temperature: float,
) -> Tensor:
    """Gradient of -temperature * log-probability in W h + b, but for the scale; in place of what was kept."""
    # By index: scatter_ into a part of a block copies all of it, twice (8.5 ms against 0.1 for 932 of 1,024 rows).
    row_X, taken_X = torch.arange(len(ids_X), device=ids_X.device), torch.expm1(logps_X)
    if kept is not None and not head.softcap:
        kept[row_X, ids_X] = taken_X.to(kept.dtype)
        return kept
    logits_XV = head.logits(states_XH) if kept is None else kept
    for here in _tiles(logits_XV, len(ids_X)):
        tile = logits_XV[here]
        work = _widened(tile, temperature, afresh=True).sub_(normalisers_X[here].unsqueeze(-1)).exp_()
        work[row_X[: len(work)], ids_X[here]] = taken_X[here]
        if head.softcap:
            work.mul_(1 - (tile.to(work.dtype) / head.softcap).square())
        tile.copy_(work)
    return logits_XV


def _widened(tile: Tensor, temperature: float, *, afresh: bool) -> Tensor:
    """Logits over temperature in at least single precision; where they are that already, in place or afresh."""
    wide = tile.to(_wide(tile.dtype), copy=afresh)
    return wide if temperature == 1.0 else wide.div_(temperature)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _plus(total: Tensor | None, part: Tensor, dtype: torch.dtype) -> Tensor:
    return part.to(dtype) if total is None else total.add_(part)


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
