"""Rows that cannot be used, through the real commands: refused, or left out and counted, with their file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from tests.rlhf.stages.tiny_runs import arguments, live_view, run

PLAIN = ["data.recipe_split=null", "data.max_rows=null", "data.holdout_fraction=0"]
GOOD: dict[str, dict[str, Any]] = {
    "sft": {"prompt": "say yes: ", "completion": "yes"},
    "dpo": {"prompt": "say yes: ", "chosen": "yes", "rejected": "no"},
    "reward": {"prompt": "say yes: ", "chosen": "yes", "rejected": "no"},
}
ANSWERS = {"sft": "completion", "dpo": "chosen", "reward": "chosen"}
EVERY = pytest.mark.parametrize("stage", GOOD)
PAIRS = pytest.mark.parametrize("stage", ["dpo", "reward"])
SYSTEM, USER, BOT = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "hello"},
)


def rows_in(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.dataset_name={path}", *PLAIN]


def many(stage: str, **third: Any) -> list[dict[str, Any]]:
    """Four different good rows, the third of them with these columns instead."""
    rows = [{**GOOD[stage], ANSWERS[stage]: f"yes {i}"} for i in range(4)]
    rows[2] |= third
    return rows


def apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with prompts that differ, without which KTO has no baseline."""
    return [{**row, "prompt": f"say {i}: "} for i, row in enumerate(rows)]


def refused(capsys: pytest.CaptureFixture[str], stage: str, folder: Path, *keys: str) -> str:
    """The one line of a run that is refused before anything is recorded."""
    capsys.readouterr()
    assert run(stage, folder, *keys, steps=1) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert not (folder / "ledger").exists()
    return line


def counted(capsys: pytest.CaptureFixture[str], stage: str, folder: Path, *keys: str) -> list[str]:
    """The lines in which a run that goes on says what it left out or remarked, and which rows it trained on."""
    capsys.readouterr()
    assert main([*arguments(stage, folder, *keys, steps=1)[:-1], "plain"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "rows: " in line]
    return lines


def trained_on(stage: str, folder: Path) -> set[str]:
    return {row["row_id"] for row in live_view(folder, stage)}


@EVERY
def test_a_prompt_that_fills_max_length_is_left_out_and_counted(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", many(stage, prompt="long " * 40))
    lines = counted(capsys, stage, tmp_path / "run", *keys, "train.max_length=30")
    assert f"{stage}: dropped 1 of 4 rows: the prompt alone fills max_length (rows.jsonl:3)" in lines
    assert trained_on(stage, tmp_path / "run") == {"rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:4"}


@EVERY
def test_where_every_prompt_fills_max_length_the_run_is_refused_with_rows(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", many(stage))
    line = refused(capsys, stage, tmp_path / "run", *keys, "train.max_length=2")
    assert "no row is left to train on: dropped 4 of 4 rows: the prompt alone fills max_length" in line
    assert "rows.jsonl:1, rows.jsonl:2, rows.jsonl:3, ..." in line


@EVERY
@pytest.mark.parametrize("length", ["1", "0", "-5"])
def test_a_max_length_that_holds_no_answer_is_refused_by_key(
    stage: str, length: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, stage, tmp_path / "run", f"train.max_length={length}")
    assert "train.max_length: " in line and f"got {length}" in line


@PAIRS
def test_pairs_that_truncation_makes_equal_are_left_out_and_counted(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = "a long beginning that both of them share to the word, and then "
    keys = rows_in(tmp_path / "rows.jsonl", many(stage, chosen=same + "yes", rejected=same + "no"))
    lines = counted(capsys, stage, tmp_path / "run", *keys, "train.max_length=16")
    assert f"{stage}: dropped 1 of 4 rows: chosen and rejected are identical after truncation (rows.jsonl:3)" in lines


def test_sides_of_a_pair_that_truncation_makes_equal_are_told_where_each_is_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = "a long beginning that both of them share to the word, and then "
    keys = rows_in(tmp_path / "rows.jsonl", apart(many("dpo", chosen=same + "yes", rejected=same + "no")))
    lines = counted(capsys, "kto", tmp_path / "run", *keys, "train.max_length=16")
    assert (
        "kto: kept, but 1 of 8 rows: cut off at max_length it is what an earlier row gives the other label "
        "(rows.jsonl:3)"
    ) in lines


def test_rows_that_share_a_beginning_or_a_label_are_not_told_to_be_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = "a long beginning that both of them share to the word, and then "
    sides = {"chosen": same + "yes", "rejected": "other " + same}
    rows = apart(many("dpo", **sides))
    keys = rows_in(tmp_path / "rows.jsonl", [*rows, rows[2]])
    lines = counted(capsys, "kto", tmp_path / "run", *keys, "train.max_length=16")
    assert any("the end is cut off at max_length" in line for line in lines)
    assert not any("the other label" in line for line in lines)


@pytest.mark.parametrize("stage", ["kto", "grpo"])
def test_too_long_prompts_are_left_out_and_counted_by_kto_and_online_rl_too(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = apart(many("dpo"))
    keys = rows_in(tmp_path / "rows.jsonl", [*rows[:2], {**rows[2], "prompt": "long " * 40}, rows[3]])
    if stage == "grpo":
        keys += ["train.max_length=42", "reward.reward_funcs=[length]", "reward.classifier=null"]
        lines = counted(capsys, stage, tmp_path / "run", *keys)
        assert "grpo: dropped 1 of 4 rows: the prompt is longer than 30 tokens (rows.jsonl:3)" in lines
    else:
        lines = counted(capsys, stage, tmp_path / "run", *keys, "train.max_length=30")
        assert "kto: dropped 2 of 8 rows: the prompt alone fills max_length (rows.jsonl:3, rows.jsonl:3)" in lines


@PAIRS
def test_pairs_of_one_text_are_left_out_and_counted(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", many(stage, chosen="no", rejected="no"))
    lines = counted(capsys, stage, tmp_path / "run", *keys)
    assert f"{stage}: dropped 1 of 4 rows: chosen and rejected are identical (rows.jsonl:3)" in lines


@EVERY
def test_an_empty_answer_is_left_out_and_counted(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", many(stage, **{ANSWERS[stage]: " \n"}))
    lines = counted(capsys, stage, tmp_path / "run", *keys)
    what = "empty completion" if stage == "sft" else "empty chosen text"
    assert f"{stage}: dropped 1 of 4 rows: {what} (rows.jsonl:3)" in lines
    assert "rows.jsonl:3" not in trained_on(stage, tmp_path / "run")


@EVERY
def test_a_text_that_is_not_a_number_is_refused_with_its_row(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", many(stage, **{ANSWERS[stage]: float("nan")}))
    line = refused(capsys, stage, tmp_path / "run", *keys)
    assert "rows.jsonl:3: row 3 has a bad" in line and "found float" in line


@EVERY
def test_a_category_that_is_not_a_number_is_refused_with_its_row(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", many(stage, category=float("nan")))
    line = refused(capsys, stage, tmp_path / "run", *keys)
    assert "rows.jsonl:3: row 3 has nan in the column `category`" in line


@PAIRS
def test_a_margin_that_is_not_a_number_is_refused_with_its_row(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "margin": float("nan") if i == 2 else 0.5} for i, row in enumerate(many(stage))]
    keys = rows_in(tmp_path / "rows.jsonl", rows)
    line = refused(capsys, stage, tmp_path / "run", *keys, "reward.margin_column=margin")
    assert "rows.jsonl:3: reward.margin_column is `margin`, and the row holds nan there" in line


@EVERY
@pytest.mark.parametrize("zipped", [False, True])
def test_text_that_is_not_utf_8_is_refused_with_its_line(
    stage: str, zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("rows.jsonl.gz" if zipped else "rows.jsonl")
    # Thousands of good lines before it: what a reader decodes at a time says nothing about the line.
    lines = [json.dumps(many(stage)[0]).encode()] * 3000 + [b'{"prompt": "caf\xe9"}']
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if zipped else content)
    line = refused(capsys, stage, tmp_path / "run", f"data.dataset_name={path}", *PLAIN)
    assert f"{path.name}:3001: not UTF-8 text (byte 16 of the line is 0xe9): save the file as UTF-8" in line


@EVERY
def test_a_row_id_that_two_rows_have_is_refused_with_both(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "row_id": "same" if i in (0, 2) else str(i)} for i, row in enumerate(many(stage))]
    line = refused(capsys, stage, tmp_path / "run", *rows_in(tmp_path / "rows.jsonl", rows))
    assert "rows.jsonl:3: row_id `same` was used before, at rows.jsonl:1" in line


def test_row_ids_that_a_test_split_numbers_alike_are_those_of_training_in_the_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, category in (("train", "asked"), ("test", "held")):
        rows = [{**row, "row_id": str(i), "category": category} for i, row in enumerate(many("sft"))]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [f"data.dataset_name={folder}", "data.dataset_test_split=test", "data.recipe_split=null"]
    assert run("sft", tmp_path / "run", *keys, "data.max_rows=null", steps=1) == 0
    assert {row["category"] for row in live_view(tmp_path / "run", "sft")} == {"asked"}


# --- conversations and tokenizers ---


def talk(stage: str, prompt: list[dict[str, str]]) -> dict[str, Any]:
    sides = {"completion": [BOT]} if stage == "sft" else {"chosen": [BOT], "rejected": [{**BOT, "content": "no"}]}
    return {"prompt": prompt, **sides}


def template_in(path: Path, text: str) -> str:
    path.write_text(text)
    return f"model.chat_template_path={path}"


TURNS = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"


@EVERY
def test_a_template_that_drops_the_prompt_is_refused(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", [talk(stage, [USER])] * 2)
    last = template_in(tmp_path / "t.jinja", "{{ messages[-1]['content'] + eos_token }}" + ASK)
    line = refused(capsys, stage, tmp_path / "run", *keys, last)
    assert "drops a part of the prompt" in line and "set model.chat_template_path" in line


@EVERY
def test_a_template_that_drops_a_system_turn_is_refused_with_the_row(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", [talk(stage, [USER]), talk(stage, [SYSTEM, USER])])
    no_system = TURNS.replace("in messages", "in messages if m['role'] != 'system'")
    line = refused(capsys, stage, tmp_path / "run", *keys, template_in(tmp_path / "t.jinja", no_system + ASK))
    assert "rows.jsonl:2: the chat template of" in line and "drops what message 1 (system) says" in line


def test_of_a_whole_conversation_a_dropped_turn_is_found_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", [{"messages": [USER, BOT]}, {"messages": [SYSTEM, USER, BOT]}])
    no_system = TURNS.replace("in messages", "in messages if m['role'] != 'system'")
    template = template_in(tmp_path / "t.jinja", no_system + ASK)
    for scored in ("train.assistant_only_loss=true", "train.assistant_only_loss=false"):
        line = refused(capsys, "sft", tmp_path / "run", *keys, template, scored)
        assert "rows.jsonl:2: the chat template of" in line and "drops what message 1 (system) says" in line


@EVERY
def test_a_template_that_refuses_a_row_is_one_line_with_the_row_and_its_reason(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_in(tmp_path / "rows.jsonl", [talk(stage, [USER]), talk(stage, [SYSTEM, USER])])
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}" + TURNS
    line = refused(capsys, stage, tmp_path / "run", *keys, template_in(tmp_path / "t.jinja", strict + ASK))
    assert "rows.jsonl:2: the chat template of" in line and "no system turns here" in line


def test_a_template_that_marks_no_answer_is_refused_with_the_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*rows_in(tmp_path / "rows.jsonl", [{"messages": [USER, BOT]}]), "train.assistant_only_loss=true"]
    marks_nothing = template_in(tmp_path / "t.jinja", TURNS + "{% generation %}{% endgeneration %}" + ASK)
    line = refused(capsys, "sft", tmp_path / "run", *keys, marks_nothing)
    assert "rows.jsonl:1: the chat template of" in line and "marks no token of the assistant's as an answer" in line


def test_a_conversation_whose_answers_are_all_cut_off_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"messages": [{**USER, "content": "word " * 60}, BOT]}
    nobody = {"messages": [USER]}
    keys = rows_in(tmp_path / "rows.jsonl", [{"messages": [USER, BOT]}, long, nobody])
    lines = counted(capsys, "sft", tmp_path / "run", *keys, "train.assistant_only_loss=true", "train.max_length=30")
    assert "sft: dropped 1 of 3 rows: no token to score within max_length (rows.jsonl:2)" in lines
    assert "sft: dropped 1 of 3 rows: no assistant turn to learn from (rows.jsonl:3)" in lines


@EVERY
def test_a_tokenizer_without_an_end_token_is_refused(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sft", tmp_path / "start", steps=1) == 0
    folder = tmp_path / "start" / "model"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    line = refused(capsys, stage, tmp_path / "run", f"model.model_name_or_path={folder}")
    assert "has no end token" in line and str(folder) in line


@pytest.mark.parametrize("kind", ["table", "rotary"])
@EVERY
def test_rows_beyond_the_models_positions_are_refused_where_these_are_a_table_else_remarked(
    stage: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    from rlhf.models.tiny import build_tokenizer

    tokenizer = build_tokenizer([text for row in many(stage) for text in row.values()], 300)
    size = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    if kind == "table":
        model: Any = GPT2LMHeadModel(GPT2Config(n_positions=40, n_embd=16, n_layer=1, n_head=2, **size))
    else:
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=40, **shape, **size))
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    keys = [*rows_in(tmp_path / "rows.jsonl", many(stage, **{ANSWERS[stage]: "y n " * 20}))]
    keys += [f"model.model_name_or_path={tmp_path / 'model'}", "model.attn_implementation=sdpa"]
    found = "1 of 4 rows have up to 75 tokens, the model has 40 positions (rows.jsonl:3)"
    if kind == "table":
        line = refused(capsys, stage, tmp_path / "run", *keys, "train.max_length=75")
        assert f"{found}: set train.max_length=40" in line
    else:
        capsys.readouterr()
        assert main([*arguments(stage, tmp_path / "run", *keys, "train.max_length=75", steps=1)[:-1], "plain"]) == 0
        assert f"{stage}: {found}; what is beyond them" in capsys.readouterr().err
    assert run(stage, tmp_path / "cut", *keys, "train.max_length=40", steps=1) == 0
