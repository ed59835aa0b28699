"""Log-probabilities of tokens. The only place that shifts: a causal model's output at t speaks of token t + 1.

`aligned` and `predictors` take what a model returns; from there on index t speaks of token t given the tokens before
it, everywhere. Nothing is known about token 0 and no mask counts it. Half-precision logits are reduced in float32;
float64 stays float64. All values are in nats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from rlhf.ops.compared import Distributions

# Elements of the (positions, vocabulary) block that is reduced at a time: 16 MiB in float32, little beside the logits.
BLOCK = 1 << 22


class PolicyOutput(NamedTuple):
    """What a policy's forward pass returns; only what was asked for is there.

    Shapes: logps_BT log-probability of each counted token; scores_B from the scalar head; entropy_BT of the
    distribution that each counted token was drawn from, and collision_BT the log of the sum of its squared
    probabilities; divergence_BT of it from another's; distributions themselves, in row order.
    """

    logps_BT: Tensor | None = None
    scores_B: Tensor | None = None
    entropy_BT: Tensor | None = None
    collision_BT: Tensor | None = None
    divergence_BT: Tensor | None = None
    distributions: Distributions | None = None


def aligned(logits_BTV: Tensor) -> Tensor:
    """A model's logits, moved so that index t is the distribution of token t given the tokens before it.

    Shapes: returns logits_BTV; position 0 is 0 and must not be counted.
    """
    return torch.cat([torch.zeros_like(logits_BTV[:, :1]), logits_BTV[:, :-1]], dim=1)


def token_logprobs(logits_BTV: Tensor, ids_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token given the tokens before it, under softmax(logits / temperature).

    Where only some tokens count, `predictors` and `gather_logprobs` cost less: no head and no softmax elsewhere.

    Shapes: logits_BTV aligned; returns logps_BT, position 0 is 0.
    Raises: ValueError when the shapes differ or the temperature is not positive.
    """
    if logits_BTV.shape[:-1] != ids_BT.shape:
        raise ValueError(f"logits {tuple(logits_BTV.shape)} and ids {tuple(ids_BT.shape)} do not belong together")
    return _without_first(gather_logprobs(logits_BTV, ids_BT, temperature))


def entropy(logits_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of the distribution that each token was drawn from, softmax(logits / temperature).

    Shapes: logits_BTV aligned; returns entropy_BT, position 0 is 0.
    """
    return _without_first(position_entropy(logits_BTV, temperature))


def predictors(states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """The hidden states from which the counted tokens are predicted, so that a head sees no other position.

    With their logits, `gather_logprobs(logits_XV, ids_BT[mask_BT])` are the log-probabilities of the counted tokens.

    Shapes: states_BTH as the model returns them, not aligned; returns states_XH, X counted tokens in row order.
    Raises: ValueError when the mask counts position 0.
    """
    if bool(mask_BT[:, 0].any()):
        raise ValueError("the mask counts position 0, of which nothing is predicted")
    return states_BTH[:, :-1][mask_BT[:, 1:]]


def scatter(values_X: Tensor, mask_BT: Tensor) -> Tensor:
    """Values of the counted tokens, in row order, back at their places; 0 elsewhere.

    Shapes: values_X or values_XV; returns values_BT or values_BTV.
    """
    placed = values_X.new_zeros(mask_BT.shape + values_X.shape[1:])
    return placed.masked_scatter(mask_BT.view(mask_BT.shape + (1,) * (values_X.dim() - 1)), values_X)


def gather_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of `ids` under softmax(logits / temperature), position by position: nothing is shifted.

    Keeps no second buffer of the size of the logits beyond their gradient: backward recomputes the softmax.

    Shapes: logits (..., V), ids (...); returns (...), in float32 for half-precision logits.
    Raises: ValueError when the temperature is not positive.
    """
    flat_XV = _flat(logits, temperature)
    logps_X: Tensor = _GatherLogprobs.apply(flat_XV, ids.reshape(-1), temperature)  # type: ignore[no-untyped-call]
    return logps_X.view(ids.shape)


def position_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature), position by position: nothing is shifted or left out.

    Shapes: logits (..., V); returns (...), in float32 for half-precision logits.
    Raises: ValueError when the temperature is not positive.
    """
    flat_XV = _flat(logits, temperature)
    entropy_X: Tensor = _Entropy.apply(flat_XV, temperature)  # type: ignore[no-untyped-call]
    return entropy_X.view(logits.shape[:-1])


def position_collision(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log sum_v p_v^2 of softmax(logits / temperature): how likely two draws are the same token, position by position.

    Shapes: logits (..., V); returns (...), in float32 for half-precision logits. Units: nats.
    Raises: ValueError when the temperature is not positive.
    """
    scaled_XV = _scaled(_flat(logits, temperature), temperature)
    collision_X = (2 * scaled_XV).logsumexp(dim=-1) - 2 * scaled_XV.logsumexp(dim=-1)
    return collision_X.view(logits.shape[:-1])


class _GatherLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_XV: Tensor, ids_X: Tensor, temperature: float) -> Tensor:
        rows = _block_rows(logits_XV)
        logps, normalisers = [], []
        for block, ids in zip(torch.split(logits_XV, rows), torch.split(ids_X, rows), strict=True):
            scaled = _scaled(block, temperature)
            normaliser = scaled.logsumexp(dim=-1)
            logps.append(scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normaliser)
            normalisers.append(normaliser)
        ctx.save_for_backward(logits_XV, ids_X, torch.cat(normalisers))
        ctx.temperature = temperature
        return torch.cat(logps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor, None, None]:
        logits_XV, ids_X, normalisers_X = ctx.saved_tensors
        rows = _block_rows(logits_XV)
        grad_XV = torch.empty_like(logits_XV)
        grad_X = grad_X / ctx.temperature
        for start in range(0, len(ids_X), rows):
            here = slice(start, start + rows)
            grad, ids = grad_X[here].unsqueeze(-1), ids_X[here].unsqueeze(-1)
            softmax = (_scaled(logits_XV[here], ctx.temperature) - normalisers_X[here].unsqueeze(-1)).exp_()
            grad_XV[here] = softmax.mul_(-grad).scatter_add_(-1, ids, grad)
        return grad_XV, None, None


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_XV: Tensor, temperature: float) -> Tensor:
        blocks = torch.split(logits_XV, _block_rows(logits_XV))
        entropy_X = torch.cat([-_surprise(block, temperature).sum(dim=-1) for block in blocks])
        ctx.save_for_backward(logits_XV, entropy_X)
        ctx.temperature = temperature
        return entropy_X

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor, None]:
        logits_XV, entropy_X = ctx.saved_tensors
        rows = _block_rows(logits_XV)
        grad_XV = torch.empty_like(logits_XV)
        grad_X = grad_X / ctx.temperature
        for start in range(0, len(entropy_X), rows):
            here = slice(start, start + rows)
            softmax = _scaled(logits_XV[here], ctx.temperature).softmax(dim=-1)
            # dH / dx = -p (log p + H)
            slope = _surprise(logits_XV[here], ctx.temperature).add_(softmax * entropy_X[here].unsqueeze(-1))
            grad_XV[here] = slope.mul_(-grad_X[here].unsqueeze(-1))
        return grad_XV, None


def _surprise(logits_XV: Tensor, temperature: float) -> Tensor:
    """Each token's p log p."""
    logps_XV = _scaled(logits_XV, temperature).log_softmax(dim=-1)
    # A token that cannot be drawn has log-probability -inf and adds nothing, where 0 * -inf would give NaN.
    return logps_XV.exp() * logps_XV.masked_fill(logps_XV.isneginf(), 0.0)


def upcast(logits: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return upcast(logits) if temperature == 1.0 else upcast(logits) / temperature


def _flat(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not positive")
    return logits.reshape(-1, logits.shape[-1])


def _without_first(values_BT: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(values_BT[:, :1]), values_BT[:, 1:]], dim=1)


def _block_rows(logits_XV: Tensor) -> int:
    return max(1, BLOCK // logits_XV.shape[-1])
