"""SFT: a session is a demonstration; loss = sum w nll / sum w n, with w = 1 + d the adjusted reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import DemonstrationBatch
from rlhf.config import SFTConfig
from rlhf.data import collate, tokenise
from rlhf.data.mixture import EpochOrder
from rlhf.data.packing import PackedOrder
from rlhf.data.records import rows_of
from rlhf.models.noise import EmbeddingNoise
from rlhf.objectives import OBJECTIVES
from rlhf.ops.compared import Beside
from rlhf.ops.logprobs import scatter
from rlhf.ops.masked import sequence_sum
from rlhf.reference.divergence import divergence
from rlhf.reference.policy import Reference
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.offline import Offline
from rlhf.stages.sampled import SampledEvaluation
from rlhf.stages.work import Run
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally

_METRICS = {
    "forward": "kl_reference_policy",
    "reverse": "kl_policy_reference",
    "js": "js_policy_reference",
    "alpha": "alpha_policy_reference",
}


class SFT(Offline[tokenise.Sample]):
    """Supervised fine-tuning, with an optional full-vocabulary divergence from a reference on the demonstrations."""

    def __init__(self, run: Run) -> None:
        config: SFTConfig = run.config  # type: ignore[assignment]
        super().__init__(
            run,
            tokenise.prepare_demonstrations,
            max_length=config.train.max_length,
            completion_only_loss=config.train.completion_only_loss,
            assistant_only_loss=config.train.assistant_only_loss,
        )
        self.train = config.train
        self.module = run.policy
        self.coefficient, self.kl = config.reference.kl_coefficient, config.reference.settings()
        self.reference: Reference | None = None
        if self.coefficient > 0:
            self.reference = open_reference(run, config.reference, self.module)
        self.noise: EmbeddingNoise | None = None
        if config.train.neftune_noise_alpha is not None:
            embeddings = self.module.model.get_input_embeddings()
            self.noise = EmbeddingNoise(embeddings, config.train.neftune_noise_alpha, config.train.seed)
        self.sampled = SampledEvaluation(run, self.module)

    def make_order(self) -> EpochOrder | PackedOrder:
        """Rows, or with `packing` bins of rows."""
        run, train = self.run, self.run.config.train
        if not train.packing:
            return super().make_order()
        lengths = [len(sample.tokens.ids) for sample in self.samples]
        order = PackedOrder(lengths, train.max_length, run.global_batch, train.seed)
        run.say(_said_of(order, run, lengths))
        return order

    def collate(self, samples: Sequence[tokenise.Sample]) -> DemonstrationBatch:
        """Samples to a batch."""
        gains = [self.gain(sample.record) for sample in samples]
        return collate.demonstrations(samples, self.run.tokenizer.pad_token_id, gains)

    def weights(self, batch: DemonstrationBatch) -> dict[str, float]:
        """Token counts, weighted by the gain for the likelihood."""
        counts_B = batch.tokens.mask_BT.sum(dim=1).double()
        parts = {self.train.loss_type: float((counts_B * batch.gain_B).sum())}
        if self.reference is not None:
            parts["kl"] = float(counts_B.sum())
        return parts

    def step(
        self, model: torch.nn.Module, batch: DemonstrationBatch, context: None
    ) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """Weighted negative log-likelihood, and the divergence from the reference."""
        tokens, mask_BT = batch.tokens, batch.tokens.mask_BT
        beside: Beside | None = None
        if self.reference is not None:
            # Before the policy's pass, as everywhere: a reference may borrow the policy's weights for its own.
            measure = divergence(self.kl.divergence, self.kl.alpha)
            beside = Beside(self.reference.distributions(tokens), measure)
        need = frozenset({"logps"} if beside is None else {"logps", "divergence"})
        with self.noise.of(tokens, self.step_now) if self.noise is not None else nullcontext():
            output = model(tokens, need=need, beside=beside)
        loss_BT: Tensor = OBJECTIVES[self.train.loss_type](output.logps_BT, mask_BT)
        sums = {self.train.loss_type: Sum((loss_BT * batch.gain_B.to(loss_BT.dtype).unsqueeze(1)).sum())}
        metrics = {"nll": tally(-output.logps_BT, mask_BT), **self._packed(batch)}
        log_ratio_B: Tensor | None = None
        if beside is not None:
            sums["kl"] = Sum(output.divergence_BT.sum(), self.coefficient)
            metrics[_METRICS[self.kl.divergence]] = tally(output.divergence_BT, mask_BT)
            ref_logps_BT = scatter(beside.other.logps(tokens.ids_BT[mask_BT]), mask_BT)
            log_ratio_B = sequence_sum(output.logps_BT.detach() - ref_logps_BT, mask_BT)
        self._note(batch, output.logps_BT.detach(), log_ratio_B)
        return sums, metrics

    def _packed(self, batch: DemonstrationBatch) -> dict[str, Tally]:
        """How full this micro-batch's bins are, and how many rows are in one."""
        if not isinstance(self.order, PackedOrder):
            return {}
        bins = self.train.per_device_train_batch_size
        filled = batch.tokens.attention_BT.sum().double()
        return {
            "packing/fill": Tally(filled, float(bins * self.order.capacity)),
            "packing/rows": Tally(float(batch.tokens.size), float(bins)),
        }

    def _note(self, batch: DemonstrationBatch, logps_BT: Tensor, log_ratio_B: Tensor | None) -> None:
        logps = sequence_sum(logps_BT, batch.tokens.mask_BT).tolist()
        scored = batch.tokens.mask_BT.sum(dim=1).tolist()
        lengths = batch.tokens.attention_BT.sum(dim=1).tolist()
        gains = batch.gain_B.tolist()
        ratios = log_ratio_B.tolist() if log_ratio_B is not None else [None] * len(logps)
        for i, row_id in enumerate(batch.tokens.rows):
            self.note(
                self.records[row_id],
                baseline_reward=1.0,
                adjusted_reward=gains[i],
                loss_weight=gains[i],
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
        """Held-out loss and sampled answers; how full the bins were, with packing."""
        found = {**super().finish(step), **self.sampled.after(step)}
        if isinstance(self.order, PackedOrder):
            found["packing"] = {"bins": self.order.units, "rows": len(self.samples), "fill": self.order.fill}
        return found


def _reference(reference: Reference | None) -> dict[str, Any]:
    return {} if reference is None else {"reference": reference.identity}


def _said_of(order: PackedOrder, run: Run, lengths: Sequence[int]) -> Iterator[str]:
    rows_a_step = run.global_batch * len(lengths) / order.units
    yield (
        f"packing: {rows_of(len(lengths))} in {order.units:,} bins of {order.capacity:,} tokens, {order.fill:.1%} "
        f"filled; a step takes {run.global_batch:,} bins, {rows_a_step:.1f} rows on average"
    )
    if max(lengths) > run.policy.shortcuts()[0]:
        yield "packing: padded rows are given to this model, as right, but no faster than unpacked"
