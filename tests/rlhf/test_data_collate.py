"""Batches: padding counts nowhere, the first token never, pairs lie chosen first, prompts end in the last column."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data import collate
from rlhf.data.records import Record
from rlhf.data.tokenise import PairSample, PromptSample, Sample, Tokens

PAD = 99


def tokens(ids: list[int], prompt: int) -> Tokens:
    return Tokens(np.asarray(ids, np.int32), np.arange(len(ids)) >= prompt, prompt)


def record(name: str) -> Record:
    return Record(name, "d", f"d:{name}", "pair", prompt="p", category="sums", columns={"answer": "4", "category": "x"})


def test_demonstrations_are_padded_to_the_right_and_only_completions_count():
    batch = collate.demonstrations(
        [
            Sample("a", tokens([5, 6, 7, 8], 2), record("a")),
            Sample("b", tokens([5, 9], 1), record("b")),
        ],
        PAD,
        gains=[1.0, 1.15],
    )
    assert batch.tokens.ids_BT.tolist() == [[5, 6, 7, 8], [5, 9, PAD, PAD]]
    assert batch.tokens.attention_BT.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.tokens.mask_BT.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert batch.tokens.rows == ("a", "b")
    assert batch.gain_B.tolist() == [1.0, 1.15]
    assert batch.gain_B.dtype == torch.float64
    assert batch.columns[1] == {"answer": "4", "category": "sums", "row_id": "b", "dataset_id": "d", "prompt": "p"}


def test_pairs_lie_chosen_first_with_neutral_gains_and_margins():
    batch = collate.pairs(
        [
            PairSample("a", tokens([5, 1], 1), tokens([5, 2], 1), record("a")),
            PairSample("b", tokens([6, 3], 1), tokens([6, 4, 4], 1), record("b")),
        ],
        PAD,
    )
    assert batch.pairs == 2
    assert batch.tokens.ids_BT[:, :2].tolist() == [[5, 1], [6, 3], [5, 2], [6, 4]]
    assert batch.tokens.rows == ("a", "b", "a", "b")
    assert batch.gain_N.tolist() == [1.0, 1.0]
    assert batch.margin_N.tolist() == [0.0, 0.0]
    assert collate.pairs(
        [PairSample("a", tokens([5, 1], 1), tokens([5, 2], 1), record("a"))], PAD, margins=[0.5]
    ).margin_N.tolist() == [0.5]


def test_prompts_end_in_the_last_column():
    samples = [PromptSample(n, np.asarray(ids, np.int32), record(n)) for n, ids in [("a", [1, 2, 3]), ("b", [4])]]
    ids_BT, attention_BT = collate.prompts(samples, PAD)
    assert ids_BT.tolist() == [[1, 2, 3], [PAD, PAD, 4]]
    assert attention_BT.tolist() == [[True] * 3, [False, False, True]]


def test_rollouts_count_every_token_of_the_answer():
    batch = collate.completions([[1, 2], [3]], [[7], [8, 9]], PAD, rows=["a", "b"])
    assert batch.ids_BT.tolist() == [[1, 2, 7], [3, 8, 9]]
    assert batch.mask_BT.tolist() == [[False, False, True], [False, True, True]]


def test_padding_is_told_by_attention_even_when_its_id_is_a_word():
    batch = collate.completions([[1]], [[PAD, PAD]], PAD)
    assert batch.attention_BT.tolist() == [[True, True, True]]
    assert batch.mask_BT.tolist() == [[False, True, True]]


def test_a_scored_first_token_an_unscored_row_and_an_empty_batch_are_refused():
    with pytest.raises(ValueError, match="row 1 scores its first token"):
        collate.token_batch([tokens([1, 2], 1), tokens([1, 2], 0)], PAD)
    with pytest.raises(ValueError, match="row 0 scores no token"):
        collate.completions([[1, 2]], [[]], PAD)
    with pytest.raises(ValueError, match="first token"):
        collate.completions([[]], [[1]], PAD)
    with pytest.raises(ValueError, match="at least one"):
        collate.token_batch([], PAD)
    with pytest.raises(ValueError, match="at least one prompt"):
        collate.prompts([], PAD)
    with pytest.raises(ValueError, match="2 values for 1 rows"):
        collate.demonstrations([Sample("a", tokens([1, 2], 1), record("a"))], PAD, gains=[1, 1])


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6))
def test_masks_are_parts_of_attention_and_hold_as_many_tokens_as_the_rows(shapes):
    batch = collate.token_batch([tokens(list(range(p + c)), p) for p, c in shapes], PAD)
    assert not (batch.mask_BT & ~batch.attention_BT).any()
    assert not batch.mask_BT[:, 0].any()
    assert batch.mask_BT.sum(dim=1).tolist() == [c for _, c in shapes]
    assert batch.attention_BT.sum(dim=1).tolist() == [p + c for p, c in shapes]
    assert (batch.ids_BT[~batch.attention_BT] == PAD).all()
