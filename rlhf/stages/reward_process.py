"""Reward models from stepwise supervision: a session is a text; the baseline reward is what its steps come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.errors import DataError
from rlhf.batch import StepBatch
from rlhf.config import RewardConfig
from rlhf.data import collate
from rlhf.data.scoring import StepSample, prepare_steps
from rlhf.evaluation.harness import mean, share
from rlhf.models.heads import RewardOutput
from rlhf.objectives import OBJECTIVES
from rlhf.stages.constraint import tokenizer_digest
from rlhf.stages.offline import Offline
from rlhf.stages.reward_close import Closing, as_answers
from rlhf.stages.reward_heads import HEADS, Bootstrap, component, doubt, open_model
from rlhf.stages.work import Run
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally


class RewardSteps(Offline[StepSample]):
    """Binary cross entropy at the last token of each step.

    The category's gain weighs a text's steps in the loss: loss = sum w l / sum w. The adjusted reward is the baseline
    reward, the least, the product or the last of the probabilities that steps are right.
    """

    def __init__(self, run: Run) -> None:
        config: RewardConfig = run.config  # type: ignore[assignment]
        self.train = config.train
        super().__init__(run, prepare_steps, max_length=config.train.max_length, separator=config.train.step_separator)
        right = np.concatenate([sample.right for sample in self.samples])
        if right.all() or not right.any():
            raise DataError(
                f"all {len(right)} steps are labelled {'right' if right.all() else 'wrong'}: there is nothing to tell "
                "apart"
            )
        self.prompt_lengths = {sample.row_id: sample.tokens.prompt_length for sample in self.samples}
        self.module = self.model = open_model(run, config.train)
        self.bootstrap = Bootstrap(config.train.seed, config.train.ensemble_size)
        self.closing = Closing(run, self.model)

    def collate(self, samples: Sequence[StepSample]) -> StepBatch:
        """Samples to a batch."""
        gains = [self.gain(sample.record) for sample in samples]
        return collate.steps(samples, self.run.tokenizer.pad_token_id, gains)

    def _weights(self, batch: StepBatch) -> Tensor:
        """How much each step counts: gain, times how often each head takes the text. Shapes: weights_XK."""
        counts_BK = self.bootstrap(batch.tokens.rows).to(batch.gain_B.device)
        return (counts_BK * batch.gain_B.unsqueeze(1))[batch.tokens.mask_BT.nonzero()[:, 0]]

    def weights(self, batch: StepBatch) -> dict[str, float]:
        """Steps, by their weight."""
        return {"steps": float(self._weights(batch).sum())}

    def _losses(self, output: RewardOutput, batch: StepBatch) -> Tensor:
        assert output.heads is not None
        logits_XK = output.heads[..., 0]
        loss_XK: Tensor = OBJECTIVES["process"](logits_XK, batch.right_X.unsqueeze(1).expand(logits_XK.shape))
        return loss_XK

    def step(self, model: torch.nn.Module, batch: StepBatch, context: None) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """The weighted cross entropy of the batch's steps."""
        output: RewardOutput = model(batch.tokens, need=HEADS | {"scores"})
        loss_XK = self._losses(output, batch)
        assert output.heads is not None and output.scores_B is not None
        logits_X = output.heads.detach()[..., 0].mean(dim=1)
        members_BK = self.model.spec.members_scores(output.heads.detach(), None, batch.tokens.mask_BT)
        metrics = {
            "accuracy": tally(((logits_X > 0) == batch.right_X).double()),
            "mean_reward": tally(output.scores_B),
        }
        if members_BK.shape[1] > 1:
            metrics["disagreement"] = tally(members_BK.std(dim=1, correction=0))
        self._note(batch, members_BK, output.scores_B.detach())
        return {"steps": Sum((loss_XK * self._weights(batch).to(loss_XK)).sum())}, metrics

    def _note(self, batch: StepBatch, members_BK: Tensor, scores_B: Tensor) -> None:
        row_X = batch.tokens.mask_BT.nonzero()[:, 0]
        steps_B = batch.tokens.mask_BT.sum(dim=1)
        wrong_B = torch.zeros_like(steps_B).index_add(0, row_X, (~batch.right_X).long())
        lengths, wrong = batch.tokens.attention_BT.sum(dim=1).tolist(), wrong_B.tolist()
        doubts, scores, gains = doubt(members_BK), scores_B.tolist(), batch.gain_B.tolist()
        for i, row_id in enumerate(batch.tokens.rows):
            prompt = self.prompt_lengths[row_id]
            self.note(
                self.records[row_id],
                baseline_reward=scores[i],
                adjusted_reward=scores[i],
                loss_weight=gains[i],
                components=[component("all_right_label", float(wrong[i] == 0), "gold"), *doubts[i]],
                prompt_tokens=prompt,
                response_tokens=lengths[i] - prompt,
            )

    # --- held-out rows ---

    def measure(self, batch: StepBatch) -> dict[str, Tally]:
        """Held-out loss and accuracy of steps."""
        output: RewardOutput = self.module(batch.tokens, need=HEADS)
        assert output.heads is not None
        right_X = (output.heads[..., 0].mean(dim=1) > 0) == batch.right_X
        return {
            "eval_loss": tally(self._losses(output, batch).mean(dim=1)),
            "eval_accuracy": tally(right_X.double()),
        }

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out figures."""
        return self.recorded_means("heldout_steps", step, self.measure)

    def identity(self) -> dict[str, Any]:
        """The data and the tokenizer."""
        return {**super().identity(), "tokenizer": tokenizer_digest(self.run.tokenizer)}

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out figures with intervals, calibration of the steps' probabilities, probes."""
        found: dict[str, Any] = {}
        if self.held_out:
            found["held_out_steps"] = self.evaluate(step)
            tokens = [sample.tokens for sample in self.held_out]
            logits = self.closing.raw_heads(tokens)[..., 0].mean(dim=1).double().numpy(force=True)
            cuts = np.cumsum([int(t.mask.sum()) for t in tokens])[:-1]
            by_text = list(zip(np.split(logits, cuts), [s.right for s in self.held_out], strict=True))
            found["held_out_texts"] = {
                # Texts, not steps, are what is independent.
                "step_accuracy": mean([float(((z > 0) == right).mean()) for z, right in by_text]),
                "first_error": share([_first_error(z > 0) == _first_error(right) for z, right in by_text]),
            }
            right = np.concatenate([s.right for s in self.held_out]).astype(float).tolist()
            records = [s.record for s, t in zip(self.held_out, tokens, strict=True) for _ in range(int(t.mask.sum()))]
            found |= self.closing.calibrate(step, logits.tolist(), right, records)
            spread = float(np.std(self.closing.scorer.scores(tokens)))
            found |= self.closing.probe(step, as_answers([s.record for s in self.held_out]), spread)
        return {**found, **self.closing.identity()}


def _first_error(right: np.ndarray[Any, Any]) -> int:
    """Number of the first step that is not right, from 0; -1 where all are."""
    return -1 if right.all() else int(np.argmin(right))
