"""Objectives of the reward model: tensors in, unreduced tensors out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def adjusted_margin(z_N: Tensor, margin_N: Tensor, gain_N: Tensor) -> Tensor:
    """(z - m) / (1 + d): the margin that enters the loss; d = 0 and m = 0 leave z as it is.

    Shapes: z_N the objective's margin; margin_N the explicit offset m; gain_N = 1 + d of the pair's category.
    Raises: ValueError when a gain is not positive.
    """
    if not bool((gain_N > 0).all()):
        raise ValueError(f"a gain 1 + d must be positive; the smallest is {float(gain_N.min())}")
    return (z_N - margin_N.to(z_N.dtype)) / gain_N.to(z_N.dtype)


def bradley_terry(
    z_N: Tensor, margin_N: Tensor, gain_N: Tensor, label_noise: float = 0.0, target_N: Tensor | None = None
) -> Tensor:
    """-(1 + d) [q log P + (1 - q) log(1 - P)] with P = (1 - e) s(u) + e s(-u), u = (z - m) / (1 + d), s logistic.

    z is the score of chosen - score of rejected. Labels that are wrong with a known probability e shrink the scores
    that fit them best; with e in the model they do not. e is not to be had from the pairs themselves: it comes from
    texts that were labelled more than once. The gain widens the gap at which the loss of noisy labels is smallest by
    exactly 1 + d, and with e = 0 leaves the gradient at z = m, -1/2, where it is.

    Shapes: all broadcast to z_N's shape, which the loss has; target_N the probability q that the chosen text is the
    better one, 1 where null. Units: nats.
    Raises: ValueError when e is outside [0, 0.5).
    Source: Bradley and Terry 1952; as a loss, Ouyang et al. 2022 (2203.02155) eq. 1; offset m: Touvron et al. 2023
    (2307.09288) eq. 2; e: the model of flipped labels of Chowdhury et al. 2024 (2403.00409).
    Departures: the gain; d = 0, e = 0 is the source. e stays inside the likelihood: no loss is de-biased.
    """
    if not 0.0 <= label_noise < 0.5:
        raise ValueError(f"label_noise {label_noise} is outside [0, 0.5)")
    u_N = adjusted_margin(z_N, margin_N, gain_N)
    loss_N = -_log_noisy(u_N, label_noise)
    if target_N is not None:
        q_N = target_N.to(z_N.dtype)
        loss_N = q_N * loss_N - (1.0 - q_N) * _log_noisy(-u_N, label_noise)
    return gain_N.to(z_N.dtype) * loss_N


def _log_noisy(u_N: Tensor, noise: float) -> Tensor:
    """log((1 - e) s(u) + e s(-u)), exact in the tails."""
    if noise == 0.0:
        return logsigmoid(u_N)
    return torch.logaddexp(logsigmoid(u_N) + math.log1p(-noise), logsigmoid(-u_N) + math.log(noise))


def centering(chosen_N: Tensor, rejected_N: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2: pulls the mean score of a pair to 0, which no comparison determines.

    Shapes: scores in, penalty_N out. Units: squared score.
    Source: Eisenstein et al. 2023 (2312.09244) eq. 2.
    """
    return (chosen_N + rejected_N) ** 2


def regression(value_B: Tensor, target_B: Tensor, huber_delta: float | None = None) -> Tensor:
    """Squared error; with huber_delta only up to it, and from there on its tangent, delta (2 |e| - delta).

    Shapes: returns loss_B. Units: squared units of the target.
    Raises: ValueError when huber_delta is not positive.
    Source: scores as targets: Wang et al. 2024 (2406.08673); Huber 1964.
    Departures: twice Huber's loss, so that it is the squared error where that applies.
    """
    error_B = value_B - target_B.to(value_B.dtype)
    if huber_delta is None:
        return error_B**2
    if not huber_delta > 0:
        raise ValueError(f"huber_delta {huber_delta} is not positive")
    size_B = error_B.abs()
    return torch.where(size_B <= huber_delta, error_B**2, huber_delta * (2 * size_B - huber_delta))


def ordinal(latent_B: Tensor, thresholds_BC: Tensor, level_B: Tensor) -> Tensor:
    """-log P(y = c) of the cumulative-link model P(y <= c) = sigmoid(theta_c - s): proportional odds.

    Shapes: latent_B the score s; thresholds_BC, ascending, one less than there are levels, or a shape that broadcasts;
    level_B int64, counted from 0; returns loss_B. Units: nats.
    Raises: ValueError for a level that is not there.
    Source: McCullagh 1980, logit link.
    """
    last = thresholds_BC.shape[-1]
    if bool(((level_B < 0) | (level_B > last)).any()):
        raise ValueError(f"levels are 0..{last}, found {int(level_B.min())}..{int(level_B.max())}")
    thresholds_BC = thresholds_BC.expand(*level_B.shape, last)
    upper_B = thresholds_BC.gather(-1, level_B.clamp_max(last - 1).unsqueeze(-1)).squeeze(-1)
    lower_B = thresholds_BC.gather(-1, (level_B - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
    is_first_B, is_last_B = level_B == 0, level_B == last
    # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)): no difference of nearly equal numbers in the tails.
    gap_B = torch.where(is_first_B | is_last_B, torch.ones_like(upper_B), upper_B - lower_B)
    inside_B = torch.log(-torch.expm1(-gap_B))
    zero_B = torch.zeros_like(latent_B)
    return -(
        torch.where(is_last_B, zero_B, logsigmoid(upper_B - latent_B))
        + torch.where(is_first_B, zero_B, logsigmoid(latent_B - lower_B))
        + torch.where(is_first_B | is_last_B, zero_B, inside_B)
    )


def process(logits_X: Tensor, right_X: Tensor) -> Tensor:
    """Binary cross entropy of each step: -log s(z) where it is right, -log s(-z) where it is wrong.

    Shapes: logits_X at the steps' last tokens, right_X bool; returns loss_X. Units: nats.
    Source: Uesato et al. 2022 (2211.14275); Lightman et al. 2023 (2305.20050).
    """
    return -logsigmoid(torch.where(right_X, logits_X, -logits_X))


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "bradley_terry": bradley_terry,
    "centering": centering,
    "regression": regression,
    "ordinal": ordinal,
    "process": process,
}
