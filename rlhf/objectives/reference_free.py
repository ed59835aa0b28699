"""Reference-free objectives on pairs: tensors in, unreduced tensors out.

Each has a reward of its own, made from the log-probability of the whole response (`cpo`) or of its mean token (the
others), and shares the rest with the DPO family: z from `preference.pair_margin`, then a loss of (z - m) / (1 + d).
Likelihood of the chosen text is a second term with its own denominator, counted tokens, and its own coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.objectives import preference
from rlhf.objectives.reward_model import adjusted_margin
from rlhf.objectives.sft import nll

LENGTH_NORMALISED = frozenset({"simpo", "alphapo", "orpo"})
"""Objectives whose rewards take the mean log-probability of a response's tokens; the others take the sum."""
WITH_NLL = frozenset({"cpo", "orpo"})
"""Objectives that are defined with the likelihood of the chosen text beside the comparison."""


def log_rewards(logps_B: Tensor, beta: float) -> Tensor:
    """The reward beta * log pi(y|x) of CPO (summed over the response) and SimPO (mean over its tokens).

    Shapes: returns rewards_B. Units: beta is per nat.
    Source: CPO, Xu et al. 2024 (2401.08417) eq. 3; SimPO, Meng et al. 2024 (2405.14734) eq. 4.
    """
    return beta * logps_B


def alpha_rewards(mean_logps_B: Tensor, beta: float, alpha: float) -> Tensor:
    """The reward beta * (1 - p^-alpha) / alpha, p the geometric mean of the tokens' probabilities.

    alpha -> 0 gives SimPO's beta * log p, and alpha = 0 is that limit. Its slope in log p is beta * p^-alpha: alpha > 0
    pushes unlikely texts harder than likely ones, alpha < 0 softer.

    Shapes: mean_logps_B over counted tokens; returns rewards_B.
    Source: AlphaPO, Gupta et al. 2025 (2501.03884), the reward function of section 3.
    Departures: none; by way of expm1, so that a small alpha loses no digits.
    """
    if alpha == 0.0:
        return log_rewards(mean_logps_B, beta)
    return -beta / alpha * torch.expm1(-alpha * mean_logps_B)


def log_odds(mean_logps_B: Tensor) -> Tensor:
    """The log odds, log p / (1 - p), p the geometric mean of the tokens' probabilities; infinite where p is 1.

    Shapes: mean_logps_B over counted tokens, at most 0; returns rewards_B. Units: nats.
    Source: ORPO, Hong et al. 2024 (2403.07691) eq. 4.
    """
    # log(1 - p) keeps its digits as log(-expm1) near p = 1 and as log1p near p = 0. The form that is not chosen is
    # given a harmless number: its gradient would be 0 * inf.
    near_B = mean_logps_B > -math.log(2.0)
    inside_B = torch.where(near_B, mean_logps_B, torch.full_like(mean_logps_B, -1.0))
    outside_B = torch.where(near_B, torch.full_like(mean_logps_B, -1.0), mean_logps_B)
    log_rest_B = torch.where(near_B, torch.log(-torch.expm1(inside_B)), torch.log1p(-torch.exp(outside_B)))
    return mean_logps_B - log_rest_B


def cpo(z_N: Tensor, margin_N: Tensor, gain_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """CPO's comparison: DPO's loss with a uniform reference, z = beta * (log pi(y_w|x) - log pi(y_l|x)), sums.

    Shapes: z_N from `log_rewards` and `pair_margin`; margin_N the offset m; gain_N = 1 + d; returns loss_N.
    Units: nats.
    Source: Xu et al. 2024 (2401.08417) eq. 3 and 5, L = L_prefer + L_NLL; the second term is `chosen_nll`.
    Departures: the gain and the offset, 1 and 0 in the source; label smoothing as in cDPO.
    """
    return preference.sigmoid(z_N, margin_N, gain_N, label_smoothing)


def simpo(z_N: Tensor, margin_N: Tensor, gain_N: Tensor, gamma: float = 0.5, label_smoothing: float = 0.0) -> Tensor:
    """SimPO: -(1 + d) * log sigmoid((z - gamma - m) / (1 + d)), z = beta * difference of mean log-probabilities.

    gamma is the target margin in units of z, the same for all pairs; m is the pair's own offset on top of it.

    Shapes: z_N from `log_rewards` on means and `pair_margin`; gain_N = 1 + d; returns loss_N. Units: nats.
    Source: Meng et al. 2024 (2405.14734) eq. 6.
    Departures: the gain and the offset, 1 and 0 in the source; label smoothing as in cDPO. TRL writes
    beta * (difference - gamma / beta), which is the same.
    """
    return preference.sigmoid(z_N, margin_N.to(z_N.dtype) + gamma, gain_N, label_smoothing)


def orpo(z_N: Tensor, margin_N: Tensor, gain_N: Tensor) -> Tensor:
    """ORPO's comparison: -(1 + d) * log sigmoid((z - m) / (1 + d)), z the log odds ratio of chosen and rejected.

    lambda is the coefficient of this term beside `chosen_nll`, whose coefficient is 1.

    Shapes: z_N from `log_odds` and `pair_margin`; margin_N the offset m; gain_N = 1 + d; returns loss_N. Units: nats.
    Source: Hong et al. 2024 (2403.07691) eq. 6 and 7.
    Departures: the gain and the offset, 1 and 0 in the source. TRL calls lambda `beta`.
    """
    return -gain_N.to(z_N.dtype) * logsigmoid(adjusted_margin(z_N, margin_N, gain_N))


def chosen_nll(logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each counted token of the chosen texts; its denominator is their number.

    Shapes: B = 2N, chosen rows first; returns nll_NT, 0 where the mask is False. Units: nats.
    Source: L_NLL of CPO (2401.08417) eq. 5; L_SFT of ORPO (2403.07691) eq. 6.
    Departures: a mean over the tokens of the global batch; CPO's paper averages sums over texts. TRL takes the mean
    over the tokens of each micro-batch, so that a token weighs more in a micro-batch with short texts, and for ORPO it
    also counts the tokens of the prompts, which its comparison does not. No gain: a category widens comparisons.
    """
    pairs = logps_BT.shape[0] // 2
    return nll(logps_BT[:pairs], mask_BT[:pairs])


REWARDS: dict[str, Callable[..., Tensor]] = {
    "cpo": log_rewards,
    "simpo": log_rewards,
    "alphapo": alpha_rewards,
    "orpo": log_odds,
}
"""What z is the difference of: of `sequence_mean` for names in LENGTH_NORMALISED, else of `sequence_sum`."""
OBJECTIVES: dict[str, Callable[..., Tensor]] = {"cpo": cpo, "simpo": simpo, "alphapo": simpo, "orpo": orpo}
