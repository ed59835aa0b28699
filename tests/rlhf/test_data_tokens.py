"""Token sequences: masks say exactly the completion, boundaries are those of generation, every cut is counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rewards.errors import ConfigError, DataError
from rlhf.data.encode import Tokeniser
from rlhf.data.gates import Gates, check_records
from rlhf.data.records import Record
from rlhf.data.tokenise import MERGED, TRUNCATED, prepare_demonstrations, prepare_pairs, prepare_prompts

WORDS = ["the answer is four", "what is two and two?", "refuse to answer", "yes no maybe so", "ab abc bcd cde"]
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKED = CHATML.replace(
    "+ m['content'] + eos_token }}{% endfor %}",
    "}}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
).replace("'|>' }}{% if m", "'|>' }}{% if m")


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes and a few merges; no bos."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(WORDS * 5, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")
    made.chat_template = CHATML
    return made


def with_bos() -> PreTrainedTokenizerFast:
    """The same behind a bos, and an eos that the tokenizer adds too."""
    made = byte_level()
    inner = made.backend_tokenizer
    inner.add_special_tokens(["<s>"])
    ids = [("<s>", inner.token_to_id("<s>")), ("</s>", inner.token_to_id("</s>"))]
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def spaced() -> PreTrainedTokenizerFast:
    """As SentencePiece writes: a space is put before every text and marks the beginning of words; merges cross ends."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    letters = [chr(code) for code in range(33, 127)] + ["\n", "\u2581"]
    trainer = trainers.BpeTrainer(
        vocab_size=250, special_tokens=["<pad>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    inner.train_from_iterator(WORDS * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")


PLAIN, BOS, SPACED = byte_level(), with_bos(), spaced()
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=30)
answers = texts.filter(lambda text: text.strip() != "")


def demo(completion, prompt=None, ref="f:1") -> Record:
    return Record(ref, "f", ref, "demonstration", prompt=prompt, completion=completion)


def pair(chosen, rejected, prompt="p:", ref="f:1") -> Record:
    return Record(ref, "f", ref, "pair", prompt=prompt, chosen=chosen, rejected=rejected)


def ask(prompt, ref="f:1") -> Record:
    return Record(ref, "f", ref, "prompt", prompt=prompt)


def one(record: Record, tokenizer=PLAIN, **knobs):
    samples, _ = prepare_demonstrations([record], tokenizer, **knobs)
    return samples[0].tokens


def said(tokens, tokenizer=PLAIN, where=None) -> str:
    return tokenizer.decode(tokens.ids[tokens.mask if where is None else where])


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def bot(text: str) -> dict:
    return {"role": "assistant", "content": text}


@given(texts, answers)
def test_scored_tokens_decode_to_the_completion_and_its_end(prompt, completion):
    tokens = one(demo(completion, prompt), BOS)
    assert said(tokens, BOS) == completion + "</s>"
    assert BOS.decode(tokens.prompt_ids) == "<s>" + prompt
    assert not tokens.mask[0]


@given(texts.filter(len), answers)
def test_a_prompt_has_the_ids_it_has_when_it_is_answered(prompt, completion):
    for tokenizer in (PLAIN, BOS):
        given_ids = prepare_prompts([ask(prompt)], tokenizer)[0][0].prompt_ids if prompt.strip() else None
        tokens = one(demo(completion, prompt), tokenizer)
        if given_ids is not None:
            assert tokens.prompt_ids.tolist() == given_ids.tolist()


@given(texts.filter(len), answers)
def test_special_tokens_stand_once_at_either_end(prompt, completion):
    ids = one(demo(completion, prompt), BOS).ids.tolist()
    assert (ids.count(BOS.bos_token_id), ids.count(BOS.eos_token_id)) == (1, 1)
    assert (ids[0], ids[-1]) == (BOS.bos_token_id, BOS.eos_token_id)


@given(texts.filter(len), answers, st.integers(2, 40))
def test_truncation_keeps_the_start_counts_what_is_lost_and_never_cuts_silently(prompt, completion, max_length):
    records = [demo(completion, prompt), demo("z", "", ref="f:2")]
    whole = one(records[0])
    samples, report = prepare_demonstrations(records, PLAIN, max_length=max_length)
    if whole.prompt_length >= min(len(whole.ids), max_length) or not whole.mask[:max_length].any():
        assert len(samples) == 1
        assert report.dropped_count == 1
        return
    cut = samples[0].tokens
    assert cut.ids.tolist() == whole.ids[:max_length].tolist()
    assert cut.mask.tolist() == whole.mask[:max_length].tolist()
    assert cut.cut == max(0, len(whole.ids) - max_length)
    assert report.counts.get(TRUNCATED, 0) == (cut.cut > 0)
    if cut.cut:
        assert PLAIN.eos_token_id not in cut.ids.tolist()
    else:
        assert said(cut) == completion + "</s>"


conversations = st.lists(st.tuples(texts, answers), min_size=1, max_size=4)


@given(conversations)
@settings(deadline=None)
def test_of_a_conversation_exactly_the_answers_are_scored_whatever_the_template(turns):
    messages = [message for question, answer in turns for message in (user(question), bot(answer))]
    marked = byte_level_marked()
    for tokenizer in (PLAIN, marked):
        tokens = one(demo(messages), tokenizer, assistant_only_loss=True)
        assert said(tokens, tokenizer) == "".join(answer + "</s>" for _, answer in turns)
    assert tokens.prompt_length == 0


def byte_level_marked() -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=PLAIN.backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    made.chat_template = MARKED
    return made


@given(texts, answers, answers)
def test_both_sides_of_a_pair_begin_with_the_same_prompt(prompt, chosen, rejected):
    if chosen == rejected:
        return
    (sample,), _ = prepare_pairs([pair(chosen, rejected, prompt)], BOS)
    assert sample.chosen.prompt_ids.tolist() == sample.rejected.prompt_ids.tolist()
    assert said(sample.chosen, BOS) == chosen + "</s>"
    assert said(sample.rejected, BOS) == rejected + "</s>"


def test_a_token_across_the_border_is_taken_apart_as_at_generation():
    first, second = next(
        token for token in PLAIN.get_vocab() if len(token) == 2 and token.isascii() and token.isalpha()
    )
    merged, *apart = PLAIN([first + second, first, second], add_special_tokens=False)["input_ids"]
    assert len(merged) == 1, "the example is one token across the border"
    samples, report = prepare_demonstrations([demo(second, first)], PLAIN)
    assert samples[0].tokens.ids.tolist() == [*apart[0], *apart[1], PLAIN.eos_token_id]
    assert samples[0].tokens.prompt_length == 1
    assert report.counts == {MERGED: 1}


@given(st.text("abcdefno rstw\n", max_size=15), st.text("abcdefno rstw\n", min_size=1, max_size=15))
def test_a_completion_gets_no_space_that_it_does_not_have(prompt, completion):
    if not completion.strip():
        return
    prompt = "q" + prompt  # a leading space is what this kind of tokenizer cannot tell from its own
    tokens = one(demo(completion, prompt), SPACED)
    assert SPACED.decode(tokens.prompt_ids) == prompt
    assert SPACED.decode(tokens.ids) == prompt + completion + "</s>"


def test_where_nothing_merges_the_ids_are_those_of_the_whole_text():
    prompt, completion = "what is two and two?", " four"
    tokens = one(demo(completion, prompt), BOS)
    assert tokens.ids.tolist() == BOS(prompt + completion)["input_ids"]


def test_a_text_that_spells_its_end_does_not_get_a_second_one():
    ids = one(demo("yes</s>", "p: ")).ids.tolist()
    assert ids.count(PLAIN.eos_token_id) == 1
    ids = one(demo("yes", "<s>p: "), BOS).ids.tolist()
    assert ids.count(BOS.bos_token_id) == 1


def test_by_default_completions_are_scored_where_there_is_a_prompt_and_everything_elsewhere():
    assert said(one(demo("four", "two and two? "))) == "four</s>"
    text = one(demo("the answer"))
    assert text.mask.tolist() == [False] + [True] * (len(text.ids) - 1)
    with_start = one(demo("the answer"), BOS)
    assert said(with_start, BOS) == "the answer</s>"
    chat = one(demo([user("hi"), bot("yes")]))
    assert chat.mask.tolist() == [False] + [True] * (len(chat.ids) - 1)
    assert said(one(demo([bot("yes")], [user("hi")]))) == "yes</s>"


def test_completion_only_loss_false_scores_the_prompt_too():
    tokens = one(demo("four", "two and two? "), completion_only_loss=False)
    assert tokens.mask.tolist() == [False] + [True] * (len(tokens.ids) - 1)
    chat = one(demo([bot("yes")], [user("hi")]), completion_only_loss=False)
    assert chat.mask[1:].all()


def test_assistant_only_loss_reaches_into_the_prompt_only_when_prompts_are_scored():
    row = demo([bot("yes")], [user("hi"), bot("no"), user("so?")])
    assert said(one(row, assistant_only_loss=True)) == "yes</s>"
    assert said(one(row, assistant_only_loss=True, completion_only_loss=False)) == "no</s>yes</s>"


def test_settings_that_do_not_fit_the_rows_are_refused_with_the_row():
    with pytest.raises(ConfigError, match="f:1: completion_only_loss needs rows with a prompt"):
        one(demo("words"), completion_only_loss=True)
    with pytest.raises(ConfigError, match="f:1: assistant_only_loss needs conversations"):
        one(demo("words", "p"), assistant_only_loss=True)
    with pytest.raises(DataError, match="no assistant turn to learn from"):
        one(demo([user("hi")]), assistant_only_loss=True)


def test_a_tokenizer_without_an_end_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=PLAIN.backend_tokenizer, pad_token="<pad>")
    with pytest.raises(ConfigError, match="no eos token"):
        one(demo("yes", "p"), bare)


def test_the_special_prefix_of_a_tokenizer_is_found():
    assert Tokeniser(PLAIN).prefix == []
    assert Tokeniser(BOS).prefix == [BOS.bos_token_id]


def test_pairs_that_truncation_makes_identical_are_dropped_and_counted():
    rows = [pair("zzzzzzzA", "zzzzzzzB", ref="f:1"), pair("yes", "no", ref="f:2")]
    samples, report = prepare_pairs(rows, PLAIN, max_length=6)
    assert [sample.row_id for sample in samples] == ["f:2"]
    assert report.dropped == {"chosen and rejected are identical after truncation": ("f:1",)}
    assert report.lines() == [
        "dropped 1 of 2 rows: chosen and rejected are identical after truncation (f:1)",
    ]


def test_a_prompt_that_fills_max_length_is_dropped_and_counted():
    rows = [pair("yes", "no", prompt="p" * 50, ref="f:1"), pair("yes", "no", ref="f:2")]
    samples, report = prepare_pairs(rows, PLAIN, max_length=20)
    assert len(samples) == 1
    assert report.as_dict() == {
        "kept": 1,
        "dropped": {"the prompt alone fills max_length": 1},
        "noted": {},
        "examples": {"the prompt alone fills max_length": ["f:1"]},
    }


def test_long_prompts_to_be_answered_are_dropped_not_cut():
    samples, report = prepare_prompts([ask("p" * 50, "f:1"), ask("p", "f:2")], PLAIN, max_prompt_length=10)
    assert [sample.row_id for sample in samples] == ["f:2"]
    assert report.dropped == {"the prompt is longer than 10 tokens": ("f:1",)}


def test_empty_and_identical_rows_are_dropped_and_repetitions_remarked():
    gates = Gates()
    rows = [
        pair("", "no", ref="f:1"),
        pair("yes", " \n", ref="f:2"),
        pair("same", "same", ref="f:3"),
        pair([bot("")], [bot("no")], [user("hi")], ref="f:4"),
        pair("yes", "no", ref="f:5"),
        pair("yes", "no", ref="f:6"),
    ]
    kept = check_records(rows, gates)
    report = gates.report(len(kept))
    assert [record.ref for record in kept] == ["f:5", "f:6"]
    assert report.dropped == {
        "empty chosen text": ("f:1", "f:4"),
        "empty rejected text": ("f:2",),
        "chosen and rejected are identical": ("f:3",),
    }
    assert report.noted == {"the same texts as an earlier row": ("f:6",)}
    assert report.dropped_count == 4
    gates = Gates()
    assert check_records([demo(" ", "p"), ask("  "), demo([user("hi"), bot(" ")])], gates) == []


def test_a_report_shows_ten_rows_and_counts_all():
    gates = Gates()
    for i in range(25):
        gates.drop("too blue", f"f:{i}")
    report = gates.report(kept=5)
    assert len(report.dropped["too blue"]) == 10
    assert report.lines() == ["dropped 25 of 30 rows: too blue (f:0, f:1, f:2, ...)"]


def test_nothing_left_is_an_error_with_the_reasons():
    with pytest.raises(DataError, match=r"no row is left to train on: dropped 1 of 1 rows: empty completion \(f:1\)"):
        prepare_demonstrations([demo("", "p")], PLAIN)
    with pytest.raises(DataError, match="there was none to begin with"):
        prepare_prompts([], PLAIN)


def test_rows_keep_their_order_over_chunks(monkeypatch):
    monkeypatch.setattr("rlhf.data.tokenise._CHUNK", 3)
    rows = [demo(f"answer {i}", "p: ", ref=f"f:{i}") for i in range(10)]
    samples, report = prepare_demonstrations(rows, PLAIN)
    assert [said(sample.tokens) for sample in samples] == [f"answer {i}</s>" for i in range(10)]
    assert report.kept == 10


def test_ids_and_masks_are_small_arrays():
    tokens = one(demo("yes", "p: "))
    assert (tokens.ids.dtype, tokens.mask.dtype) == (np.int32, np.bool_)


def test_a_conversation_without_an_assistants_turn_is_dropped_and_counted():
    asked = [{"role": "user", "content": "Are you there?"}]
    rows = [asked, [*asked, {"role": "assistant", "content": "Yes."}]]
    records = [Record(str(i), "d", f"d:{i}", "demonstration", completion=turns) for i, turns in enumerate(rows)]
    gates = Gates()
    kept = check_records(records, gates)
    assert [record.row_id for record in kept] == ["1"]
    assert gates.report(len(kept)).counts == {"no assistant turn to learn from": 1}
