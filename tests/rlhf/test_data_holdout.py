"""Hold-out: by prompt, stable, the same in every stage, and never an empty side."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import DataError
from rlhf.config import DataSection
from rlhf.data.holdout import load, split_by_prompt
from rlhf.data.records import Record, prompt_key, prompt_of


def record(prompt, i=0, kind="prompt", **fields) -> Record:
    return Record(f"r{i}", "d", f"d:{i}", kind, prompt=prompt, **fields)


def many(n: int) -> list[Record]:
    return [record(f"prompt {i // 2}", i) for i in range(2 * n)]


def test_no_prompt_is_on_both_sides_and_every_row_is_on_one():
    records = many(500)
    train, held_out = split_by_prompt(records, 0.2, seed=3)
    assert {r.prompt for r in train}.isdisjoint(r.prompt for r in held_out)
    assert sorted(r.row_id for r in train + held_out) == sorted(r.row_id for r in records)
    # 500 prompts at 0.2: a share outside of four binomial standard deviations would be a broken hash.
    assert 0.2 - 4 * 0.018 < len(held_out) / len(records) < 0.2 + 4 * 0.018


def test_the_split_depends_on_the_seed_and_the_prompt_alone():
    records = many(200)
    first = {r.row_id for r in split_by_prompt(records, 0.2, 3)[1]}
    assert first == {r.row_id for r in split_by_prompt(records[::-1], 0.2, 3)[1]}
    assert first & {r.row_id for r in records[:200]} == {r.row_id for r in split_by_prompt(records[:200], 0.2, 3)[1]}
    assert first != {r.row_id for r in split_by_prompt(records, 0.2, 4)[1]}


def test_stages_that_share_prompts_hold_out_the_same_ones():
    demonstrations = [record(f"prompt {i}", i, "demonstration", completion="c") for i in range(300)]
    pairs = [
        record([{"role": "user", "content": f"Prompt  {i}"}], i, "pair", chosen="c", rejected="r") for i in range(300)
    ]
    one = {r.row_id for r in split_by_prompt(demonstrations, 0.1, 0)[1]}
    assert one == {r.row_id for r in split_by_prompt(pairs, 0.1, 0)[1]}


def test_case_spacing_and_width_do_not_make_another_prompt():
    assert prompt_key("What  is\nthis? ") == prompt_key("what is THIS?") == prompt_key("what is this\uff1f")
    assert prompt_key("what is this") != prompt_key("what is that")


def test_the_prompt_of_a_conversation_is_what_precedes_its_first_answer():
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    assert prompt_of(Record("r", "d", "d:1", "demonstration", completion=turns)) == turns[:2]
    assert prompt_of(Record("r", "d", "d:1", "demonstration", completion="words")) == "words"


def test_an_empty_side_is_an_error_that_says_what_to_change():
    with pytest.raises(DataError, match="nothing is held out"):
        split_by_prompt(many(3), 0.001, 0)
    with pytest.raises(DataError, match="nothing is left to train on"):
        split_by_prompt(many(2), 0.999, 0)
    with pytest.raises(DataError, match="no rows"):
        split_by_prompt([], 0.1, 0)


def test_zero_holds_nothing_out():
    assert split_by_prompt(many(3), 0.0, 0) == (many(3), [])


@given(st.lists(st.text(), min_size=1), st.floats(0, 0.99), st.integers(0, 2**40))
def test_a_split_is_a_partition_by_prompt_or_an_error(prompts, fraction, seed):
    records = [record(prompt, i) for i, prompt in enumerate(prompts)]
    try:
        train, held_out = split_by_prompt(records, fraction, seed)
    except DataError:
        return
    assert len(train) + len(held_out) == len(records)
    assert {prompt_key(r.prompt) for r in train}.isdisjoint(prompt_key(r.prompt) for r in held_out)


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_test_split_is_held_out_and_shared_prompts_are_counted(tmp_path):
    save(tmp_path / "train.jsonl", [{"prompt": f"p{i}", "completion": "c"} for i in range(10)])
    save(tmp_path / "test.jsonl", [{"prompt": f"p{i}", "completion": "d"} for i in range(8, 12)])
    splits = load(DataSection(dataset_name=str(tmp_path), dataset_test_split="test"), "sft")
    assert (len(splits.train), len(splits.held_out)) == (10, 4)
    assert splits.lines[-1].startswith("2 of 4 rows of split `test` have a prompt that is in the training split too")


def test_load_announces_how_many_rows_are_held_out(tmp_path):
    save(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "completion": "c"} for i in range(200)])
    splits = load(DataSection(dataset_name=str(tmp_path / "a.jsonl"), holdout_fraction=0.1), "sft", seed=1)
    assert splits.lines == [
        "200 rows of a.jsonl read as prompts with completions -> prompt, completion (standard)",
        f"held out by prompt: {len(splits.held_out)} rows; trained on: {len(splits.train)} rows",
    ]
