"""How long a response is, and DAPO's soft punishment of overlong ones."""

from collections.abc import Sequence
from typing import Any, Literal

from rewards.functions import register
from rewards.text import completion_text


@register("length")
def length(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    unit: Literal["words", "characters", "tokens"] = "words",
    **columns: Any,
) -> list[float | None]:
    """Length of the response.

    Units: words between white space, characters, or tokens of the column `completion_ids`.
    Raises: ValueError for another unit, or for tokens without that column.
    """
    if unit == "words":
        return [float(len(completion_text(completion).split())) for completion in completions]
    if unit == "characters":
        return [float(len(completion_text(completion))) for completion in completions]
    if unit == "tokens":
        return [float(len(ids)) for ids in _token_ids(columns)]
    raise ValueError(f"length: unit `{unit}` is none of words, characters, tokens")


@register("soft_overlong")
def soft_overlong(
    prompts: Sequence[Any], completions: Sequence[Any], *, max_tokens: int, buffer_tokens: int, **columns: Any
) -> list[float | None]:
    """0 up to max_tokens - buffer_tokens, then linearly down to -1 at max_tokens, -1 beyond.

    Units: tokens of the column `completion_ids`.
    Raises: ValueError unless 0 < buffer_tokens <= max_tokens, or without that column.
    Source: DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 13.
    """
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(f"soft_overlong: buffer_tokens {buffer_tokens} must lie in 1..max_tokens ({max_tokens})")
    free = max_tokens - buffer_tokens
    counts = [len(ids) for ids in _token_ids(columns)]
    return [-min(max(count - free, 0) / buffer_tokens, 1.0) for count in counts]


def _token_ids(columns: dict[str, Any]) -> Sequence[Sequence[int]]:
    ids = columns.get("completion_ids")
    if ids is None:
        raise ValueError("a length in tokens needs the column `completion_ids`, which an online trainer passes")
    return ids  # type: ignore[no-any-return]
