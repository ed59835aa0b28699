"""Losses of the margin between two texts, the DPO family: tensors in, unreduced tensors out.

All take z, the difference of two rewards, as u = (z - m) / (1 + d), and weight their loss by 1 + d: the gap at which a
loss of noisy labels is smallest widens by exactly 1 + d. A beta inside a target is no margin and stays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.objectives.log_ratio import halves
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
    chosen_N, rejected_N = halves(rewards_B)
    return chosen_N - rejected_N


def sigmoid(z_N: Tensor, margin_N: Tensor, gain_N: Tensor, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """The DPO loss, -(1 + d) * [(1 - e) * log s(u) + e * log s(-u)] with u = (z - m) / (1 + d), s the logistic curve.

    It is log 2 where policy and reference agree (d = 0, m = 0). The gain widens the gap at which the loss is smallest
    by exactly 1 + d and leaves the gradient at z = m where it is. `sigmoid_norm` is the same of rewards whose
    log-ratios are divided by the number of their tokens.

    Shapes: z_N from `implicit_rewards` and `pair_margin`; margin_N the offset m; gain_N = 1 + d; returns loss_N.
    label_smoothing: the probability that a label is wrong, of all pairs, in [0, 0.5), or one of each pair, in [0, 1].
    Units: nats.
    Source: Rafailov et al. 2023 (2305.18290) eq. 7; label smoothing e: the note on cDPO, Mitchell 2023; offset m: ODPO,
    Amini et al. 2024 (2402.10571); divided by lengths: TRL's `sigmoid_norm`.
    Departures: the gain; d = 0 is the source. TRL 1.16 takes no label smoothing here.
    """
    u_N = adjusted_margin(z_N, margin_N, gain_N)
    kept, flipped = _shares(label_smoothing, u_N)
    loss_N = -kept * logsigmoid(u_N)
    if flipped is not None:
        loss_N = loss_N - flipped * logsigmoid(-u_N)
    return gain_N.to(z_N.dtype) * loss_N


def hinge(z_N: Tensor, margin_N: Tensor, gain_N: Tensor) -> Tensor:
    """(1 + d) * max(0, 1 - u).

    Shapes: as `sigmoid`. Units: those of z.
    Source: SLiC, Zhao et al. 2023 (2305.10425), of DPO's margin as in RSO, Liu et al. 2023 (2309.06657).
    """
    return gain_N.to(z_N.dtype) * torch.relu(1.0 - adjusted_margin(z_N, margin_N, gain_N))


def ipo(z_N: Tensor, margin_N: Tensor, gain_N: Tensor, beta: float, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """(1 + d) * (h - 1 / (2 beta))^2 with h = u / beta, the difference of log-ratios; the target is not divided.

    `ipo_sum` takes log-ratios summed over the response, `ipo_mean` their mean over its tokens. With a probability e
    that the label is wrong the target of -h counts e, and h is best at (1 - 2e) / (2 beta).

    Shapes: as `sigmoid`, z_N = beta times the difference. Units: square nats, or square nats per token.
    Source: Azar et al. 2023 (2310.12036) eq. 17, where beta is called tau: `ipo_sum`. `ipo_mean` is TRL's `ipo`.
    Departures: offset and gain, 0 and 1 in the source; soft labels are the mean of the source's loss over labels.
    """
    u_N = adjusted_margin(z_N, margin_N, gain_N)
    kept, flipped = _shares(label_smoothing, u_N)
    loss_N = kept * ((u_N - 0.5) / beta) ** 2
    if flipped is not None:
        loss_N = loss_N + flipped * ((u_N + 0.5) / beta) ** 2
    return gain_N.to(z_N.dtype) * loss_N


def exo_pair(z_N: Tensor, margin_N: Tensor, gain_N: Tensor, label_smoothing: float | Tensor) -> Tensor:
    """(1 + d) * KL(p || q) of the pair: p = (s(u), s(-u)) what the policy prefers, q = (1 - e, e) what the label says.

    The reverse of DPO's divergence; 0 where u is the log odds of the label.

    Shapes: as `sigmoid`. Units: nats.
    Raises: ValueError when e is 0: a label that is certain has an infinite divergence.
    Source: EXO, Ji et al. 2024 (2402.00856) eq. 16.
    """
    u_N = adjusted_margin(z_N, margin_N, gain_N)
    flipped_N = torch.as_tensor(label_smoothing, dtype=u_N.dtype, device=u_N.device)
    if not isinstance(label_smoothing, Tensor) and not 0.0 < label_smoothing < 0.5:
        raise ValueError(f"exo_pair needs a label_smoothing in (0, 0.5), got {label_smoothing}")
    log_p_N, log_other_N = logsigmoid(u_N), logsigmoid(-u_N)
    kept_N = log_p_N.exp() * (log_p_N - torch.log1p(-flipped_N))
    return gain_N.to(z_N.dtype) * (kept_N + log_other_N.exp() * (log_other_N - torch.log(flipped_N)))


def robust(z_N: Tensor, margin_N: Tensor, gain_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(1 + d) * [(1 - e) * -log s(u) - e * -log s(-u)] / (1 - 2e): unbiased for labels of which a share e is flipped.

    Shapes: as `sigmoid`. Units: nats; may be negative.
    Source: Chowdhury et al. 2024 (2403.00409), the loss called rDPO.
    """
    u_N = adjusted_margin(z_N, margin_N, gain_N)
    _shares(label_smoothing, u_N)
    loss_N = -(1.0 - label_smoothing) * logsigmoid(u_N) + label_smoothing * logsigmoid(-u_N)
    return gain_N.to(z_N.dtype) * loss_N / (1.0 - 2.0 * label_smoothing)


def discopop(z_N: Tensor, margin_N: Tensor, gain_N: Tensor, discopop_tau: float = 0.05) -> Tensor:
    """(1 + d) * [(1 - w) * -log s(u) + w * exp(-u)] with w = s(u / tau).

    Shapes: as `sigmoid`. Units: none.
    Source: DiscoPOP, Lu et al. 2024 (2406.08414) eq. 5, log-ratio modulated loss.
    """
    u_N = adjusted_margin(z_N, margin_N, gain_N)
    mixed_N = torch.sigmoid(u_N / discopop_tau)
    return gain_N.to(z_N.dtype) * ((1.0 - mixed_N) * -logsigmoid(u_N) + mixed_N * torch.exp(-u_N))


def _shares(label_smoothing: float | Tensor, like: Tensor) -> tuple[float | Tensor, float | Tensor | None]:
    """How much the label counts, and how much its opposite; None for nothing."""
    if isinstance(label_smoothing, Tensor):
        flipped_N = label_smoothing.to(like.dtype)
        return 1.0 - flipped_N, flipped_N
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing {label_smoothing} is outside [0, 0.5)")
    return 1.0 - label_smoothing, label_smoothing or None


MEANS = frozenset({"sigmoid_norm", "ipo_mean"})
"""Losses of rewards whose log-ratios are divided by the number of tokens."""
OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid,
    "hinge": hinge,
    "ipo_sum": ipo,
    "ipo_mean": ipo,
    "exo_pair": exo_pair,
    "robust": robust,
    "discopop": discopop,
}
