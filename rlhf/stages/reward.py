"""The reward model: a session is a pair; the baseline reward is z = score of chosen - score of rejected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import PairBatch, TokenBatch, to_device
from rlhf.config import RewardConfig
from rlhf.data import collate, tokenise
from rlhf.data.records import Record
from rlhf.evaluation.answers import answer, sample_seed
from rlhf.models.heads import RewardModel
from rlhf.objectives import OBJECTIVES
from rlhf.objectives.preference import pair_margin
from rlhf.reference.policy import Reference, quiet
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.pairs import Pairs
from rlhf.stages.work import Run
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally

OFFSET_SAMPLES = 256


class Reward(Pairs):
    """Bradley-Terry with gains, offsets, centring and a regulariser on the kept language-model head."""

    def __init__(self, run: Run) -> None:
        config: RewardConfig = run.config  # type: ignore[assignment]
        super().__init__(run)
        self.train = config.train
        self.start = run.policy
        self.regularizer = config.train.rm_regularizer
        model = RewardModel(run.policy.model, seed=config.train.seed, trains_language_head=self.regularizer is not None)
        self.module: RewardModel = model.to(run.accelerator.device)
        self.reference: Reference | None = None
        if self.regularizer == "kl_ref":
            self.reference = open_reference(run, config.reference, run.policy)
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

    def weights(self, batch: PairBatch) -> dict[str, float]:
        """Pairs, and the counted tokens of the chosen texts for the regulariser."""
        parts = {"pairs": float(batch.pairs)}
        if self.train.center_rewards_coefficient is not None:
            parts["centering"] = float(batch.pairs)
        if self.regularizer is not None:
            parts[self.regularizer] = float(batch.tokens.mask_BT[: batch.pairs].sum())
        return parts

    def step(self, model: torch.nn.Module, batch: PairBatch, context: None) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """Bradley-Terry loss, centring penalty, regulariser."""
        need = {"scores"} | ({"logps"} if self.regularizer == "grm_sft" else set())
        need |= {"logits"} if self.regularizer == "kl_ref" else set()
        output = model(batch.tokens, need=frozenset(need))
        n = batch.pairs
        scores_B: Tensor = output.scores_B
        z_N = pair_margin(scores_B)
        loss_N = OBJECTIVES["bradley_terry"](z_N, batch.margin_N, batch.gain_N)
        sums = {"pairs": Sum(loss_N.sum())}
        metrics = {
            "accuracy": tally((z_N > 0).double()),
            "margin": tally(z_N),
            "mean_reward": tally(scores_B),
        }
        if self.train.center_rewards_coefficient is not None:
            penalty_N = OBJECTIVES["centering"](scores_B[:n], scores_B[n:])
            sums["centering"] = Sum(penalty_N.sum(), self.train.center_rewards_coefficient)
            metrics["centering"] = tally(penalty_N)
        if self.regularizer is not None:
            sums[self.regularizer] = Sum(self._regularised(batch, output), self.train.rm_regularizer_weight)
        self.note_pairs(batch, z_N)
        return sums, metrics

    def _regularised(self, batch: PairBatch, output: Any) -> Tensor:
        n = batch.pairs
        chosen = batch.tokens.select(0, n)
        if self.regularizer == "grm_sft":
            return OBJECTIVES["nll"](output.logps_BT[:n], chosen.mask_BT).sum()
        assert self.reference is not None
        ref_logits_BTV = self.reference.logits(chosen)
        return OBJECTIVES["forward_kl"](output.logits_BTV[:n], ref_logits_BTV, chosen.mask_BT).sum()

    def measure(self, batch: PairBatch) -> dict[str, Tally]:
        """Held-out loss, accuracy and margin."""
        z_N = pair_margin(self.module(batch.tokens).scores_B)
        return self.pair_figures(OBJECTIVES["bradley_terry"](z_N, batch.margin_N, batch.gain_N), z_N)

    def identity(self) -> dict[str, Any]:
        """The data, the tokenizer and the reference."""
        found = {**super().identity(), "tokenizer": tokenizer_digest(self.run.tokenizer)}
        return found if self.reference is None else {**found, "reference": self.reference.identity}

    def finish(self, step: int) -> dict[str, Any]:
        """Sets the offset, and gives held-out figures."""
        found: dict[str, Any] = {}
        if self.offset_scores:
            with quiet(self.module):
                device = self.run.accelerator.device
                scores = [self.module(to_device(tokens, device)).scores_B for tokens in self.offset_scores]
            offset = float(torch.cat(scores).double().mean())
            self.module.set_offset(offset)
            found["reward_offset"] = {"value": offset, "n": sum(tokens.size for tokens in self.offset_scores)}
        return {**found, **super().finish(step)}


def _prompt_only(record: Record) -> Record:
    return replace(record, kind="prompt", chosen=None, rejected=None)
