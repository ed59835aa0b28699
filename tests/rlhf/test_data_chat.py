"""Chat templates: answers are found, prompts are what the model is given, templates that hide either are refused."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rewards.errors import ConfigError, DataError
from rlhf.data.chat import open_chat

SYSTEM, USER, BOT = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
)
AGAIN, BYE = {"role": "user", "content": "again?"}, {"role": "assistant", "content": "bye"}
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Shows the thoughts of the last answer only, as reasoning models' templates do.
FORGETFUL = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think></think>' }}{% endif %}{{ m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({"<pad>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", name_or_path="tiny-chat"
    )
    made.chat_template = template
    return made


def answers(pieces) -> list[str]:
    return [piece.text for piece in pieces if piece.answer]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_every_assistant_turn_is_an_answer_with_its_end(template):
    pieces = open_chat(tokenizer(template)).conversation([SYSTEM, USER, BOT, AGAIN, BYE], "f:1")
    assert answers(pieces) == ["hello</s>", "bye</s>"]
    assert "".join(piece.text for piece in pieces) == (
        "<|system|>be brief</s><|user|>hi</s><|assistant|>hello</s><|user|>again?</s><|assistant|>bye</s>"
    )
    assert not any(piece.prompt for piece in pieces)


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_completions_prompt_is_what_the_model_is_given(template):
    chat = open_chat(tokenizer(template))
    pieces = chat.completion([USER], [BOT], "f:1")
    assert [(p.text, p.prompt, p.answer) for p in pieces] == [
        ("<|user|>hi</s><|assistant|>", True, False),
        ("hello</s>", False, True),
    ]
    assert pieces[0].text == chat.prompt([USER], "f:1")


def test_other_turns_within_a_completion_are_no_answers():
    pieces = open_chat(tokenizer()).completion([USER], [BOT, AGAIN, BYE], "f:1")
    assert answers(pieces) == ["hello</s>", "bye</s>"]
    assert [p.text for p in pieces if not p.answer and not p.prompt] == ["<|user|>again?</s><|assistant|>"]


def test_a_prompt_that_ends_with_an_answer_is_continued():
    chat = open_chat(tokenizer())
    assert chat.prompt([USER, BOT], "f:1") == "<|user|>hi</s><|assistant|>hello"
    with pytest.raises(DataError, match="ends with a system message"):
        chat.prompt([USER, SYSTEM], "f:1")


def test_a_missing_template_says_what_to_set():
    with pytest.raises(ConfigError, match=r"tiny-chat has no chat template.*set model\.chat_template"):
        open_chat(tokenizer(None))


def test_a_template_that_drops_the_prompt_or_the_answer_is_refused():
    last_only = "{{ messages[-1]['content'] + eos_token }}"
    with pytest.raises(ConfigError, match="tiny-chat drops a part of the prompt"):
        open_chat(tokenizer(last_only))
    no_answer = (
        "{% for m in messages %}{% if m['role'] == 'user' or not loop.last %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="tiny-chat drops the answer"):
        open_chat(tokenizer(no_answer))


def test_a_template_whose_prefixes_are_no_prefixes_names_the_model():
    chat = open_chat(tokenizer(FORGETFUL))
    assert answers(chat.conversation([USER, BOT], "f:7")) == ["<think></think>hello</s>"]
    with pytest.raises(DataError, match="f:7: the chat template of tiny-chat renders message 2 otherwise alone"):
        chat.conversation([USER, BOT, AGAIN, BYE], "f:7")
    thinking = CHATML.replace("'<|assistant|>' }}{% endif", "'<|assistant|><think>' }}{% endif")
    with pytest.raises(DataError, match="f:7: the chat template of tiny-chat renders message 2"):
        open_chat(tokenizer(thinking)).completion([USER], [BOT], "f:7")


def test_a_conversation_without_an_answer_names_the_row():
    with pytest.raises(DataError, match="f:9: no turn of the assistant"):
        open_chat(tokenizer()).conversation([USER], "f:9")


def test_a_template_that_marks_nothing_names_the_row():
    empty = (
        MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        + "{% generation %}{% endgeneration %}"
    )
    with pytest.raises(DataError, match=r"f:9: the chat template of tiny-chat marks no token"):
        open_chat(tokenizer(empty)).conversation([USER, BOT], "f:9")


def test_a_template_that_refuses_a_row_says_why():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match="f:3: the chat template of tiny-chat refuses these messages: no system turns"):
        open_chat(tokenizer(strict)).conversation([SYSTEM, USER, BOT], "f:3")


NO_SYSTEM = CHATML.replace("in messages", "in messages if m['role'] != 'system'")


def test_a_template_that_drops_a_system_turn_names_row_and_message():
    chat = open_chat(tokenizer(NO_SYSTEM))
    assert chat.prompt([USER], "f:3") == "<|user|>hi</s><|assistant|>"
    for render in (
        lambda: chat.prompt([SYSTEM, USER], "f:4"),
        lambda: chat.completion([SYSTEM, USER], [BOT], "f:4"),
        lambda: chat.conversation([SYSTEM, USER, BOT], "f:4"),
        lambda: chat.whole([SYSTEM, USER, BOT], "f:4"),
    ):
        with pytest.raises(
            DataError, match=r"f:4: the chat template of tiny-chat drops what message 1 \(system\) says"
        ):
            render()


def test_what_is_trimmed_or_thought_in_an_earlier_answer_is_not_dropped():
    trimming = open_chat(tokenizer(CHATML.replace("m['content'] +", "m['content'] | trim +")))
    assert "<|user|>hi\n there</s>" in trimming.prompt([{"role": "user", "content": "  hi\n there \n"}], "f:1")
    without_thoughts = CHATML.replace("m['content'] +", "m['content'].split('</think>')[-1] +")
    thought = {"role": "assistant", "content": "<think>hm</think>hello"}
    assert "hm" not in open_chat(tokenizer(without_thoughts)).prompt([USER, thought, AGAIN], "f:1")


def test_no_template_of_a_language_model_that_trl_brings_is_taken_for_one_that_drops_turns():
    trl = pytest.importorskip("trl", reason="TRL brings the templates of many models")
    folder, tried = Path(trl.__file__).parent / "chat_templates", 0
    for path in sorted(folder.glob("*.jinja")):
        made = tokenizer(path.read_text(encoding="utf-8"))
        made.bos_token = "</s>"
        try:
            open_chat(made).completion([SYSTEM, USER], [BOT], "f:1")
        except (ConfigError, DataError) as error:
            # Vision models' templates take lists of parts; some refuse system turns, or add thoughts before an answer.
            vision = path.name.startswith(("idefics", "llava", "smolvlm"))
            assert vision or "refuses these messages" in str(error) or "otherwise alone" in str(error), path.name
        tried += 1
    assert tried > 30


def test_answers_without_an_end_token_are_remarked():
    endless = CHATML.replace(" + eos_token", " + ' '")
    assert "without </s>" in open_chat(tokenizer(endless)).notes[0]
    assert open_chat(tokenizer()).notes == ()


def test_prompts_and_completions_are_the_texts_that_trl_renders():
    trl = pytest.importorskip("trl.data_utils", reason="TRL is the independent implementation here")
    made = tokenizer()
    chat = open_chat(made)
    for prompt, completion in [([USER], [BOT]), ([SYSTEM, USER, BOT, AGAIN], [BYE])]:
        theirs = trl.apply_chat_template({"prompt": prompt, "completion": completion}, made)
        pieces = chat.completion(prompt, completion, "f:1")
        assert pieces[0].text == theirs["prompt"]
        assert "".join(piece.text for piece in pieces[1:]) == theirs["completion"]


def test_a_tokenizer_without_a_name_is_still_named():
    unnamed = SimpleNamespace(chat_template=None, name_or_path="")
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        open_chat(unnamed)
