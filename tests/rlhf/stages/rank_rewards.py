"""Reward functions that do on the second rank what they do not do on the first."""

import os
from typing import Any


def _second() -> bool:
    return os.environ.get("RANK") == "1"


def null_there(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """No reward on the second rank."""
    return [None if _second() else float(len(completion)) for completion in completions]


def raises_there(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Fails on the second rank."""
    if _second():
        raise ValueError("the second judge is down")
    return [float(len(completion)) for completion in completions]


def breaks_there(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Scores, and breaks something else on the second rank, as a bug would."""
    import rlhf.stages.rollout as rollout

    if _second():
        rollout.session_columns = None  # type: ignore[assignment]
    return [float(len(completion)) for completion in completions]
