"""Divergence of the policy pi from the reference, and which form of it has which gradient.

With r = log pi_ref - log pi of a sampled text, drawn from pi:

    k1 = -r        unbiased for KL(pi || ref), signed
    k2 = r^2 / 2   biased, close where policy and reference are close
    k3 = e^r - 1 - r   unbiased, never negative; its variance explodes where the reference is the wider one
    full           the sum over the vocabulary instead of a sample of it: `rlhf.reference.full_vocabulary`

A form is (estimator, place, level, ratio). Its expected gradient on-policy, which the tests enumerate:

    k1, reward, sequence                   KL(pi || ref) of the sequence, exactly
    k2, loss, sequence, none or detached   the same
    k1 or k3, loss, sequence, live         the same
    full, loss, sequence, live             the same; of another divergence: its sum along the policy's own texts
    k1 or k3, loss, token, live            KL(pi || ref) at the prefixes that were visited: what a token does to the
                                           states after it is left out
    k2, loss, token, none or detached      the same as token-level k3 with a live ratio, sample by sample
    full, loss, token or sequence, none    the divergence at the prefixes that were visited, without sampling noise
    k1, reward, token                      KL(pi || ref) at the prefixes that were visited
    k3, loss, token, none or detached      KL(ref || pi), the *forward* divergence, at the prefixes that were visited
    k3, loss, sequence, none or detached   KL(ref || pi) of the sequence
    k2 or k3, reward                       no divergence's
    k1, loss, none or detached             zero

On texts of an older policy (the inner steps after the first), which the tests enumerate too: with a live ratio a form
keeps what it has above, the token's at the prefixes that the older policy visited, the sequence's exactly. So it does
with a detached one where the table names one. Without a ratio no sampled form has a divergence's gradient any more, and
k1 in the reward, measured once, has that of KL(pi || ref) - KL(pi || pi_old). `full` needs none at a prefix.

Sequence and token level differ in size by about the length of a text: beta is per nat and sequence, or per nat and
token. Source: Schulman 2020, "Approximating KL Divergence" (k1 to k3); the gradients: Tang and Munos 2025 (2506.09477).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rlhf.ops.logprobs import upcast
from rlhf.ops.masked import masked_fill
from rlhf.reference.full_vocabulary import DIVERGENCES, divergence, forward_kl, reverse_kl

__all__ = [
    "DIVERGENCES",
    "ESTIMATORS",
    "KLForm",
    "divergence",
    "forward_kl",
    "k1",
    "k2",
    "k3",
    "kl_penalty",
    "log_ratio_to_reference",
    "reverse_kl",
    "reward_penalty",
]


class KLForm(Protocol):
    """The four choices of a KL penalty.

    The arithmetic takes every combination; `rlhf.reference.settings` refuses those that make no sense.
    """

    @property
    def estimator(self) -> str:
        """One of k1, k2, k3, full."""

    @property
    def place(self) -> str:
        """One of reward, loss."""

    @property
    def level(self) -> str:
        """One of token, sequence."""

    @property
    def ratio(self) -> str:
        """One of none, live, detached."""


def k1(r: Tensor) -> Tensor:
    """-r. Units: nats."""
    return -r


def k2(r: Tensor) -> Tensor:
    """r^2 / 2. Units: nats squared."""
    return r.square() / 2


def k3(r: Tensor) -> Tensor:
    """e^r - 1 - r, without loss of digits where r is small. Units: nats."""
    return torch.expm1(r) - r


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_penalty(
    settings: KLForm,
    logps_BT: Tensor,
    ref_logps_BT: Tensor | None,
    mask_BT: Tensor,
    old_logps_BT: Tensor | None = None,
    *,
    full_BT: Tensor | None = None,
) -> Tensor:
    """The penalty that enters the loss with coefficient beta (place `loss`), unreduced.

    `ratio` multiplies it by pi / pi_old, of the token or of the whole sequence: 1 on-policy, where `live` still has the
    gradient of log pi and `detached` changes nothing.

    Shapes: level `token`: penalty_BT, to be weighted like the tokens of the objective; level `sequence`: penalty_B,
    whose denominator is the number of sequences. 0 where nothing is counted. old_logps_BT None: the batch is
    on-policy. full_BT: the divergence over the vocabulary, one of `DIVERGENCES`, for estimator `full` only.
    Raises: ValueError when the settings place the penalty in the reward, or a tensor that they need is missing.
    """
    if settings.place != "loss":
        raise ValueError("kl.place is `reward`: use reward_penalty")
    if settings.estimator == "full":
        if full_BT is None:
            raise ValueError("kl.estimator `full` needs the divergence over the vocabulary")
        penalty = masked_fill(full_BT, mask_BT)
        penalty = penalty.sum(dim=1) if settings.level == "sequence" else penalty
    else:
        penalty = _sampled(settings, logps_BT, ref_logps_BT, mask_BT)
    if settings.ratio == "none":
        return penalty
    old_BT = logps_BT.detach() if old_logps_BT is None else old_logps_BT
    log_ratio = masked_fill(upcast(logps_BT) - upcast(old_BT), mask_BT)
    if settings.level == "sequence":
        log_ratio = log_ratio.sum(dim=1)
    ratio = log_ratio.exp()
    return penalty * (ratio.detach() if settings.ratio == "detached" else ratio)


def reward_penalty(settings: KLForm, logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The penalty that is subtracted, times beta, from the advantage (place `reward`); no gradient flows through it.

    Shapes: logps_BT of the policy that sampled; level `sequence`: penalty_B; level `token`: penalty_BT.
    Raises: ValueError when the settings place the penalty in the loss, or ask for `full`, which has no such form.
    """
    if settings.place != "reward":
        raise ValueError("kl.place is `loss`: use kl_penalty")
    return _sampled(settings, logps_BT.detach(), ref_logps_BT.detach(), mask_BT)


def log_ratio_to_reference(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The log-ratio r = log pi_ref - log pi of each counted token.

    Shapes: returns r_BT, 0 where the mask is False. Units: nats.
    """
    return masked_fill(upcast(ref_logps_BT) - upcast(logps_BT), mask_BT)


def _sampled(settings: KLForm, logps_BT: Tensor, ref_logps_BT: Tensor | None, mask_BT: Tensor) -> Tensor:
    if settings.estimator not in ESTIMATORS:
        raise ValueError(f"kl.estimator `{settings.estimator}` has no form for kl.place `{settings.place}`")
    if ref_logps_BT is None:
        raise ValueError(f"kl.estimator `{settings.estimator}` needs the reference's log-probabilities")
    r = log_ratio_to_reference(logps_BT, ref_logps_BT, mask_BT)
    if settings.level == "sequence":
        r = r.sum(dim=1)
    return ESTIMATORS[settings.estimator](r)
