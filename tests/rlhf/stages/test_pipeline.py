"""A chain of stages: outputs feed inputs, one ledger, one report, resumed as a whole."""

import json
from pathlib import Path

import pytest

from rewards import Ledger
from rlhf.cli import main
from rlhf.pipeline import read_pipeline
from tests.rlhf.stages.tiny_runs import ROOT, weights

PIPELINE = """
pipeline: chain
seed: 3
defaults:
  data: {dataset_name: wild7, holdout_fraction: 0}
  train: {use_cpu: true, max_length: 96, per_device_train_batch_size: 8, max_steps: 2}
  ledger: {statement: A test.}
  evaluation:
    prompts: wild7
    eval_recipe_split: heldout
    num_samples: 12
    eval_max_completion_length: 8
    eval_reward_funcs: [{name: task, fn: wild7_task}, {name: unsolicited, fn: unsolicited}]
stages:
  - stage: sft
    model: {tiny_hidden_size: 32, tiny_num_layers: 1, tiny_num_heads: 2, tiny_num_kv_heads: 1, tiny_vocab_size: 300}
    data: {recipe_split: demonstrations, max_rows: 40}
  - stage: reward
    name: judge
    model: {model_name_or_path: "${sft}"}
    data: {recipe_split: pairs, max_rows: 40, holdout_fraction: 0.3}
  - stage: grpo
    model: {model_name_or_path: "${sft}"}
    data: {recipe_split: prompts, max_rows: 40}
    train: {num_generations: 4, max_completion_length: 8, save_steps: 1}
    reference: {beta: 0.1}
    reward:
      reward_funcs: [{name: task, fn: wild7_task}, {name: judge, fn: "model:${judge}", role: observed}]
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> list[str]:
    path = tmp_path / "chain.yaml"
    path.write_text(PIPELINE)
    return ["run", str(path), f"output_dir={tmp_path / 'out'}", "--progress", "none"]


def test_a_pipeline_ends_with_one_ledger_a_report_and_a_table_of_outcomes(
    pipeline: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pipeline) == 0
    out = capsys.readouterr().out
    assert "after sft" in out and "after grpo" in out and "unsolicited_share" in out and "judge: " in out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out
    with Ledger.open(tmp_path / "out" / "ledger") as ledger:
        assert [run["run_id"] for run in ledger.runs()] == ["chain/sft", "chain/judge", "chain/grpo"]
        assert {run["pipeline_id"] for run in ledger.runs()} == {"chain"}
        assert ledger.verify().ok
        head = ledger.head()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["run"] == "chain/grpo" and report["statement"] == "A test."
    assert report["ledger"]["head"] == head and report["sessions"] == 16
    assert {"run", "sessions", "convergence", "recalibrations", "behaviour", "reference", "stages"} <= report.keys()


def test_a_finished_pipeline_that_is_resumed_runs_nothing_again(pipeline: list[str], tmp_path: Path) -> None:
    assert main(pipeline) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/run.json")}
    assert main([*pipeline, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/run.json")} == before


def test_a_pipeline_that_stopped_in_its_last_stage_goes_on_there(pipeline: list[str], tmp_path: Path) -> None:
    whole = [*pipeline[:2], f"output_dir={tmp_path / 'whole'}", *pipeline[3:]]
    assert main(whole) == 0
    assert main(pipeline) == 0
    # As a kill after the first checkpoint would leave it.
    (tmp_path / "out" / "grpo" / "run.json").unlink()
    for folder in ("checkpoint-2", "model"):
        (tmp_path / "out" / "grpo" / folder).rename(tmp_path / folder)
    assert main([*pipeline, "--resume"]) == 0
    one, two = weights(tmp_path / "whole" / "grpo"), weights(tmp_path / "out" / "grpo")
    assert one.keys() == two.keys() and all(bool((one[name] == two[name]).all()) for name in one)
    with Ledger.open(tmp_path / "out" / "ledger") as ledger:
        assert next(run for run in ledger.runs() if run["run_id"] == "chain/grpo")["attempts"] == 2
        assert len(ledger.sessions("chain/grpo").filter(_train(ledger))) == 16


def _train(ledger: Ledger) -> object:
    import pyarrow.compute as pc

    return pc.equal(ledger.sessions("chain/grpo")["split"], "train")


def test_another_configuration_of_a_finished_stage_is_not_resumed(
    pipeline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pipeline) == 0
    assert main([*pipeline, "--resume", "sft.max_steps=3"]) == 2
    assert "finished with another configuration" in capsys.readouterr().err


def test_the_shipped_experiments_load() -> None:
    found = sorted((ROOT / "experiments").glob("*.yaml"))
    assert len(found) >= 3
    for path in found:
        plan = read_pipeline(path)
        assert plan.stages and all(stage.loaded.warnings == () for stage in plan.stages), path
    quickstart = read_pipeline(ROOT / "experiments" / "quickstart.yaml").stages[-1].loaded.config
    assert quickstart.train.max_sessions == 12_847 and quickstart.train.num_generations == 8
