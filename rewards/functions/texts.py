"""Text of a completion in either form, and phrases found in it whatever the case, spacing and punctuation."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from rewards.errors import DataError


def completion_text(completion: Any) -> str:
    """What the model wrote: a string as it is, a conversation as its assistant turns, one per line.

    Raises: DataError when it is neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and all(isinstance(turn, dict) and "role" in turn for turn in completion):
        return "\n".join(_content(turn.get("content")) for turn in completion if turn["role"] == "assistant")
    raise DataError(f"a completion is a string or a list of turns with role and content, not {completion!r:.80}")


def count_phrases(text: str, phrases: Iterable[str]) -> int:
    """How often any of the phrases stands in the text; places do not overlap and the longest phrase wins."""
    pattern = _pattern(tuple(phrases))
    return 0 if pattern is None else sum(1 for _ in pattern.finditer(text))


def has_phrase(text: str, phrases: Iterable[str]) -> bool:
    """Whether any of the phrases stands in the text."""
    pattern = _pattern(tuple(phrases))
    return pattern is not None and pattern.search(text) is not None


def without_phrases(text: str, phrases: Iterable[str]) -> str:
    """The text with every phrase and the punctuation that closes it cut out; what remains is joined by one space."""
    pattern = _pattern(tuple(phrases))
    if pattern is None:
        return text.strip()
    pieces: list[str] = []
    start = 0
    for found in pattern.finditer(text):
        pieces.append(text[start : found.start()])
        start = found.end()
    pieces.append(text[start:])
    return " ".join(piece for piece in (piece.strip() for piece in pieces) if piece)


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    # Multimodal form: only the text parts are text.
    return "".join(part.get("text") or "" for part in content)


@lru_cache(maxsize=256)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str] | None:
    """Words of a phrase in order; anything that is no word character may stand between them."""
    words = [re.findall(r"\w+", phrase) for phrase in phrases]
    if not words:
        return None
    if not all(words):
        raise DataError(f"a phrase without a word cannot be looked for: {phrases!r:.120}")
    longest_first = sorted(words, key=len, reverse=True)
    either = "|".join(r"[\W_]+".join(map(re.escape, one)) for one in longest_first)
    return re.compile(rf"\b(?:{either})\b[.!?…]*", re.IGNORECASE)
