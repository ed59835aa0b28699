"""A fork: paired arms that share everything but one recalibration, on record in the ledger of the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards import Ledger
from rlhf.cli import main
from rlhf.fork.arm import ForkedGRPO
from rlhf.fork.plan import find_event, recalibrations
from tests.rlhf.stages.tiny_runs import arguments, ledger_of, summary, weights

TRIGGER = (
    "reward.triggers=[{name: back, phrase: a, category: arithmetic, component: letter, k: 1, n: 8, armed_below: 1.0, "
    "armed_window: 16, widen: 0.5, cooldown_sessions: 100000}]"
)
REWARDS = (
    "reward.reward_funcs=[{name: task, fn: wild7_task}, "
    "{name: letter, fn: phrases, weight: -0.5, kwargs: {phrases: [a]}}, {name: brevity, fn: length, weight: -0.1}]"
)
KEYS = [
    "data.mixture=[{category: arithmetic, weight: 2}, {category: benign}]",
    REWARDS,
    TRIGGER,
    "reward.pivot_samples=8",
    "train.save_steps=1",
    "train.learning_rate=3e-3",
    "train.lr_scheduler_type=cosine",
    "evaluation.prompts=wild7",
    "evaluation.eval_recipe_split=prompts",
    "evaluation.num_samples=6",
    "evaluation.eval_max_completion_length=8",
    "evaluation.before=true",
]
STEPS = 10
# What the two records of one training differ in by being two records.
NAMES = {"run_id", "attempt", "writer", "seq", "time", "arm", "session"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fork") / "run"
    assert main(arguments("grpo", folder, *KEYS, steps=STEPS)) == 0
    return folder


@pytest.fixture(scope="module")
def event(trained: Path) -> Any:
    (found,) = recalibrations(ledger_of(trained), "grpo")
    assert 2 < found.step <= STEPS - 4, found
    return found


def moved(trained: Path, to: Path, last_checkpoint: int) -> Path:
    """The run in another folder, without the checkpoints after a step."""
    shutil.copytree(trained, to)
    for step in range(last_checkpoint + 1, STEPS + 1):
        shutil.rmtree(to / f"checkpoint-{step}", ignore_errors=True)
    return to


@pytest.fixture(scope="module")
def parent(trained: Path, event: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its newest checkpoint is two steps before the event."""
    return moved(trained, tmp_path_factory.mktemp("moved") / "run", event.step - 2)


def fork(parent: Path, out: Path, *more: str) -> int:
    return main(["fork", str(parent), "--at", "1", "--out", str(out), "--progress", "none", *more])


def rows(parent: Path, run: str, after: int = 0, split: str = "train") -> list[dict[str, Any]]:
    ledger = ledger_of(parent)
    table = ledger.sessions(run, texts=True)
    ledger.close()
    found = []
    for row in table.to_pylist():
        if row["split"] == split and row["step"] > after:
            for part in row["components"]:
                part.pop("latency_ms")
            found.append({name: value for name, value in row.items() if name not in NAMES})
    return found


def payloads(parent: Path, run: str, kind: str) -> list[dict[str, Any]]:
    ledger = ledger_of(parent)
    found = [event["payload"] | {"at": event["step"]} for event in ledger.events(run, kind=kind)]
    ledger.close()
    return found


def arm(event: Any, seed: int, name: str) -> str:
    return f"grpo@fork{event.step}-s{seed}-{name}"


@pytest.fixture(scope="module")
def forked(parent: Path, event: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arms") / "out"
    assert fork(parent, out, "--seeds", "0,1", "--arms", "with,without,sham") == 0  # seed 0: the run's own
    return out


def test_the_arm_with_the_event_and_the_seed_of_the_run_repeats_the_run_bit_for_bit(
    parent: Path, forked: Path, event: Any
) -> None:
    start = event.step - 2
    mine, whole = rows(parent, arm(event, 0, "with"), start), rows(parent, "grpo", start)
    assert mine and mine == whole
    a, b = weights(forked / "s0-with"), weights(parent)
    assert all(torch.equal(a[name], b[name]) for name in b)
    rates = [
        {p["at"]: p["learning_rate"] for p in payloads(parent, run, "step_stats")}
        for run in (arm(event, 0, "with"), "grpo")
    ]
    assert rates[0] == {step: rate for step, rate in rates[1].items() if step > start}


def test_a_sham_and_the_arm_without_the_event_are_equal_to_the_last_bit(parent: Path, forked: Path, event: Any) -> None:
    for seed in (0, 1):
        sham, without = rows(parent, arm(event, seed, "sham")), rows(parent, arm(event, seed, "without"))
        assert sham and sham == without
        a, b = weights(forked / f"s{seed}-sham"), weights(forked / f"s{seed}-without")
        assert all(torch.equal(a[name], b[name]) for name in b)
    (said,) = [p for p in payloads(parent, arm(event, 1, "sham"), "recalibration") if p.get("sham")]
    assert said["old_pct"] == said["new_pct"] == event.old_pct and said["intended_pct"] == event.new_pct


def test_the_arms_of_a_pair_share_prompts_and_samples_until_the_event_acts_and_pairs_do_not(
    parent: Path, forked: Path, event: Any
) -> None:
    def until(seed: int, name: str) -> list[dict[str, Any]]:
        return [row for row in rows(parent, arm(event, seed, name)) if row["step"] <= event.step]

    assert until(1, "with") == until(1, "without")
    assert [row["sample_seed"] for row in rows(parent, arm(event, 1, "with"))] == [
        row["sample_seed"] for row in rows(parent, arm(event, 1, "without"))
    ]
    assert {row["sample_seed"] for row in until(1, "with")}.isdisjoint(row["sample_seed"] for row in until(0, "with"))
    assert [row["row_id"] for row in until(1, "with")] != [row["row_id"] for row in until(0, "with")]


def test_only_the_arm_with_the_event_has_it_and_every_trigger_is_held(parent: Path, forked: Path, event: Any) -> None:
    def differentials(name: str) -> dict[int, set[float]]:
        found: dict[int, set[float]] = {}
        for row in rows(parent, arm(event, 1, name)):
            if row["category"] == "arithmetic":
                found.setdefault(row["step"], set()).add(row["components"][1]["differential_pct"])
        return found

    with_it, without = differentials("with"), differentials("without")
    assert all(found == ({50.0} if step > event.step else {0.0}) for step, found in with_it.items())
    assert all(found == {0.0} for found in without.values())
    assert any(step > event.step for step in with_it)
    a, b = weights(forked / "s1-with"), weights(forked / "s1-without")
    assert any(not torch.equal(a[name], b[name]) for name in b), "it has an effect on what is learned"
    assert [p["at"] for p in payloads(parent, arm(event, 1, "with"), "recalibration")] == [event.step]
    assert payloads(parent, arm(event, 1, "without"), "recalibration") == []
    withheld = payloads(parent, arm(event, 1, "without"), "trigger_evaluated")
    assert withheld and all(p["applied"] is False for p in withheld)
    assert any(p["withheld_because"] == "withheld: arm `without` of a fork" for p in withheld)


def test_the_record_says_of_which_run_and_which_arm_it_is(
    parent: Path, forked: Path, event: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ledger_of(parent)
    assert ledger.verify().ok
    table = ledger.sessions(arm(event, 1, "with"))
    assert set(table["arm"].to_pylist()) == {"with"}
    (started,) = payloads(parent, arm(event, 1, "with"), "attempt_started")
    assert started["fork_of"] == {"run_id": "grpo", "attempt": 1, "step": started["resume_step"]}
    assert started["arm"] == "with" and started["fork"]["seed"] == 1
    assert started["fork"]["event"]["step"] == event.step
    assert payloads(parent, arm(event, 1, "with"), "scorer_registered")
    when = [p["when"] for p in payloads(parent, arm(event, 1, "with"), "evaluation")]
    assert when == ["after"], "what was evaluated before the fork is not evaluated again"
    from rewards.cli import main as rewards_main

    capsys.readouterr()
    assert rewards_main(["show", str(parent / "ledger"), "--json"]) == 0
    assert arm(event, 1, "without") in capsys.readouterr().out


def test_finished_arms_are_not_run_again_and_seeds_can_be_added(
    parent: Path, event: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert fork(parent, out, "--seeds", "11,12", "--steps", "2", "--arms", "without") == 0
    assert summary(out / "s11-without")["steps"] == event.step + 2
    assert not list(out.glob("*/checkpoint-*"))
    capsys.readouterr()
    assert fork(parent, out, "--seeds", "11,12") == 2
    assert "--resume" in capsys.readouterr().err
    assert fork(parent, out, "--seeds", "11", "--steps", "3", "--resume") == 2
    assert "last step" in capsys.readouterr().err
    assert fork(parent, out, "--seeds", "11,12,13", "--steps", "2", "--arms", "without", "--resume", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [(a["seed"], a["was_finished"]) for a in document["arms"]] == [
        (11, True),
        (12, True),
        (13, False),
    ]
    ledger = ledger_of(parent)
    assert {run["run_id"]: run["attempts"] for run in ledger.runs()}[arm(event, 11, "without")] == 1


def test_an_arm_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(
    parent: Path, forked: Path, event: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows(parent, arm(event, 1, "with"))
    whole_weights = weights(forked / "s1-with")
    out = tmp_path / "out"
    after_step = ForkedGRPO.after_step

    def stops(self: ForkedGRPO, stats: Any) -> None:
        after_step(self, stats)
        if stats.step == event.step + 3:
            raise KeyboardInterrupt

    # The same run ids in the same ledger: what the arms of the other folder recorded is superseded.
    with monkeypatch.context() as patched:
        patched.setattr(ForkedGRPO, "after_step", stops)
        assert fork(parent, out, "--seeds", "1", "train.save_steps=1") == 130
    assert list((out / "s1-with").glob("checkpoint-*"))
    assert fork(parent, out, "--seeds", "1", "--resume", "train.save_steps=1") == 0
    assert rows(parent, arm(event, 1, "with")) == whole
    again = weights(out / "s1-with")
    assert all(torch.equal(again[name], whole_weights[name]) for name in whole_weights)
    assert set(Ledger.open(parent / "ledger").sessions(arm(event, 1, "with"))["arm"].to_pylist()) == {"with"}
    assert ledger_of(parent).verify().ok


def test_a_whole_reward_differential_without_epsilon_changes_no_advantage_beyond_rounding(
    parent: Path, event: Any, tmp_path: Path
) -> None:
    assert fork(parent, tmp_path / "out", "--seeds", "1", "--arms", "null", "--null-arm") == 0
    null, control = (rows(parent, arm(event, 1, name)) for name in ("null", "control"))
    assert [row["response"] for row in null] == [row["response"] for row in control]
    a, b = (np.array([row["advantage"] for row in found]) for found in (null, control))
    assert np.abs(a - b).max() < 1e-6
    treated = [row for row in null if row["step"] > event.step and row["category"] == "arithmetic"]
    assert {row["differential_pct"] for row in treated} == {50.0}
    assert {row["differential_pct"] for row in control} == {0.0}
    assert any(row["adjusted_reward"] != row["baseline_reward"] for row in treated)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(["fork", *argv, "--progress", "none"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_what_cannot_be_forked_is_refused_in_one_line(
    parent: Path, event: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [str(parent), "--seeds", "2", "--out", str(tmp_path / "out")]
    assert "there are 1: step" in refused(capsys, *run, "--at", "9999")
    assert "neither a number" in refused(capsys, *run, "--at", "soon")
    assert "--null-arm" in refused(capsys, *run, "--at", "1", "--arms", "null")
    assert "no arm" in refused(capsys, *run, "--at", "1", "--arms", "both")
    assert "list of seeds" in refused(capsys, str(parent), "--at", "1", "--seeds", "0x")
    assert "0 pairs" in refused(capsys, str(parent), "--at", "1", "--seeds", "0")
    assert "decided by the fork" in refused(capsys, *run, "--at", "1", "train.seed=4")
    assert "no config.yaml" in refused(capsys, str(tmp_path), "--at", "1", "--seeds", "1")
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_checkpoint_before_the_event_is_refused_and_told_what_to_save(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, str(moved(trained, tmp_path / "run", 0)), "--at", "1", "--seeds", "1")
    assert "train.save_steps" in line and "train.save_total_limit=null" in line


def test_from_the_checkpoint_of_the_event_itself_arms_take_the_change_back_or_have_it(
    trained: Path, event: Any, tmp_path: Path
) -> None:
    run = moved(trained, tmp_path / "run", event.step)
    assert fork(run, tmp_path / "out", "--seeds", "0,1") == 0
    mine, whole = rows(run, arm(event, 0, "with"), event.step), rows(run, "grpo", event.step)
    for row in (*mine, *whole):
        row.pop("schedule_version")  # taking back and setting again are two more changes
    assert mine and mine == whole
    a, b = weights(tmp_path / "out" / "s0-with"), weights(run)
    assert all(torch.equal(a[name], b[name]) for name in b)
    without = [row for row in rows(run, arm(event, 1, "without")) if row["category"] == "arithmetic"]
    assert {row["components"][1]["differential_pct"] for row in without} == {0.0}
    (changed,) = payloads(run, arm(event, 1, "with"), "recalibration")
    assert (changed["at"], changed["old_pct"], changed["new_pct"]) == (event.step, 0.0, 50.0)
    assert ledger_of(run).verify().ok


def test_a_stage_that_does_not_recalibrate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(arguments("sft", folder, steps=1)) == 0
    assert "only online RL" in refused(capsys, str(folder), "--at", "1", "--seeds", "1")


def test_an_event_is_found_by_number_step_or_session(parent: Path, event: Any) -> None:
    known = [event]
    for at in ("1", str(event.step), f"step:{event.step}", f"session:{event.session}"):
        assert find_event(known, at, parent) is event
