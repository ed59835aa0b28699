"""Stages by name."""

from __future__ import annotations

from collections.abc import Callable

from rlhf.stages.dpo import DPO
from rlhf.stages.grpo import GRPO
from rlhf.stages.reward import Reward
from rlhf.stages.run import Run, StageWork
from rlhf.stages.sft import SFT

WORKS: dict[str, Callable[[Run], StageWork]] = {"sft": SFT, "reward": Reward, "dpo": DPO, "grpo": GRPO}
