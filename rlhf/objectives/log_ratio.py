"""What losses on pairs are made of: sums over responses, scores of f-divergences, weights of pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.ops.masked import masked_fill, sequence_sum


def halves(rows_B: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen and rejected rows.

    Shapes: B = 2N, chosen rows first; returns two tensors of N rows.
    Raises: ValueError when the number of rows is odd or 0.
    """
    rows = len(rows_B)
    if rows == 0 or rows % 2:
        raise ValueError(f"{rows} rows are no batch of pairs: chosen rows first, then as many rejected ones")
    return rows_B[: rows // 2], rows_B[rows // 2 :]


def shared_length_weights(mask_BT: Tensor, ld_alpha: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """1 on as many counted tokens of a text as the shorter text of its pair has, ld_alpha on those after them.

    Shapes: B = 2N, chosen rows first; returns weights_BT, which mean nothing where the mask is False.
    Source: LD-DPO, Liu et al. 2024 (2409.06411).
    """
    chosen_N, rejected_N = halves(mask_BT.sum(dim=1))
    shared_N = torch.minimum(chosen_N, rejected_N)
    beyond_BT = mask_BT.cumsum(dim=1) > torch.cat([shared_N, shared_N]).unsqueeze(1)
    return torch.ones_like(mask_BT, dtype=dtype).masked_fill(beyond_BT, ld_alpha)


def response_sums(logps_BT: Tensor, mask_BT: Tensor, ld_alpha: float | None = None) -> Tensor:
    """Log-probability of each response; with ld_alpha, what is longer than the other text of the pair counts less.

    ld_alpha = 1 is the plain sum; 0 leaves the longer part out.

    Shapes: returns sums_B. Units: nats.
    Source: LD-DPO, Liu et al. 2024 (2409.06411).
    """
    if ld_alpha is None:
        return sequence_sum(logps_BT, mask_BT)
    weights_BT = shared_length_weights(mask_BT, ld_alpha, logps_BT.dtype)
    return sequence_sum(masked_fill(logps_BT, mask_BT) * weights_BT, mask_BT)


def divergence_scores(log_ratio: Tensor, f_divergence_type: str = "reverse_kl", coefficient: float = 0.5) -> Tensor:
    """f'(t) of the ratio t = pi / pi_ref: what beta is multiplied with where the constraint is an f-divergence.

    reverse_kl log t; forward_kl 1 - 1/t; js_divergence log(2t / (1 + t)); alpha_divergence
    (t^(a - 1) - 1) / (a - 1) with a = `coefficient`, which is forward_kl at 0 and reverse_kl at 1.

    Shapes: any; returns the same. Units: log_ratio in nats.
    Raises: ValueError for an unknown type.
    Source: f-DPO, Wang et al. 2023 (2309.16240) table 1.
    Departures: constants that cancel between two texts; a is 1 - alpha of the paper, as in TRL. A ratio that overflows
    is infinite, where TRL cuts the exponent at 80.
    """
    if f_divergence_type == "reverse_kl" or (f_divergence_type == "alpha_divergence" and coefficient == 1.0):
        return log_ratio
    if f_divergence_type == "forward_kl":
        return -torch.expm1(-log_ratio)
    if f_divergence_type == "js_divergence":
        return math.log(2.0) + logsigmoid(log_ratio)
    if f_divergence_type == "alpha_divergence":
        power = coefficient - 1.0
        return torch.expm1(power * log_ratio) / power
    raise ValueError(f"unknown f-divergence `{f_divergence_type}`")


def on_policy_weights(logps_BT: Tensor, collision_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Weight of each pair by how likely the policy is to write its two texts; without gradient.

    A text's weight is exp of the mean over its tokens of log p - log sum_v p_v^2: the probability of the token against
    the mean probability of a token that the policy draws there. 1 for a text as likely as one of the policy's own.

    Shapes: collision_BT the log of the sum; returns weights_N, the product over the pair.
    Source: WPO, Zhou et al. 2024 (2406.11827) eq. 2, with the alignment of weights by the sum of squares.
    """
    aligned_BT = logps_BT.detach() - collision_BT.detach().to(logps_BT.dtype)
    means_B = sequence_sum(aligned_BT, mask_BT) / mask_BT.sum(dim=1)
    chosen_N, rejected_N = halves(means_B)
    return (chosen_N + rejected_N).exp()
