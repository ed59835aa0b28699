"""KTO: a session is a labelled completion; the baseline reward is z = beta (log-ratio - z0).

z0 is estimated once a step, before the first backward, from the prompts of the whole batch with completions that were
written for other prompts of it: all ranks and micro-batches see one number, however the batch is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.errors import ConfigError
from rlhf.batch import LabelledBatch, TokenBatch, to_device
from rlhf.config import KTOConfig
from rlhf.config.unpaired import ONE_ROW
from rlhf.data import collate, gates, tokenise
from rlhf.data.mismatch import Mismatch, MismatchedText
from rlhf.objectives.reward_model import adjusted_margin
from rlhf.objectives.unpaired import OBJECTIVES, WITH_BASELINE, kl_baseline, session_weights, unpaired_margin
from rlhf.ops.logprobs import PolicyOutput
from rlhf.ops.masked import sequence_sum
from rlhf.reference.policy import Reference, quiet
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.offline import Offline
from rlhf.stages.pairs import pair_accuracy
from rlhf.stages.sampled import SampledEvaluation
from rlhf.stages.work import Run
from rlhf.train.loop import Sum
from rlhf.train.metrics import Tally, tally
from rlhf.train.record import SharedStop


@dataclass(frozen=True)
class Baseline:
    """What a batch's completions are measured from.

    kl_nats: z0; mean_nats: the mean log-ratio of the mismatched texts before it was raised to 0; texts: how many.
    """

    kl_nats: float = 0.0
    mean_nats: float = 0.0
    texts: int = 0


class KTO(Offline[tokenise.Sample]):
    """Training over labelled completions against the shared reference."""

    def __init__(self, run: Run) -> None:
        config: KTOConfig = run.config  # type: ignore[assignment]
        self.train = config.train
        super().__init__(run, tokenise.prepare_labelled, max_length=config.train.max_length)
        gates.check_labels([sample.record for sample in self.samples])
        for sample in (*self.samples, *self.held_out):
            self.margin(sample.record)  # a row without one is told now, not at the step that takes it
        self._say_balance()
        self.module = run.policy
        self.mismatch: Mismatch | None = None
        self.mismatch_held_out: Mismatch | None = None
        if self.train.loss_type in WITH_BASELINE:
            self._open_baseline()
        self.held_out_baseline = Baseline()
        # With dropout the policy would differ from the reference before the first step.
        run.switch_dropout_off()
        self.reference = open_reference(run, config.reference, self.module, self._texts)
        self.mismatch_reference = self.reference
        if self.mismatch is not None and config.reference.source == "precomputed":
            # A column of its own: which texts are in it depends on seed, batch and steps, and no run is known by it.
            self.mismatch_reference = open_reference(run, config.reference, self.module, self._mismatched_texts)
        self.sampled = SampledEvaluation(run, self.module)

    def _open_baseline(self) -> None:
        if self.run.global_batch < 2:
            raise ConfigError(f"train.per_device_train_batch_size: {ONE_ROW}")
        self.mismatch = Mismatch(self.samples, self.train.max_length)
        if self.held_out:
            self.mismatch_held_out = Mismatch(self.held_out, self.train.max_length, "the held-out rows")

    def _say_balance(self) -> None:
        labels = [bool(sample.record.label) for sample in self.samples]
        desirable, undesirable = sum(labels), len(labels) - sum(labels)
        ratio = self.train.desirable_weight * desirable / (self.train.undesirable_weight * undesirable)
        said = f"{desirable:,} desirable and {undesirable:,} undesirable completions, weighted {ratio:.2f} to 1"
        # Eq. 8 of the paper; TRL recommends the same range.
        if not 0.995 <= ratio <= 1.335:
            said += "; the authors recommend 1 to 1.33: see train.desirable_weight and train.undesirable_weight"
        self.run.say([said])

    def collate(self, samples: Sequence[tokenise.Sample]) -> LabelledBatch:
        """Samples to a batch."""
        return collate.labelled(
            samples,
            self.run.tokenizer.pad_token_id,
            [self.gain(s.record) for s in samples],
            [self.margin(s.record) for s in samples],
        )

    def _texts(self) -> Iterator[TokenBatch]:
        yield from self._cut({sample.row_id: sample.tokens for sample in (*self.samples, *self.held_out)})

    def _mismatched_texts(self) -> Iterator[TokenBatch]:
        """Those of all steps and of evaluation, each once."""
        named: dict[str, tokenise.Tokens] = {}
        if self.mismatch is not None:
            for step in range(1, self.total_steps + 1):
                named |= {text.name: text.tokens for text in self.mismatch.texts(self.order.indices(step))}
        if self.mismatch_held_out is not None:
            named |= {text.name: text.tokens for text in self.mismatch_held_out.texts(range(len(self.held_out)))}
        yield from self._cut(named)

    def _cut(self, named: dict[str, tokenise.Tokens]) -> Iterator[TokenBatch]:
        names, size = list(named), self.reference_rows
        for j in range(0, len(names), size):
            part = names[j : j + size]
            yield collate.token_batch([named[name] for name in part], self.run.tokenizer.pad_token_id, part)

    def _log_ratios(self, reference: Reference, output: PolicyOutput, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        assert output.logps_BT is not None
        logps_B = sequence_sum(output.logps_BT, tokens.mask_BT)
        ref_logps_B = sequence_sum(reference.logps(tokens).to(output.logps_BT.dtype), tokens.mask_BT)
        return logps_B - ref_logps_B, logps_B

    def prepare(self, batches: list[Any]) -> Baseline:
        """The baseline of the step's batch, the same number on every rank."""
        if self.mismatch is None:
            return Baseline()
        texts = self.mismatch.texts(self.order.indices(self.step_now))
        count = self.run.rank_batch
        start = self.run.accelerator.process_index * count
        return self._baseline(texts[start : start + count], self.train.per_device_train_batch_size)

    def _baseline(self, texts: Sequence[MismatchedText], size: int) -> Baseline:
        """The baseline of all ranks' texts; these are this rank's."""
        accelerator = self.run.accelerator
        total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        with quiet(self.module):
            for j in range(0, len(texts), size):
                part = texts[j : j + size]
                named = [text.name for text in part]
                tokens = collate.token_batch([text.tokens for text in part], self.run.tokenizer.pad_token_id, named)
                tokens = to_device(tokens, accelerator.device)
                counts_B = torch.tensor([text.counts for text in part], device=accelerator.device)
                ratio_B, _ = self._log_ratios(self.mismatch_reference, self.module(tokens), tokens)
                total += torch.stack([(ratio_B.double() * counts_B).sum(), counts_B.double().sum()])
        summed, found = accelerator.reduce(total, reduction="sum").tolist()
        if not found:
            raise SharedStop(
                "no completion of the batch belongs to another prompt, so KTO's baseline cannot be estimated: take "
                "more rows a step (train.per_device_train_batch_size), or train.loss_type=apo_zero_unpaired"
            )
        return Baseline(kl_baseline(summed / found), summed / found, int(found))

    def weights(self, batch: LabelledBatch) -> dict[str, float]:
        """Completions."""
        return {"completions": float(batch.tokens.size)}

    def _loss(self, ratio_B: Tensor, batch: LabelledBatch, baseline: Baseline) -> tuple[Tensor, Tensor]:
        z_B = unpaired_margin(ratio_B, self.train.beta, baseline.kl_nats)
        loss_B = OBJECTIVES[self.train.loss_type](
            z_B,
            batch.margin_B,
            batch.gain_B,
            batch.label_B,
            desirable_weight=self.train.desirable_weight,
            undesirable_weight=self.train.undesirable_weight,
        )
        return loss_B, z_B

    def step(
        self, model: torch.nn.Module, batch: LabelledBatch, context: Baseline
    ) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """The loss of the batch's completions, measured from the step's baseline."""
        ratio_B, logps_B = self._log_ratios(self.reference, model(batch.tokens), batch.tokens)
        loss_B, z_B = self._loss(ratio_B, batch, context)
        label_B, rewards_B = batch.label_B, self.train.beta * ratio_B
        metrics = {
            "rewards/chosen": tally(rewards_B, label_B),
            "rewards/rejected": tally(rewards_B, ~label_B),
            "rewards/accuracies": tally(_right(z_B, label_B)),
            "logps/chosen": tally(logps_B, label_B),
            "logps/rejected": tally(logps_B, ~label_B),
        }
        if self.mismatch is not None:
            metrics["kl"] = Tally(context.kl_nats, 1.0)
            metrics["kl_before_bound"] = Tally(context.mean_nats, 1.0)
        self._note(batch, z_B.detach().double(), ratio_B.tolist(), logps_B.tolist())
        return {"completions": Sum(loss_B.sum())}, metrics

    def _note(self, batch: LabelledBatch, z_B: Tensor, ratios: list[float], logps: list[float]) -> None:
        weights = session_weights(
            batch.gain_B, batch.label_B, self.train.desirable_weight, self.train.undesirable_weight
        ).tolist()
        adjusted = adjusted_margin(z_B, batch.margin_B, batch.gain_B).tolist()
        z, margins, labels = z_B.tolist(), batch.margin_B.tolist(), batch.label_B.tolist()
        scored = batch.tokens.mask_BT.sum(dim=1).tolist()
        lengths = batch.tokens.attention_BT.sum(dim=1).tolist()
        for i, row_id in enumerate(batch.tokens.rows):
            self.note(
                self.records[row_id],
                baseline_reward=z[i],
                adjusted_reward=adjusted[i],
                pivot=margins[i],
                loss_weight=weights[i],
                classification="desirable" if labels[i] else "undesirable",
                logp_nats=logps[i],
                log_ratio_nats=ratios[i],
                reference_id=self.reference.identity[:16],
                prompt_tokens=lengths[i] - scored[i],
                response_tokens=scored[i],
            )

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out figures, measured from the held-out rows' own baseline.

        The interval of the accuracy takes rows as independent; several completions of one prompt are less so.
        """
        if self.mismatch_held_out is not None:
            accelerator = self.run.accelerator
            texts = self.mismatch_held_out.texts(range(len(self.held_out)))
            mine = texts[accelerator.process_index :: accelerator.num_processes]
            self.held_out_baseline = self._baseline(mine, self.train.per_device_eval_batch_size)
        values = self.held_out_means(self._measure)
        if self.mismatch_held_out is not None:
            values["eval_kl"] = self.held_out_baseline.kl_nats
        self.run.record_evaluation("heldout_labels", step, self._figures(values))
        return values

    def _measure(self, batch: LabelledBatch) -> dict[str, Tally]:
        ratio_B, _ = self._log_ratios(self.reference, self.module(batch.tokens), batch.tokens)
        loss_B, z_B = self._loss(ratio_B, batch, self.held_out_baseline)
        return {
            "eval_loss": tally(loss_B),
            "eval_accuracy": tally(_right(z_B, batch.label_B)),
            "eval_margin": tally(torch.where(batch.label_B, z_B, -z_B)),
        }

    def _figures(self, values: dict[str, float]) -> dict[str, dict[str, Any]]:
        """With the share of desirable rows: an accuracy says little beside the larger of the two shares."""
        n = len(self.held_out)
        share = sum(bool(sample.record.label) for sample in self.held_out) / n
        alone = {"desirable_share": share} | ({"kl_nats": values["eval_kl"]} if "eval_kl" in values else {})
        bare = {name: {"value": value, "low": None, "high": None, "n": n} for name, value in alone.items()}
        return {**pair_accuracy(values, n), **bare}

    def identity(self) -> dict[str, Any]:
        """The data, the tokenizer and the reference."""
        found = {**super().identity(), "tokenizer": tokenizer_digest(self.run.tokenizer)}
        return {**found, "reference": self.reference.identity}

    def begin(self) -> None:
        """Held-out answers before the first step, where asked for."""
        self.sampled.before()

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out labels and sampled answers."""
        found: dict[str, Any] = {}
        if self.held_out:
            found["held_out_labels"] = self._figures(self.evaluate(step))
        return {**found, **self.sampled.after(step)}


def _right(z_B: Tensor, label_B: Tensor) -> Tensor:
    """1 where the side of 0 is the label's, 1/2 on 0 itself."""
    signed_B = torch.where(label_B, z_B, -z_B)
    return (signed_B > 0).double() + 0.5 * (signed_B == 0).double()
