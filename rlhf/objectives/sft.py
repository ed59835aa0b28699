"""Objectives of supervised fine-tuning: tensors in, unreduced tensors out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlhf.ops.masked import masked_fill


def nll(logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each demonstrated token: -log pi(token | tokens before).

    Shapes: returns nll_BT, 0 where the mask is False. Units: nats.
    Source: beside a preference loss (`loss_type: sft`), the generation loss of MPO, Wang et al. 2024 (2411.10442).
    """
    return -masked_fill(logps_BT, mask_BT)


def dft(logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Dynamic fine-tuning: the negative log-likelihood of each token, weighted by its probability as it is now.

    The gradient is that of -pi(token | tokens before): a token that the policy finds unlikely pulls the less, where
    the likelihood's gradient grows with 1 / pi.

    Shapes: returns loss_BT, 0 where the mask is False. Units: nats; at most 1 / e a token, so not a likelihood.
    Source: Wu et al. 2025 (2508.05629), the loss with a weight per token.
    """
    counted_BT = masked_fill(logps_BT, mask_BT)
    return -counted_BT * counted_BT.detach().exp()


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"nll": nll, "dft": dft}
