"""Objectives of supervised fine-tuning: tensors in, unreduced tensors out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlhf.ops.masked import masked_fill
from rlhf.reference import divergence


def nll(logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each demonstrated token: -log pi(token | tokens before).

    Shapes: returns nll_BT, 0 where the mask is False. Units: nats.
    """
    return -masked_fill(logps_BT, mask_BT)


def forward_kl(policy_logits_BTV: Tensor, ref_logits_BTV: Tensor, mask_BT: Tensor) -> Tensor:
    """KL(reference || policy) at each demonstrated token, over the full vocabulary.

    Added to `nll` with coefficient lambda, its minimiser in one context is the mixture
    (p_data + lambda * p_reference) / (1 + lambda): the constraint is worth lambda demonstrations written by the
    reference.

    Shapes: logits aligned; returns kl_BT, 0 where the mask is False. Units: nats.
    Source: distillation with soft targets, Hinton et al. 2015 (1503.02531), without a temperature.
    """
    return divergence.forward_kl(policy_logits_BTV, ref_logits_BTV, mask_BT)


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"nll": nll, "forward_kl": forward_kl}
