"""Configuration of `rlhf dpo`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import GainSection, Problem
from rlhf.config.stage import Stage
from rlhf.config.training import TrainSection

PreferenceLoss = Literal["sigmoid"]


class DPOTrainSection(TrainSection):
    """DPO."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak of the schedule")
    loss_type: list[PreferenceLoss] = Field(
        default=["sigmoid"], min_length=1, description="sigmoid: DPO, Rafailov et al. 2023"
    )
    beta: float = Field(0.1, gt=0, description="Inverse temperature of the implicit reward, per nat of log-ratio")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Probability that a label is flipped (cDPO)")


class DPOConfig(Stage):
    """`rlhf dpo`."""

    stage: Literal["dpo"] = Field("dpo", description="Stage that the file is for")
    train: DPOTrainSection = Field(default_factory=DPOTrainSection, description="How it is trained")
    reward: GainSection = Field(default_factory=GainSection, description="Gains and margins")

    def opens_reference(self) -> bool:
        """Always."""
        return True

    def rules(self) -> Iterator[Problem]:
        """DPO's margin is a log-ratio to a reference."""
        yield from super().rules()
        if self.reference.source == "none":
            yield "reference.source", "DPO compares with a reference: frozen, adapter_off or precomputed"
