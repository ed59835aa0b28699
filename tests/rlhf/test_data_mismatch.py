"""Every prompt gets a completion that was written for another one, wherever the batch holds one."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import DataError
from rlhf.data.mismatch import Mismatch
from rlhf.data.records import Record
from rlhf.data.tokenise import Sample, Tokens


def sample(row: int, prompt: Sequence[int], completion: Sequence[int]) -> Sample:
    ids = np.asarray([*prompt, *completion], dtype=np.int32)
    tokens = Tokens(ids, np.arange(len(ids)) >= len(prompt), len(prompt))
    return Sample(f"r{row}", tokens, Record(f"r{row}", "d", f"d.jsonl:{row + 1}", "labelled", label=bool(row % 2)))


def samples(*texts: tuple[Sequence[int], Sequence[int]]) -> list[Sample]:
    return [sample(row, *text) for row, text in enumerate(texts)]


def test_rows_of_different_prompts_are_shifted_by_one() -> None:
    rows = samples(([1], [10]), ([2], [20]), ([3], [30]), ([4], [40]))
    assert Mismatch(rows, None).partners([2, 0, 3, 1]) == [1, 2, 0, 3]


def test_the_two_sides_of_a_pair_that_stand_together_are_shifted_past_each_other() -> None:
    """A shift by one gives every second prompt its own other answer: half of the texts would be matched ones."""
    rows = samples(([1], [10]), ([1], [11]), ([2], [20]), ([2], [21]), ([3], [30]), ([3], [31]))
    batch = list(range(6))
    shifted_by_one = [rows[i].tokens.prompt_ids[0] == rows[i - 1].tokens.prompt_ids[0] for i in batch]
    assert sum(shifted_by_one) == 3
    assert Mismatch(rows, None).partners(batch) == [4, 5, 0, 1, 2, 3]


def test_a_row_for_which_no_shift_finds_another_prompt_takes_no_part() -> None:
    rows = samples(([1], [10]), ([1], [11]), ([1], [12]), ([2], [20]))
    found = Mismatch(rows, None).partners([0, 1, 2, 3])
    assert found == [3, None, None, 2]
    texts = Mismatch(rows, None).texts([0, 1, 2, 3])
    assert [text.counts for text in texts] == [True, False, False, True]
    # It is as long as the row's own text, so that every rank has as many passes to make.
    assert texts[1].name == "r1" and texts[1].tokens is rows[1].tokens


def test_a_completion_equal_to_the_rows_own_is_no_mismatched_text() -> None:
    rows = samples(([1], [10]), ([2], [10]), ([3], [30]))
    assert Mismatch(rows, None).partners([0, 1]) == [None, None]
    assert Mismatch(rows, None).partners([0, 1, 2]) == [2, None, 1]


def test_the_text_is_the_prompt_with_the_other_completion_cut_like_any_other() -> None:
    rows = samples(([1, 2], [10]), ([3], [20, 21, 22]))
    (first, second) = Mismatch(rows, 4).texts([0, 1])
    assert first.tokens.ids.tolist() == [1, 2, 20, 21] and first.tokens.cut == 1
    assert first.tokens.mask.tolist() == [False, False, True, True] and first.tokens.prompt_length == 2
    assert second.tokens.ids.tolist() == [3, 10] and second.name == "r1 <- r0"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=2, max_size=24), st.randoms())
def test_no_row_gets_its_own_prompts_completion_and_no_completion_is_taken_twice(texts, random) -> None:  # type: ignore[no-untyped-def]
    rows = samples(*(([1 + p], [10 + c]) for p, c in texts))
    if len({p for p, _ in texts}) == 1 or len({c for _, c in texts}) == 1:
        with pytest.raises(DataError, match=r"d\.jsonl:1"):
            Mismatch(rows, None)
        return
    batch = list(range(len(rows)))
    random.shuffle(batch)
    partners = Mismatch(rows, None).partners(batch)
    taken = [other for other in partners if other is not None]
    assert len(set(taken)) == len(taken)
    for row, other in zip(batch, partners, strict=True):
        assert other is None or (texts[row][0] != texts[other][0] and texts[row][1] != texts[other][1])
    # The best shift over all, found by trying them one by one.
    most = max(
        sum(
            texts[batch[i]][0] != texts[batch[i - places]][0] and texts[batch[i]][1] != texts[batch[i - places]][1]
            for i in range(len(batch))
        )
        for places in range(1, len(batch))
    )
    assert len(taken) == most


@pytest.mark.parametrize(
    ("texts", "what"), [([([1], [10]), ([1], [11])], "prompt"), ([([1], [9]), ([2], [9])], "completion")]
)
def test_rows_of_one_prompt_or_one_completion_are_refused(texts: list[tuple[list[int], list[int]]], what: str) -> None:
    with pytest.raises(DataError, match=f"the held-out rows: 2 rows, all with the same {what}, first d.jsonl:1"):
        Mismatch(samples(*texts), None, "the held-out rows")
