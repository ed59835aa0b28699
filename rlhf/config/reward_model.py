"""Configuration of `rlhf reward`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import GainSection, Problem
from rlhf.config.stage import Stage
from rlhf.config.training import TrainSection


class RewardTrainSection(TrainSection):
    """Reward model."""

    learning_rate: float = Field(1e-4, gt=0, description="Peak of the schedule")
    center_rewards_coefficient: float | None = Field(None, gt=0, description="Penalty on (r_chosen + r_rejected)^2")
    rm_regularizer: Literal["grm_sft", "kl_ref"] | None = Field(
        None, description="grm_sft: text-generation loss on the kept head; kl_ref: KL(reference || policy) on it"
    )
    rm_regularizer_weight: float = Field(0.01, gt=0, description="GRM, Yang et al. 2024")
    reward_offset: Literal["none", "reference"] = Field(
        "none", description="reference: the mean over reference texts is subtracted from every score"
    )

    def rules(self) -> Iterator[Problem]:
        """A weight needs a regularizer."""
        yield from super().rules()
        if self.rm_regularizer is None and self.changed("rm_regularizer_weight"):
            yield "rm_regularizer_weight", "has no effect without rm_regularizer (grm_sft or kl_ref)"


class RewardConfig(Stage):
    """`rlhf reward`."""

    stage: Literal["reward"] = Field("reward", description="Stage that the file is for")
    train: RewardTrainSection = Field(default_factory=RewardTrainSection, description="How it is trained")
    reward: GainSection = Field(default_factory=GainSection, description="Gains and margins")

    def opens_reference(self) -> bool:
        """With the regularizer kl_ref."""
        return self.train.rm_regularizer == "kl_ref"

    def rules(self) -> Iterator[Problem]:
        """kl_ref needs a reference that has logits."""
        yield from super().rules()
        if self.reference.source == "precomputed":
            yield "reference.source", "a cached column has no logits, which kl_ref needs: frozen or adapter_off"
        if self.reference.source == "none" and self.opens_reference():
            yield "reference.source", "`train.rm_regularizer: kl_ref` needs a reference: frozen or adapter_off"
