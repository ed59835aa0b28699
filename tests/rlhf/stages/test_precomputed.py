"""A precomputed reference: the losses of a frozen copy, one pass for many runs, nothing stale."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rlhf.batch import TokenBatch
from rlhf.cli import main
from rlhf.reference.policy import FrozenCopy
from tests.rlhf.stages.tiny_runs import ROOT, arguments, environment, live_events, run, run_ranks, summary

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


def test_a_run_in_another_precision_does_not_take_the_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "computing" in said(capsys, tmp_path / "full")
    assert "another precision; computing" in said(capsys, tmp_path / "half", "train.bf16=true")


def test_a_resumed_run_reads_the_column_again(tmp_path: Path) -> None:
    keys = [*CACHED, "train.save_steps=2", "train.lr_scheduler_type=constant"]
    assert run("dpo", tmp_path / "whole", *keys, steps=4) == 0
    assert run("dpo", tmp_path / "stopped", *keys, steps=2) == 0
    assert run("dpo", tmp_path / "stopped", *keys, "--resume", steps=4) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")


@pytest.mark.parametrize(("evaluated", "trained"), [(2, 4), (4, 2)])
def test_the_column_is_computed_in_batches_of_like_lengths_as_large_as_any_other(
    evaluated: int, trained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TokenBatch] = []
    logps = FrozenCopy.logps

    def watched(self: FrozenCopy, tokens: TokenBatch, temperature: float = 1.0) -> torch.Tensor:
        seen.append(tokens)
        return logps(self, tokens, temperature)

    monkeypatch.setattr(FrozenCopy, "logps", watched)
    keys = [*CACHED, f"train.per_device_eval_batch_size={evaluated}"]
    assert run("dpo", tmp_path / "run", *keys, steps=1, batch=trained) == 0
    longest = [int(batch.attention_BT.sum(dim=1).max()) for batch in seen]
    assert longest == sorted(longest) and len(longest) == 16 and longest[0] < longest[-1]
    real = sum(int(batch.attention_BT.sum()) for batch in seen)
    assert real > 0.8 * sum(batch.attention_BT.numel() for batch in seen)


def test_a_reference_of_another_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "sft", "model.tiny_vocab_size=310", steps=1) == 0
    capsys.readouterr()
    for source in ("frozen", "precomputed"):
        keys = [f"reference.reference_model={tmp_path / 'sft' / 'model'}", f"reference.source={source}"]
        assert run("dpo", tmp_path / "dpo", *keys, steps=1) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "another vocabulary than the policy" in line and "reference.reference_model" in line


def test_a_column_of_another_tokenizer_with_the_same_tokens_is_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sft", tmp_path / "sft", steps=1) == 0
    start, other = tmp_path / "sft" / "model", tmp_path / "other"
    shutil.copytree(start, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = "{# another #}" + tokenizer.chat_template
    tokenizer.save_pretrained(other)
    capsys.readouterr()
    assert "nothing is cached" in said(capsys, tmp_path / "first", f"model.model_name_or_path={start}")
    assert "another text; computing" in said(capsys, tmp_path / "second", f"model.model_name_or_path={other}")


@pytest.mark.slow
def test_two_runs_of_a_sweep_that_start_together_share_the_folder(tmp_path: Path) -> None:
    keys = [*CACHED, f"reference.cache_dir={tmp_path / 'cache'}"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "rlhf.cli", *arguments("dpo", tmp_path / name, *keys, steps=2)],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


@pytest.mark.slow
def test_two_ranks_share_one_column(tmp_path: Path) -> None:
    assert run("dpo", tmp_path / "one", *CACHED, steps=3) == 0
    done = run_ranks("dpo", tmp_path / "two", 2, *CACHED, steps=3, batch=4)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-5)
    assert len(list((tmp_path / "two" / "reference").glob("logps-*.safetensors"))) == 1
