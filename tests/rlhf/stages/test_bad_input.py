"""Bad input gives one clear line and the right exit code, and loses nothing that was recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rlhf.stages import bad_rewards
from tests.rlhf.stages.tiny_runs import ROOT, arguments, environment, ledger_of, live_events, live_view, run

FUNCTIONS = bad_rewards.__name__


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_an_unknown_key_names_file_line_and_the_nearest_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("train:\n  max_steps: 1\n  learning_rat: 0.1\n")
    assert run("sft", tmp_path / "run", "--config", str(config)) == 2
    line = error_line(capsys)
    assert f"{config}:3" in line and "learning_rate" in line


def test_a_retired_key_names_its_successor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "run", "warmup_ratio=0.1") == 2
    assert "warmup_steps" in error_line(capsys)


def test_a_missing_configuration_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "run", "--config", str(tmp_path / "none.yaml")) == 2
    assert "none.yaml: no such file" in error_line(capsys)


def test_a_missing_data_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dpo", tmp_path / "run", f"data.dataset_name={tmp_path / 'none.jsonl'}", "data.recipe_split=null") == 2
    assert "none.jsonl" in error_line(capsys)


def test_an_empty_data_set_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    assert run("dpo", tmp_path / "run", f"data.dataset_name={path}", "data.recipe_split=null") == 2
    assert "empty.jsonl" in error_line(capsys)


def test_a_row_without_chosen_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, good, {"prompt": "a", "rejected": "c"})))
    assert run("dpo", tmp_path / "run", f"data.dataset_name={path}", "data.recipe_split=null") == 2
    line = error_line(capsys)
    assert "pairs.jsonl:3" in line and "chosen" in line


def test_a_hub_id_without_a_network_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets", reason="the extra `train` is not installed")
    assert run("dpo", tmp_path / "run", "data.dataset_name=nobody/nothing", "data.recipe_split=null") == 2
    assert "nobody/nothing" in error_line(capsys)


def test_an_output_folder_with_content_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "run", steps=1) == 0
    head = ledger_of(tmp_path / "run").head()
    assert run("sft", tmp_path / "run", steps=1) == 2
    assert "--resume" in error_line(capsys)
    assert ledger_of(tmp_path / "run").head() == head
    assert run("sft", tmp_path / "run", "--overwrite", steps=1) == 0
    (aside,) = (path for path in tmp_path.iterdir() if path.name.startswith("run."))
    assert ledger_of(aside).head() == head


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["reward.differentials=[{category: arithmetic, differential: 0.2}]"], "cancel"),
        (["kl.preset=null", "kl.estimator=k1"], "zero expected gradient"),
        (["kl.preset=null", "kl.estimator=k2", "kl.ratio=live"], "k2 with a live ratio"),
        (["kl.preset=trl_rloo"], "unit variance"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    keys: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [key.replace("kl.", "reference.kl.", 1) if key.startswith("kl.") else key for key in keys]
    assert run("grpo", tmp_path / "run", *keys, steps=1) == 2
    assert reason in error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_sampled_kl_on_demonstrations_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["reference.kl_coefficient=0.1", "reference.kl.estimator=k3"]
    assert run("sft", tmp_path / "run", *keys, steps=1) == 2
    assert "demonstrations" in error_line(capsys)


def test_a_reward_function_that_raises_stops_the_run_with_everything_on_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_rewards.calls = 0
    functions = f"reward.reward_funcs=['{FUNCTIONS}:raises_at_the_third_call']"
    assert run("grpo", tmp_path / "run", functions, steps=5) == 3
    assert "the judge is down" in error_line(capsys)
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert [row["step"] for row in rows] == [1] * 8 + [2] * 8 + [3] * 8
    failed = [row for row in rows if row["step"] == 3]
    assert all(row["baseline_reward"] is None and row["components"][0]["status"] == "error" for row in failed)
    assert all(row["response"] is not None for row in failed)
    (stop,) = live_events(tmp_path / "run", "grpo", "stopped")
    assert stop["exit_code"] == 3 and stop["step"] == 3 and len(stop["rows"]) == 8
    ledger = ledger_of(tmp_path / "run")
    assert ledger.verify().ok
    assert ledger.runs()[0]["status"] == "stopped"


def test_with_on_error_null_the_run_goes_on_without_a_reward_for_those_sessions(tmp_path: Path) -> None:
    bad_rewards.calls = 0
    functions = f"reward.reward_funcs=['{FUNCTIONS}:raises_at_the_third_call', {{name: brevity, fn: length}}]"
    assert run("grpo", tmp_path / "run", functions, "reward.on_error=null", steps=4) == 0
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["step"] == 3]
    assert all(row["components"][0]["status"] == "error" and row["baseline_reward"] is not None for row in rows)


def test_a_nan_reward_stops_the_run_and_names_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad_rewards.calls = 0
    functions = f"reward.reward_funcs=['{FUNCTIONS}:nan_at_the_second_call']"
    assert run("grpo", tmp_path / "run", functions, steps=5) == 3
    assert "row 1 of 8" in error_line(capsys)
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert len(rows) == 16


def test_a_step_in_which_nothing_can_be_scored_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    functions = f"reward.reward_funcs=['{FUNCTIONS}:always_null']"
    assert run("grpo", tmp_path / "run", functions, steps=2) == 3
    assert "every reward is null" in error_line(capsys)
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert len(rows) == 8 and all(row["baseline_reward"] is None for row in rows)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_rows_of_the_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["train.learning_rate=1e30", "train.max_grad_norm=0", "train.lr_scheduler_type=constant"]
    assert run("sft", tmp_path / "run", *keys, steps=6) == 3
    assert "not finite" in error_line(capsys)
    (stop,) = live_events(tmp_path / "run", "sft", "stopped")
    assert len(stop["rows"]) == 8 and stop["exit_code"] == 3


def test_raw_row_errors_come_before_torch_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "rejected": "c"}) + "\n")
    argv = arguments("dpo", tmp_path / "run", f"data.dataset_name={path}", "data.recipe_split=null")
    code = f"import sys; from rlhf.cli import main; code = main({argv!r}); print(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.stdout.split() == ["2", "False"], done.stderr


def test_an_edited_row_is_found_and_its_step_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from rewards.cli import main

    assert run("grpo", tmp_path / "run", steps=3) == 0
    assert main(["verify", str(tmp_path / "run" / "ledger")]) == 0
    (path,) = (tmp_path / "run" / "ledger" / "sessions").glob("*.parquet")
    table = pq.read_table(path, partitioning=None)
    here = np.flatnonzero(table["step"].to_numpy() == 2)[3]
    edited = pc.if_else(pa.array(np.arange(table.num_rows) == here), 9.0, table["baseline_reward"])
    pq.write_table(table.set_column(table.schema.get_field_index("baseline_reward"), "baseline_reward", edited), path)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "run" / "ledger")]) == 1
    assert "step 2" in capsys.readouterr().out
