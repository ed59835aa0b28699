"""Divergences over the full vocabulary, at the tokens that count: nothing is sampled at the prefix itself.

With p the policy's and q the reference's distribution of a token:

    reverse   KL(p || q): the policy keeps off what the reference avoids
    forward   KL(q || p): the policy keeps what the reference does
    js        KL(p || m) / 2 + KL(q || m) / 2, m = (p + q) / 2: symmetric, at most log 2
    alpha     (1 - sum p^alpha q^(1 - alpha)) / (alpha (1 - alpha)), 0 < alpha < 1: at most 1 / (alpha (1 - alpha));
              alpha -> 1 is reverse, alpha -> 0 is forward, 1/2 is four times the squared Hellinger distance

Which texts the prefixes come from decides what the sum over a text is. From the policy: the sum of `reverse` is the KL
of whole texts, KL(policy || reference); the others are sums along the policy's path and no divergence of whole texts.
From the reference: the sum of `forward` is KL(reference || policy) of whole texts. From demonstrations that neither
wrote, all four hold at each prefix, and none is a divergence of whole texts.

Values and gradients are computed in blocks of rows, and the backward pass computes the blocks anew: beside the logits
and their gradient nothing of the size of the logits is kept. The gradient is the policy's; none flows to the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf.ops.logprobs import scatter, upcast

# Elements of the (tokens, vocabulary) block that is worked on at a time: 4 MiB in float32, and a few such at once.
BLOCK = 1 << 20


class _Kind(NamedTuple):
    """value(logp_XV, logq_XV): D_X; slope(logp_XV, logq_XV): its derivative by the policy's logits, as slope_XV."""

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


def reverse_kl(policy_logits_XV: Tensor, ref_logits_XV: Tensor, mask_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(policy || reference) of softmax(logits / temperature) at each counted token.

    Shapes: logits of the X tokens that mask_BT counts, in row order; returns kl_BT, 0 where the mask is False.
    Units: nats.
    Raises: ValueError when logits and mask do not belong together.
    """
    return _placed(_REVERSE, policy_logits_XV, ref_logits_XV, mask_BT, temperature)


def forward_kl(policy_logits_XV: Tensor, ref_logits_XV: Tensor, mask_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(reference || policy) of softmax(logits / temperature) at each counted token.

    Added to the likelihood of demonstrations with coefficient lambda, its minimiser in one context is the mixture
    (p_data + lambda * p_reference) / (1 + lambda): worth lambda demonstrations written by the reference.

    Shapes: see `reverse_kl`. Units: nats. Raises: ValueError when logits and mask do not belong together.
    Source: distillation with soft targets, Hinton et al. 2015 (1503.02531), without a temperature.
    """
    return _placed(_FORWARD, policy_logits_XV, ref_logits_XV, mask_BT, temperature)


def jensen_shannon(
    policy_logits_XV: Tensor, ref_logits_XV: Tensor, mask_BT: Tensor, temperature: float = 1.0
) -> Tensor:
    """The Jensen-Shannon divergence, both weights 1/2, at each counted token: between 0 and log 2.

    Shapes: see `reverse_kl`. Units: nats. Raises: ValueError when logits and mask do not belong together.
    Source: Lin 1991, "Divergence Measures Based on the Shannon Entropy", eq. 4.1.
    """
    return _placed(_JENSEN_SHANNON, policy_logits_XV, ref_logits_XV, mask_BT, temperature)


def alpha_divergence(
    policy_logits_XV: Tensor,
    ref_logits_XV: Tensor,
    mask_BT: Tensor,
    temperature: float = 1.0,
    *,
    alpha: float = 0.5,
) -> Tensor:
    """The alpha-divergence (1 - sum p^alpha q^(1 - alpha)) / (alpha (1 - alpha)) at each counted token.

    Shapes: see `reverse_kl`. Units: nats, as its limits are: alpha -> 1 KL(p || q), alpha -> 0 KL(q || p).
    Raises: ValueError for an alpha outside (0, 1), and when logits and mask do not belong together.
    Source: Minka 2005, "Divergence measures and message passing" (MSR-TR-2005-173), eq. 5, for normalised p and q.
    Departures: Amari's alpha' is 2 alpha - 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} is not between 0 and 1, whose limits are forward_kl and reverse_kl")
    kind = _Kind(partial(_alpha_value, alpha), partial(_alpha_slope, alpha))
    return _placed(kind, policy_logits_XV, ref_logits_XV, mask_BT, temperature)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "reverse": reverse_kl,
    "forward": forward_kl,
    "js": jensen_shannon,
    "alpha": alpha_divergence,
}


def divergence(name: str, alpha: float | None = None) -> Callable[..., Tensor]:
    """The divergence of that name, called as `f(policy_logits_XV, ref_logits_XV, mask_BT, temperature)`.

    alpha: for `alpha` only; None: 1/2.
    """
    found = DIVERGENCES[name]
    return partial(found, alpha=alpha) if name == "alpha" and alpha is not None else found


def _placed(kind: _Kind, policy_XV: Tensor, ref_XV: Tensor, mask_BT: Tensor, temperature: float) -> Tensor:
    if policy_XV.shape != ref_XV.shape:
        raise ValueError(f"logits of policy {tuple(policy_XV.shape)} and reference {tuple(ref_XV.shape)} differ")
    counted = int(mask_BT.sum())
    if policy_XV.dim() != 2 or len(policy_XV) != counted:
        raise ValueError(f"logits {tuple(policy_XV.shape)} are not those of the {counted} tokens that count")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not positive")
    values_X: Tensor = _Divergence.apply(policy_XV, ref_XV, kind, temperature)  # type: ignore[no-untyped-call]
    return scatter(values_X, mask_BT)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, policy_XV: Tensor, ref_XV: Tensor, kind: _Kind, temperature: float) -> Tensor:
        ctx.save_for_backward(policy_XV, ref_XV)
        ctx.kind, ctx.temperature = kind, temperature
        values_X = upcast(policy_XV.new_empty(len(policy_XV)))
        for here, logp_XV, logq_XV in _blocks(policy_XV, ref_XV, temperature):
            values_X[here] = kind.value(logp_XV, logq_XV)
        return values_X

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor, None, None, None]:
        policy_XV, ref_XV = ctx.saved_tensors
        grad_XV = torch.empty_like(policy_XV)
        grad_X = grad_X / ctx.temperature
        for here, logp_XV, logq_XV in _blocks(policy_XV, ref_XV, ctx.temperature):
            grad_XV[here] = ctx.kind.slope(logp_XV, logq_XV).mul_(grad_X[here].unsqueeze(-1))
        return grad_XV, None, None, None


def _blocks(policy_XV: Tensor, ref_XV: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    rows = max(1, BLOCK // policy_XV.shape[-1])
    for start in range(0, len(policy_XV), rows):
        here = slice(start, start + rows)
        yield here, _log_softmax(policy_XV[here], temperature), _log_softmax(ref_XV[here], temperature)


def _log_softmax(logits_XV: Tensor, temperature: float) -> Tensor:
    scaled_XV = upcast(logits_XV) if temperature == 1.0 else upcast(logits_XV) / temperature
    return scaled_XV.log_softmax(dim=-1)


def _gap(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    # 0 * (-inf - x) must be 0: a token that p never draws, such as a padded entry of the vocabulary, adds nothing.
    return (logp_XV - logq_XV).masked_fill_(logp_XV.isneginf(), 0.0)


def _kl(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    return (logp_XV.exp() * _gap(logp_XV, logq_XV)).sum(dim=-1)


def _reverse_slope(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    # p (log p/q - D)
    p_XV, gap_XV = logp_XV.exp(), _gap(logp_XV, logq_XV)
    value_X = (p_XV * gap_XV).sum(dim=-1, keepdim=True)
    return gap_XV.sub_(value_X).mul_(p_XV)


def _forward_slope(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    # p - q
    return logp_XV.exp() - logq_XV.exp()


def _mixture(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    return torch.logaddexp(logp_XV, logq_XV).sub_(math.log(2))


def _js_value(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    logm_XV = _mixture(logp_XV, logq_XV)
    return (_kl(logp_XV, logm_XV) + _kl(logq_XV, logm_XV)) / 2


def _js_slope(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    # dD / dp = (log p/m) / 2
    return _reverse_slope(logp_XV, _mixture(logp_XV, logq_XV)).div_(2)


def _log_overlap(alpha: float, logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    return (alpha * logp_XV).add_(logq_XV, alpha=1 - alpha)


def _alpha_value(alpha: float, logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    # expm1 of the logarithm keeps the digits of 1 - sum where the two almost agree.
    return -torch.expm1(_log_overlap(alpha, logp_XV, logq_XV).logsumexp(dim=-1)) / (alpha * (1 - alpha))


def _alpha_slope(alpha: float, logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    # (p M - p^alpha q^(1 - alpha)) / (1 - alpha), M the sum of the second
    overlap_XV = _log_overlap(alpha, logp_XV, logq_XV).exp_()
    total_X = overlap_XV.sum(dim=-1, keepdim=True)
    return (logp_XV.exp() * total_X).sub_(overlap_XV).div_(1 - alpha)


_REVERSE = _Kind(_kl, _reverse_slope)
_FORWARD = _Kind(lambda logp_XV, logq_XV: _kl(logq_XV, logp_XV), _forward_slope)
_JENSEN_SHANNON = _Kind(_js_value, _js_slope)
