"""The losses of `rlhf dpo` by name: from log-probabilities to rewards, margins and one loss a pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import PairBatch
from rlhf.config import DPOTrainSection
from rlhf.config.pair_losses import COUPLED, KNOBS, PreferenceLoss
from rlhf.objectives import pair_rewards, preference, reference_free
from rlhf.objectives.log_ratio import divergence_scores, halves, on_policy_weights, response_sums
from rlhf.objectives.preference import implicit_rewards, pair_margin
from rlhf.ops.logprobs import PolicyOutput
from rlhf.ops.masked import sequence_sum
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally


@dataclass
class RunningMean:
    """Mean of all values so far, 0 before the first; lives in the checkpoint."""

    mean: float = 0.0
    count: float = 0.0

    def add(self, mean: float, count: float) -> None:
        """Takes `count` values with this mean into account."""
        self.count += count
        self.mean += (mean - self.mean) * count / self.count


@dataclass(frozen=True)
class Parts:
    """What the losses of a micro-batch are made of.

    Shapes: logps_B and ref_logps_B sums over the response, with LD-DPO its weighted ones; plain_B and log_ratio_B never
    weighted and without a gradient; length_B counted tokens; weights_N of WPO. None: without a reference, without WPO.
    """

    batch: PairBatch
    logps_B: Tensor
    plain_B: Tensor
    length_B: Tensor
    ref_logps_B: Tensor | None = None
    log_ratio_B: Tensor | None = None
    weights_N: Tensor | None = None


@dataclass(frozen=True)
class Judged:
    """The losses of a micro-batch, and what is told of it.

    Shapes: loss_N by loss, gains and weights of pairs included; nll_NT of the chosen texts or None; rewards_B and z_N
    of the first loss that compares.
    """

    parts: Parts
    rewards_B: Tensor
    z_N: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    nll_NT: Tensor | None = None


class PairObjective:
    """The weighted sum of losses that a train section names.

    Each loss is a term over pairs; the likelihood of the chosen texts, of `sft`, `cpo` and `orpo`, is one term over
    their tokens, `nll`. `shift` is the mean reward of both texts over the steps before, of `bco_pair`.
    """

    def __init__(self, train: DPOTrainSection) -> None:
        self.train = train
        self.need = frozenset({"logps", "collision"} if train.use_weighting else {"logps"})
        self.coefficients: dict[str, float] = {}
        for name, weight in train.weights.items():
            if name != "sft":
                self.coefficients[name] = weight * (train.orpo_lambda if name == "orpo" else 1.0)
        nll = {"sft": 1.0, "cpo": train.cpo_alpha, "orpo": 1.0}
        likelihood = sum(weight * nll.get(name, 0.0) for name, weight in train.weights.items())
        if likelihood > 0:
            self.coefficients["nll"] = likelihood
        self.shift = RunningMean()
        self._knobs: dict[str, dict[str, Any]] = {
            "discopop": {"discopop_tau": train.discopop_tau},
            "ipo_sum": {"beta": train.reference_beta},
            "ipo_mean": {"beta": train.reference_beta},
            "sppo_hard": {"beta": train.reference_beta},
            "simpo": {"gamma": train.simpo_gamma},
            "alphapo": {"gamma": train.simpo_gamma},
        }

    def denominators(self, batch: PairBatch) -> dict[str, float]:
        """Pairs, and tokens of the chosen texts."""
        tokens = float(batch.tokens.mask_BT[: batch.pairs].sum())
        return {name: tokens if name == "nll" else float(batch.pairs) for name in self.coefficients}

    def __call__(self, output: PolicyOutput, ref_logps_BT: Tensor | None, batch: PairBatch) -> Judged:
        """The losses of a micro-batch; ref_logps_BT is None exactly where no loss compares with a reference."""
        assert output.logps_BT is not None
        parts = self._parts(output, ref_logps_BT, batch)
        first = self.train.compared[0]
        rewards_B = self._rewards(first, parts)
        losses = {name: self._loss(name, parts) for name in self.train.compared}
        nll_NT = None
        if "nll" in self.coefficients:
            nll_NT = reference_free.chosen_nll(output.logps_BT, batch.tokens.mask_BT)
        return Judged(parts, rewards_B, pair_margin(rewards_B), losses, nll_NT)

    def sums(self, judged: Judged) -> dict[str, Sum]:
        """The loop's terms."""
        totals = {name: loss_N.sum() for name, loss_N in judged.losses.items()}
        if judged.nll_NT is not None:
            totals["nll"] = judged.nll_NT.sum()
        return {name: Sum(total, self.coefficients[name]) for name, total in totals.items()}

    def _parts(self, output: PolicyOutput, ref_logps_BT: Tensor | None, batch: PairBatch) -> Parts:
        mask_BT, logps_BT = batch.tokens.mask_BT, output.logps_BT
        assert logps_BT is not None
        alpha = self.train.ld_alpha
        logps_B = response_sums(logps_BT, mask_BT, alpha)
        plain_B = logps_B.detach() if alpha is None else sequence_sum(logps_BT.detach(), mask_BT)
        ref_logps_B = log_ratio_B = None
        if ref_logps_BT is not None:
            ref_logps_BT = ref_logps_BT.to(logps_BT.dtype)
            ref_logps_B = response_sums(ref_logps_BT, mask_BT, alpha)
            log_ratio_B = plain_B - (ref_logps_B if alpha is None else sequence_sum(ref_logps_BT, mask_BT))
        weights_N = None
        if self.train.use_weighting:
            assert output.collision_BT is not None
            weights_N = on_policy_weights(logps_BT, output.collision_BT, mask_BT)
        length_B = mask_BT.sum(dim=1).to(logps_BT.dtype)
        return Parts(batch, logps_B, plain_B, length_B, ref_logps_B, log_ratio_B, weights_N)

    def _rewards(self, name: str, parts: Parts) -> Tensor:
        """What z is the difference of."""
        train = self.train
        if name in reference_free.REWARDS:
            means = name in reference_free.LENGTH_NORMALISED
            logps_B = parts.logps_B / parts.length_B if means else parts.logps_B
            if name == "orpo":
                return reference_free.log_odds(logps_B)
            if name == "alphapo":
                return reference_free.alpha_rewards(logps_B, train.simpo_beta, train.alphapo_alpha)
            return reference_free.log_rewards(logps_B, train.cpo_beta if name == "cpo" else train.simpo_beta)
        assert parts.ref_logps_B is not None
        if name not in preference.OBJECTIVES:
            return implicit_rewards(parts.logps_B, parts.ref_logps_B, train.reference_beta)
        log_ratio_B = parts.logps_B - parts.ref_logps_B
        scores_B = divergence_scores(log_ratio_B, train.f_divergence_type, train.f_alpha_divergence_coef)
        return train.reference_beta * (scores_B / parts.length_B if name in preference.MEANS else scores_B)

    def _loss(self, name: PreferenceLoss, parts: Parts) -> Tensor:
        batch, knobs = parts.batch, {**self._knobs.get(name, {}), **self._smoothing(name, parts.batch)}
        if name in COUPLED:
            return self._coupled(name, parts, knobs)
        rewards_B = self._rewards(name, parts)
        if name in pair_rewards.OBJECTIVES:
            if name == "bco_pair":
                knobs["delta"] = self.shift.mean
            loss_N = pair_rewards.OBJECTIVES[name](*halves(rewards_B), batch.gain_N, **knobs)
        else:
            known = {**preference.OBJECTIVES, **reference_free.OBJECTIVES}
            loss_N = known[name](pair_margin(rewards_B), batch.margin_N, batch.gain_N, **knobs)
        return loss_N if parts.weights_N is None else loss_N * parts.weights_N

    def _coupled(self, name: str, parts: Parts, knobs: dict[str, Any]) -> Tensor:
        assert parts.ref_logps_B is not None
        beta = self.train.reference_beta
        if name == "aot":
            policy_N, reference_N = (pair_margin(beta * sums_B) for sums_B in (parts.logps_B, parts.ref_logps_B))
            return pair_rewards.aot(policy_N, reference_N, **knobs)
        return pair_rewards.aot_unpaired(*halves(self._rewards(name, parts)), **knobs)

    def _smoothing(self, name: PreferenceLoss, batch: PairBatch) -> dict[str, Any]:
        if batch.preference_N is not None:
            return {"label_smoothing": 1.0 - batch.preference_N}
        return {"label_smoothing": self.train.label_smoothing} if "label_smoothing" in KNOBS[name] else {}

    def shift_rewards(self, parts: Parts) -> Tensor:
        """The rewards whose mean `bco_pair` subtracts from the next step on."""
        return self._rewards("bco_pair", parts)

    def held_out(self, judged: Judged) -> tuple[Tensor, Tally | None]:
        """The weighted sum of the losses of each pair, and the likelihood of the chosen texts for itself."""
        loss_N = torch.stack([self.coefficients[name] * loss_N for name, loss_N in judged.losses.items()]).sum(dim=0)
        if judged.nll_NT is None:
            return loss_N, None
        batch = judged.parts.batch
        return loss_N, tally(judged.nll_NT, batch.tokens.mask_BT[: batch.pairs])
