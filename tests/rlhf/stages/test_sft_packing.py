"""Packing through the real command: the same loss and gradient as without it, every row once, cut and resumed alike."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from tests.rlhf.stages.test_invariance import largest_difference, losses
from tests.rlhf.stages.tiny_runs import arguments, ledger_of, live_events, live_view, run, run_ranks, summary

EXACT = ["model.dtype=float64", "train.learning_rate=1e-3", "data.holdout_fraction=0"]
PACKED = "train.packing=true"
GAIN = "reward.differentials=[{category: format, differential: 0.7}]"


def said(capsys: pytest.CaptureFixture[str], output_dir: Path, *extra: str, **options: int) -> list[str]:
    """The run's lines on stderr."""
    assert main([*arguments("sft", output_dir, *extra, **options)[:-1], "plain"]) == 0
    return capsys.readouterr().err.splitlines()


def bins_of(tmp_path: Path, *keys: str) -> int:
    assert run("sft", tmp_path / "count", *keys, PACKED, steps=1, batch=1) == 0
    return int(summary(tmp_path / "count")["outcome"]["packing"]["bins"])


def conversations(path: Path) -> list[str]:
    """Keys for a file of conversations of several turns and lengths."""
    rows: list[dict[str, Any]] = []
    for i in range(24):
        turns = [("user", f"count to {i}"), ("assistant", "one " * (i % 5 + 1)), ("user", "on"), ("assistant", f"{i}")]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns[: 2 + i % 3]]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.dataset_name={path}", "data.recipe_split=null", "data.max_rows=null"]


SCORED = {
    "completions": [],
    "prompts too": ["train.completion_only_loss=false"],
    "conversations": [],
    "assistant turns": ["train.assistant_only_loss=true"],
}


@pytest.mark.parametrize("scored", SCORED)
def test_packed_rows_have_the_loss_and_gradient_of_the_same_rows_unpacked(scored: str, tmp_path: Path) -> None:
    keys = [*EXACT, GAIN, "reference.kl_coefficient=0.3", "data.max_rows=24"]
    if scored in ("conversations", "assistant turns"):
        keys = [*EXACT, *conversations(tmp_path / "talks.jsonl")]
    keys += SCORED[scored]
    bins = bins_of(tmp_path, *keys)
    assert 1 < bins < 20
    # A step takes the whole data set, packed or not: both see the same rows and differ in their arrangement alone.
    assert run("sft", tmp_path / "rows", *keys, steps=3, batch=24) == 0
    assert run("sft", tmp_path / "bins", *keys, PACKED, steps=3, batch=bins) == 0
    assert losses(tmp_path / "rows", "sft") == pytest.approx(losses(tmp_path / "bins", "sft"), abs=1e-12)
    assert largest_difference(tmp_path / "rows", tmp_path / "bins") < 1e-9
    norms = [[e["grad_norm"] for e in live_events(tmp_path / name, "sft", "step_stats")] for name in ("rows", "bins")]
    assert norms[0] == pytest.approx(norms[1], abs=1e-9) and min(norms[0]) > 0.1
    views = [{(r["step"], r["row_id"]): r for r in live_view(tmp_path / name, "sft")} for name in ("rows", "bins")]
    assert views[0].keys() == views[1].keys() and len(views[0]) == 72
    for key, row in views[0].items():
        other = views[1][key]
        assert row["logp_nats"] == pytest.approx(other["logp_nats"], abs=1e-9)
        same = ("loss_weight", "prompt_tokens", "response_tokens", "category", "prompt_id", "baseline_reward")
        assert [row[name] for name in same] == [other[name] for name in same]


def test_an_epoch_of_bins_records_every_row_once_and_numbers_the_sessions(tmp_path: Path) -> None:
    keys = [PACKED, "data.holdout_fraction=0", "train.max_steps=-1", "train.num_train_epochs=1"]
    assert run("sft", tmp_path / "run", *keys, batch=4) == 0
    found = summary(tmp_path / "run")
    bins = found["outcome"]["packing"]["bins"]
    assert found["steps"] == -(-bins // 4)
    rows = live_view(tmp_path / "run", "sft")
    assert [row["session"] for row in rows] == list(range(1, len(rows) + 1))
    # The last step runs on into the second epoch; a bin never does.
    taken = Counter(row["row_id"] for row in rows)
    assert len(taken) == 64 and max(taken.values()) <= 2
    figures = live_events(tmp_path / "run", "sft", "step_stats")
    assert sum(figure["packing/rows"] * 4 for figure in figures) == len(rows)


def test_how_full_the_bins_are_is_said_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, tmp_path / "run", PACKED, "data.holdout_fraction=0", steps=2, batch=4)
    packing = summary(tmp_path / "run")["outcome"]["packing"]
    (line,) = [line for line in lines if line.startswith("sft: packing")]
    assert f"64 rows in {packing['bins']} bins of 96 tokens, {packing['fill']:.1%} filled; a step takes 4 bins" in line
    assert 0.9 < packing["fill"] <= 1 and packing["rows"] == 64
    for figure in live_events(tmp_path / "run", "sft", "step_stats"):
        assert figure["packing/fill"] == pytest.approx(figure["tokens"] / (4 * 96))
        assert figure["packing/fill"] <= 1


def test_four_bins_at_once_and_one_after_the_other_are_the_same_step(tmp_path: Path) -> None:
    keys = [*EXACT, GAIN, PACKED]
    assert run("sft", tmp_path / "whole", *keys, steps=3, batch=4) == 0
    assert run("sft", tmp_path / "cut", *keys, "train.gradient_accumulation_steps=4", steps=3, batch=1) == 0
    assert losses(tmp_path / "whole", "sft") == pytest.approx(losses(tmp_path / "cut", "sft"), abs=1e-12)
    assert largest_difference(tmp_path / "whole", tmp_path / "cut") < 1e-9
    orders = [[row["row_id"] for row in live_view(tmp_path / name, "sft")] for name in ("whole", "cut")]
    assert orders[0] == orders[1]


@pytest.mark.slow
def test_bins_on_two_ranks_give_the_parameters_of_one(tmp_path: Path) -> None:
    keys = [*EXACT, GAIN, PACKED, "train.neftune_noise_alpha=5"]
    assert run("sft", tmp_path / "one", *keys, steps=3, batch=4) == 0
    done = run_ranks("sft", tmp_path / "two", 2, *keys, steps=3, batch=2)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "one", "sft") == pytest.approx(losses(tmp_path / "two", "sft"), abs=1e-12)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-9
    assert ledger_of(tmp_path / "two").verify().ok


def test_a_resumed_packed_run_with_noise_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    keys = [PACKED, "train.neftune_noise_alpha=5", "train.loss_type=dft", "train.save_steps=4"]
    keys += ["train.learning_rate=1e-3", "train.lr_scheduler_type=constant"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    # Eleven steps of four bins: beyond the first epoch.
    assert run("sft", whole, *keys, steps=11, batch=4) == 0
    assert run("sft", stopped, *keys, steps=4, batch=4) == 0
    assert run("sft", stopped, *keys, "--resume", steps=11, batch=4) == 0
    assert largest_difference(whole, stopped) == 0.0
    assert live_view(whole, "sft") == live_view(stopped, "sft")
    assert live_events(whole, "sft", "step_stats") == live_events(stopped, "sft", "step_stats")


def test_a_model_that_takes_no_flat_rows_is_given_padded_ones_with_the_same_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*EXACT, PACKED]
    flat = said(capsys, tmp_path / "flat", *keys, steps=3, batch=4)
    padded = said(capsys, tmp_path / "padded", *keys, "model.attn_implementation=eager", steps=3, batch=4)
    assert not [line for line in flat if "padded rows" in line]
    of_packing, of_the_model = [line for line in padded if "padded rows" in line]
    assert "packing: padded rows" in of_packing and "LlamaForCausalLM is given padded rows" in of_the_model
    assert losses(tmp_path / "flat", "sft") == pytest.approx(losses(tmp_path / "padded", "sft"), abs=1e-9)
    assert largest_difference(tmp_path / "flat", tmp_path / "padded") < 1e-6


def test_a_row_that_is_longer_than_a_bin_is_cut_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {i}: ", "completion": "word " * (60 if i == 3 else 2)} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [f"data.dataset_name={path}", "data.recipe_split=null", "data.max_rows=null", "data.holdout_fraction=0"]
    lines = said(capsys, tmp_path / "run", PACKED, *keys, "train.max_length=40", steps=1, batch=8)
    assert "sft: kept, but 1 of 8 rows: the end is cut off at max_length (rows.jsonl:4)" in lines
    long = [row for row in live_view(tmp_path / "run", "sft") if row["row_id"] == "rows.jsonl:4"]
    assert {row["prompt_tokens"] + row["response_tokens"] for row in long} == {40}
