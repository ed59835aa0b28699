"""Configuration of `rlhf kto`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import GainSection, Problem
from rlhf.config.stage import Stage
from rlhf.config.training import TrainSection

UnpairedLoss = Literal["kto", "apo_zero_unpaired"]


class KTOTrainSection(TrainSection):
    """KTO and its relatives on labelled completions."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak of the schedule")
    loss_type: UnpairedLoss = Field(
        "kto",
        description="kto: measured from a KL baseline, Ethayarajh et al. 2024; apo_zero_unpaired: from the reference",
    )
    beta: float = Field(0.1, gt=0, description="Inverse temperature of the implicit reward, per nat of log-ratio")
    desirable_weight: float = Field(1.0, gt=0, description="Weight of the loss of desirable completions")
    undesirable_weight: float = Field(1.0, gt=0, description="The same of undesirable ones")

    def rules(self) -> Iterator[Problem]:
        """A baseline needs two rows that are seen together."""
        yield from super().rules()
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps * (self.world_size or 0)
        if self.loss_type == "kto" and rows == 1:
            yield "per_device_train_batch_size", ONE_ROW

    def cautions(self) -> Iterator[Problem]:
        """One row a step on one rank."""
        yield from super().cautions()
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if self.loss_type == "kto" and rows == 1 and self.world_size is None:
            yield "per_device_train_batch_size", f"on one rank: {ONE_ROW}"


ONE_ROW = (
    "a step of one row has no other prompt for its completion, and KTO's baseline needs one: take more rows, or "
    "`loss_type: apo_zero_unpaired`, which has no baseline"
)


class KTOConfig(Stage):
    """`rlhf kto`."""

    stage: Literal["kto"] = Field("kto", description="Stage that the file is for")
    train: KTOTrainSection = Field(default_factory=KTOTrainSection, description="How it is trained")
    reward: GainSection = Field(default_factory=GainSection, description="Gains and margins")

    def opens_reference(self) -> bool:
        """Always."""
        return True

    def rules(self) -> Iterator[Problem]:
        """The margin is a log-ratio to a reference."""
        yield from super().rules()
        if self.reference.source == "none":
            yield "reference.source", "KTO compares with a reference: frozen, adapter_off or precomputed"
