"""Stages by name."""

from __future__ import annotations

from collections.abc import Callable

from rlhf.stages import reward
from rlhf.stages.dpo import DPO
from rlhf.stages.grpo import GRPO
from rlhf.stages.kto import KTO
from rlhf.stages.sft import SFT
from rlhf.stages.work import Run, StageWork

WORKS: dict[str, Callable[[Run], StageWork]] = {
    "sft": SFT,
    "reward": reward.open_work,
    "dpo": DPO,
    "kto": KTO,
    "grpo": GRPO,
}
