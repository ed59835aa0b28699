"""Objectives of the reward model: tensors in, unreduced tensors out."""

from __future__ import annotations

from collections.abc import Callable

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


def bradley_terry(z_N: Tensor, margin_N: Tensor, gain_N: Tensor) -> Tensor:
    """(1 + d) * -log sigmoid((z - m) / (1 + d)), with z = score of chosen - score of rejected.

    The gain widens the gap at which the loss of noisy labels is smallest by exactly 1 + d, and leaves the gradient at
    z = m, -1/2, where it is.

    Shapes: returns loss_N. Units: nats.
    Source: Bradley and Terry 1952; as a loss, Ouyang et al. 2022 (2203.02155) eq. 1; offset m: Touvron et al. 2023
    (2307.09288) eq. 2.
    Departures: the gain; d = 0 is the source.
    """
    return -gain_N.to(z_N.dtype) * logsigmoid(adjusted_margin(z_N, margin_N, gain_N))


def centering(chosen_N: Tensor, rejected_N: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2: pulls the mean score of a pair to 0, which no comparison determines.

    Shapes: scores in, penalty_N out. Units: squared score.
    Source: Eisenstein et al. 2023 (2312.09244) eq. 2.
    """
    return (chosen_N + rejected_N) ** 2


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"bradley_terry": bradley_terry, "centering": centering}
