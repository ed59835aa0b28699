"""What a run goes on from: which checkpoint, with which settings, and what stays on record."""

import json
from pathlib import Path

import pytest
import torch

from rlhf.train.checkpoint import checkpoints
from tests.rlhf.stages.tiny_runs import ledger_of, live_events, live_view, run, summary, weights

SAVING = ["train.save_steps=2", "train.learning_rate=1e-3"]
CONSTANT = "train.lr_scheduler_type=constant"
EVALUATING = ["train.eval_strategy=steps", "train.eval_steps=1", "data.holdout_fraction=0.3"]
SAMPLED = [
    "evaluation.prompts=wild7",
    "evaluation.eval_recipe_split=prompts",
    "evaluation.num_samples=6",
    "evaluation.eval_max_completion_length=8",
]


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def step_stats(folder: Path, stage: str = "sft") -> list[dict[str, object]]:
    return live_events(folder, stage, "step_stats")


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    keys = ["train.save_steps=1", "train.save_total_limit=2"]
    assert run("sft", tmp_path / "run", *keys, steps=4) == 0
    assert names(tmp_path / "run") == ["checkpoint-3", "checkpoint-4"]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_named_checkpoint_is_resumed_from_and_what_came_after_it_is_superseded(tmp_path: Path) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    assert run("sft", whole, *SAVING, steps=6) == 0
    assert run("sft", run_dir, *SAVING, steps=6) == 0
    named = f"train.resume_from_checkpoint={run_dir / 'checkpoint-2'}"
    assert run("sft", run_dir, *SAVING, named, "--resume", steps=6) == 0
    assert live_view(whole, "sft") == live_view(run_dir, "sft")
    ledger = ledger_of(run_dir)
    assert len(ledger.sessions("sft", live=False)) == 48 + 32 and len(ledger.sessions("sft")) == 48
    assert ledger.verify().ok


def test_a_later_attempt_keeps_its_own_checkpoint_beside_higher_steps_of_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("sft", folder, *SAVING, CONSTANT, steps=6) == 0
    named = f"train.resume_from_checkpoint={folder / 'checkpoint-2'}"
    limit = "train.save_total_limit=1"
    assert run("sft", folder, *SAVING, CONSTANT, limit, named, "--resume", steps=4) == 0
    assert names(folder) == ["checkpoint-4"]
    assert json.loads((folder / "checkpoint-4" / "trainer" / "state.json").read_text())["ledger"]["attempt"] == 2


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "run", "train.resume_from_checkpoint=/nowhere", steps=1) == 2
    assert "/nowhere: not a checkpoint" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "one", *SAVING, steps=2) == 0
    named = f"train.resume_from_checkpoint={tmp_path / 'one' / 'checkpoint-2'}"
    assert run("sft", tmp_path / "two", named, steps=4) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "sft" in line


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_resuming_a_finished_run_changes_neither_model_nor_live_view(stage: str, tmp_path: Path) -> None:
    scored = ["evaluation.eval_reward_funcs=[wild7_task]"]
    keys = ["train.save_steps=2", *SAMPLED, *scored]
    assert run(stage, tmp_path / "run", *keys, steps=2) == 0
    before, rows = weights(tmp_path / "run"), live_view(tmp_path / "run", stage)
    assert any(row["split"] == "eval" for row in rows)
    assert run(stage, tmp_path / "run", *keys, "--resume", steps=2) == 0
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert live_view(tmp_path / "run", stage) == rows
    assert summary(tmp_path / "run")["status"] == "completed"
    assert len(live_events(tmp_path / "run", stage, "evaluation")) == len(
        {(e["suite"], e["when"], e["step"]) for e in live_events(tmp_path / "run", stage, "evaluation")}
    )


def test_a_run_without_a_checkpoint_begins_anew_under_resume(tmp_path: Path) -> None:
    keys = ["train.save_strategy=no"]
    assert run("grpo", tmp_path / "run", *keys, steps=2) == 0
    rows = live_view(tmp_path / "run", "grpo")
    assert run("grpo", tmp_path / "run", *keys, "--resume", steps=2) == 0
    assert live_view(tmp_path / "run", "grpo") == rows
    assert ledger_of(tmp_path / "run").runs()[0]["attempts"] == 2


def test_a_half_written_checkpoint_is_ignored_and_replaced(tmp_path: Path) -> None:
    assert run("sft", tmp_path / "whole", *SAVING, CONSTANT, steps=4) == 0
    folder = tmp_path / "run"
    assert run("sft", folder, *SAVING, CONSTANT, steps=2) == 0
    for name in (".writing-checkpoint-4", ".writing-model"):
        (folder / name / "trainer").mkdir(parents=True)
        (folder / name / "trainer" / "state.json").write_text("{")
        (folder / name / "model-00001-of-00002.safetensors").write_text("half")
    assert run("sft", folder, *SAVING, CONSTANT, "--resume", steps=4) == 0
    assert names(folder) == ["checkpoint-2", "checkpoint-4"]
    assert not (folder / "model" / "trainer").exists() and not (folder / ".writing-checkpoint-4").exists()
    assert all(torch.equal(t, weights(folder)[name]) for name, t in weights(tmp_path / "whole").items())


def test_a_run_that_stopped_early_stays_stopped_under_resume(tmp_path: Path) -> None:
    keys = [*EVALUATING, "train.metric_for_best_model=eval_loss", "train.early_stopping_patience=2"]
    keys += ["train.learning_rate=1e-12", "train.save_steps=100"]
    folder = tmp_path / "run"
    assert run("sft", folder, *keys, steps=20) == 0
    first = summary(folder)
    assert first["status"] == "stopped early" and names(folder) == [f"checkpoint-{first['steps']}"]
    assert run("sft", folder, *keys, "--resume", steps=20) == 0
    again = summary(folder)
    assert (again["status"], again["steps"]) == (first["status"], first["steps"])


def test_the_count_of_evaluations_without_improvement_survives_a_resume(tmp_path: Path) -> None:
    keys = [*EVALUATING, "train.metric_for_best_model=eval_loss", "train.greater_is_better=true", CONSTANT]
    keys += ["train.learning_rate=1e-2", "train.save_steps=2", "train.early_stopping_patience=4"]
    assert run("sft", tmp_path / "whole", *keys, steps=12) == 0
    assert run("sft", tmp_path / "cut", *keys, steps=2) == 0
    assert run("sft", tmp_path / "cut", *keys, "--resume", steps=12) == 0
    whole, cut = summary(tmp_path / "whole"), summary(tmp_path / "cut")
    assert whole["status"] == "stopped early" and (cut["status"], cut["steps"]) == (whole["status"], whole["steps"])


def test_a_learning_rate_changed_on_resume_is_the_one_that_acts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("sft", folder, *SAVING, CONSTANT, steps=2) == 0
    changed = ["train.save_steps=2", "train.learning_rate=5e-3", "train.weight_decay=0.1", CONSTANT]
    assert run("sft", folder, *changed, "--resume", steps=4) == 0
    assert [event["learning_rate"] for event in step_stats(folder)] == pytest.approx([1e-3, 1e-3, 5e-3, 5e-3])
    saved = torch.load(folder / "checkpoint-4" / "trainer" / "optimizer.pt", weights_only=True)["optimizer"]
    assert [group["weight_decay"] for group in saved["param_groups"]] == [0.1, 0.0]


def test_more_steps_on_resume_follow_the_longer_schedule(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("sft", folder, *SAVING, steps=4) == 0
    assert run("sft", folder, *SAVING, "--resume", steps=8) == 0
    rates = [event["learning_rate"] for event in step_stats(folder)]
    assert rates == pytest.approx([1e-3 * (1 - i / 4) for i in range(4)] + [1e-3 * (1 - i / 8) for i in range(4, 8)])


def test_what_is_refused_on_resume_leaves_the_record_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    keys = [*SAVING, *SAMPLED, "evaluation.eval_reward_funcs=[wild7_task]"]
    assert run("sft", folder, *keys, steps=2) == 0
    rows, head = live_view(folder, "sft"), ledger_of(folder).head()
    for changed in ("data.max_rows=63", "model.use_peft=true"):
        assert run("sft", folder, *keys, changed, "--resume", steps=4) == 2
    assert live_view(folder, "sft") == rows and ledger_of(folder).head() == head


def test_a_column_that_changed_is_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    keys = [*SAVING, f"data.dataset_name={path}", "data.recipe_split=null", "data.max_rows=null"]
    keys += ["reward.margin_column=margin", "data.holdout_fraction=0"]
    for margin in (0.0, 0.5):
        pair = [{"prompt": f"say {i}", "chosen": f"{i}", "rejected": f"no {i}", "margin": margin} for i in range(8)]
        path.write_text("".join(json.dumps(row) + "\n" for row in pair))
        extra = ["--resume"] if margin else []
        assert run("reward", tmp_path / "run", *keys, *extra, steps=2 if not margin else 4) == (2 if margin else 0)
    assert "the data set is not the one" in capsys.readouterr().err


def test_a_stop_after_a_recorded_step_does_not_record_it_twice(tmp_path: Path) -> None:
    keys = [*EVALUATING, "train.metric_for_best_model=eval_los", "train.early_stopping_patience=2"]
    assert run("sft", tmp_path / "run", *keys, steps=3) == 3
    assert len(live_view(tmp_path / "run", "sft")) == 8


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "grpo"])
def test_an_evaluation_that_has_nothing_to_look_at_is_refused(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["train.eval_strategy=steps", "train.eval_steps=1", "data.holdout_fraction=0"]
    assert run(stage, tmp_path / "run", *keys, steps=1) == 2
    assert "train.eval_strategy" in capsys.readouterr().err
    assert not (tmp_path / "run" / "ledger").exists()
