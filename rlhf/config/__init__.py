"""The stages' configurations as frozen models: what every knob is called, what it means, what it defaults to.

Leaf names are TRL's wherever TRL has one. Defaults are TRL 1.16's, or the field's description says how they differ.
No torch here: a configuration error must be shown before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rewards.config import DemonstrationGainSection, GainSection, Problem, RewardSection, Section
from rewards.errors import ConfigError
from rewards.yaml_nodes import entries, plain, read_yaml, where
from rlhf.config.constraint import KLSection, OnlineReferenceSection, ReferenceSection, SFTReferenceSection
from rlhf.config.kl import refuse
from rlhf.config.sections import (
    DataSection,
    DatasetSource,
    EvaluationSection,
    LedgerSection,
    MixturePhase,
    ModelSection,
    OnlineDataSection,
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
    "OnlineDataSection",
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
    """What all stages have; a stage adds its own train, reference and reward sections."""

    model: ModelSection = Field(default_factory=ModelSection, description="Which model")
    data: DataSection = Field(default_factory=DataSection, description="Which rows")
    train: TrainSection = Field(default_factory=TrainSection, description="How it is trained")
    reference: ReferenceSection = Field(default_factory=ReferenceSection, description="The constraint")
    ledger: LedgerSection = Field(default_factory=LedgerSection, description="Where sessions are recorded")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="Sampled evaluation")
    tracking: TrackingSection = Field(default_factory=TrackingSection, description="Trackers")

    def opens_reference(self) -> bool:
        """True when the stage has a use for a reference."""
        return False

    def rules(self) -> Iterator[Problem]:
        """A reference without an adapter needs an adapter."""
        if self.reference.source == "adapter_off" and not self.model.use_peft:
            yield "reference.source", "adapter_off needs `model.use_peft: true`: there is no adapter to switch off"

    def cautions(self) -> Iterator[Problem]:
        """A reference that no term asks for."""
        if not self.opens_reference() and self.reference.source != "none":
            for key in self.reference.changed("source", "reference_model"):
                yield f"reference.{key}", "has no effect: nothing in this stage asks for a reference"


class SFTConfig(_Stage):
    """`rlhf sft`."""

    stage: Literal["sft"] = Field("sft", description="Stage that the file is for")
    train: SFTTrainSection = Field(default_factory=SFTTrainSection, description="How it is trained")
    reference: SFTReferenceSection = Field(default_factory=SFTReferenceSection, description="The constraint")
    reward: DemonstrationGainSection = Field(default_factory=DemonstrationGainSection, description="Gains")

    def opens_reference(self) -> bool:
        """With a coefficient above 0."""
        return self.reference.kl_coefficient > 0


class RewardConfig(_Stage):
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


class DPOConfig(_Stage):
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


class GRPOConfig(_Stage):
    """`rlhf grpo`."""

    stage: Literal["grpo"] = Field("grpo", description="Stage that the file is for")
    data: OnlineDataSection = Field(default_factory=OnlineDataSection, description="Which prompts")
    train: GRPOTrainSection = Field(default_factory=GRPOTrainSection, description="How it is trained")
    reference: OnlineReferenceSection = Field(default_factory=OnlineReferenceSection, description="The constraint")
    reward: RewardSection = Field(default_factory=RewardSection, description="What is rewarded")

    def opens_reference(self) -> bool:
        """With a beta above 0, or to measure against what is named."""
        return self.reference.beta > 0 or self.reference.source not in (None, "none")

    def rules(self) -> Iterator[Problem]:
        """No differential that standardisation divides out again, and a KL penalty that is one."""
        yield from super().rules()
        for key, message in self.reward.cancelled(self.train.scale_rewards):
            yield f"reward.{key}", message
        if any(self.reference.kl.rules()):
            return
        try:
            self._kl_warnings()
        except ConfigError as error:
            yield "reference.kl", str(error)

    def cautions(self) -> Iterator[Problem]:
        """A KL penalty that works with a reservation."""
        yield from super().cautions()
        for message in self._kl_warnings() if self.reference.beta > 0 else []:
            yield "reference.kl", message

    def _kl_warnings(self) -> list[str]:
        return refuse(
            self.reference.kl.settings(),
            scale_rewards=self.train.scale_rewards,
            num_iterations=self.train.num_iterations,
        )


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


def stage_of(path: Path) -> str:
    """The stage that a configuration file says it is for. Raises: ConfigError when it says none."""
    found = entries(read_yaml(path)).get("stage")
    stage = None if found is None else plain(found[1])
    if stage not in STAGES:
        line = path if found is None else where(found[0])
        raise ConfigError(
            f"{line}: which stage is this for? Write `stage: {'|'.join(STAGES)}`, or name it in the command"
        )
    return str(stage)
