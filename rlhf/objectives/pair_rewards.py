"""Losses that see the two rewards of a pair separately, or all rewards of a batch sorted.

Those of two rewards take each as r / (1 + d) and weight their loss by 1 + d, so that the gap between the rewards at
which a loss of noisy labels is smallest widens by exactly 1 + d. They know no offset of a margin.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.objectives.preference import sigmoid
from rlhf.objectives.reward_model import adjusted_margin


def nca_pair(chosen_N: Tensor, rejected_N: Tensor, gain_N: Tensor) -> Tensor:
    """(1 + d) * [-log s(r_w) - 1/2 log s(-r_w) - 1/2 log s(-r_l)], each reward divided by 1 + d.

    Shapes: rewards beta * log-ratio of the chosen and of the rejected texts; gain_N = 1 + d; returns loss_N.
    Units: nats.
    Source: NCA, Chen et al. 2024 (2402.05369), the loss for pairs.
    """
    chosen_N, rejected_N = _divided(chosen_N, gain_N), _divided(rejected_N, gain_N)
    loss_N = -logsigmoid(chosen_N) - 0.5 * (logsigmoid(-chosen_N) + logsigmoid(-rejected_N))
    return gain_N.to(chosen_N.dtype) * loss_N


def bco_pair(chosen_N: Tensor, rejected_N: Tensor, gain_N: Tensor, delta: float = 0.0) -> Tensor:
    """(1 + d) * [-log s(r_w - delta) - log s(-(r_l - delta))], r - delta divided by 1 + d.

    delta is the mean reward of both texts; which mean is the caller's choice (here: over the steps before, so that it
    does not depend on how a batch was cut).

    Shapes: as `nca_pair`. Units: nats.
    Source: BCO, Jung et al. 2024 (2404.04656), for labels that come in pairs, without the density ratio.
    Departures: the mean leaves out the step's own batch. TRL 1.16 has no delta: it is 0 there.
    """
    chosen_N, rejected_N = _divided(chosen_N - delta, gain_N), _divided(rejected_N - delta, gain_N)
    return gain_N.to(chosen_N.dtype) * (-logsigmoid(chosen_N) - logsigmoid(-rejected_N))


def sppo_hard(chosen_N: Tensor, rejected_N: Tensor, gain_N: Tensor, beta: float) -> Tensor:
    """(1 + d) * [(t_w - 1 / (2 beta))^2 + (t_l + 1 / (2 beta))^2], log-ratios t divided by 1 + d, the target not.

    Shapes: as `nca_pair`; t = reward / beta. Units: square nats.
    Source: SPPO, Wu et al. 2024 (2405.00675) eq. 4.7, eta = 1 / beta, win probabilities 1 and 0.
    """
    chosen_N, rejected_N = _divided(chosen_N, gain_N), _divided(rejected_N, gain_N)
    return gain_N.to(chosen_N.dtype) * (((chosen_N - 0.5) / beta) ** 2 + ((rejected_N + 0.5) / beta) ** 2)


def apo_zero(chosen_N: Tensor, rejected_N: Tensor, gain_N: Tensor) -> Tensor:
    """(1 + d) * [1 - s(r_w) + s(r_l)]: for chosen texts that are better than what the policy writes.

    Shapes: as `nca_pair`. Units: none.
    Source: APO, D'Oosterlinck et al. 2024 (2408.06266) eq. 7.
    """
    chosen_N, rejected_N = _divided(chosen_N, gain_N), _divided(rejected_N, gain_N)
    return gain_N.to(chosen_N.dtype) * (torch.sigmoid(-chosen_N) + torch.sigmoid(rejected_N))


def apo_down(chosen_N: Tensor, rejected_N: Tensor, gain_N: Tensor) -> Tensor:
    """(1 + d) * [s(r_w) + 1 - s(r_w - r_l)]: for chosen texts that are worse than what the policy writes.

    Shapes: as `nca_pair`. Units: none.
    Source: APO, D'Oosterlinck et al. 2024 (2408.06266) eq. 8.
    """
    chosen_N, rejected_N = _divided(chosen_N, gain_N), _divided(rejected_N, gain_N)
    return gain_N.to(chosen_N.dtype) * (torch.sigmoid(chosen_N) + torch.sigmoid(rejected_N - chosen_N))


def aot(policy_N: Tensor, reference_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss quantile by quantile: the sorted margins of the policy against the sorted margins of the reference.

    The policy is to prefer the chosen texts more than the reference does in distribution, not pair by pair.

    Shapes: policy_N and reference_N, beta times log-probability of chosen - of rejected, of all pairs of a step at
    once; returns loss_N by quantile, not by pair: -log sigmoid(policy_(i) - reference_(i)), (i) the i-th smallest.
    Units: nats.
    Source: AOT, Melnyk et al. 2024 (2406.05882), paired.
    """
    return _by_quantile(policy_N.sort().values - reference_N.sort().values, label_smoothing)


def aot_unpaired(chosen_N: Tensor, rejected_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss quantile by quantile: the sorted rewards of all chosen texts against those of all rejected ones.

    Shapes: as `nca_pair`, of all pairs of a step at once; returns loss_N by quantile, not by pair:
    -log sigmoid(chosen_(i) - rejected_(i)), (i) the i-th smallest. Units: nats.
    Source: AOT, Melnyk et al. 2024 (2406.05882), unpaired.
    """
    return _by_quantile(chosen_N.sort().values - rejected_N.sort().values, label_smoothing)


def _by_quantile(z_N: Tensor, label_smoothing: float) -> Tensor:
    return sigmoid(z_N, torch.zeros_like(z_N), torch.ones_like(z_N), label_smoothing)


def _divided(rewards_N: Tensor, gain_N: Tensor) -> Tensor:
    return adjusted_margin(rewards_N, torch.zeros_like(rewards_N), gain_N)


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}
"""Losses of two rewards and a gain."""
COUPLED: dict[str, Callable[..., Tensor]] = {"aot": aot, "aot_unpaired": aot_unpaired}
"""Losses of a whole batch."""
