"""Objectives of online RL: tensors in, unreduced tensors out.

The loss of a step is sum(weights_BT * loss_BT) / denominator, the denominator summed over all micro-batches of all
ranks before the first backward. The names of GRPO's variants differ in nothing but these two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.ops.masked import masked_fill


class Surrogate(NamedTuple):
    """The clipped surrogate, token by token.

    Shapes: loss_BT, 0 where the mask is False; ratio_BT = pi / pi_old, 1 there; low_BT and high_BT bool: the tokens
    that clipping took out of the gradient, below 1 - epsilon with a negative advantage and above 1 + epsilon_high with
    a positive one.
    """

    loss_BT: Tensor
    ratio_BT: Tensor
    low_BT: Tensor
    high_BT: Tensor


def clipped_surrogate(
    logps_BT: Tensor,
    advantages: Tensor,
    mask_BT: Tensor,
    old_logps_BT: Tensor | None = None,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
) -> Surrogate:
    """-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A), ratio = pi / pi_old of each token.

    Without `old_logps_BT` the batch is on-policy: the ratio is 1 and its gradient is that of log pi.

    Shapes: advantages_B, or advantages_BT where tokens of a completion differ; epsilon_high None: epsilon.
    Source: Schulman et al. 2017 (1707.06347) eq. 7; per token with one advantage a completion: GRPO, Shao et al. 2024
    (2402.03300) eq. 3; two bounds: DAPO, Yu et al. 2025 (2503.14476) eq. 8.
    Departures: none; the KL term is a loss term of its own, see `rlhf.reference.divergence`.
    """
    advantages_BT = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    advantages_BT = advantages_BT.to(logps_BT.dtype)
    old_BT = logps_BT.detach() if old_logps_BT is None else old_logps_BT.to(logps_BT.dtype)
    high = epsilon if epsilon_high is None else epsilon_high
    # Masked before exp: what stands at a padded position may overflow, and 0 * inf would reach the gradient.
    ratio_BT = masked_fill(logps_BT - old_BT, mask_BT).exp()
    clipped_BT = ratio_BT.clamp(1.0 - epsilon, 1.0 + high)
    loss_BT = -torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    low_BT = (ratio_BT < 1.0 - epsilon) & (advantages_BT < 0) & mask_BT
    high_BT = (ratio_BT > 1.0 + high) & (advantages_BT > 0) & mask_BT
    return Surrogate(masked_fill(loss_BT, mask_BT), ratio_BT.detach(), low_BT, high_BT)


def token_weights(loss_type: str, mask_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of each token in the sum; see `denominator` for what the sum is divided by.

    Shapes: returns weights_BT, 0 where the mask is False.
    Source: `grpo` 1 / length, GRPO (2402.03300) eq. 3; `dapo` 1, DAPO (2503.14476) eq. 8; `dr_grpo` 1, Dr. GRPO
    (2503.20783) section 3.2.
    """
    weights_BT = mask_BT.to(dtype)
    if _known(loss_type) == "grpo":
        # A row without a counted token has no weight to share out.
        weights_BT = weights_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1).to(dtype)
    return weights_BT


def denominator(loss_type: str, mask_BT: Tensor, max_completion_length: int) -> float:
    """This micro-batch's share of what the weighted sum is divided by.

    `grpo`: completions; `dapo`: counted tokens; `dr_grpo`: completions * max_completion_length, a constant that favours
    no length. A completion whose mask is empty (cut off and masked) stays a completion, as in TRL: leave the row out of
    the batch where it should not count.
    """
    rows = mask_BT.shape[0]
    return float({"grpo": rows, "dapo": int(mask_BT.sum()), "dr_grpo": rows * max_completion_length}[_known(loss_type)])


def _known(loss_type: str) -> str:
    if loss_type not in OBJECTIVES:
        raise ValueError(f"unknown loss_type `{loss_type}`: {', '.join(OBJECTIVES)}")
    return loss_type


OBJECTIVES: dict[str, Callable[..., Surrogate]] = dict.fromkeys(("grpo", "dapo", "dr_grpo"), clipped_surrogate)
