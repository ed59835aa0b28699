"""Reward models from scored completions: a session is one of them; the baseline reward is the score it is given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr
from torch import Tensor

from rewards.analysis.intervals import rate_mde, wilson
from rewards.errors import DataError
from rlhf.batch import ScoredBatch
from rlhf.config import RewardConfig
from rlhf.data import collate, tokenise
from rlhf.data.records import Record, plain, prompt_of
from rlhf.data.responses import score_of
from rlhf.evaluation.harness import mean
from rlhf.models.heads import RewardOutput
from rlhf.objectives import OBJECTIVES
from rlhf.stages.constraint import tokenizer_digest
from rlhf.stages.offline import Offline, prompt_id
from rlhf.stages.reward_close import Closing, as_answers
from rlhf.stages.reward_heads import HEADS, Bootstrap, component, doubt, open_model
from rlhf.stages.work import Run
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally


class RewardScores(Offline[tokenise.Sample]):
    """Regression on scores, or a cumulative-link model of their levels; one output an attribute.

    The category's gain weighs a row in the loss, as in SFT: loss = sum w l / sum w. A score has no margin to widen, so
    that the adjusted reward is the baseline reward.
    """

    def __init__(self, run: Run) -> None:
        config: RewardConfig = run.config  # type: ignore[assignment]
        self.train = config.train
        assert config.train.score_scale is not None
        self.low, self.high = config.train.score_scale
        super().__init__(
            run, tokenise.prepare_demonstrations, max_length=config.train.max_length, completion_only_loss=True
        )
        targets = [self.targets(sample.record) for sample in self.samples]
        for sample in self.held_out:
            self.targets(sample.record)
        self._check_columns(targets)
        self.module = self.model = open_model(run, config.train)
        if config.train.loss_type == "ordinal":
            self.model.set_thresholds(self._thresholds(targets))
        self.bootstrap = Bootstrap(config.train.seed, config.train.ensemble_size)
        self.closing = Closing(run, self.model)

    # --- rows ---

    def targets(self, record: Record) -> list[float | None]:
        """The scores of a row: shares of the declared scale, of ordinal ones levels from 0.

        Raises: DataError for a row without a score, or with one that is no number, off the scale or between levels.
        """
        found: list[float | None] = []
        for name in self.train.attributes:
            try:
                value = score_of(record, name)
            except ValueError as error:
                raise DataError(f"{record.ref}: {error}") from None
            if value is None:
                found.append(None)
                continue
            if not self.low <= value <= self.high:
                raise DataError(
                    f"{record.ref}: `{name}` is {value:g}, outside train.score_scale {self.low:g}..{self.high:g}"
                )
            if self.train.loss_type == "ordinal" and value != round(value):
                raise DataError(
                    f"{record.ref}: `{name}` is {value:g}, which is no level; for scores in between use "
                    "train.loss_type=regression"
                )
            found.append(value - self.low if self.train.loss_type == "ordinal" else self._share(value))
        if all(target is None for target in found):
            columns = " and ".join(f"`{name}`" for name in self.train.attributes)
            raise DataError(f"{record.ref}: has no score in {columns} (train.attributes)")
        return found

    def _share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def _check_columns(self, targets: Sequence[Sequence[float | None]]) -> None:
        for name, column in zip(self.train.attributes, zip(*targets, strict=True), strict=True):
            known = [target for target in column if target is not None]
            if not known:
                raise DataError(f"train.attributes names `{name}`, and no row has a score there")
            if self.train.loss_type == "ordinal" and len(set(known)) == 1:
                raise DataError(
                    f"all {len(known)} rows have the level {self.low + known[0]:g} in `{name}`: "
                    "there is nothing to tell apart"
                )

    def _thresholds(self, targets: Sequence[Sequence[float | None]]) -> Tensor:
        """Where levels are as frequent as in the data for a score of 0; each level counts half a row more."""
        levels = round(self.high - self.low) + 1
        rows = []
        for column in zip(*targets, strict=True):
            counts = Counter(round(target) for target in column if target is not None)
            shares = np.cumsum([counts[level] + 0.5 for level in range(levels)])[:-1] / (counts.total() + levels / 2)
            rows.append(torch.logit(torch.tensor(shares, dtype=torch.float64)))
        return torch.stack(rows)

    def collate(self, samples: Sequence[tokenise.Sample]) -> ScoredBatch:
        """Samples to a batch."""
        targets = [self.targets(sample.record) for sample in samples]
        gains = [self.gain(sample.record) for sample in samples]
        return collate.scored(samples, targets, self.run.tokenizer.pad_token_id, gains)

    # --- training ---

    def _weights(self, batch: ScoredBatch) -> Tensor:
        """How much each score counts: gain, times how often each head takes the row. Shapes: weights_BKA."""
        counts_BK = self.bootstrap(batch.tokens.rows).to(batch.gain_B.device)
        return (counts_BK * batch.gain_B.unsqueeze(1)).unsqueeze(2) * batch.known_BA.unsqueeze(1)

    def weights(self, batch: ScoredBatch) -> dict[str, float]:
        """Scores, by their weight."""
        return {"scores": float(self._weights(batch).sum())}

    def _losses(self, output: RewardOutput, batch: ScoredBatch) -> Tensor:
        """Shapes: returns loss_BKA, without meaning where a score is not known."""
        assert output.heads is not None
        heads_BKA = output.heads
        target_BKA = batch.target_BA.unsqueeze(1).expand(heads_BKA.shape)
        loss_BKA: Tensor
        if self.train.loss_type == "regression":
            loss_BKA = OBJECTIVES["regression"](heads_BKA, target_BKA, self.train.huber_delta)
        else:
            loss_BKA = OBJECTIVES["ordinal"](heads_BKA, output.thresholds_KAC, target_BKA.long())
        return loss_BKA

    def step(
        self, model: torch.nn.Module, batch: ScoredBatch, context: None
    ) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """The weighted loss of the batch's scores."""
        output: RewardOutput = model(batch.tokens, need=HEADS | {"scores"})
        loss_BKA = self._losses(output, batch)
        values_BKA, members_BK, scores_B = self._read(output, batch)
        errors_BA = self._errors(values_BKA, batch)
        metrics = {"error": tally(errors_BA, batch.known_BA), "mean_reward": tally(scores_B)}
        if len(self.train.attributes) > 1:
            for a, name in enumerate(self.train.attributes):
                metrics[f"error/{name}"] = tally(errors_BA[:, a], batch.known_BA[:, a])
        if members_BK.shape[1] > 1:
            metrics["disagreement"] = tally(members_BK.std(dim=1, correction=0))
        self._note(batch, values_BKA, members_BK, scores_B)
        return {"scores": Sum((loss_BKA * self._weights(batch).to(loss_BKA)).sum())}, metrics

    def _read(self, output: RewardOutput, batch: ScoredBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Attributes on the declared scale, each member's score, the reported score; without gradients."""
        assert output.heads is not None and output.scores_B is not None
        heads_BKA, thresholds = output.heads.detach(), output.thresholds_KAC
        thresholds = None if thresholds is None else thresholds.detach()
        values_BKA = self.model.spec.values(heads_BKA, thresholds)
        members_BK = self.model.spec.members_scores(heads_BKA, thresholds, batch.tokens.mask_BT)
        return values_BKA, members_BK, output.scores_B.detach()

    def _errors(self, values_BKA: Tensor, batch: ScoredBatch) -> Tensor:
        """Absolute errors on the declared scale, of the mean over the heads. Shapes: errors_BA."""
        return (values_BKA.mean(dim=1).double() - self._labels(batch)).abs()

    def _labels(self, batch: ScoredBatch) -> Tensor:
        unit = 1.0 if self.train.loss_type == "ordinal" else self.high - self.low
        return self.low + unit * batch.target_BA

    def _note(self, batch: ScoredBatch, values_BKA: Tensor, members_BK: Tensor, scores_B: Tensor) -> None:
        scored = batch.tokens.mask_BT.sum(dim=1).tolist()
        lengths = batch.tokens.attention_BT.sum(dim=1).tolist()
        values, labels, known = values_BKA.mean(dim=1).tolist(), self._labels(batch).tolist(), batch.known_BA.tolist()
        doubts, scores, gains = doubt(members_BK), scores_B.tolist(), batch.gain_B.tolist()
        for i, row_id in enumerate(batch.tokens.rows):
            parts = []
            for a, name in enumerate(self.train.attributes):
                if len(self.train.attributes) > 1:
                    parts.append(component(name, values[i][a]))
                parts.append(component(f"{name}_label", labels[i][a] if known[i][a] else None, "gold"))
            self.note(
                self.records[row_id],
                baseline_reward=scores[i],
                adjusted_reward=scores[i],
                loss_weight=gains[i],
                components=[*parts, *doubts[i]],
                prompt_tokens=lengths[i] - scored[i],
                response_tokens=scored[i],
            )

    # --- held-out rows ---

    def measure(self, batch: ScoredBatch) -> dict[str, Tally]:
        """Held-out loss and absolute error."""
        output: RewardOutput = self.module(batch.tokens, need=HEADS | {"scores"})
        loss_BA = self._losses(output, batch).mean(dim=1)
        values_BKA, _, _ = self._read(output, batch)
        return {
            "eval_loss": tally(loss_BA, batch.known_BA),
            "eval_error": tally(self._errors(values_BKA, batch), batch.known_BA),
        }

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out figures."""
        return self.recorded_means("heldout_scores", step, self.measure)

    def identity(self) -> dict[str, Any]:
        """The data and the tokenizer."""
        return {**super().identity(), "tokenizer": tokenizer_digest(self.run.tokenizer)}

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out figures with intervals, calibration of ordinal levels, probes."""
        found: dict[str, Any] = {}
        if self.held_out:
            found["held_out_scores"] = self.evaluate(step)
            scores_B, _, values_BA = self.closing.scorer.heads([s.tokens for s in self.held_out])
            assert values_BA is not None
            records = [sample.record for sample in self.held_out]
            found["held_out_attributes"] = self._agreement(values_BA.double().numpy(force=True), records)
            if self.train.loss_type == "ordinal":
                found |= self._calibrate(step, records)
            spread = float(np.std(scores_B.double().numpy(force=True)))
            found |= self.closing.probe(step, as_answers(records), spread)
        return {**found, **self.closing.identity()}

    def _agreement(self, values_BA: np.ndarray[Any, Any], records: Sequence[Record]) -> dict[str, dict[str, Any]]:
        """For each attribute: absolute error, correlation, and pairs of one prompt in the right order."""
        found: dict[str, dict[str, Any]] = {}
        for a, name in enumerate(self.train.attributes):
            rows = [(i, score_of(record, name)) for i, record in enumerate(records)]
            known = [(i, label) for i, label in rows if label is not None]
            if not known:
                continue
            value = np.array([values_BA[i, a] for i, _ in known])
            label = np.array([label for _, label in known], dtype=np.float64)
            prompts = [prompt_id(plain(prompt_of(records[i]))) for i, _ in known]
            found[name] = {
                "error": mean(np.abs(value - label).tolist()),
                "correlation": _correlation(value, label),
                "pair_accuracy": _pair_accuracy(value, label, prompts),
            }
        return found

    def _calibrate(self, step: int, records: Sequence[Record]) -> dict[str, Any]:
        """Of the first attribute: whether a score lies in the upper half of the levels."""
        name, levels = self.train.attributes[0], round(self.high - self.low) + 1
        middle = levels // 2  # threshold middle - 1 parts the levels below it from those from it on
        z, y, kept = [], [], []
        thresholds_KAC = self.model.whole_thresholds()
        with_heads = self.closing.raw_heads([s.tokens for s in self.held_out])
        latent = (with_heads[..., 0] - thresholds_KAC[:, 0, middle - 1]).mean(dim=1).tolist()
        for value, record in zip(latent, records, strict=True):
            label = score_of(record, name)
            if label is not None:
                z.append(value)
                y.append(float(label - self.low >= middle))
                kept.append(record)
        return self.closing.calibrate(step, z, y, kept)


def _correlation(value: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> dict[str, Any] | None:
    """Pearson's correlation with Fisher's 95 % interval; null where one side does not vary."""
    if len(value) < 4 or np.ptp(value) == 0 or np.ptp(label) == 0:
        return None
    found = pearsonr(value, label)
    low, high = found.confidence_interval(0.95)
    return {"value": float(found.statistic), "low": float(low), "high": float(high), "n": len(value)}


def _pair_accuracy(
    value: np.ndarray[Any, Any], label: np.ndarray[Any, Any], prompts: Sequence[str]
) -> dict[str, Any] | None:
    """Share of pairs of one prompt with different labels that the model orders as they are; ties count as half.

    The interval takes prompts, not pairs, as what is independent: n is the number of prompts that have a pair.
    """
    shares = []
    for prompt in sorted(set(prompts)):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        pairs = [(i, j) for i in rows for j in rows if label[i] > label[j]]
        if pairs:
            shares.append(math.fsum(0.5 + 0.5 * float(np.sign(value[i] - value[j])) for i, j in pairs) / len(pairs))
    if not shares:
        return None
    n, share = len(shares), math.fsum(shares) / len(shares)
    low, high = wilson(share * n, n)
    return {"value": share, "low": low, "high": high, "n": n, "detectable_difference": rate_mde(share, n, n)}
