"""Whether, or how often, a response holds one of the given sentences."""

from collections.abc import Sequence
from typing import Any, Literal

from rewards.functions import register
from rewards.text import completion_text, fold


def _phrases(*, phrases: Sequence[str], **_: Any) -> list[str]:
    return list(phrases)


@register("phrases", phrases=_phrases)
def phrases(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    phrases: Sequence[str],
    measure: Literal["any", "count"] = "any",
    **columns: Any,
) -> list[float | None]:
    """1 when the response holds any of the phrases, else 0; with `measure: count` the number of their occurrences.

    Phrases match literally, whatever the letter case and the white space.
    Raises: ValueError for no phrase, an empty one, or another measure.
    """
    needles = [fold(phrase) for phrase in phrases]
    if not needles or not all(needles):
        raise ValueError("phrases: give at least one phrase, none of them empty")
    counts = [_occurrences(fold(completion_text(completion)), needles) for completion in completions]
    if measure == "any":
        return [float(count > 0) for count in counts]
    if measure == "count":
        return [float(count) for count in counts]
    raise ValueError(f"phrases: measure `{measure}` is none of any, count")


def _occurrences(text: str, needles: Sequence[str]) -> int:
    return sum(text.count(needle) for needle in needles)
