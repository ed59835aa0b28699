"""Literal sentences found in a text, counted and cut out, whatever the letter case, the spacing and the punctuation."""

import re
from collections.abc import Iterable
from functools import lru_cache

from rewards.errors import DataError


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
