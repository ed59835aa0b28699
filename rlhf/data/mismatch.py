"""Prompts with the completions of other prompts: the texts from which KTO's baseline is estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.errors import DataError
from rlhf.data.records import rows_of
from rlhf.data.tokenise import Sample, Tokens


@dataclass(frozen=True, eq=False)
class MismatchedText:
    """The prompt of one row with the completion of another.

    counts: False where no other row could be found, and the row's own text stands here so that all ranks have as much
    to compute.
    """

    name: str
    tokens: Tokens
    counts: bool


class Mismatch:
    """Finds each row of a batch a completion that was not written for its prompt.

    The whole batch is shifted by one number of places, so that the completions are the batch's own, each taken once.
    The shift is the smallest at which the most rows get a completion of another prompt that differs from their own:
    where rows of one prompt stand side by side (both sides of a pair do), a shift by 1 would give a prompt its own
    answers. Rows for which even this shift finds none take no part.
    """

    def __init__(self, samples: Sequence[Sample], max_length: int | None, what: str = "the training rows") -> None:
        """Numbers prompts and completions.

        Raises: DataError where all rows have one prompt or one completion: nothing can be mismatched.
        """
        self.samples, self.max_length = samples, max_length
        self.prompts = _numbered([sample.tokens.prompt_ids for sample in samples])
        self.completions = _numbered([sample.tokens.completion_ids for sample in samples])
        for numbers, name in ((self.prompts, "prompt"), (self.completions, "completion")):
            if len(samples) and int(numbers.max()) == 0:
                raise DataError(
                    f"{what}: {rows_of(len(samples))}, all with the same {name}, first {samples[0].record.ref}: KTO's "
                    f"baseline needs prompts with completions of other prompts; give rows that differ, or use "
                    f"`train.loss_type: apo_zero_unpaired`, which has no baseline"
                )

    def partners(self, batch: Sequence[int]) -> list[int | None]:
        """For each row of the batch the row whose completion it gets; None where there is none."""
        rows = np.asarray(batch, dtype=np.int64)
        prompts, completions = self.prompts[rows], self.completions[rows]
        best, shift = np.zeros(len(rows), dtype=bool), 0
        for places in range(1, len(rows)):
            differs = (prompts != np.roll(prompts, places)) & (completions != np.roll(completions, places))
            if differs.sum() > best.sum():
                best, shift = differs, places
            if best.all():
                break
        moved = np.roll(rows, shift)
        return [int(moved[i]) if best[i] else None for i in range(len(rows))]

    def texts(self, batch: Sequence[int]) -> list[MismatchedText]:
        """The mismatched text of each row of the batch, in its order."""
        return [self._text(row, other) for row, other in zip(batch, self.partners(batch), strict=True)]

    def _text(self, row: int, other: int | None) -> MismatchedText:
        prompt = self.samples[row]
        if other is None:
            return MismatchedText(prompt.row_id, prompt.tokens, False)
        answer = self.samples[other]
        tokens = _joined(prompt.tokens, answer.tokens, self.max_length)
        if tokens is None:
            return MismatchedText(prompt.row_id, prompt.tokens, False)
        # A name that no row has: cached columns know a text by it.
        return MismatchedText(f"{prompt.row_id} <- {answer.row_id}", tokens, True)


def _joined(prompt: Tokens, answer: Tokens, max_length: int | None) -> Tokens | None:
    """The prompt of one text with the completion of another, cut like any other; None where nothing is scored."""
    ids = np.concatenate([prompt.prompt_ids, answer.completion_ids])
    mask = np.concatenate([np.zeros(prompt.prompt_length, dtype=bool), answer.completion_mask])
    mask[:1] = False
    kept = len(ids) if max_length is None else min(len(ids), max_length)
    if not mask[:kept].any():
        return None
    return Tokens(ids[:kept], mask[:kept], prompt.prompt_length, len(ids) - kept)


def _numbered(sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Equal sequences get equal numbers, from 0 on."""
    numbers: dict[bytes, int] = {}
    found = [numbers.setdefault(np.ascontiguousarray(ids).tobytes(), len(numbers)) for ids in sequences]
    return np.asarray(found, dtype=np.int64)
