"""What every stage stands on, and what it adds to the loop's contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator

from rewards.config import Loaded
from rlhf.config import StageConfig
from rlhf.models.policy import Policy
from rlhf.stages.inputs import Inputs
from rlhf.train.loop import Work
from rlhf.train.progress import Reporter
from rlhf.train.record import Recorder


@dataclass(frozen=True)
class Origin:
    """Where a run begins that is forked off another one: at the other's checkpoint, as an arm of an experiment.

    record: what the start of each of its attempts says about it.
    """

    checkpoint: Path
    arm: str
    record: dict[str, Any]


@dataclass
class Run:
    """One stage of training: configuration, pieces and where it writes."""

    stage: str
    loaded: Loaded[Any]
    inputs: Inputs
    run_id: str
    output_dir: Path
    accelerator: Accelerator
    recorder: Recorder
    policy: Policy
    tokenizer: Any
    reporter: Reporter
    start: dict[str, Any] | None = None
    """state.json of the checkpoint that the run resumes from."""
    origin: Origin | None = None
    forked: bool = False
    """Whether that checkpoint is another run's, which this one is forked off."""

    @property
    def config(self) -> StageConfig:
        """The resolved configuration."""
        return self.loaded.config

    def say(self, lines: Iterable[str]) -> None:
        """Lines for people, on the main rank."""
        for line in lines:
            self.reporter.line(f"{self.stage}: {line}")

    def switch_dropout_off(self) -> None:
        """For stages that compare two passes over one text: with dropout they would differ by noise alone."""
        self.policy.disable_dropout()
        if self.policy.has_adapter and self.config.model.lora_dropout > 0:
            self.say([f"model.lora_dropout {self.config.model.lora_dropout:g} is switched off, as all dropout is here"])

    def record_evaluation(self, suite: str, step: int, metrics: dict[str, Any]) -> None:
        """An evaluation event on held-out rows; the newest of a stage is what it ended with."""
        n = next(iter(metrics.values()))["n"]
        payload = {"suite": suite, "when": "step", "n": n, "metrics": metrics, "by_category": {}}
        self.recorder.evaluation(payload, step)

    @property
    def rank_batch(self) -> int:
        """Rows of one rank's share of a step."""
        return self.config.train.per_device_train_batch_size * self.config.train.gradient_accumulation_steps

    @property
    def global_batch(self) -> int:
        """Rows of a step over all ranks."""
        return self.rank_batch * self.accelerator.num_processes


class StageWork(Work, Protocol):
    """What a stage adds to the loop's contract. step_now: the step that is under way, 0 before the first.

    A stage that compares with a reference keeps it as `reference`: there it is saved, restored, and told of each step.
    """

    module: Policy
    total_steps: int
    steps_per_epoch: int
    step_now: int

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond the model: plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""

    def identity(self) -> dict[str, Any]:
        """Identity of the reference and of the data, compared on resume."""

    def begin(self) -> None:
        """Called once before the first step of a fresh run or of a fork (not on resume)."""

    def finish(self, step: int) -> dict[str, Any]:
        """Called after the last step; what it returns goes into run.json."""

    def abandon(self) -> None:
        """Called when the run stops in the middle of a step: records what was scored."""
