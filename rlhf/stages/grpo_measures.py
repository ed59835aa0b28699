"""What a forward pass says of a rollout: figures of the batch, and each session's own where they are defined.

A session's divergence is defined on the pass that is on-policy. `kl_nats` is the sum of the full-vocabulary KL where
the penalty computes it, else the sampled log-ratio, which needs texts that are the policy's own: a nucleus (top_p below
1) samples from another distribution, and what is known of such texts is `log_ratio_nats`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.batch import RolloutBatch
from rlhf.config.kl import KLSettings
from rlhf.evaluation.answers import Answer
from rlhf.ops.logprobs import PolicyOutput
from rlhf.ops.masked import sequence_mean, sequence_sum
from rlhf.reference.divergence import k3, log_ratio_to_reference
from rlhf.train.metrics import Tally, tally

CONTROLLED = "divergence_nats/{level}"
"""The mean of the penalised divergence on the on-policy pass, per sequence or per token: what a controller acts on."""


class Measures:
    """Figures of the passes over one rollout; `sessions` holds each session's own by its place.

    own_texts: the texts are sampled from the policy itself, not from a nucleus of it.
    """

    def __init__(self, kl: KLSettings, *, own_texts: bool) -> None:
        self.kl, self.own_texts = kl, own_texts
        self.sessions: dict[int, dict[str, float]] = {}

    def of_pass(self, batch: RolloutBatch, output: PolicyOutput) -> dict[str, Tally]:
        """Figures of any pass: entropy, and k3 per token (TRL's `kl`)."""
        assert output.logps_BT is not None and output.entropy_BT is not None
        metrics = {"entropy": tally(output.entropy_BT, batch.tokens.mask_BT)}
        if batch.ref_logps_BT is not None:
            r_BT = log_ratio_to_reference(output.logps_BT.detach(), batch.ref_logps_BT, batch.tokens.mask_BT)
            metrics["kl"] = tally(k3(r_BT), batch.tokens.mask_BT)
        return metrics

    def of_policy(
        self, batch: RolloutBatch, output: PolicyOutput, full_BT: Tensor | None, answers: Sequence[Answer]
    ) -> dict[str, Tally]:
        """Figures of the on-policy pass: the divergence per sequence and per token; notes the sessions.

        full_BT: the divergence over the vocabulary, where the penalty computes it. answers: the rank's, by place.
        """
        assert output.logps_BT is not None and output.entropy_BT is not None
        mask_BT, logps_BT = batch.tokens.mask_BT, output.logps_BT.detach()
        # A completion that was cut and masked has no counted token: nothing was measured of it.
        counted_B = mask_BT.any(dim=1)
        r_BT = None
        if batch.ref_logps_BT is not None:
            r_BT = log_ratio_to_reference(logps_BT, batch.ref_logps_BT, mask_BT)
        penalised_BT = full_BT.detach() if full_BT is not None else -r_BT if r_BT is not None else None
        metrics: dict[str, Tally] = {}
        if penalised_BT is not None and (self.own_texts or full_BT is not None):
            total = penalised_BT.double().sum()
            metrics[CONTROLLED.format(level="sequence")] = Tally(total, float(counted_B.sum()))
            metrics[CONTROLLED.format(level="token")] = Tally(total, float(mask_BT.sum()))
        if bool(counted_B.any()) and batch.index:
            own_BT = mask_BT[counted_B]
            figures = {
                "logp_nats": sequence_sum(logps_BT[counted_B], own_BT),
                "entropy_nats": sequence_mean(output.entropy_BT.detach()[counted_B], own_BT),
                "sampler_mismatch_max_nats": self._mismatch(batch, logps_BT, answers)[counted_B],
            }
            if r_BT is not None:
                reverse_BT = full_BT.detach() if full_BT is not None and self.kl.divergence == "reverse" else None
                figures |= {name: value_B[counted_B] for name, value_B in self._divergence(r_BT, reverse_BT).items()}
            self._note(batch, counted_B, figures)
        return metrics

    def _divergence(self, r_BT: Tensor, reverse_BT: Tensor | None) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.own_texts:
            found = {"kl_nats": -r_BT.sum(dim=1), "kl_k3_nats": k3(r_BT).sum(dim=1)}
        else:
            found = {"log_ratio_nats": -r_BT.sum(dim=1)}
        return found if reverse_BT is None else {**found, "kl_nats": reverse_BT.sum(dim=1)}

    @staticmethod
    def _mismatch(batch: RolloutBatch, logps_BT: Tensor, answers: Sequence[Answer]) -> Tensor:
        """Largest gap between what the sampler and this pass gave the tokens of a completion. Shapes: returns gap_B."""
        mask_BT = batch.tokens.mask_BT
        rows = mask_BT.any(dim=1).tolist()
        sampled = [
            v for place, counts in zip(batch.index, rows, strict=True) if counts for v in _sampled(answers, place)
        ]
        sampled_X = torch.tensor(sampled, dtype=torch.float64, device=mask_BT.device)
        gap_BT = torch.zeros(mask_BT.shape, dtype=torch.float64, device=mask_BT.device)
        return gap_BT.masked_scatter(mask_BT, (logps_BT[mask_BT].double() - sampled_X).abs()).amax(dim=1)

    def _note(self, batch: RolloutBatch, counted_B: Tensor, figures: dict[str, Tensor]) -> None:
        columns = {name: values.tolist() for name, values in figures.items()}
        places = [place for place, counts in zip(batch.index, counted_B.tolist(), strict=True) if counts]
        for j, place in enumerate(places):
            self.sessions[place] = {name: values[j] for name, values in columns.items()}


def _sampled(answers: Sequence[Answer], place: int) -> Sequence[float]:
    return answers[place].sampler_logps
