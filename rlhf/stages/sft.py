"""SFT: a session is a demonstration; loss = sum w nll / sum w n, with w = 1 + d the adjusted reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import DemonstrationBatch
from rlhf.config import SFTConfig
from rlhf.data import collate, tokenise
from rlhf.objectives import OBJECTIVES
from rlhf.ops.logprobs import token_logprobs
from rlhf.ops.masked import sequence_sum
from rlhf.reference.policy import Reference
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.offline import Offline
from rlhf.stages.sampled import SampledEvaluation
from rlhf.stages.work import Run
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally


class SFT(Offline[tokenise.Sample]):
    """Supervised fine-tuning, with an optional full-vocabulary KL(reference || policy) on the demonstrations."""

    def __init__(self, run: Run) -> None:
        config: SFTConfig = run.config  # type: ignore[assignment]
        super().__init__(
            run,
            tokenise.prepare_demonstrations,
            max_length=config.train.max_length,
            completion_only_loss=config.train.completion_only_loss,
            assistant_only_loss=config.train.assistant_only_loss,
        )
        self.module = run.policy
        self.coefficient = config.reference.kl_coefficient
        self.reference: Reference | None = None
        if self.coefficient > 0:
            self.reference = open_reference(run, config.reference, self.module)
        self.sampled = SampledEvaluation(run, self.module)

    def collate(self, samples: Sequence[tokenise.Sample]) -> DemonstrationBatch:
        """Samples to a batch."""
        gains = [self.gain(sample.record) for sample in samples]
        return collate.demonstrations(samples, self.run.tokenizer.pad_token_id, gains)

    def weights(self, batch: DemonstrationBatch) -> dict[str, float]:
        """Token counts, weighted by the gain for the likelihood."""
        counts_B = batch.tokens.mask_BT.sum(dim=1).double()
        parts = {"nll": float((counts_B * batch.gain_B).sum())}
        if self.reference is not None:
            parts["kl"] = float(counts_B.sum())
        return parts

    def step(
        self, model: torch.nn.Module, batch: DemonstrationBatch, context: None
    ) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """Weighted negative log-likelihood, and the divergence from the reference."""
        tokens = batch.tokens
        need = frozenset({"logps", "logits"} if self.reference is not None else {"logps"})
        output = model(tokens, need=need)
        nll_BT: Tensor = OBJECTIVES["nll"](output.logps_BT, tokens.mask_BT)
        sums = {"nll": Sum((nll_BT * batch.gain_B.to(nll_BT.dtype).unsqueeze(1)).sum())}
        metrics = {"nll": tally(nll_BT, tokens.mask_BT)}
        log_ratio_B: Tensor | None = None
        if self.reference is not None:
            ref_logits_BTV = self.reference.logits(tokens)
            kl_BT = OBJECTIVES["forward_kl"](output.logits_BTV, ref_logits_BTV, tokens.mask_BT)
            sums["kl"] = Sum(kl_BT.sum(), self.coefficient)
            metrics["kl_reference_policy"] = tally(kl_BT, tokens.mask_BT)
            ref_logps_BT = token_logprobs(ref_logits_BTV, tokens.ids_BT)
            log_ratio_B = sequence_sum(output.logps_BT.detach() - ref_logps_BT, tokens.mask_BT)
        self._note(batch, -nll_BT.detach(), log_ratio_B)
        return sums, metrics

    def _note(self, batch: DemonstrationBatch, logps_BT: Tensor, log_ratio_B: Tensor | None) -> None:
        logps = sequence_sum(logps_BT, batch.tokens.mask_BT).tolist()
        scored = batch.tokens.mask_BT.sum(dim=1).tolist()
        lengths = batch.tokens.attention_BT.sum(dim=1).tolist()
        ratios = log_ratio_B.tolist() if log_ratio_B is not None else [None] * len(logps)
        for i, row_id in enumerate(batch.tokens.rows):
            gain = float(batch.gain_B[i])
            self.note(
                self.records[row_id],
                baseline_reward=1.0,
                adjusted_reward=gain,
                loss_weight=gain,
                logp_nats=logps[i],
                log_ratio_nats=ratios[i],
                prompt_tokens=lengths[i] - scored[i],
                response_tokens=scored[i],
            )

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out negative log-likelihood per token."""
        values = self.held_out_means(self._loss)
        figure = {"value": values["eval_loss"], "low": None, "high": None, "n": len(self.held_out)}
        self.run.record_evaluation("heldout_loss", step, {"loss": figure})
        return values

    def _loss(self, batch: DemonstrationBatch) -> dict[str, Tally]:
        output = self.module(batch.tokens, need=frozenset({"logps"}))
        return {"eval_loss": tally(-output.logps_BT, batch.tokens.mask_BT)}

    def identity(self) -> dict[str, Any]:
        """The data, the tokenizer and the reference."""
        return {**super().identity(), "tokenizer": tokenizer_digest(self.run.tokenizer), **_reference(self.reference)}

    def begin(self) -> None:
        """Held-out answers before the first step, where asked for."""
        self.sampled.before()

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out loss and sampled answers."""
        return {**super().finish(step), **self.sampled.after(step)}


def _reference(reference: Reference | None) -> dict[str, Any]:
    return {} if reference is None else {"reference": reference.identity}
