"""Whether the number that a response ends on is the answer (GSM8K and other word problems)."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from rewards.functions import register
from rewards.text import completion_text

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_MARKER = "####"


@register("gsm8k")
def gsm8k(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    answer: Sequence[Any] | None = None,
    require_marker: bool = False,
    **columns: Any,
) -> list[float | None]:
    """1 when the response's final number equals the one of the column `answer`, else 0; null for rows without answer.

    The final number is the one after the last `####`, or without that marker the last number of the text; with
    `require_marker` a response without the marker scores 0. Numbers compare by value: 1,200 = 1200.0.
    Raises: ValueError when the column is missing, or an answer holds no number (names the row).
    Source: Cobbe et al. 2021, arXiv 2110.14168 (answers end in `#### NUMBER`).
    """
    if answer is None:
        raise ValueError("gsm8k: the data have no column `answer`")
    scores: list[float | None] = []
    for row, (completion, expected) in enumerate(zip(completions, answer, strict=True)):
        if expected is None:
            scores.append(None)
            continue
        wanted = final_number(str(expected))
        if wanted is None:
            raise ValueError(f"gsm8k: the answer of row {row} holds no number: {str(expected)[-60:]!r}")
        text = completion_text(completion)
        given = None if require_marker and _MARKER not in text else final_number(text)
        scores.append(float(given == wanted))
    return scores


def final_number(text: str) -> Fraction | None:
    """The number after the last `####`, else the last number of the text, else None."""
    _, marker, tail = text.rpartition(_MARKER)
    found = _NUMBER.findall(tail)
    if not found:
        return None
    # After the marker comes the answer; in running text the answer comes last.
    return Fraction((found[0] if marker else found[-1]).replace(",", ""))
