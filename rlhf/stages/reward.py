"""The reward model: a session is a pair; the baseline reward is z = score of chosen - score of rejected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.errors import DataError
from rlhf.batch import PairBatch, TokenBatch, to_device
from rlhf.config import RewardConfig
from rlhf.data import collate, tokenise
from rlhf.data.records import Record
from rlhf.evaluation.answers import answer, sample_seed
from rlhf.models.heads import RewardOutput
from rlhf.objectives import OBJECTIVES
from rlhf.objectives.preference import pair_margin
from rlhf.ops.compared import Beside
from rlhf.reference.divergence import forward_kl
from rlhf.reference.policy import Reference, quiet
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.pairs import Pairs
from rlhf.stages.reward_close import Closing, as_answers
from rlhf.stages.reward_heads import Bootstrap, doubt, open_model
from rlhf.stages.reward_process import RewardSteps
from rlhf.stages.reward_scalar import RewardScores
from rlhf.stages.work import Run, StageWork
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally

OFFSET_SAMPLES = 256


def open_work(run: Run) -> StageWork:
    """The reward model that learns from the rows that `train.loss_type` takes."""
    config: RewardConfig = run.config  # type: ignore[assignment]
    if config.takes == "scored":
        return RewardScores(run)
    return RewardSteps(run) if config.takes == "stepwise" else RewardPairs(run)


class RewardPairs(Pairs):
    """Bradley-Terry with gains, offsets, noisy and soft labels, centring and a regulariser on the kept head."""

    def __init__(self, run: Run) -> None:
        config: RewardConfig = run.config  # type: ignore[assignment]
        self.train = config.train
        self.soft = config.reward.preference_column
        super().__init__(run)
        self.start = run.policy
        self.regularizer = config.train.rm_regularizer
        self.module = self.model = open_model(run, config.train)
        self.bootstrap = Bootstrap(config.train.seed, config.train.ensemble_size)
        self.reference: Reference | None = None
        if self.regularizer == "kl_ref":
            self.reference = open_reference(run, config.reference, run.policy)
        self.closing = Closing(run, self.model)
        self.offset_scores: list[TokenBatch] = []
        if config.train.reward_offset == "reference":
            self.offset_scores = self._reference_texts()

    def _reference_texts(self) -> list[TokenBatch]:
        """Answers of the starting policy to training prompts: what scores are to be centred on."""
        records = self.run.inputs.train[:OFFSET_SAMPLES]
        samples, report = tokenise.prepare_prompts([_prompt_only(r) for r in records], self.run.tokenizer)
        self.run.say(f"reward_offset: {line}" for line in report.lines())
        evaluation = self.run.config.evaluation
        with self.run.accelerator.autocast():
            found = answer(
                self.start,
                self.run.tokenizer,
                samples,
                [[sample_seed(self.train.seed, "offset", s.row_id)] for s in samples],
                max_new_tokens=evaluation.eval_max_completion_length,
                temperature=evaluation.eval_temperature,
            )
        size, pad = self.train.per_device_eval_batch_size, self.run.tokenizer.pad_token_id
        parts = [found[j : j + size] for j in range(0, len(found), size)]
        return [collate.completions([a.sample.prompt_ids for a in p], [a.ids for a in p], pad) for p in parts]  # type: ignore[misc]

    def check(self, record: Record) -> None:
        """Raises: DataError where a row lacks the offset or the probability that the configuration promises."""
        super().check(record)
        self.preference(record)

    def preference(self, record: Record) -> float:
        """The probability that the chosen text is the better one.

        Raises: DataError where reward.preference_column names a column without one.
        """
        value = 1.0 if self.soft is None else record.columns.get(self.soft)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise DataError(
                f"{record.ref}: reward.preference_column is `{self.soft}`: expected a number between 0 and 1 there, "
                f"got {value!r}"
            )
        return float(value)

    def collate(self, samples: Any) -> PairBatch:
        """Samples to a batch."""
        batch = super().collate(samples)
        if self.soft is None:
            return batch
        soft_N = torch.tensor([self.preference(sample.record) for sample in samples], dtype=torch.float64)
        return replace(batch, preference_N=soft_N)

    def _counts(self, batch: PairBatch) -> Tensor:
        return self.bootstrap([columns["row_id"] for columns in batch.columns])

    def weights(self, batch: PairBatch) -> dict[str, float]:
        """Pairs as often as each head takes them, and the counted tokens of the chosen texts for the regulariser."""
        parts = {"pairs": float(self._counts(batch).sum())}
        if self.train.center_rewards_coefficient is not None:
            parts["centering"] = float(batch.pairs)
        if self.regularizer is not None:
            parts[self.regularizer] = float(batch.tokens.mask_BT[: batch.pairs].sum())
        return parts

    def step(self, model: torch.nn.Module, batch: PairBatch, context: None) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """Bradley-Terry loss, centring penalty, regulariser."""
        need = {"heads"} | ({"logps"} if self.regularizer == "grm_sft" else set())
        n = batch.pairs
        tokens = batch.tokens
        if self.regularizer is not None:
            # Only chosen texts are written by the language-model head; what is not counted is not computed.
            rows_B1 = torch.arange(tokens.size, device=tokens.mask_BT.device).unsqueeze(1)
            tokens = replace(tokens, mask_BT=tokens.mask_BT & (rows_B1 < n))
        beside: Beside | None = None
        if self.reference is not None:
            other = self.reference.distributions(tokens.select(0, n))
            beside, need = Beside(other, forward_kl), need | {"divergence"}
        output: RewardOutput = model(tokens, need=frozenset(need), beside=beside)
        z_N, z_NK = self._margins(output, batch)
        scores_B = self.model.score(_heads(output), None, tokens.mask_BT)
        loss_NK = self._losses(z_NK, batch)
        sums = {"pairs": Sum((loss_NK * self._counts(batch).to(loss_NK)).sum())}
        metrics = {
            "accuracy": tally((z_N > 0).double()),
            "margin": tally(z_N),
            "mean_reward": tally(scores_B),
        }
        if self.train.center_rewards_coefficient is not None:
            heads_BK = _heads(output)[..., 0]
            penalty_N = OBJECTIVES["centering"](heads_BK[:n], heads_BK[n:]).mean(dim=1)
            sums["centering"] = Sum(penalty_N.sum(), self.train.center_rewards_coefficient)
            metrics["centering"] = tally(penalty_N)
        if self.regularizer is not None:
            sums[self.regularizer] = Sum(_regularised(output, tokens.mask_BT), self.train.rm_regularizer_weight)
        if z_NK.shape[1] == 1:
            self.note_pairs(batch, z_N)
        else:
            metrics["disagreement"] = tally(z_NK.std(dim=1, correction=0))
            self.note_pairs(batch, z_N, components=doubt(z_NK))
        return sums, metrics

    def _margins(self, output: RewardOutput, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Margins of the reported score and of each head. Shapes: z_N, z_NK."""
        heads = _heads(output)
        n = batch.pairs
        scores_B = self.model.score(heads, None, batch.tokens.mask_BT)
        return pair_margin(scores_B), heads[:n, :, 0] - heads[n:, :, 0]

    def _losses(self, z_NK: Tensor, batch: PairBatch) -> Tensor:
        soft_N1 = None if batch.preference_N is None else batch.preference_N.unsqueeze(1)
        gains_N1, margins_N1 = batch.gain_N.unsqueeze(1), batch.margin_N.unsqueeze(1)
        loss_NK: Tensor = OBJECTIVES["bradley_terry"](z_NK, margins_N1, gains_N1, self.train.label_noise, soft_N1)
        return loss_NK

    def measure(self, batch: PairBatch) -> dict[str, Tally]:
        """Held-out loss, accuracy and margin."""
        z_N, z_NK = self._margins(self.module(batch.tokens, need=frozenset({"heads"})), batch)
        return self.pair_figures(self._losses(z_NK, batch).mean(dim=1), z_N)

    def identity(self) -> dict[str, Any]:
        """The data, the tokenizer and the reference."""
        found = {**super().identity(), "tokenizer": tokenizer_digest(self.run.tokenizer)}
        return found if self.reference is None else {**found, "reference": self.reference.identity}

    def finish(self, step: int) -> dict[str, Any]:
        """Sets the offset; held-out figures, calibration and probes of the finished model."""
        found: dict[str, Any] = {}
        if self.offset_scores:
            with quiet(self.module):
                device = self.run.accelerator.device
                scores = [self.module(to_device(tokens, device)).scores_B for tokens in self.offset_scores]
            offset = float(torch.cat(scores).double().mean())
            self.model.set_offset(offset)
            found["reward_offset"] = {"value": offset, "n": sum(tokens.size for tokens in self.offset_scores)}
        found |= super().finish(step)
        if self.held_out:
            chosen = self.closing.scorer.scores([sample.chosen for sample in self.held_out])
            rejected = self.closing.scorer.scores([sample.rejected for sample in self.held_out])
            z = [a - b for a, b in zip(chosen, rejected, strict=True)]
            records = [sample.record for sample in self.held_out]
            found |= self.closing.calibrate(step, z, [self.preference(r) for r in records], records)
            found |= self.closing.probe(step, as_answers(records), float(np.std([*chosen, *rejected])), records)
        return {**found, **self.closing.identity()}


def _heads(output: RewardOutput) -> Tensor:
    assert output.heads is not None
    return output.heads


def _regularised(output: RewardOutput, mask_BT: Tensor) -> Tensor:
    """Sum over the counted tokens of the chosen texts: how unlikely they are, or how far from the reference."""
    if output.divergence_BT is not None:
        return output.divergence_BT.sum()
    found: Tensor = OBJECTIVES["nll"](output.logps_BT, mask_BT)
    return found.sum()


def _prompt_only(record: Record) -> Record:
    return replace(record, kind="prompt", chosen=None, rejected=None)
