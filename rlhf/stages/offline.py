"""What the pipelines over a fixed data set share: the order of rows, this rank's micro-batches, records of sessions."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from accelerate.utils import gather_object

from rewards.differential import Schedule
from rewards.errors import ConfigError, DataError
from rewards.trajectory import TrajectoryIndex
from rlhf.batch import to_device
from rlhf.data.gates import GateReport, check_categories
from rlhf.data.mixture import EpochOrder
from rlhf.data.packing import PackedOrder
from rlhf.data.records import Record, plain, prompt_of
from rlhf.models.policy import Policy
from rlhf.reference.policy import quiet
from rlhf.stages.positions import beyond_positions
from rlhf.stages.work import Run
from rlhf.train.loop import StepStats
from rlhf.train.metrics import Tally, reduce_tallies
from rlhf.train.optim import total_steps

Sample = TypeVar("Sample")


def prompt_id(text: str) -> str:
    """Short digest by which sessions of the same prompt are found."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Offline(ABC, Generic[Sample]):
    """Training over a fixed list of samples; a stage adds collation, the step and what a session's row holds.

    Each step takes the next `global_batch` units of the epoch's order, a row or a bin of rows each; ranks and
    micro-batches cut that batch in its order, so that any cut sees the same rows.
    """

    module: Policy

    def __init__(self, run: Run, make: Callable[..., tuple[list[Sample], GateReport]], **options: Any) -> None:
        self.run = run
        self.samples, report = make(run.inputs.train, run.tokenizer, **options)
        run.say(report.lines())
        self.held_out: list[Sample] = []
        if run.inputs.held_out:
            self.held_out, report = make(run.inputs.held_out, run.tokenizer, **options)
            run.say(f"held out: {line}" for line in report.lines())
        run.say(beyond_positions(run.policy, [*self.samples, *self.held_out]))
        # Another split may number its rows alike: sessions are those of training.
        self.records: dict[str, Record] = {r.row_id: r for r in (*run.inputs.held_out, *run.inputs.train)}
        self.schedule = Schedule.from_gains(run.config.reward)
        self.trajectory = TrajectoryIndex()
        named = [category for category, _ in self.schedule.entries]
        run.say(check_categories(run.inputs.train, named, "reward.differentials"))
        train = run.config.train
        if train.eval_strategy != "no" and not self.held_out:
            raise ConfigError(
                f"train.eval_strategy is `{train.eval_strategy}`, and no row is held out: set data.holdout_fraction or "
                "data.dataset_test_split, or eval_strategy=no"
            )
        self.order = self.make_order()
        self.steps_per_epoch = math.ceil(self.order.units / run.global_batch)
        self.total_steps = total_steps(train, self.order.units, run.global_batch)
        self.prompt_ids: dict[str, str] = {}
        self.pending: list[dict[str, Any]] = []
        self.step_now = 0

    def make_order(self) -> EpochOrder | PackedOrder:
        """Which rows a step takes."""
        return EpochOrder(len(self.samples), self.run.global_batch, self.run.config.train.seed)

    def gain(self, record: Record) -> float:
        """1 + d of the record's category."""
        return self.schedule.gain(record.category)

    def margin(self, record: Record) -> float:
        """The explicit offset m of a pair or a labelled completion.

        Raises: DataError where reward.margin_column names a column that the row lacks.
        """
        column: str | None = getattr(self.run.config.reward, "margin_column", None)
        if column is None:
            return 0.0
        value = record.columns.get(column)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise DataError(f"{record.ref}: reward.margin_column is `{column}`, and the row holds {value!r} there")
        return float(value)

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Any:
        """Samples to a batch."""

    def batches(self, step: int) -> list[Any]:
        """This rank's micro-batches of the step."""
        self.pending, self.step_now = [], step
        groups = self.order.groups(step)
        size, count = self.run.config.train.per_device_train_batch_size, self.run.rank_batch
        start = self.run.accelerator.process_index * count
        mine = groups[start : start + count]
        return [
            self.collate([self.samples[i] for group in mine[j : j + size] for i in group])
            for j in range(0, len(mine), size)
        ]

    @property
    def reference_rows(self) -> int:
        """Rows of a reference pass over all texts: without gradients it takes at least what a step takes."""
        train = self.run.config.train
        return max(train.per_device_eval_batch_size, train.per_device_train_batch_size)

    def held_out_batches(self) -> Iterator[Any]:
        """This rank's share of the held-out samples, in micro-batches."""
        size = self.run.config.train.per_device_eval_batch_size
        accelerator = self.run.accelerator
        mine = self.held_out[accelerator.process_index :: accelerator.num_processes]
        for j in range(0, len(mine), size):
            yield self.collate(mine[j : j + size])

    def held_out_means(self, measure: Callable[[Any], dict[str, Tally]]) -> dict[str, float]:
        """Means of what `measure` gives over all held-out samples of all ranks."""
        tallies: dict[str, Tally] = {}
        with quiet(self.module):
            for batch in self.held_out_batches():
                for name, part in measure(to_device(batch, self.run.accelerator.device)).items():
                    tallies[name] = tallies[name] + part if name in tallies else part
            for _ in range(self._passes_of_others()):
                measure(to_device(self.collate(self.held_out[:1]), self.run.accelerator.device))
        if self.run.accelerator.num_processes > 1:
            # A rank without a held-out row of its own still takes part in the sums.
            for name in {name for names in gather_object([sorted(tallies)]) for name in names}:
                tallies.setdefault(name, Tally(0.0, 0.0))
        return reduce_tallies(self.run.accelerator, tallies)

    def _passes_of_others(self) -> int:
        """Passes that other ranks make and this one has no rows for: through a sharded module all of them must go."""
        if not self.run.config.train.fsdp:
            return 0
        size, rows = self.run.config.train.per_device_eval_batch_size, len(self.held_out)
        rank, ranks = self.run.accelerator.process_index, self.run.accelerator.num_processes
        return math.ceil(len(range(0, rows, ranks)) / size) - math.ceil(len(range(rank, rows, ranks)) / size)

    def recorded_means(self, suite: str, step: int, measure: Callable[[Any], dict[str, Tally]]) -> dict[str, float]:
        """`held_out_means`, also as an evaluation event without intervals."""
        values, n = self.held_out_means(measure), len(self.held_out)
        figures = {
            name.removeprefix("eval_"): {"value": value, "low": None, "high": None, "n": n}
            for name, value in values.items()
        }
        self.run.record_evaluation(suite, step, figures)
        return values

    def prepare(self, batches: list[Any]) -> None:
        """Nothing couples the batch."""

    def rows(self, batches: list[Any]) -> list[str]:
        """Row ids of these micro-batches."""
        return [row for batch in batches for row in batch.tokens.rows]

    def note(self, record: Record, **columns: Any) -> None:
        """A session of this step: its row in the ledger but for what every session shares."""
        # A row of several epochs is hashed once.
        if record.row_id not in self.prompt_ids:
            self.prompt_ids[record.row_id] = prompt_id(plain(prompt_of(record)))
        row: dict[str, Any] = {
            "pipeline": self.run.stage,
            "split": "train",
            "dataset_id": record.dataset_id,
            "row_id": record.row_id,
            "prompt_id": self.prompt_ids[record.row_id],
            "category": record.category,
            "differential_pct": 100 * (self.gain(record) - 1),
            "schedule_version": str(self.schedule.version),
            "policy_version": self.step_now - 1,
            "trajectory_index": self.trajectory.value(record.category),
            **columns,
        }
        if self.run.config.ledger.record_texts == "always":
            row["prompt"] = plain(prompt_of(record))
            row["response"] = plain(record.chosen or record.completion or "")
            if record.rejected is not None:
                row["rejected"] = plain(record.rejected)
        self.pending.append(row)

    def after_step(self, stats: StepStats) -> None:
        """Records the step's sessions and figures."""
        self.run.recorder.rows(stats.step, self.pending)
        # On record: what fails from here on must not record them again.
        self.pending = []
        self.run.recorder.event("step_stats", step_stats(stats), step=stats.step)

    def abandon(self) -> None:
        """Records the sessions of a step that did not come to its end."""
        self.run.recorder.rows(self.step_now, self.pending)

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond the model: the order of rows is a function of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def identity(self) -> dict[str, Any]:
        """What must not change under a resumed run."""
        return {"data set": self.run.inputs.digest}

    def begin(self) -> None:
        """Nothing happens before the first step."""

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out figures at the end."""
        return self.evaluate(step) if self.held_out else {}

    @abstractmethod
    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out metrics."""


def step_stats(stats: StepStats) -> dict[str, Any]:
    """Payload of the step_stats event. Units: seconds of wall time; loss in nats."""
    return {
        "loss": stats.loss,
        "grad_norm": stats.grad_norm,
        "learning_rate": stats.learning_rate,
        "tokens": stats.tokens,
        "seconds": stats.seconds,
        **{f"loss/{name}": value for name, value in stats.terms.items()},
        **stats.metrics,
    }
