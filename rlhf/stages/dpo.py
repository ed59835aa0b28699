"""DPO: a session is a pair; the baseline reward is z = beta (log-ratio chosen - log-ratio rejected)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import PairBatch, TokenBatch
from rlhf.config import DPOConfig
from rlhf.data import tokenise
from rlhf.objectives.preference import OBJECTIVES, implicit_rewards, pair_margin
from rlhf.ops.masked import sequence_sum
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.pairs import Pairs
from rlhf.stages.sampled import SampledEvaluation
from rlhf.stages.work import Run
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally


class DPO(Pairs):
    """Preference optimisation against the shared reference."""

    def __init__(self, run: Run) -> None:
        config: DPOConfig = run.config  # type: ignore[assignment]
        super().__init__(run)
        self.train = config.train
        self.module = run.policy
        # With dropout the policy would differ from the reference before the first step.
        run.switch_dropout_off()
        self.reference = open_reference(run, config.reference, self.module, self._texts)
        self.sampled = SampledEvaluation(run, self.module)

    def collate(self, samples: Sequence[tokenise.PairSample]) -> PairBatch:
        """Samples to a batch; the two texts of a pair get identifiers of their own, for cached columns."""
        batch = super().collate(samples)
        names = [sample.row_id for sample in samples]
        rows = tuple(f"{name}#chosen" for name in names) + tuple(f"{name}#rejected" for name in names)
        return replace(batch, tokens=replace(batch.tokens, rows=rows))

    def _texts(self) -> Iterator[TokenBatch]:
        size = self.run.config.train.per_device_eval_batch_size
        everything = [*self.samples, *self.held_out]
        for j in range(0, len(everything), size):
            yield self.collate(everything[j : j + size]).tokens

    def weights(self, batch: PairBatch) -> dict[str, float]:
        """Pairs."""
        return {"pairs": float(batch.pairs)}

    def _margins(self, output: Any, tokens: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        logps_B = sequence_sum(output.logps_BT, tokens.mask_BT)
        ref_logps_B = sequence_sum(self.reference.logps(tokens).to(output.logps_BT.dtype), tokens.mask_BT)
        rewards_B = implicit_rewards(logps_B, ref_logps_B, self.train.beta)
        return pair_margin(rewards_B), rewards_B, logps_B

    def step(self, model: torch.nn.Module, batch: PairBatch, context: None) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """The preference loss of the batch."""
        output = model(batch.tokens)
        z_N, rewards_B, logps_B = self._margins(output, batch.tokens)
        loss_N = self._loss(z_N, batch)
        n = batch.pairs
        metrics = {
            "rewards/accuracies": tally((z_N > 0).double()),
            "rewards/margins": tally(z_N),
            "rewards/chosen": tally(rewards_B[:n]),
            "rewards/rejected": tally(rewards_B[n:]),
            "logps/chosen": tally(logps_B[:n]),
            "logps/rejected": tally(logps_B[n:]),
        }
        ratio_N = z_N.detach() / self.train.beta
        self.note_pairs(
            batch,
            z_N,
            logp_nats=logps_B[:n].tolist(),
            log_ratio_nats=ratio_N.tolist(),
            reference_id=[self.reference.identity[:16]] * n,
        )
        return {"pairs": Sum(loss_N.sum())}, metrics

    def _loss(self, z_N: Tensor, batch: PairBatch) -> Tensor:
        name = self.train.loss_type[0]
        return OBJECTIVES[name](z_N, batch.margin_N, batch.gain_N, self.train.label_smoothing)

    def measure(self, batch: PairBatch) -> dict[str, Tally]:
        """Held-out loss, accuracy and margin."""
        z_N, _, _ = self._margins(self.module(batch.tokens), batch.tokens)
        return self.pair_figures(self._loss(z_N, batch), z_N)

    def identity(self) -> dict[str, Any]:
        """The data, the tokenizer and the reference."""
        found = {**super().identity(), "tokenizer": tokenizer_digest(self.run.tokenizer)}
        return {**found, "reference": self.reference.identity}

    def begin(self) -> None:
        """Held-out answers before the first step, where asked for."""
        self.sampled.before()

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out pairs and sampled answers."""
        return {**super().finish(step), **self.sampled.after(step)}
