"""The same run cut in another way, on two ranks, twice, or killed and resumed, is the same run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rewards.cli import main as rewards_main
from rlhf.models import layout
from tests.rlhf.stages.tiny_runs import (
    ROOT,
    arguments,
    environment,
    ledger_of,
    live_events,
    live_view,
    run,
    run_ranks,
    weights,
)

STAGES = ("sft", "reward", "dpo", "grpo")
# Gains and unequal lengths make the denominators of the micro-batches differ.
GAIN = {
    "sft": ["reward.differentials=[{category: format, differential: 0.7}]", "reference.kl_coefficient=0.2"],
    "reward": ["reward.differentials=[{category: format, differential: 0.7}]", "train.rm_regularizer=grm_sft"],
    "dpo": ["reward.differentials=[{category: format, differential: 0.7}]"],
    "grpo": [],
}


def losses(folder: Path, stage: str) -> list[float]:
    return [event["loss"] for event in live_events(folder, stage, "step_stats")]


def largest_difference(a: Path, b: Path) -> float:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() and first
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


# Penalties per text are divided by the number of texts, those per token by the number of tokens.
PER_TEXT = [
    "reference.kl={preset: sequence_k2}",
    "reference.kl={estimator: full, place: loss, level: sequence, ratio: live}",
]


@pytest.mark.parametrize(
    ("stage", "more"),
    [*((stage, []) for stage in STAGES), *(("grpo", [kl, "train.scale_rewards=none"]) for kl in PER_TEXT)],
    ids=[*STAGES, "grpo, k2 of a text", "grpo, full of a text"],
)
def test_one_batch_of_8_and_8_of_1_give_the_same_parameters_in_float64(
    stage: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Cut into single completions a prompt is read once for each. That is the same but for the model's norms, which
    # transformers computes in float32 whatever the model's type, also backward: see the next test.
    monkeypatch.setattr(layout, "LEAST_SHARED", 10**9)
    keys = [*GAIN[stage], *more, "model.dtype=float64", "train.learning_rate=1e-3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(stage, whole, *keys, steps=3, batch=8) == 0
    assert run(stage, cut, *keys, "train.gradient_accumulation_steps=8", steps=3, batch=1) == 0
    assert losses(whole, stage) == pytest.approx(losses(cut, stage), abs=1e-12)
    assert largest_difference(whole, cut) < 1e-9


def test_a_prompt_read_once_or_for_each_completion_differs_by_the_rounding_of_norms_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["model.dtype=float64", "train.learning_rate=1e-3"]
    once, each = tmp_path / "once", tmp_path / "each"
    monkeypatch.setattr(layout, "LEAST_SHARED", 1)
    assert run("grpo", once, *keys, steps=3, batch=8) == 0
    monkeypatch.setattr(layout, "LEAST_SHARED", 10**9)
    assert run("grpo", each, *keys, steps=3, batch=8) == 0
    assert losses(once, "grpo") == pytest.approx(losses(each, "grpo"), abs=1e-9)
    assert 0 < largest_difference(once, each) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_one_batch_of_8_and_8_of_1_give_the_same_losses_in_float32(stage: str, tmp_path: Path) -> None:
    keys = [*GAIN[stage], "train.learning_rate=1e-3"]
    assert run(stage, tmp_path / "whole", *keys, steps=3, batch=8) == 0
    assert run(stage, tmp_path / "cut", *keys, "train.gradient_accumulation_steps=8", steps=3, batch=1) == 0
    assert losses(tmp_path / "whole", stage) == pytest.approx(losses(tmp_path / "cut", stage), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_give_the_parameters_of_one_in_float64(stage: str, tmp_path: Path) -> None:
    keys = [*GAIN[stage], "model.dtype=float64", "train.learning_rate=1e-3"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(stage, one, *keys, steps=3, batch=8) == 0
    done = run_ranks(stage, two, 2, *keys, "train.world_size=2", steps=3, batch=4)
    assert done.returncode == 0, done.stderr
    assert losses(one, stage) == pytest.approx(losses(two, stage), abs=1e-12)
    assert largest_difference(one, two) < 1e-9
    # Two writers recorded; the live view holds every session once.
    rows = live_view(two, stage)
    assert sorted(row["row_id"] for row in rows) == sorted(row["row_id"] for row in live_view(one, stage))
    ledger = ledger_of(two)
    assert {row["writer"] for row in ledger.sessions(stage).to_pylist()} == {0, 1}
    assert ledger.verify().ok


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one_in_float32(tmp_path: Path) -> None:
    keys = [*GAIN["dpo"], "train.learning_rate=1e-3"]
    assert run("dpo", tmp_path / "one", *keys, steps=3, batch=8) == 0
    done = run_ranks("dpo", tmp_path / "two", 2, *keys, steps=3, batch=4)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "one", "dpo") == pytest.approx(losses(tmp_path / "two", "dpo"), abs=1e-5)


def test_another_world_size_than_requested_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "run", "train.world_size=2", steps=1) == 2
    assert "train.world_size asks for 2 ranks, 1 started" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_two_runs_with_one_seed_leave_the_same_live_view_and_parameters(stage: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(stage, tmp_path / name, steps=3) == 0
    assert live_view(tmp_path / "a", stage) == live_view(tmp_path / "b", stage)
    assert largest_difference(tmp_path / "a", tmp_path / "b") == 0.0


def test_another_seed_leaves_another_record(tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "a", steps=2) == 0
    assert run("grpo", tmp_path / "b", "train.seed=4", steps=2) == 0
    assert live_view(tmp_path / "a", "grpo") != live_view(tmp_path / "b", "grpo")


def report_of(folder: Path) -> dict[str, object]:
    target = folder.parent / f"{folder.name}.json"
    assert (
        rewards_main(
            ["report", str(folder / "ledger"), "--out", str(target.with_suffix(".html")), "--json", str(target)]
        )
        == 0
    )
    found: dict[str, object] = json.loads(target.read_text())
    return without_volatile(found)  # type: ignore[return-value]


def without_volatile(value: object) -> object:
    """A report without attempts, seq, times, latencies, chain heads and paths of the output folder."""
    if isinstance(value, dict):
        dropped = {"ledger", "attempts", "attempt", "seq", "head", "latency_ms", "config_digest"}
        return {k: without_volatile(v) for k, v in value.items() if k not in dropped and not k.startswith("time")}
    if isinstance(value, list):
        return [without_volatile(item) for item in value]
    return value


TRIGGER = (
    "reward.triggers=[{name: back, phrase: a, category: arithmetic, component: brevity, k: 1, n: 4, armed_below: 1.0,"
    " armed_window: 4, cooldown_sessions: 6}]"
)
SETPOINT = (
    "reward.setpoints=[{phrase: e, category: arithmetic, component: task, target: 0.05, gain: 5.0, lag_sessions: 8,"
    " every_sessions: 1, least_change: 0.0}]"
)


@pytest.mark.parametrize("inner", [1, 2])
def test_a_killed_and_resumed_grpo_run_equals_the_uninterrupted_one(inner: int, tmp_path: Path) -> None:
    keys = [f"train.num_iterations={inner}", TRIGGER, SETPOINT, "train.save_steps=3", "train.learning_rate=1e-2"]
    keys += ["reward.pivot_samples=8"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the child process
    assert run("grpo", whole, *keys, steps=8) == 0
    command = [sys.executable, "-m", "rlhf.cli", *arguments("grpo", killed, *keys, steps=8)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=log)
        kill_after(process, killed / "checkpoint-3", killed, step=5)
    assert run("grpo", killed, *keys, "--resume", steps=8) == 0
    torch.set_num_threads(threads)
    assert largest_difference(whole, killed) == 0.0
    assert live_view(whole, "grpo") == live_view(killed, "grpo")
    for kind in ("recalibration", "trigger_evaluated", "pivot_set", "step_stats"):
        assert live_events(whole, "grpo", kind) == live_events(killed, "grpo", kind)
    evaluated = live_events(whole, "grpo", "trigger_evaluated")
    assert {event["trigger"].get("kind") for event in evaluated} == {None, "setpoint"}
    assert report_of(whole) == report_of(killed)
    ledger = ledger_of(killed)
    everything = ledger.sessions("grpo", live=False).to_pylist()
    live = ledger.sessions("grpo").to_pylist()
    superseded = [row for row in everything if row["attempt"] == 1 and row["step"] > 3]
    assert superseded and len(everything) == len(live) + len(superseded)
    assert ledger.verify().ok


def kill_after(process: subprocess.Popen[bytes], checkpoint: Path, folder: Path, step: int) -> None:
    """Kills -9 once the checkpoint is there and a later step is on record."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"ended before it could be killed: {(folder.parent / 'log').read_text()}")
        if checkpoint.is_dir() and newest_step(folder) >= step:
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def newest_step(folder: Path) -> int:
    ledger = ledger_of(folder)
    try:
        events = ledger.events("grpo", kind="step_stats")
        return max((event["step"] for event in events), default=0)
    finally:
        ledger.close()


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_resumed_run_equals_the_uninterrupted_one(stage: str, tmp_path: Path) -> None:
    keys = ["train.save_steps=2", "train.learning_rate=1e-3", "train.lr_scheduler_type=constant"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(stage, whole, *keys, steps=6) == 0
    assert run(stage, stopped, *keys, steps=2) == 0
    assert run(stage, stopped, *keys, "--resume", steps=6) == 0
    assert largest_difference(whole, stopped) == 0.0
    assert live_view(whole, stage) == live_view(stopped, stage)
    changed = live_events(stopped, stage, "config_changed")
    assert [event["keys"] for event in changed] == [{"train.max_steps": [2, 6]}]


def test_a_run_is_not_resumed_against_other_data_or_another_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["train.save_steps=2"]
    assert run("dpo", tmp_path / "run", *keys, steps=2) == 0
    assert run("dpo", tmp_path / "run", *keys, "data.max_rows=63", "--resume", steps=4) == 2
    assert "the data set is not the one this run started with" in capsys.readouterr().err
