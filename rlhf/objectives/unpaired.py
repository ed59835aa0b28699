"""Objectives on labelled completions, desirable or not: tensors in, unreduced tensors out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.objectives.reward_model import adjusted_margin

WITH_BASELINE = frozenset({"kto"})
"""Objectives whose margin is measured from the KL baseline; the others' is measured from 0."""


def kl_baseline(mean_log_ratio_nats: float) -> float:
    """The baseline z0 of KTO: the mean log-ratio of texts whose completion belongs to another prompt, at least 0.

    It is an estimate of how far the policy has moved everywhere, taken where the labels say nothing; no gradient goes
    through it. The mean runs over the whole batch: a mean over part of it is another estimate, and as each part is
    raised to 0 on its own, a larger one.

    Units: nats, summed over a response.
    Source: Ethayarajh et al. 2024 (2402.01306), section 4: max(0, mean over i of log pi(y_j|x_i) / pi_ref(y_j|x_i)),
    where y_j answers another prompt than x_i.
    Departures: none; the bound at 0 is the source's (a divergence is not negative, its estimate can be), and a caller
    records the mean too. It is biased as an estimate of KL(pi || pi_ref): y_j is no sample of the policy.
    """
    return max(0.0, mean_log_ratio_nats)


def unpaired_margin(log_ratio_B: Tensor, beta: float, kl_nats: float) -> Tensor:
    """The margin z = beta * (log-ratio - z0), from which side of 0 an objective reads good and bad.

    Shapes: log_ratio_B summed over the response; returns z_B. Units: beta is per nat.
    Source: Ethayarajh et al. 2024 (2402.01306) eq. 7, what stands in the logistic function; z0 = 0 for
    `apo_zero_unpaired`.
    """
    return beta * (log_ratio_B - kl_nats)


def kto(
    z_B: Tensor,
    margin_B: Tensor,
    gain_B: Tensor,
    label_B: Tensor,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """The KTO loss, w_y * (1 + d) * s(-u) for desirable and w_y * (1 + d) * s(u) for undesirable completions.

    u = (z - m) / (1 + d), s the logistic curve. It is w_y / 2 where the log-ratio equals z0 (d = 0, m = 0). The gain
    leaves the gradient at z = m where it is and stretches the region in which a completion still pulls by exactly
    1 + d. The offset m moves the point that separates good from bad, for both labels alike.

    Shapes: z_B from `unpaired_margin`; margin_B the offset m; gain_B = 1 + d; label_B bool, True desirable; returns
    loss_B. Units: none; between 0 and w_y * (1 + d).
    Raises: ValueError when the labels are not boolean.
    Source: Ethayarajh et al. 2024 (2402.01306) eq. 7 and 8: the mean over rows of lambda_y - v(x, y).
    Departures: the gain and the offset, 1 and 0 in the source.
    """
    if label_B.dtype != torch.bool:
        raise ValueError(f"a label is boolean, True where a completion is desirable; got {label_B.dtype}")
    u_B = adjusted_margin(z_B, margin_B, gain_B)
    weight_B = session_weights(gain_B, label_B, desirable_weight, undesirable_weight).to(z_B.dtype)
    return weight_B * torch.sigmoid(torch.where(label_B, -u_B, u_B))


def session_weights(gain_B: Tensor, label_B: Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """What multiplies each completion's loss: (1 + d) * w_y.

    Shapes: returns weight_B.
    """
    return torch.where(label_B, desirable_weight * gain_B, undesirable_weight * gain_B)


def apo_zero_unpaired(
    z_B: Tensor,
    margin_B: Tensor,
    gain_B: Tensor,
    label_B: Tensor,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """APO-zero on single completions: likelier than under the reference where desirable, less likely where not.

    It is `kto` measured from the reference itself, z = beta * log-ratio with z0 = 0: no mismatched texts are needed,
    and a policy that has moved everywhere sees every completion from the same side.

    Shapes: as `kto`. Units: none.
    Source: D'Oosterlinck et al. 2024 (2408.06266) eq. 7, its two terms on texts of their own, as in TRL's KTOTrainer.
    Departures: as `kto`.
    """
    return kto(z_B, margin_B, gain_B, label_B, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"kto": kto, "apo_zero_unpaired": apo_zero_unpaired}
