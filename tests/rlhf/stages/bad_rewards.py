"""Reward functions that fail, for tests."""

from typing import Any

calls = 0


def raises_at_the_third_call(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    global calls
    calls += 1
    if calls >= 3:
        raise RuntimeError("the judge is down")
    return [float(len(text) % 3) for text in completions]


def nan_at_the_second_call(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    global calls
    calls += 1
    return [float("nan") if calls >= 2 and i == 1 else float(len(text) % 3) for i, text in enumerate(completions)]


def always_null(prompts: list[Any], completions: list[Any], **columns: Any) -> list[None]:
    return [None] * len(completions)
