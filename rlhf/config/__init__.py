"""The stages' configurations as frozen models: what every knob is called, what it means, what it defaults to.

Leaf names are TRL's wherever TRL has one. Defaults are TRL 1.16's, or the field's description says how they differ.
One module a stage, over the sections that all share. No torch here: a configuration error must be shown before torch is
loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewards.errors import ConfigError
from rewards.yaml_nodes import entries, plain, read_yaml, where
from rlhf.config.constraint import KLSection, ReferenceSection
from rlhf.config.online import GRPOConfig, GRPOTrainSection, OnlineReferenceSection
from rlhf.config.preference import DPOConfig, DPOTrainSection
from rlhf.config.reward_model import RewardConfig, RewardTrainSection
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
from rlhf.config.sft import SFTConfig, SFTReferenceSection, SFTTrainSection
from rlhf.config.training import TrainSection
from rlhf.config.unpaired import KTOConfig, KTOTrainSection

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
    "KTOConfig",
    "KTOTrainSection",
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

StageConfig = SFTConfig | RewardConfig | DPOConfig | KTOConfig | GRPOConfig
STAGES: dict[str, type[Any]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "kto": KTOConfig,
    "grpo": GRPOConfig,
}

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
