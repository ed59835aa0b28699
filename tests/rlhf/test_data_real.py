"""The data path on real files of the field; skipped, visibly, where they are not at hand."""

import csv
import gzip
import itertools
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rewards.errors import DataError
from rlhf.config import DataSection, DatasetSource
from rlhf.data.holdout import load
from rlhf.data.records import prompt_key, prompt_of
from rlhf.data.tokenise import prepare_demonstrations, prepare_pairs, prepare_prompts

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HH = DATA / "hh_harmless" / "pairs.jsonl.gz"
needs_hh = pytest.mark.skipif(not HH.exists(), reason=f"no real preference pairs at {HH}")
needs_gsm8k = pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason=f"no {DATA / 'gsm8k'}")
needs_xstest = pytest.mark.skipif(not (DATA / "xstest").exists(), reason=f"no {DATA / 'xstest'}")
TEMPLATE = (
    "{% for m in messages %}{{ '\n\n' + m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nassistant: ' }}{% endif %}"
)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({"<pad>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")
    made.chat_template = TEMPLATE
    return made


def hh(stage: str, **settings):
    return load(DataSection(dataset_name=str(HH), **settings), stage, seed=0)


@needs_hh
def test_hh_pairs_are_read_whole_and_announced():
    splits = hh("reward")
    assert splits.lines[0] == (
        "1,700 rows of pairs.jsonl.gz read as HH transcripts -> prompt, chosen, rejected (conversational)"
    )
    assert len(splits.train) + len(splits.held_out) == 1700
    for record in splits.train + splits.held_out:
        assert record.prompt[0]["role"] == record.prompt[-1]["role"] == "user"
        assert record.chosen[0]["role"] == record.rejected[0]["role"] == "assistant"
        roles = [message["role"] for message in [*record.prompt, *record.chosen]]
        assert all(one != two for one, two in itertools.pairwise(roles))


@needs_hh
def test_hh_prompts_and_answers_put_together_are_the_transcript():
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    splits = hh("dpo", holdout_fraction=0.0)
    names = {"user": "Human", "assistant": "Assistant"}

    def words(text: str) -> str:
        # Joined turns lose one speaker's name; everything else must be there, in order.
        return "".join(text.replace("Assistant:", "").replace("Human:", "").split())

    for record, row in zip(splits.train, raw, strict=True):
        for name in ("chosen", "rejected"):
            messages = [*record.prompt, *getattr(record, name)]
            rebuilt = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in messages)
            assert words(rebuilt) == words(row[name])


@needs_hh
def test_no_hh_prompt_is_on_both_sides():
    splits = hh("reward", holdout_fraction=0.2)
    sides = [{prompt_key(prompt_of(r)) for r in side} for side in (splits.train, splits.held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert {r.row_id for r in hh("sft", holdout_fraction=0.2).held_out} == {r.row_id for r in splits.held_out}


@needs_hh
def test_hh_pairs_are_tokenised_with_every_loss_counted():
    records = hh("dpo", holdout_fraction=0.0).train
    tokenizer = bytes_tokenizer()
    samples, report = prepare_pairs(records, tokenizer, max_length=1024)
    assert report.counts["empty chosen text"] == 3
    assert len(samples) + report.dropped_count == 1700
    for sample in samples[:100]:
        text = tokenizer.decode(sample.chosen.ids[sample.chosen.mask])
        whole = sample.record.chosen[-1]["content"] + "</s>"
        assert whole.startswith(text) if sample.chosen.cut else text == whole
        assert tokenizer.decode(sample.chosen.prompt_ids).endswith("assistant: ")


@needs_hh
def test_hh_serves_sft_and_prompts_too():
    tokenizer = bytes_tokenizer()
    demonstrations, _ = prepare_demonstrations(hh("sft", max_rows=200).train, tokenizer, max_length=2048)
    asked, _ = prepare_prompts(hh("grpo", max_rows=200).train, tokenizer, max_prompt_length=2048)
    given = {sample.row_id: sample.prompt_ids.tolist() for sample in asked}
    assert len(demonstrations) > 150
    for sample in demonstrations:
        assert sample.tokens.prompt_ids.tolist() == given[sample.row_id]


@needs_gsm8k
def test_gsm8k_needs_its_columns_named():
    path = str(DATA / "gsm8k" / "test.jsonl.gz")
    with pytest.raises(
        DataError, match=r"test\.jsonl\.gz:1: row 1 fits no known format \(columns `question`, `answer`\)"
    ):
        load(DataSection(dataset_name=path), "sft")
    columns = {"question": "prompt", "answer": "completion"}
    splits = load(DataSection(datasets=[DatasetSource(path=path, columns=columns)]), "sft")
    assert len(splits.train) + len(splits.held_out) == 1319


@needs_xstest
def test_xstest_tables_give_prompts_with_their_types():
    path = DATA / "xstest" / "xstest_prompts.csv"
    with path.open(encoding="utf-8", newline="") as file:
        expected = [row["prompt"] for row in csv.DictReader(file)]
    splits = load(DataSection(dataset_name=str(path), category_column="type", holdout_fraction=0.0), "grpo")
    assert [record.prompt for record in splits.train] == expected
    assert len(expected) == 450
    assert all(record.category for record in splits.train)
