"""What the pipelines over pairs share: collation with gains and offsets, rows of sessions, held-out accuracy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rewards.analysis.intervals import rate_mde, wilson
from rlhf.batch import PairBatch
from rlhf.data import collate, tokenise
from rlhf.data.records import Record
from rlhf.objectives.reward_model import adjusted_margin
from rlhf.stages.offline import Offline
from rlhf.stages.work import Run
from rlhf.train.metrics import Tally, tally


class Pairs(Offline[tokenise.PairSample]):
    """Training over pairs."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, tokenise.prepare_pairs, max_length=run.config.train.max_length)
        for sample in (*self.samples, *self.held_out):
            self.check(sample.record)  # what a row lacks is told now, not at the step that takes it

    def check(self, record: Record) -> None:
        """Raises: DataError where a row lacks a column that the configuration names."""
        self.margin(record)

    def collate(self, samples: Sequence[tokenise.PairSample]) -> PairBatch:
        """Samples to a batch."""
        return collate.pairs(
            samples,
            self.run.tokenizer.pad_token_id,
            [self.gain(s.record) for s in samples],
            [self.margin(s.record) for s in samples],
        )

    def note_pairs(self, batch: PairBatch, z_N: Tensor, **columns: list[Any]) -> None:
        """The sessions of a batch: z as baseline reward, (z - m) / (1 + d) as adjusted reward."""
        z_N = z_N.detach().double()
        adjusted = adjusted_margin(z_N, batch.margin_N, batch.gain_N).tolist()
        z, margins, gains = z_N.tolist(), batch.margin_N.tolist(), batch.gain_N.tolist()
        scored = batch.tokens.mask_BT.sum(dim=1).tolist()
        lengths = batch.tokens.attention_BT.sum(dim=1).tolist()
        for i in range(batch.pairs):
            row = {
                "baseline_reward": z[i],
                "adjusted_reward": adjusted[i],
                "pivot": margins[i],
                "loss_weight": gains[i],
                "prompt_tokens": lengths[i] - scored[i],
                "response_tokens": scored[i],
            }
            row |= {name: values[i] for name, values in columns.items()}
            self.note(self.records[batch.columns[i]["row_id"]], **row)

    def pair_figures(self, loss_N: Tensor, z_N: Tensor) -> dict[str, Tally]:
        """Loss, accuracy and margin of held-out pairs; a tie counts as half."""
        right_N = (z_N > 0).double() + 0.5 * (z_N == 0).double()
        return {"eval_loss": tally(loss_N), "eval_accuracy": tally(right_N), "eval_margin": tally(z_N)}

    @abstractmethod
    def measure(self, batch: PairBatch) -> dict[str, Tally]:
        """Held-out figures of a batch."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out figures; the event carries the accuracy's interval and what the set could have told apart."""
        values = self.held_out_means(self.measure)
        self.run.record_evaluation("heldout_pairs", step, pair_accuracy(values, len(self.held_out)))
        return values

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out figures at the end, with interval and smallest detectable difference."""
        if not self.held_out:
            return {}
        return {"held_out_pairs": pair_accuracy(self.evaluate(step), len(self.held_out))}


def pair_accuracy(values: dict[str, float], n: int) -> dict[str, dict[str, Any]]:
    """Held-out figures with the accuracy's 95 % score interval.

    detectable_difference: the smallest difference in accuracy between two models of which each is tested on a set of
    this size that is found with 80 % power; a comparison paired by prompt can see less.
    """
    accuracy = values["eval_accuracy"]
    low, high = wilson(accuracy * n, n)
    return {
        "accuracy": {
            "value": accuracy,
            "low": low,
            "high": high,
            "n": n,
            "detectable_difference": rate_mde(accuracy, n, n),
        },
        "loss": {"value": values["eval_loss"], "low": None, "high": None, "n": n},
        "margin": {"value": values["eval_margin"], "low": None, "high": None, "n": n},
    }
