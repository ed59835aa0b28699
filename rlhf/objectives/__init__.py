"""Objectives by name: pure functions of tensors that reduce nothing and know no model, configuration or accelerator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf.objectives import pair_rewards, policy_gradient, preference, reference_free, reward_model, sft, unpaired

OBJECTIVES: dict[str, Callable[..., Any]] = {
    **sft.OBJECTIVES,
    **reward_model.OBJECTIVES,
    **preference.OBJECTIVES,
    **pair_rewards.OBJECTIVES,
    **pair_rewards.COUPLED,
    **reference_free.OBJECTIVES,
    **unpaired.OBJECTIVES,
    **policy_gradient.OBJECTIVES,
}
