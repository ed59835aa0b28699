"""From what the heads of a reward model give to the score it reports: ordered thresholds, levels, steps, ensembles."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Aggregation = Literal["min", "product", "last"]


def ordered(raw: Tensor) -> Tensor:
    """Thresholds that ascend whatever the numbers behind them: the first as it is, then exp of each as an increment.

    Shapes: (..., C - 1) in and out, C levels.
    Source: the parameterisation of McCullagh 1980's ordered cut points that needs no constraint.
    """
    return torch.cat([raw[..., :1], raw[..., 1:].exp()], dim=-1).cumsum(dim=-1)


def unordered(thresholds: Tensor) -> Tensor:
    """The numbers behind ascending thresholds: the inverse of `ordered`.

    Raises: ValueError when they do not ascend.
    """
    steps = thresholds[..., 1:] - thresholds[..., :-1]
    if not bool((steps > 0).all()):
        raise ValueError("thresholds must ascend")
    return torch.cat([thresholds[..., :1], steps.log()], dim=-1)


def expected_level(latent: Tensor, thresholds: Tensor) -> Tensor:
    """Mean level, counted from 0, of the cumulative-link model P(y <= c) = sigmoid(theta_c - s): sum_c P(y > c).

    Shapes: latent (...), thresholds (..., C - 1); returns (...), in 0..C - 1.
    """
    return torch.sigmoid(latent.unsqueeze(-1) - thresholds).sum(dim=-1)


def aggregate_steps(logits_XK: Tensor, mask_BT: Tensor, how: Aggregation) -> Tensor:
    """The score of a stepwise text from the probabilities that its steps are right: least, product, or the last one's.

    Shapes: logits_XK at the True positions of mask_BT in row order, K heads; every row has at least one; returns
    score_BK. Units: probability.
    Raises: ValueError when a row has no step.
    Source: least and product: Lightman et al. 2023 (2305.20050); last: Snell et al. 2024 (2408.03314).
    """
    rows, row_X = len(mask_BT), mask_BT.nonzero()[:, 0]
    counts_B = mask_BT.sum(dim=1)
    if not bool((counts_B > 0).all()):
        raise ValueError("a row without a step has no score")
    if how == "last":
        return torch.sigmoid(logits_XK[counts_B.cumsum(0) - 1])
    log_XK = logsigmoid(logits_XK)
    if how == "product":
        return log_XK.new_zeros(rows, log_XK.shape[1]).index_add(0, row_X, log_XK).exp()
    index_XK = row_X.unsqueeze(1).expand_as(log_XK)
    return log_XK.new_zeros(rows, log_XK.shape[1]).scatter_reduce(0, index_XK, log_XK, "amin", include_self=False).exp()


def disagreement(scores_BK: Tensor) -> Tensor:
    """Standard deviation over the heads of an ensemble, divided by K.

    Shapes: returns std_B; 0 for one head.
    Source: Coste et al. 2023 (2310.02743), whose penalty is its square.
    """
    return (scores_BK - scores_BK.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()


def conservative(scores_BK: Tensor, std_coefficient: float) -> Tensor:
    """Mean of the heads less a multiple of their disagreement.

    Shapes: returns score_B.
    Source: lower confidence bound; Coste et al. 2023 (2310.02743) subtract the variance.
    Departures: the standard deviation, which has the score's unit.
    """
    mean_B = scores_BK.mean(dim=1)
    return mean_B if std_coefficient == 0 else mean_B - std_coefficient * disagreement(scores_BK)
