"""A precomputed reference: the losses of a frozen copy, one pass for many runs, nothing stale."""

from pathlib import Path

import pytest

from rlhf.cli import main
from tests.rlhf.stages.tiny_runs import arguments, live_events, run, run_ranks, summary

FAST = ["train.learning_rate=1e-2", "data.holdout_fraction=0.3"]
CACHED = [*FAST, "reference.source=precomputed"]


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in live_events(folder, "dpo", "step_stats")]


def test_precomputed_gives_the_losses_and_the_evaluation_of_a_frozen_copy(tmp_path: Path) -> None:
    assert run("dpo", tmp_path / "copy", *FAST, steps=3) == 0
    assert run("dpo", tmp_path / "cache", *CACHED, steps=3) == 0
    assert losses(tmp_path / "cache") == pytest.approx(losses(tmp_path / "copy"), abs=1e-6)
    one, other = (summary(tmp_path / name)["outcome"]["held_out_pairs"] for name in ("copy", "cache"))
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"]["value"] == pytest.approx(other["loss"]["value"], abs=1e-6)


def said(capsys: pytest.CaptureFixture[str], folder: Path, *extra: str) -> str:
    """The line on the reference of a run."""
    argv = arguments("dpo", folder, *CACHED, f"reference.cache_dir={folder.parent / 'cache'}", *extra, steps=1)
    assert main([*argv[:-1], "plain"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "dpo: reference:" in line]
    return line


def test_a_second_run_takes_the_column_and_another_model_or_data_set_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "computing" in said(capsys, tmp_path / "first")
    assert "rows from" in said(capsys, tmp_path / "second", "train.beta=0.3")
    assert "another data; computing" in said(capsys, tmp_path / "cut", "train.max_length=40")
    assert "another model" in said(capsys, tmp_path / "model", "model.tiny_hidden_size=64")
    # The built-in tokenizer is made from the data: with other rows all three are others.
    assert "another model and data and text" in said(capsys, tmp_path / "data", "data.max_rows=60")
    assert "rows from" in said(capsys, tmp_path / "third")


def test_a_resumed_run_reads_the_column_again(tmp_path: Path) -> None:
    keys = [*CACHED, "train.save_steps=2", "train.lr_scheduler_type=constant"]
    assert run("dpo", tmp_path / "whole", *keys, steps=4) == 0
    assert run("dpo", tmp_path / "stopped", *keys, steps=2) == 0
    assert run("dpo", tmp_path / "stopped", *keys, "--resume", steps=4) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")


@pytest.mark.slow
def test_two_ranks_share_one_column(tmp_path: Path) -> None:
    assert run("dpo", tmp_path / "one", *CACHED, steps=3) == 0
    done = run_ranks("dpo", tmp_path / "two", 2, *CACHED, steps=3, batch=4)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-5)
    assert len(list((tmp_path / "two" / "reference").glob("logps-*.safetensors"))) == 1
