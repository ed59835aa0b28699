"""Preference optimisation: a session is a pair; the baseline reward is the margin z of the first loss that compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from rewards.errors import ConfigError, DataError
from rlhf.batch import PairBatch, TokenBatch
from rlhf.config import DPOConfig
from rlhf.config.pair_losses import COUPLED
from rlhf.config.preference import whole_batch
from rlhf.data import tokenise
from rlhf.data.records import Record
from rlhf.ops.logprobs import PolicyOutput
from rlhf.reference.policy import Reference
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.pair_objective import Judged, PairObjective, RunningMean
from rlhf.stages.pairs import Pairs
from rlhf.stages.sampled import SampledEvaluation
from rlhf.stages.work import Run
from rlhf.train.loop import StepStats, Sum
from rlhf.train.metrics import Tally, tally

SHIFT = "bco/reward"
"""Metric: mean reward of both texts, which `bco_pair` subtracts from the next step on."""


class DPO(Pairs):
    """The DPO family against the shared reference, and the losses that need none."""

    def __init__(self, run: Run) -> None:
        config: DPOConfig = run.config  # type: ignore[assignment]
        self.train = config.train
        self.soft = config.reward.preference_column
        super().__init__(run)
        self.module = run.policy
        self.objective = PairObjective(config.train)
        self._check_ranks()
        # With dropout the policy would differ from the reference before the first step.
        run.switch_dropout_off()
        self.reference: Reference | None = None
        if config.opens_reference():
            self.reference = open_reference(run, config.reference, self.module, self._texts)
        self.sampled = SampledEvaluation(run, self.module)

    def _check_ranks(self) -> None:
        coupled = [name for name in self.train.loss_type if name in COUPLED]
        if coupled and self.run.accelerator.num_processes > 1:
            raise ConfigError(f"train.loss_type: {whole_batch(coupled[0])}")

    def check(self, record: Record) -> None:
        """Raises: DataError where a row lacks the offset or the probability that the configuration promises."""
        super().check(record)
        self.preference(record)

    def preference(self, record: Record) -> float:
        """The probability that the chosen text is the better one.

        Raises: DataError where reward.preference_column names a column without one.
        """
        if self.soft is None:
            return 1.0
        value = record.columns.get(self.soft)
        known = isinstance(value, int | float) and not isinstance(value, bool)
        # The divergence of `exo_pair` from a label that is certain is infinite.
        inside = known and (0.0 < value < 1.0 if "exo_pair" in self.train.loss_type else 0.0 <= value <= 1.0)
        if not inside:
            wanted = "a number between 0 and 1" + (", not 0 or 1," if "exo_pair" in self.train.loss_type else "")
            raise DataError(
                f"{record.ref}: reward.preference_column is `{self.soft}`: expected {wanted} there, got {value!r}"
            )
        return float(value)

    def collate(self, samples: Sequence[tokenise.PairSample]) -> PairBatch:
        """Samples to a batch; the two texts of a pair get identifiers of their own, for cached columns."""
        batch = super().collate(samples)
        names = [sample.row_id for sample in samples]
        rows = tuple(f"{name}#chosen" for name in names) + tuple(f"{name}#rejected" for name in names)
        soft_N = None
        if self.soft is not None:
            soft_N = torch.tensor([self.preference(sample.record) for sample in samples], dtype=torch.float64)
        return replace(batch, tokens=replace(batch.tokens, rows=rows), preference_N=soft_N)

    def _texts(self) -> Iterator[TokenBatch]:
        size = self.reference_rows
        # Texts of about the same length share a batch: less padding, and no value depends on it.
        everything = sorted([*self.samples, *self.held_out], key=_longest)
        for j in range(0, len(everything), size):
            yield self.collate(everything[j : j + size]).tokens

    def weights(self, batch: PairBatch) -> dict[str, float]:
        """Pairs, and tokens of the chosen texts for their likelihood."""
        return self.objective.denominators(batch)

    def _judge(self, output: PolicyOutput, batch: PairBatch) -> Judged:
        ref_logps_BT = None if self.reference is None else self.reference.logps(batch.tokens)
        return self.objective(output, ref_logps_BT, batch)

    def step(self, model: torch.nn.Module, batch: PairBatch, context: None) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """The preference losses of the batch."""
        judged = self._judge(model(batch.tokens, need=self.objective.need), batch)
        parts, z_N, n = judged.parts, judged.z_N, batch.pairs
        metrics = {
            "rewards/accuracies": tally((z_N > 0).double()),
            "rewards/margins": tally(z_N),
            "rewards/chosen": tally(judged.rewards_B[:n]),
            "rewards/rejected": tally(judged.rewards_B[n:]),
            "logps/chosen": tally(parts.logps_B[:n]),
            "logps/rejected": tally(parts.logps_B[n:]),
        }
        if "bco_pair" in self.train.loss_type:
            metrics[SHIFT] = tally(self.objective.shift_rewards(parts))
        if parts.weights_N is not None:
            metrics["wpo/weight"] = tally(parts.weights_N)
        self._note(batch, judged)
        return self.objective.sums(judged), metrics

    def _note(self, batch: PairBatch, judged: Judged) -> None:
        parts, n = judged.parts, batch.pairs
        columns: dict[str, list[Any]] = {
            "logp_nats": parts.plain_B[:n].tolist(),
            "log_ratio_nats": [None] * n,
            "reference_id": [None] * n,
        }
        if self.reference is not None and parts.log_ratio_B is not None:
            columns["log_ratio_nats"] = (parts.log_ratio_B[:n] - parts.log_ratio_B[n:]).tolist()
            columns["reference_id"] = [self.reference.identity[:16]] * n
        if parts.weights_N is not None:
            columns["loss_weight"] = (parts.weights_N * batch.gain_N).tolist()
        self.note_pairs(batch, judged.z_N, **columns)

    def after_step(self, stats: StepStats) -> None:
        """Records the step; what `bco_pair` subtracts next counts this step's rewards, of all ranks."""
        if SHIFT in stats.metrics:
            mean = stats.metrics[SHIFT]
            stats.metrics["bco/delta"] = self.objective.shift.mean
            self.objective.shift.add(mean, 2.0 * self.run.global_batch)
        super().after_step(stats)

    def measure(self, batch: PairBatch) -> dict[str, Tally]:
        """Held-out losses by term, accuracy and margin; losses that sort do so within this batch."""
        judged = self._judge(self.module(batch.tokens, need=self.objective.need), batch)
        pairs, nll = self.objective.held_out(judged)
        figures = self.pair_figures(pairs, judged.z_N)
        return figures if nll is None else {**figures, "eval_nll": nll}

    def held_out_means(self, measure: Any) -> dict[str, float]:
        """Held-out figures; the likelihood of the chosen texts, a mean over tokens, joins the loss here."""
        values = super().held_out_means(measure)
        if "eval_nll" in values:
            values["eval_loss"] += self.objective.coefficients["nll"] * values["eval_nll"]
        return values

    def state_dict(self) -> dict[str, Any]:
        """The running mean of `bco_pair`."""
        return {"shift": asdict(self.objective.shift)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.objective.shift = RunningMean(**state["shift"])

    def identity(self) -> dict[str, Any]:
        """The data, the tokenizer and the reference."""
        found = {**super().identity(), "tokenizer": tokenizer_digest(self.run.tokenizer)}
        return found if self.reference is None else {**found, "reference": self.reference.identity}

    def begin(self) -> None:
        """Held-out answers before the first step, where asked for."""
        self.sampled.before()

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out pairs and sampled answers."""
        return {**super().finish(step), **self.sampled.after(step)}


def _longest(sample: tokenise.PairSample) -> int:
    return max(len(sample.chosen.ids), len(sample.rejected.ids))
