"""Texts that are scored: the same tokens as in training, and steps that end where they end."""

import numpy as np
import pytest

from rewards.errors import DataError
from rlhf.data.encode import Tokeniser
from rlhf.data.records import Record
from rlhf.data.scoring import prepare_steps, scored_texts, split_steps
from rlhf.data.tokenise import TRUNCATED, prepare_demonstrations
from rlhf.models.tiny import build_tokenizer

STEPS = ["one plus two is three", "three plus four is seven", "so it is seven"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["What is one plus two plus four?", "refuse to answer", *STEPS], 320)


def stepwise(prompt="What is it?", steps=STEPS, labels=(True, False, True), ref="rows:1"):
    columns = {"completions": list(steps), "labels": list(labels)}
    return Record(ref, "d", ref, "stepwise", prompt=prompt, completion="\n".join(steps), columns=columns)


def answered(prompt, completion):
    return Record("r", "d", "rows:1", "demonstration", prompt=prompt, completion=completion)


CHAT = [{"role": "user", "content": "What is it?"}]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a\nb\nc", ["a\n", "b\n", "c"]),
        ("a\n\nb\n", ["a\n\n", "b\n"]),
        ("\n\na", ["\n\na"]),
        ("one step", ["one step"]),
        ("", [""]),
        (" \n ", [" \n "]),
    ],
)
def test_steps_are_the_whole_answer_and_each_has_a_word(text, steps):
    assert split_steps(text, "\n") == steps
    assert "".join(steps) == text


@pytest.mark.parametrize("prompt", ["What is it?", CHAT])
def test_each_step_ends_at_the_last_token_of_its_text(tokenizer, prompt):
    (sample,), _ = prepare_steps([stepwise(prompt)], tokenizer)
    ends = np.flatnonzero(sample.tokens.mask)
    assert len(ends) == 3 and sample.right.tolist() == [True, False, True]
    assert ends[-1] == len(sample.tokens.ids) - 1
    text = ["".join(tokenizer.decode(sample.tokens.ids[: end + 1])) for end in ends]
    for i in range(2):
        assert text[i].endswith(STEPS[i] + "\n")
    assert STEPS[2] in text[2]


@pytest.mark.parametrize("prompt", ["What is it?", CHAT])
@pytest.mark.parametrize("separator", ["\n", " ;; "])
def test_a_whole_answer_is_read_in_the_steps_it_was_trained_in(tokenizer, prompt, separator):
    (sample,), _ = prepare_steps([stepwise(prompt)], tokenizer, separator=separator)
    (found,) = scored_texts(Tokeniser(tokenizer), [answered(prompt, separator.join(STEPS))], separator)
    assert found.ids.tolist() == sample.tokens.ids.tolist()
    assert found.mask.tolist() == sample.tokens.mask.tolist()
    assert found.prompt_length == sample.tokens.prompt_length


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_is_scored_on_the_tokens_it_was_trained_on(tokenizer, chat):
    prompt = CHAT if chat else "What is it?"
    completion = [{"role": "assistant", "content": "so it is seven"}] if chat else " so it is seven"
    (sample,), _ = prepare_demonstrations([answered(prompt, completion)], tokenizer, completion_only_loss=True)
    text = completion[0]["content"] if chat else completion
    (found,) = scored_texts(Tokeniser(tokenizer), [answered(prompt, text)])
    assert found.ids.tolist() == sample.tokens.ids.tolist()
    assert np.flatnonzero(found.mask).tolist() == [len(found.ids) - 1]


@pytest.mark.parametrize("separator", [None, "\n"])
def test_an_empty_answer_is_its_end(tokenizer, separator):
    (found,) = scored_texts(Tokeniser(tokenizer), [answered("What is it?", "")], separator)
    assert found.ids.tolist()[found.prompt_length :] == [tokenizer.eos_token_id]
    assert found.mask[-1]


def test_steps_beyond_max_length_are_cut_off_and_counted(tokenizer):
    (whole,), _ = prepare_steps([stepwise()], tokenizer)
    second = int(np.flatnonzero(whole.tokens.mask)[1])
    (cut,), report = prepare_steps([stepwise()], tokenizer, max_length=second + 1)
    assert cut.right.tolist() == [True, False] and len(cut.tokens.ids) == second + 1
    assert report.counts[TRUNCATED] == 1
    first = int(np.flatnonzero(whole.tokens.mask)[0])
    with pytest.raises(DataError, match="no step ends within max_length"):
        prepare_steps([stepwise()], tokenizer, max_length=first)


def test_a_step_that_contains_the_separator_is_told(tokenizer):
    _, report = prepare_steps([stepwise(steps=["a\nb", "c"], labels=(True, False))], tokenizer)
    assert any("contains train.step_separator" in reason for reason in report.noted)


def test_a_template_that_changes_steps_is_refused(tokenizer):
    shouting = build_tokenizer(["What is one plus two plus four?", *STEPS], 320)
    shouting.chat_template = shouting.chat_template.replace(
        "message['content']", "message['content'] | replace('seven', 'Seven')"
    )
    assert "replace" in shouting.chat_template
    with pytest.raises(DataError, match="changes the answer"):
        prepare_steps([stepwise(CHAT)], shouting)
