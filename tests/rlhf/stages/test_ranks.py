"""Two ranks that do not have the same to do, or of which one fails."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rlhf.stages import rank_rewards
from tests.rlhf.stages.tiny_runs import ROOT, environment, ledger_of, live_events, live_view, run_ranks, summary

pytestmark = pytest.mark.slow
FUNCTIONS = "reward.reward_funcs=['{}:{}']"


def functions(name: str) -> str:
    return FUNCTIONS.format(rank_rewards.__name__, name)


def test_a_rank_whose_sessions_have_no_reward_waits_for_nobody_and_nobody_for_it(tmp_path: Path) -> None:
    done = run_ranks("grpo", tmp_path / "run", 2, functions("null_there"), steps=2, batch=4)
    assert done.returncode == 0, done.stderr
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert len(rows) == 16 and sum(row["baseline_reward"] is None for row in rows) == 8


def test_a_reward_function_that_fails_on_one_rank_stops_both_and_is_recorded_once(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run_ranks("grpo", tmp_path / "run", 2, functions("raises_there"), steps=2, batch=4)
    assert done.returncode != 0 and time.monotonic() - began < 90
    (stop,) = live_events(tmp_path / "run", "grpo", "stopped")
    assert "the second judge is down" in stop["reason"] and stop["exit_code"] == 3 and len(stop["rows"]) == 4
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert len(rows) == 8 and all(row["response"] is not None for row in rows)
    # The first rank's verdicts were reached, and are kept.
    assert sum(part["status"] == "ok" for row in rows for part in row["components"]) == 4


def test_an_unforeseen_error_on_one_rank_ends_both_and_is_recorded(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run_ranks("grpo", tmp_path / "run", 2, functions("breaks_there"), steps=2, batch=4)
    assert done.returncode != 0 and time.monotonic() - began < 90
    # The first rank may have its own word for it: that the other one is gone.
    stops = live_events(tmp_path / "run", "grpo", "stopped")
    assert any("NoneType" in stop["reason"] and stop["exit_code"] == 1 for stop in stops)
    assert ledger_of(tmp_path / "run").verify().ok


def test_fewer_held_out_rows_and_prompts_than_ranks(tmp_path: Path) -> None:
    keys = ["train.eval_strategy=steps", "train.eval_steps=1", "data.holdout_fraction=0.01", "data.max_rows=40"]
    keys += ["evaluation.prompts=wild7", "evaluation.eval_recipe_split=prompts", "evaluation.num_samples=1"]
    keys += ["evaluation.eval_reward_funcs=[wild7_task]", "evaluation.before=true"]
    done = run_ranks("dpo", tmp_path / "run", 2, *keys, steps=1, batch=4)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["outcome"]["held_out_pairs"]["accuracy"]["n"] == 1
    answers = [row for row in live_view(tmp_path / "run", "dpo") if row["split"] == "eval"]
    assert len(answers) == 2


def test_groups_that_do_not_share_out_evenly_are_all_trained_on(tmp_path: Path) -> None:
    keys = ["train.max_sessions=20", "train.max_steps=-1"]
    done = run_ranks("grpo", tmp_path / "run", 2, *keys, batch=6)
    assert done.returncode == 0, done.stderr
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert len(rows) == 20 and len({row["group_id"] for row in rows}) == 5
    mean = sum(row["response_tokens"] for row in rows if row["step"] == 1) / 12
    first = live_events(tmp_path / "run", "grpo", "step_stats")[0]
    assert first["completions/mean_length"] == pytest.approx(mean)


def test_both_ranks_stop_early_at_the_same_step(tmp_path: Path) -> None:
    keys = ["train.eval_strategy=steps", "train.eval_steps=1", "train.metric_for_best_model=eval_loss"]
    keys += ["train.early_stopping_patience=2", "train.learning_rate=1e-12", "data.holdout_fraction=0.3"]
    done = run_ranks("sft", tmp_path / "run", 2, *keys, steps=20, batch=4)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["status"] == "stopped early"


PIPELINE = """
pipeline: both
output_dir: {folder}
defaults:
  train: {{use_cpu: true, max_length: 96, max_steps: 1, per_device_train_batch_size: 4}}
  data: {{dataset_name: wild7, max_rows: 64}}
stages:
  - stage: sft
    model: {{tiny_hidden_size: 32, tiny_num_layers: 2, tiny_num_heads: 2, tiny_num_kv_heads: 1, tiny_vocab_size: 300}}
    data: {{recipe_split: demonstrations}}
  - stage: dpo
    model: {{model_name_or_path: "${{sft}}"}}
    data: {{recipe_split: pairs}}
"""


def test_the_stages_of_a_pipeline_follow_each_other_on_two_ranks(tmp_path: Path) -> None:
    config = tmp_path / "both.yaml"
    config.write_text(PIPELINE.format(folder=tmp_path / "both"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(ROOT / "experiments" / "train.py")]
    done = subprocess.run(
        [*command, "--config", str(config), "--progress", "none"],
        env={**environment(), "ACCELERATE_USE_CPU": "true", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "both" / "dpo" / "run.json").is_file() and (tmp_path / "both" / "report.html").is_file()
