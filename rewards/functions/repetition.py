"""How much of a response repeats itself."""

from collections.abc import Sequence
from typing import Any

from rewards.functions import register
from rewards.text import completion_text


@register("repetition")
def repetition(
    prompts: Sequence[Any], completions: Sequence[Any], *, ngram_size: int = 3, **columns: Any
) -> list[float | None]:
    """Share of the response's n-grams that occurred before in it: 0 none, towards 1 a loop. Weight it negatively.

    Units: n-grams of tokens where the column `completion_ids` is given, else of words. A response too short to hold
    one n-gram repeats nothing: 0.
    Raises: ValueError unless ngram_size is at least 1.
    Source: Yeo et al. 2025, arXiv 2502.03373, appendix C.2.
    Departures: a share; the source multiplies it by its (negative) largest penalty, here that is the weight.
    """
    if ngram_size < 1:
        raise ValueError(f"repetition: ngram_size {ngram_size} must be at least 1")
    ids = columns.get("completion_ids")
    sequences: Sequence[Sequence[Any]]
    sequences = [completion_text(completion).split() for completion in completions] if ids is None else ids
    return [_repeated_share(sequence, ngram_size) for sequence in sequences]


def _repeated_share(sequence: Sequence[Any], size: int) -> float:
    ngrams = [tuple(sequence[start : start + size]) for start in range(len(sequence) - size + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
