"""The stages' configurations as frozen models: what every knob is called, what it means, what it defaults to.

Leaf names are TRL's wherever TRL has one. Defaults are TRL 1.16's, or the field's description says how they differ.
No torch here: a configuration error must be shown before torch is loaded.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rewards.config import GainSection, RewardSection, Section
from rlhf.config.constraint import KLSection, OnlineReferenceSection, ReferenceSection, SFTReferenceSection
from rlhf.config.sections import (
    DataSection,
    DatasetSource,
    EvaluationSection,
    LedgerSection,
    MixturePhase,
    ModelSection,
    TrackingSection,
)
from rlhf.config.training import (
    DPOTrainSection,
    GRPOTrainSection,
    RewardTrainSection,
    SFTTrainSection,
    TrainSection,
)

__all__ = [
    "RETIRED",
    "STAGES",
    "DPOConfig",
    "DPOTrainSection",
    "DataSection",
    "DatasetSource",
    "EvaluationSection",
    "GRPOConfig",
    "GRPOTrainSection",
    "KLSection",
    "LedgerSection",
    "MixturePhase",
    "ModelSection",
    "OnlineReferenceSection",
    "ReferenceSection",
    "RewardConfig",
    "RewardTrainSection",
    "SFTConfig",
    "SFTReferenceSection",
    "SFTTrainSection",
    "StageConfig",
    "TrackingSection",
    "TrainSection",
]


class _Stage(Section):
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    ledger: LedgerSection = Field(default_factory=LedgerSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    reward: GainSection = Field(default_factory=GainSection)


class SFTConfig(_Stage):
    """`rlhf sft`."""

    train: SFTTrainSection = Field(default_factory=SFTTrainSection)
    reference: SFTReferenceSection = Field(default_factory=SFTReferenceSection)


class RewardConfig(_Stage):
    """`rlhf reward`."""

    train: RewardTrainSection = Field(default_factory=RewardTrainSection)
    reference: ReferenceSection = Field(default_factory=ReferenceSection)


class DPOConfig(_Stage):
    """`rlhf dpo`."""

    train: DPOTrainSection = Field(default_factory=DPOTrainSection)
    reference: ReferenceSection = Field(default_factory=ReferenceSection)


class GRPOConfig(_Stage):
    """`rlhf grpo`."""

    reward: RewardSection = Field(default_factory=RewardSection)  # type: ignore[assignment]
    train: GRPOTrainSection = Field(default_factory=GRPOTrainSection)
    reference: OnlineReferenceSection = Field(default_factory=OnlineReferenceSection)


StageConfig = SFTConfig | RewardConfig | DPOConfig | GRPOConfig
STAGES: dict[str, type[Any]] = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig, "grpo": GRPOConfig}

RETIRED: dict[str, str] = {
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of the steps)",
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "max_prompt_length": "max_length (prompts are never cut on their own)",
    "logging_dir": "tracking.report_to (trackers write under OUTPUT_DIR)",
    "overwrite_output_dir": "the flag --overwrite",
    "no_cuda": "use_cpu",
}
