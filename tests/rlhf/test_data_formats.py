"""Formats: each is detected, announced and validated, and becomes the same record wherever it comes from."""

import json

import pytest

from rewards.errors import ConfigError, DataError
from rlhf.config import DataSection
from rlhf.data.formats import detect, to_records
from rlhf.data.holdout import load_records
from rlhf.data.importers import hh_messages, split_shared
from rlhf.data.records import FORMATS, for_stage
from rlhf.data.sources import RawRow

USER, BOT, BOT2 = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "assistant", "content": "go away"},
)
HH = "\n\nHuman: hi\n\nAssistant: {}"
EXAMPLES = {
    "preference": {"prompt": "p", "chosen": "c", "rejected": "r"},
    "preference_implicit": {"chosen": "the sky is blue", "rejected": "the sky is green"},
    "prompt_completion": {"prompt": "p", "completion": "c"},
    "unpaired_preference": {"prompt": "p", "completion": "c", "label": True},
    "prompt_only": {"prompt": "p"},
    "messages": {"messages": [USER, BOT]},
    "text": {"text": "words"},
    "stepwise": {"prompt": "p", "completions": ["one", "two"], "labels": [True, False]},
    "hh": {"chosen": HH.format("hello"), "rejected": HH.format("go away")},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    "scored": {"prompt": "p", "responses": ["bad", "good", "fair"], "scores": [0.1, 0.9, 0.5]},
}


def raw(*values: dict, file: str = "pairs.jsonl") -> list[RawRow]:
    return [RawRow(file, file, i, i, v) for i, v in enumerate(values, 1)]


def one(values: dict, **settings):
    records, _ = to_records(raw(values), **settings)
    return records[0]


def error(*values: dict, name: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        to_records(raw(*values), name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_there_is_an_example_of_every_format():
    assert set(EXAMPLES) == set(FORMATS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_is_detected_and_announced(name):
    assert detect(raw(EXAMPLES[name])) == name
    records, lines = to_records(raw(EXAMPLES[name]))
    assert len(records) == 1
    assert lines[0].startswith(f"1 row of pairs.jsonl read as {FORMATS[name].label} -> {FORMATS[name].yields} (")


def test_the_announcement_counts_names_and_tells_the_form():
    rows = raw(*[EXAMPLES["hh"]] * 1700, file="pairs.jsonl.gz")
    assert to_records(rows)[1] == [
        "1,700 rows of pairs.jsonl.gz read as HH transcripts -> prompt, chosen, rejected (conversational)"
    ]


def test_many_files_of_a_data_set_are_announced_in_one_line():
    rows = [RawRow("folder", f"{i}.jsonl", 1, 1, EXAMPLES["text"]) for i in range(9)]
    assert to_records(rows)[1] == ["9 rows of folder (9 files) read as plain text -> text (standard)"]


def test_conversational_rows_are_told_from_standard_ones():
    record = one({"prompt": [USER], "chosen": [BOT], "rejected": [BOT2]})
    assert (record.prompt, record.chosen, record.rejected) == ([USER], [BOT], [BOT2])
    assert "(conversational)" in to_records(raw({"messages": [USER, BOT]}))[1][0]


def test_the_null_keys_that_parquet_adds_to_messages_are_dropped():
    record = one({"messages": [{**USER, "tool_calls": None}, BOT]})
    assert record.completion == [USER, BOT]


def test_hh_transcripts_become_messages_with_the_shared_turns_as_prompt():
    record = one(EXAMPLES["hh"])
    assert (record.prompt, record.chosen, record.rejected) == ([USER], [BOT], [BOT2])
    assert record.kind == "pair"


def test_two_turns_of_one_speaker_are_joined_and_counted():
    assert hh_messages("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c") == (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n\nc"}],
        1,
    )
    rows = raw(EXAMPLES["hh"], {"chosen": HH.format("one\n\nAssistant: two"), "rejected": HH.format("three")})
    records, lines = to_records(rows)
    assert records[1].chosen == [{"role": "assistant", "content": "one\n\ntwo"}]
    assert lines[1].startswith("1 row with two turns of one speaker in a row, joined to one: pairs.jsonl:2")


def test_a_transcript_that_ends_with_the_human_is_an_error():
    bad = {"chosen": HH.format("x\n\nHuman: and?"), "rejected": HH.format("y")}
    assert error(EXAMPLES["hh"], bad) == "pairs.jsonl:2: row 2 `chosen` does not end with a turn of the assistant"


def test_a_hub_preference_row_with_its_prompt_inside_the_sides_is_implicit():
    values = {"prompt": "hi", "prompt_id": "7", "chosen": [USER, BOT], "rejected": [USER, BOT2]}
    record = one(values)
    assert (record.prompt, record.chosen, record.rejected) == ([USER], [BOT], [BOT2])
    assert record.columns == {"prompt_id": "7"}


def test_shared_messages_split_before_an_answer_and_leave_one_on_each_side():
    other = {"role": "user", "content": "and now?"}
    assert split_shared([USER, BOT], [USER, BOT]) == ([USER], [BOT], [BOT])
    assert split_shared([USER, BOT, other, BOT2], [USER, BOT])[0] == [USER]
    prompt, chosen, rejected = split_shared([USER, BOT, other, BOT], [USER, BOT, USER, BOT2])
    assert (prompt, chosen[0], rejected[0]) == ([USER], BOT, BOT)
    with pytest.raises(ValueError, match="share no prompt"):
        split_shared([USER, BOT], [other, BOT])


def test_shared_strings_split_between_words_and_before_the_space():
    assert split_shared("The sky is blue", "The sky is black") == ("The sky is", " blue", " black")
    assert split_shared("2+2? four", "2+2? fourteen") == ("2+2?", " four", " fourteen")
    with pytest.raises(ValueError, match="no shared prompt"):
        split_shared("yes", "no")


def test_sharegpt_speakers_become_roles_and_unknown_ones_are_named():
    assert one(EXAMPLES["sharegpt"]).completion == [USER, BOT]
    bad = {"conversations": [{"from": "narrator", "value": "once"}]}
    assert "row 2 has a bad `conversations`: turn 1 is from `narrator`" in error(EXAMPLES["sharegpt"], bad)


def test_scored_responses_become_best_against_worst_and_ties_are_counted():
    record = one(EXAMPLES["scored"])
    assert (record.chosen, record.rejected) == ("good", "bad")
    tie = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 1]}
    records, lines = to_records(raw(EXAMPLES["scored"], tie, tie))
    assert len(records) == 1
    assert lines[1] == "2 rows dropped because all their scores are equal: pairs.jsonl:2, pairs.jsonl:3"
    assert "no row is left (1 row dropped" in error(tie)


def test_scores_that_do_not_fit_their_responses_are_errors():
    assert "2 responses and 1 scores" in error({"prompt": "p", "responses": ["a", "b"], "scores": [1]})
    assert "fewer than two" in error({"prompt": "p", "responses": ["a"], "scores": [1]})
    assert "not a finite number" in error({"prompt": "p", "responses": ["a", "b"], "scores": [1, float("nan")]})


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_row_without_a_needed_column_is_named_with_row_and_column(name):
    for column in EXAMPLES[name]:
        without = {key: value for key, value in EXAMPLES[name].items() if key != column}
        message = error(EXAMPLES[name], without)
        assert message == f"pairs.jsonl:2: row 2 has no `{column}`"
        assert error(EXAMPLES[name], {**without, column: None}) == message


def test_half_a_pair_in_the_first_row_is_a_gap_not_another_format():
    assert error({"prompt": "p", "rejected": "r"}) == "pairs.jsonl:1: row 1 has no `chosen`"


def test_mixed_formats_in_one_file_name_the_first_row_that_deviates():
    assert error(EXAMPLES["text"], EXAMPLES["text"], EXAMPLES["messages"]) == (
        "pairs.jsonl:3: row 3 looks like conversations, but row 1 like plain text"
    )
    assert "row 2 looks like labelled completions" in error(
        EXAMPLES["prompt_completion"], EXAMPLES["unpaired_preference"]
    )


def test_two_files_may_have_two_formats():
    rows = raw(EXAMPLES["preference"], file="a.jsonl") + raw(EXAMPLES["hh"], file="b.jsonl")
    records, lines = to_records(rows)
    assert len(records) == len(lines) == 2


def test_values_of_the_wrong_form_are_named():
    assert "row 2 has a bad `chosen`: must be text or a list of messages, found int" in error(
        EXAMPLES["preference"], {**EXAMPLES["preference"], "chosen": 3}
    )
    assert "message 1 has no `role`" in error({"messages": [{"content": "x"}]})
    assert "message 2 has no text `content`" in error({"messages": [USER, {"role": "assistant"}]})
    assert "mixes forms (`prompt` is messages, `completion` is text)" in error({"prompt": [USER], "completion": "x"})
    assert "at least one message" in error({"messages": []})


def test_labels_of_a_csv_file_are_read_as_truth_values():
    assert one({"prompt": "p", "completion": "c", "label": "False"}).label is False
    assert "bad `label`" in error({"prompt": "p", "completion": "c", "label": "perhaps"})


def test_no_format_says_the_columns_and_the_names():
    message = error({"question": "q", "answer": "a"})
    assert "fits no known format (columns `question`, `answer`)" in message
    assert all(name in message for name in FORMATS)


def test_the_format_can_be_overridden_and_unknown_names_are_refused():
    values = {"prompt": "p", "messages": [USER, BOT], "chosen": [USER, BOT], "rejected": [USER, BOT2]}
    assert one(values).kind == "pair"
    assert one(values, name="messages").completion == [USER, BOT]
    with pytest.raises(ConfigError, match="known are preference, "):
        to_records(raw(values), "pairs")


def test_row_ids_come_from_the_column_or_the_place_and_are_unique():
    assert one({"prompt": "p", "row_id": "r7"}).row_id == "r7"
    assert one({"prompt": "p", "row_id": 0}).row_id == "0"
    assert one({"prompt": "p"}).row_id == one({"prompt": "p", "row_id": None}).row_id == "pairs.jsonl:1"
    assert error({"prompt": "p", "row_id": "a"}, {"prompt": "q", "row_id": "a"}) == (
        "pairs.jsonl:2: row_id `a` was used before, at pairs.jsonl:1"
    )


def test_other_columns_are_kept_for_reward_functions_and_the_category_is_found():
    record = one({"prompt": "p", "completion": "c", "answer": "4", "slice": "sums"}, category_column="slice")
    assert record.columns == {"answer": "4", "slice": "sums"}
    assert record.category == "sums"
    assert one({"prompt": "p"}).category is None


def stage(name: str, to: str):
    return for_stage(to_records(raw(EXAMPLES[name]))[0], to)


def test_sft_takes_demonstrations_and_the_chosen_side_of_pairs():
    for name in ("prompt_completion", "messages", "text", "sharegpt"):
        records, lines = stage(name, "sft")
        assert records[0].kind == "demonstration"
        assert lines == []
    records, lines = stage("hh", "sft")
    assert (records[0].prompt, records[0].completion, records[0].chosen) == ([USER], [BOT], None)
    assert lines == ["1 row of pairs.jsonl: pairs (chosen, rejected) -> demonstrations (the chosen side)"]


def test_grpo_takes_the_prompt_of_anything_that_has_one():
    for name in ("prompt_only", "prompt_completion", "preference", "unpaired_preference", "stepwise", "scored"):
        assert stage(name, "grpo")[0][0].prompt == "p"
    for name in ("messages", "sharegpt", "hh"):
        assert stage(name, "grpo")[0][0].prompt == [USER]
    assert stage("preference", "grpo")[0][0].columns == {"chosen": "c", "rejected": "r"}
    assert stage("prompt_completion", "grpo")[0][0].completion is None


@pytest.mark.parametrize(
    ("name", "to", "found"),
    [
        ("prompt_only", "sft", "sft takes demonstrations, found prompts"),
        ("unpaired_preference", "sft", "set data.format=prompt_completion"),
        ("prompt_completion", "dpo", "dpo takes pairs (chosen, rejected), found demonstrations"),
        ("messages", "reward", "reward takes pairs (chosen, rejected), found demonstrations"),
        ("text", "grpo", "grpo takes prompts, found plain text, which has no prompt"),
        ("stepwise", "dpo", "found stepwise supervision"),
    ],
)
def test_the_wrong_kind_says_what_was_found_and_what_the_stage_takes(name, to, found):
    with pytest.raises(DataError) as caught:
        stage(name, to)
    assert str(caught.value).startswith("pairs.jsonl:1: ")
    assert found in str(caught.value)


def test_a_file_becomes_records_in_one_call(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(EXAMPLES["hh"]) + "\n" for _ in range(3)))
    records, lines = load_records(DataSection(dataset_name=str(path)), "dpo")
    assert [record.row_id for record in records] == ["pairs.jsonl:1", "pairs.jsonl:2", "pairs.jsonl:3"]
    assert lines == ["3 rows of pairs.jsonl read as HH transcripts -> prompt, chosen, rejected (conversational)"]
