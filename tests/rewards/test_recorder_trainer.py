import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rewards import Ledger, Recorder, recorded
from rewards.errors import ConfigError, LedgerError
from rewards.report import write_report
from tests.rewards.fake_trainer import FakeTrainer, configuration
from tests.rewards.recorder_parts import batch, events, last, length, read, train


def test_every_scored_completion_is_on_record_with_the_step_it_was_scored_for(tmp_path: Path) -> None:
    trainer = train(tmp_path, eval_steps=2)
    rows = read(tmp_path / "ledger")
    assert len(rows) == len(trainer.seen) == 4 * 4 + 2 * 4
    for row in rows:
        kind, step, *_ = row["response"].split()
        assert (row["split"], row["step"]) == ({"step": "train", "eval": "eval"}[kind], int(step))
        assert row["policy_version"] == (int(step) - 1 if kind == "step" else int(step))
        assert (row["session"] is None) == (kind == "eval")
    assert sorted((r["response"], *(part["raw"] for part in r["components"])) for r in rows) == sorted(trainer.seen)
    sizes = Counter(row["group_id"] for row in rows)
    assert set(sizes.values()) == {2} and len(sizes) == 12 and {row["group_size"] for row in rows} == {2}
    assert {row["group_id"] for row in rows if row["split"] == "eval"} == {
        "eval-2-0",
        "eval-2-1",
        "eval-4-0",
        "eval-4-1",
    }
    assert {row["category"] for row in rows} == {"even", "odd"} and {row["pipeline"] for row in rows} == {"grpo"}


def test_configuration_scalars_evaluations_and_the_end_are_events(tmp_path: Path) -> None:
    train(tmp_path, eval_steps=2, reward_weights=[1.0, 0.25])
    path = tmp_path / "ledger"
    (started,) = events(path, "attempt_started")
    payload = started["payload"]
    assert payload["config"]["num_generations"] == 2 and len(payload["config_digest"]) == 16
    assert (payload["stage"], payload["world_size"], payload["resume_step"]) == ("grpo", 1, None)
    assert "log-probabilities" in payload["not_recorded"]["kl_nats"] and payload["versions"]["python"]
    assert [e["payload"]["weight"] for e in events(path, "scorer_registered")] == [1.0, 0.25], "the trainer's own"
    assert [(e["step"], e["payload"]["loss"]) for e in events(path, "step_stats")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 0.25),
    ]
    assert [(e["step"], e["payload"]["suite"]) for e in events(path, "evaluation")] == [(2, "eval"), (4, "eval")]
    assert [e["step"] for e in events(path, "checkpoint")] == [2, 4]
    (ended,) = events(path, "attempt_ended")
    assert ended["payload"] == {
        "status": "completed",
        "steps": 4,
        "figures": {"train_runtime": 1.5, "train_loss": 0.25},
    }
    with Ledger.open(path) as ledger:
        assert ledger.verify().ok and ledger.runs()[0]["status"] == "completed"


def test_a_report_says_what_is_not_on_record_and_why(tmp_path: Path) -> None:
    train(tmp_path, eval_steps=2)
    with Ledger.open(tmp_path / "ledger") as ledger:
        data = write_report(ledger, "run", html=tmp_path / "report.html")
    reason = "kl_nats is null in every session: reward functions and callbacks see no log-probabilities"
    assert data["kl"] == {"bins": [], "n": 0, "why": reason}
    assert data["reference"]["why"].startswith("no session names a reference: the trainer does not say")
    assert data["sessions"] == 16 and data["summary"]["evaluation_sessions"] == 8
    assert any(line.startswith("Not on record: kl_nats, kl_k3_nats") for line in data["limits"])
    assert "see no log-probabilities" in (tmp_path / "report.html").read_text()


def test_advantages_are_the_trainers_and_only_of_training(tmp_path: Path) -> None:
    train(tmp_path, eval_steps=2, advantages=True)
    rows = read(tmp_path / "ledger")
    assert [row["advantage"] for row in rows] == [0.0, 1.0, 2.0, 3.0] * 4 + [None] * 8
    assert [row["advantage_unadjusted"] for row in rows] == [row["advantage"] for row in rows]
    assert "advantage" not in events(tmp_path / "ledger", "attempt_started")[0]["payload"]["not_recorded"]


def test_sessions_that_wait_for_advantages_are_written_when_training_breaks(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger", "run", advantages=True)
    trainer = FakeTrainer(recorder.wrap([length]), configuration(tmp_path / "out"), [recorder.callback()])
    trainer.breaks_at = 1  # after the rewards are there, before it has made advantages of them
    with pytest.raises(MemoryError):
        trainer.train()
    recorder.close()
    assert [row["advantage"] for row in read(tmp_path / "ledger")] == [None] * 4


def test_a_training_that_breaks_elsewhere_says_so(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger", "run")
    trainer = FakeTrainer(recorder.wrap([length]), configuration(tmp_path / "out"), [recorder.callback()])
    trainer.breaks_at = 1
    with pytest.raises(MemoryError), recorder:
        trainer.train()
    (stopped,) = events(tmp_path / "ledger", "stopped")
    assert (stopped["payload"]["reason"], stopped["step"]) == ("MemoryError:", 1)


def test_a_trainer_that_shows_its_functions_nothing_is_known_by_the_callback(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger", "run")
    (wrapped,) = recorder.wrap([length])

    def bare(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return wrapped(prompts=prompts, completions=completions)

    trainer = FakeTrainer([bare], configuration(tmp_path / "out", eval_steps=2), [recorder.callback()])
    with recorder:
        trainer.train()
    rows = read(tmp_path / "ledger")
    assert Counter((r["split"], r["step"]) for r in rows) == {
        **{("train", step): 4 for step in (1, 2, 3, 4)},
        **{("eval", step): 4 for step in (2, 4)},
    }
    assert {row["group_size"] for row in rows} == {2} and {row["pipeline"] for row in rows} == {"grpo"}


def test_a_trainer_that_scores_with_more_or_weighs_otherwise_is_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger", "run")
    wrapped = recorder.wrap([length])
    trainer = FakeTrainer([*wrapped, last], configuration(tmp_path / "out"), [recorder.callback()])
    with pytest.raises(ConfigError, match="the trainer scores with `length`, `last` and the recorder has `length`"):
        trainer.train()
    with pytest.raises(ConfigError, match=r"given the weights \[1.0, 2.0\] and the trainer uses \[1.0, 1.0\]"):
        train(tmp_path, run_id="second", weights=[1, 2])
    train(tmp_path, run_id="third", weights=[1, 2], reward_weights=[1.0, 2.0000001])


def test_a_closed_recorder_refuses_to_score_unrecorded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run")
    (wrapped,) = recorder.wrap(length)
    with recorder:
        wrapped(**batch("a"))
    with pytest.raises(LedgerError, match="recorder was closed"):
        wrapped(**batch("b"))
    assert len(read(tmp_path)) == 1


def test_a_ledger_that_was_handed_over_stays_open(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, create=True) as ledger:
        recorder = Recorder(ledger, "run")
        recorder.wrap([length])[0](**batch("a"))
        recorder.close()
        assert ledger.sessions("run").num_rows == 1
        assert not ledger.writer("other").closed


def test_events_of_the_trainer_that_nobody_listens_to_are_heard(tmp_path: Path) -> None:
    callback = Recorder(tmp_path, "run").callback()
    assert callback.on_something_new(None, None, None, model=None) is None
    with pytest.raises(AttributeError, match="set_trainer"):
        callback.set_trainer  # noqa: B018


def test_several_processes_that_cannot_talk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (wrapped,) = recorded([length], tmp_path, "run")
    with pytest.raises(ConfigError, match="this is one of 2 processes"):
        wrapped(**batch("a"))


def test_sessions_are_written_when_the_interpreter_ends_without_a_close(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from rewards import recorded\n"
        "def f(completions, **columns): return [1.0] * len(completions)\n"
        f"(f,) = recorded([f], {str(tmp_path)!r}, 'run')\n"
        "f(prompts=['p'] * 3, completions=['a', 'b', 'c'])\n"
        "assert not set(sys.modules) & {'torch', 'transformers', 'trl'}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
    assert [row["response"] for row in read(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize("advantages", [False, True])
def test_many_runs_through_threads_and_events_leave_a_ledger_that_verifies(tmp_path: Path, advantages: bool) -> None:
    train(tmp_path, eval_steps=1, advantages=advantages)
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert ledger.verify().ok


def test_rloo_clips_the_weighted_sum_and_so_does_the_record(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger", "run")
    trainer = FakeTrainer(recorder.wrap([last]), configuration(tmp_path / "out"), [recorder.callback()])
    trainer.reward_clip_range = (0.5, 2.5)
    with recorder:
        trainer.train()
    rows = read(tmp_path / "ledger")[:4]
    assert [row["components"][0]["raw"] for row in rows] == [0.0, None, 2.0, 3.0]
    assert [row["baseline_reward"] for row in rows] == [0.5, None, 2.0, 2.5]
    assert [row["adjusted_reward"] for row in rows] == [0.5, None, 2.0, 2.5], "what the objective gets"
