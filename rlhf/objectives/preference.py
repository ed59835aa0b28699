"""Objectives of the DPO family: tensors in, unreduced tensors out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.objectives.reward_model import adjusted_margin


def implicit_rewards(logps_B: Tensor, ref_logps_B: Tensor, beta: float) -> Tensor:
    """The implicit reward beta * (log pi(y|x) - log pi_ref(y|x)), log-probabilities summed over the response.

    Shapes: returns rewards_B. Units: beta is per nat.
    Source: Rafailov et al. 2023 (2305.18290) eq. 5, without the term of the prompt, which no comparison sees.
    """
    return beta * (logps_B - ref_logps_B)


def pair_margin(rewards_B: Tensor) -> Tensor:
    """The margin z = reward of chosen - reward of rejected.

    Shapes: rewards_B with B = 2N, chosen rows first; returns z_N.
    Raises: ValueError when the number of rows is odd or 0.
    """
    rows = len(rewards_B)
    if rows == 0 or rows % 2:
        raise ValueError(f"{rows} rows are no batch of pairs: chosen rows first, then as many rejected ones")
    return rewards_B[: rows // 2] - rewards_B[rows // 2 :]


def sigmoid(z_N: Tensor, margin_N: Tensor, gain_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The DPO loss, -(1 + d) * [(1 - e) * log s(u) + e * log s(-u)] with u = (z - m) / (1 + d), s the logistic curve.

    It is log 2 where policy and reference agree (d = 0, m = 0). The gain widens the gap at which the loss is smallest
    by exactly 1 + d and leaves the gradient at z = m where it is.

    Shapes: z_N from `implicit_rewards` and `pair_margin`; margin_N the offset m; gain_N = 1 + d; returns loss_N.
    Units: nats.
    Source: Rafailov et al. 2023 (2305.18290) eq. 7; label smoothing e: the note on cDPO, Mitchell 2023; offset m: ODPO,
    Amini et al. 2024 (2402.10571).
    Departures: the gain; d = 0 is the source.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing {label_smoothing} is outside [0, 0.5)")
    u_N = adjusted_margin(z_N, margin_N, gain_N)
    loss_N = -(1.0 - label_smoothing) * logsigmoid(u_N)
    if label_smoothing:
        loss_N = loss_N - label_smoothing * logsigmoid(-u_N)
    return gain_N.to(z_N.dtype) * loss_N


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"sigmoid": sigmoid}
