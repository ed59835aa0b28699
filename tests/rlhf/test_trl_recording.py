"""The recorder with TRL's own trainers, really run on a tiny model; TRL is optional, without it these tests skip."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rewards import Ledger, Recorder
from rewards.advantages import advantages
from rewards.report import build_report
from tests.rlhf import trl_runs
from tests.rlhf.trl_runs import events, seen, sessions, train

pytest.importorskip("trl", reason="TRL is not installed: `pip install rlhf-ledger[trl]`")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """TRL's trainers take seconds to import; no test is charged with it."""
    import trl

    assert trl.GRPOTrainer and trl.RLOOTrainer and trl.DPOTrainer


CLIPPED = {"reward_clip_range": [0.0, 6.0]}


def part(row: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [component for component in row["components"] if component["name"] == name]
    return found


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_every_completion_that_trl_scored_is_a_session(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    trainer = train(folder, kind, eval_strategy="steps", eval_steps=2, reward_weights=[0.1, 1.0])
    rows = sessions(folder)
    training = [row for row in rows if row["split"] == "train"]
    assert len(training) == 4 * 4 and [row["session"] for row in training] == list(range(1, 17))
    assert len(rows) - len(training) == 2 * len(trl_runs.HELD_OUT) * 4
    # In the order in which the functions were called, training and evaluation taken together.
    rows.sort(key=lambda row: row["seq"])
    for name in ("length", "parity"):
        assert [[row["response"], part(row, name)["raw"]] for row in rows] == [
            entry[:2] for entry in seen(folder, name)
        ]
    assert [row["policy_version"] for row in rows] == [entry[2] for entry in seen(folder)]
    assert [row["step"] for row in rows] == [row["policy_version"] + (row["split"] == "train") for row in rows]
    for row in rows:
        length, parity = part(row, "length")["value"], part(row, "parity")["value"]
        assert row["baseline_reward"] == pytest.approx(0.1 * length + (parity or 0.0))
        assert row["adjusted_reward"] == row["baseline_reward"]
        assert 1 <= row["response_tokens"] <= 6 and row["kl_nats"] is None
        assert row["truncated"] == (row["stop_reason"] == "length")
    assert trainer.reward_func_names == ["length", "parity"], "what TRL logs under their names is unchanged"
    assert {row["pipeline"] for row in rows} == {kind.lower()}


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_evaluation_and_training_rows_do_not_mix(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    trainer = train(folder, kind, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    rows = sessions(folder)
    held_out, own = ({row["prompt"] for row in data} for data in (trl_runs.HELD_OUT, trl_runs.TRAIN))
    assert {row["prompt"] for row in rows if row["split"] == "eval"} == held_out
    assert {row["prompt"] for row in rows if row["split"] == "train"} <= own
    evaluated = Counter(row["step"] for row in rows if row["split"] == "eval")
    assert evaluated == {0: 8, 2: 8, 4: 8}
    # TRL's own means, made of what it scored, are those of the ledger's rows.
    for event in events(folder, "step_stats"):
        mine = [part(row, "length")["raw"] for row in rows if (row["split"], row["step"]) == ("train", event["step"])]
        assert event["payload"]["rewards/length/mean"] == pytest.approx(np.mean(mine))
    for event in events(folder, "evaluation"):
        mine = [part(row, "length")["raw"] for row in rows if (row["split"], row["step"]) == ("eval", event["step"])]
        assert event["payload"]["metrics"]["eval_rewards/length/mean"] == pytest.approx(np.mean(mine))
        assert event["payload"]["suite"] == "eval"
    assert [event["step"] for event in events(folder, "evaluation")] == [0, 2, 4]
    (started,), (ended,) = events(folder, "attempt_started"), events(folder, "attempt_ended")
    assert started["payload"]["config"]["num_generations"] == 4 and started["payload"]["versions"]["trl"]
    assert ended["payload"]["status"] == "completed" and "train_loss" in ended["payload"]["figures"]
    assert not trainer.model.training, "the last thing done was an evaluation, and the end is not taken for one"


def test_a_group_holds_the_completions_that_trl_compared(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, per_device_train_batch_size=8, reward_weights=[0.1, 1.0], recorder_options={"advantages": True})
    rows = sessions(folder)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group_id"], []).append(row)
    assert len(groups) == 8 and {len(members) for members in groups.values()} == {4}
    assert all(len({row["prompt_id"] for row in members}) == 1 for members in groups.values())
    own = advantages([row["baseline_reward"] for row in rows], [row["group_id"] for row in rows], "group").advantage
    trls = np.array([row["advantage"] for row in rows])
    assert np.allclose(trls, own, atol=2e-3) and np.abs(trls).max() > 0.5  # TRL's are in float32


def test_rloo_advantages_are_taken_with_the_penalty_that_only_the_trainer_knows(tmp_path: Path) -> None:
    plain, held, clipped = tmp_path / "plain", tmp_path / "held", tmp_path / "clipped"
    for folder, more in ((plain, {"beta": 0.0}), (held, {"beta": 0.5}), (clipped, {"beta": 0.0, **CLIPPED})):
        train(folder, "RLOO", recorder_options={"advantages": True}, **more)
    assert max(row["baseline_reward"] for row in sessions(clipped)) == 6.0, "the sum that enters the objective"
    assert max(part(row, "length")["value"] for row in sessions(clipped)) > 6.0
    for folder in (plain, held, clipped):
        rows = sessions(folder)
        rewards = np.array([row["baseline_reward"] for row in rows]).reshape(-1, 4)
        leave_one_out = rewards - (rewards.sum(axis=1, keepdims=True) - rewards) / 3
        found = np.array([row["advantage"] for row in rows]).reshape(-1, 4)
        # At the first step policy and reference are the same, and there is no penalty.
        assert np.allclose(found[0], leave_one_out[0], atol=1e-3)
        assert np.allclose(found, leave_one_out, atol=1e-3) == (folder != held)


def test_sessions_of_one_generation_are_recorded_once_with_the_first_step_they_serve(tmp_path: Path) -> None:
    several, inner, twice = tmp_path / "several", tmp_path / "inner", tmp_path / "twice"
    train(several, steps_per_generation=2)  # a generation batch serves two optimizer steps
    train(inner, num_iterations=2)  # the same completions twice
    train(twice, gradient_accumulation_steps=2, steps_per_generation=1)  # two generation batches a step
    for folder, expected in (
        (several, {1: 8, 3: 8}),
        (inner, {1: 4, 3: 4}),
        (twice, {1: 8, 2: 8, 3: 8, 4: 8}),
    ):
        rows = sessions(folder)
        assert Counter(row["step"] for row in rows) == expected
        assert len(rows) == len(seen(folder)) and {row["group_size"] for row in rows} == {4}
        assert set(Counter(row["group_id"] for row in rows).values()) == {4}


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_a_run_that_broke_and_was_resumed_counts_once(tmp_path: Path, kind: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "recorder_options": {"advantages": True}}
    train(whole, kind, **options)

    def breaks(prompts: list[str], completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        if trainer_state.global_step == 3:
            raise RuntimeError("the judge is gone")
        return [float(len(text)) for text in completions]

    # The same values under another name: the second attempt has the functions of the uninterrupted run.
    with pytest.raises(RuntimeError, match="the judge is gone"):
        train(broken, kind, wrap=[breaks, trl_runs.functions(broken, None)[1]], **options)
    lost = [row for row in sessions(broken) if row["step"] == 4]
    assert [part(row, "breaks")["status"] for row in lost] == ["error"] * 4, "what was scored in part is on record"
    assert events(broken, "stopped")[0]["payload"]["reason"].startswith("reward function `breaks` raised RuntimeError")
    train(broken, kind, resume=2, **options)

    kept = ("session", "step", "split", "group_id", "prompt", "response", "baseline_reward", "advantage", "truncated")
    rows, expected = sessions(broken), sessions(whole)
    assert [[row[k] for k in kept] for row in rows] == [[row[k] for k in kept] for row in expected]
    assert [row["attempt"] for row in rows if row["split"] == "train"] == [1] * 8 + [2] * 8
    everything = sessions(broken, live=False)
    assert len(everything) == len(rows) + 8 and Counter(row["live"] for row in everything)[False] == 8
    (resumed,) = events(broken, "resumed")
    assert resumed["payload"] == {"resume_step": 2, "from_attempt": 1}
    assert [event["step"] for event in events(broken, "checkpoint")] == [2, 4]
    with Ledger.open(broken / "ledger") as ledger:
        assert ledger.verify().ok and ledger.runs()[0]["status"] == "completed"


def test_a_checkpoint_inside_a_generation_batch_has_trl_sample_again_and_both_are_on_record(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, steps_per_generation=4, max_steps=2)
    train(folder, steps_per_generation=4, resume=2)
    rows = sessions(folder)
    assert Counter(row["step"] for row in rows) == {1: 16, 3: 16}, "half of the first 16 was never trained on"
    assert len(rows) == len(seen(folder))
    (changed,) = events(folder, "config_changed")
    assert changed["payload"]["keys"]["max_steps"] == [2, 4]


def test_trl_keeps_8_of_80_completions_and_the_ledger_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = {"per_device_train_batch_size": 8, "num_generations": 8, "max_steps": 10, "log_completions": True}
    train(folder, logging_steps=10, **more)
    (file,) = (folder / "out" / "completions").glob("*.parquet")
    table, rows = pd.read_parquet(file), sessions(folder)
    assert (len(table), len(rows)) == (8, 80)
    assert table["completion"].tolist() == [row["response"] for row in rows[-8:]]
    assert np.allclose(table["length"], [part(row, "length")["raw"] for row in rows[-8:]])
    assert set(table.columns) == {"step", "prompt", "completion", "length", "parity", "advantage"}
    # The steps meet: what TRL calls 10 is the number of updates when it logged, the step they were scored for here.
    assert set(table["step"]) == {10} == {row["step"] for row in rows[-8:]}


def test_an_evaluation_replaces_trls_file_of_the_training_and_nothing_in_the_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, max_steps=2, logging_steps=2, log_completions=True, eval_strategy="steps", eval_steps=2)
    (file,) = (folder / "out" / "completions").glob("*.parquet")
    assert set(pd.read_parquet(file)["prompt"]) <= {row["prompt"] for row in trl_runs.HELD_OUT}
    assert Counter(row["split"] for row in sessions(folder)) == {"train": 8, "eval": 8}


def test_dpo_leaves_scalars_and_checkpoints_and_no_sessions(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, "DPO", eval_strategy="steps", eval_steps=2, max_steps=2)
    train(folder, "DPO", eval_strategy="steps", eval_steps=2, resume=2)
    assert sessions(folder) == []
    assert [event["step"] for event in events(folder, "step_stats")] == [1, 2, 3, 4]
    assert all(event["payload"]["rewards/margins"] is not None for event in events(folder, "step_stats"))
    assert [event["step"] for event in events(folder, "evaluation")] == [2, 4]
    assert "eval_loss" in events(folder, "evaluation")[0]["payload"]["metrics"]
    assert [event["step"] for event in events(folder, "checkpoint")] == [2, 4]
    with Ledger.open(folder / "ledger") as ledger:
        (run,) = ledger.runs()
        report = build_report(ledger, "run").data
    assert (run["attempts"], run["newest_attempt"], run["sessions"], run["status"]) == (2, 2, 0, "completed")
    assert report["summary"]["pipeline"] == "dpo" and report["convergence"]["why"]


def test_a_report_of_a_recorded_run_says_why_it_has_no_kl(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, beta=0.1, eval_strategy="steps", eval_steps=2)
    with Ledger.open(folder / "ledger") as ledger:
        data = build_report(ledger, "run").data
    assert data["sessions"] == 16 and data["summary"]["pipeline"] == "grpo"
    assert "see no log-probabilities" in data["kl"]["why"] and data["kl"]["bins"] == []
    assert data["reference"]["why"] and data["convergence"]["unit"] == "reward"
    assert [c["name"] for c in data["summary"]["components"]] == ["length", "parity"]
    assert {row["category"] for row in data["categories"]} <= {"even", "odd"}


def test_a_callback_that_is_added_later_is_as_good(tmp_path: Path) -> None:
    import trl
    from datasets import Dataset

    recorder = Recorder(tmp_path / "ledger", "run", pipeline="grpo-late")
    arguments = trl.GRPOConfig(**{**trl_runs.DEFAULTS, **trl_runs.ONLINE, "output_dir": str(tmp_path / "out")})
    trainer = trl.GRPOTrainer(
        str(trl_runs.build(tmp_path)),
        recorder.wrap([lambda completions, **columns: [0.0] * len(completions)]),
        arguments,
        train_dataset=Dataset.from_list(trl_runs.TRAIN),
        eval_dataset=Dataset.from_list(trl_runs.HELD_OUT),
    )
    trainer.evaluate()  # before the callback, before the training
    trainer.add_callback(recorder.callback())
    trainer.train()
    trainer.evaluate()
    recorder.close()
    rows = sessions(tmp_path)
    assert Counter((row["split"], row["attempt"]) for row in rows) == {("train", 1): 16, ("eval", 1): 16}
    assert Counter(row["step"] for row in rows if row["split"] == "eval") == {0: 8, 4: 8}
    assert {row["pipeline"] for row in rows} == {"grpo-late"}


def test_conversational_prompts_are_kept_as_text(tmp_path: Path) -> None:
    import trl
    from datasets import Dataset

    recorder = Recorder(tmp_path / "ledger", "run")
    arguments = trl.GRPOConfig(
        **{**trl_runs.DEFAULTS, **trl_runs.ONLINE, "output_dir": str(tmp_path / "out"), "max_steps": 1}
    )
    data = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in trl_runs.TRAIN]
    taken: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        taken.extend(completion[0]["content"] for completion in completions)
        return [1.0] * len(completions)

    trainer = trl.GRPOTrainer(
        str(trl_runs.build(tmp_path)),
        recorder.wrap(reward),
        arguments,
        train_dataset=Dataset.from_list(data),
        callbacks=[recorder.callback()],
    )
    with recorder:
        trainer.train()
    rows = sessions(tmp_path)
    assert [row["response"] for row in rows] == taken
    assert {row["prompt"] for row in rows} <= {row["prompt"] for row in trl_runs.TRAIN}


# -- in processes of their own ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_counts_once(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = trl_runs.child(whole, eval_strategy="steps", eval_steps=2)
    assert done.returncode == 0, done.stderr[-2000:]
    died = trl_runs.child(killed, eval_strategy="steps", eval_steps=2, kill_at=3)
    assert died.returncode == -9
    with Ledger.open(killed / "ledger") as ledger:
        assert ledger.runs()[0]["status"] == "open" and ledger.sessions("run").num_rows == 12 + 8
    done = trl_runs.child(killed, eval_strategy="steps", eval_steps=2, resume=2)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = ("session", "step", "split", "group_id", "prompt", "response", "baseline_reward")
    rows, expected = sessions(killed), sessions(whole)
    assert [[row[k] for k in kept] for row in rows] == [[row[k] for k in kept] for row in expected]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_two_ranks_both_record_in_one_attempt_and_a_resume_counts_once(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    # Two completions a rank and four a prompt: every group lies on both ranks.
    options: dict[str, Any] = {"kind": kind, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "recorder_options": {"advantages": True}}
    for more in ({"max_steps": 2}, {"max_steps": 4, "resume": 2}):
        done = trl_runs.child(folder, ranks=2, **options, **more)
        assert done.returncode == 0, done.stderr[-3000:]
    rows = sessions(folder)
    places = [(split, attempt, rank) for split in ("train", "eval") for attempt in (1, 2) for rank in (0, 1)]
    assert Counter((r["split"], r["attempt"], r["writer"]) for r in rows) == dict.fromkeys(places, 4)
    for rank in (0, 1):
        mine = sorted((r for r in rows if r["writer"] == rank), key=lambda r: (r["attempt"], r["seq"]))
        assert [[r["response"], part(r, "length")["raw"], r["policy_version"]] for r in mine] == seen(folder, rank=rank)
    for row in rows:
        members = [other for other in rows if other["group_id"] == row["group_id"]]
        assert len(members) == 4 == row["group_size"] and {other["prompt_id"] for other in members} == {
            row["prompt_id"]
        }
    training = [row for row in rows if row["split"] == "train"]
    assert {(r["step"], r["writer"]) for r in training} == {(step, rank) for step in (1, 2, 3, 4) for rank in (0, 1)}
    if kind == "GRPO":
        rewards, groups = ([row[name] for row in training] for name in ("baseline_reward", "group_id"))
        assert np.allclose(
            [r["advantage"] for r in training], advantages(rewards, groups, "group").advantage, atol=2e-3
        )
    with Ledger.open(folder / "ledger") as ledger:
        assert ledger.verify().ok and ledger.runs()[0]["attempts"] == 2
        assert [event["payload"]["world_size"] for event in ledger.events("run", kind="attempt_started")] == [2, 2]
        assert len(ledger.events("run", kind="step_stats")) == 4, "rank 0 writes the events"
    position = json.loads((folder / "out" / "checkpoint-4" / "ledger_position.json").read_text())["position"]
    assert set(position["positions"]) == {"0", "1"}
