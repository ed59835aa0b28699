import json
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
from tests.rewards.recorder_parts import batch, events, last, length, read, state


def train(folder: Path, resume: str | None = None, functions: Any = None, **more: Any) -> FakeTrainer:
    """A training as a new process would do it."""
    options = {key: more.pop(key) for key in ("advantages", "resume_folder") if key in more}
    if "resume_folder" in options:
        options["resume"] = options.pop("resume_folder")
    recorder = Recorder(folder / "ledger", more.pop("run_id", "run"), **options)
    functions = recorder.wrap(functions or [length, last], weights=more.pop("weights", None))
    trainer = FakeTrainer(functions, configuration(folder / "out", **more), [recorder.callback()])
    try:
        trainer.train(resume)
    finally:
        recorder.close()
    return trainer


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


def killed_at(step: int) -> Any:
    def kill(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        if trainer_state.global_step + 1 == step and "eval" not in completions[0]:
            raise KeyboardInterrupt
        return [0.0] * len(completions)

    return kill


def test_a_resumed_run_counts_once(tmp_path: Path) -> None:
    train(tmp_path / "whole", eval_steps=2, max_steps=6)
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(folder, functions=[length, killed_at(4)], eval_steps=2, max_steps=6)
    train(folder, str(folder / "out" / "checkpoint-2"), functions=[length, killed_at(0)], eval_steps=2, max_steps=6)
    whole, rows = read(tmp_path / "whole" / "ledger"), read(folder / "ledger")
    kept = ("session", "step", "split", "group_id", "response", "prompt_id")
    assert [[row[k] for k in kept] for row in rows] == [[row[k] for k in kept] for row in whole]
    assert [row["attempt"] for row in rows if row["split"] == "train"] == [1] * 8 + [2] * 16
    with Ledger.open(folder / "ledger") as ledger:
        everything = ledger.sessions("run", live=False).to_pylist()
        assert ledger.verify().ok
    assert sum(not row["live"] for row in everything) == 8, "steps 3 and 4 of the first attempt, kept for audit"
    (resumed,) = events(folder / "ledger", "resumed")
    assert resumed["payload"] == {"resume_step": 2, "from_attempt": 1}
    assert [e["step"] for e in events(folder / "ledger", "step_stats")] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in events(folder / "ledger", "checkpoint")] == [2, 4, 6]


def test_functions_that_a_resumed_run_keeps_are_registered_once(tmp_path: Path) -> None:
    resume = str(tmp_path / "out" / "checkpoint-2")
    train(tmp_path, max_steps=2)
    train(tmp_path, resume)
    assert [e["payload"]["name"] for e in events(tmp_path / "ledger", "scorer_registered")] == ["length", "last"]
    train(tmp_path, resume, weights=[2, 1], reward_weights=[2, 1])
    registered = [
        (e["payload"]["name"], e["payload"]["weight"]) for e in events(tmp_path / "ledger", "scorer_registered")
    ]
    assert registered == [("length", 1.0), ("last", 1.0), ("length", 2.0)]


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


def test_changed_settings_of_a_resumed_run_are_told(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2)
    train(tmp_path, str(tmp_path / "out" / "checkpoint-2"), max_steps=4)
    (changed,) = events(tmp_path / "ledger", "config_changed")
    assert changed["payload"] == {"keys": {"max_steps": [2, 4]}}


def test_a_copied_checkpoint_is_found_where_the_trainer_or_the_user_names_it(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2)
    elsewhere = tmp_path / "kept" / "best"
    elsewhere.parent.mkdir()
    (tmp_path / "out" / "checkpoint-2").rename(elsewhere)
    where = str(elsewhere)
    with pytest.raises(LedgerError, match=r"its checkpoint is not at .*checkpoint-2; name its folder"):
        train(tmp_path, where, output_dir=str(tmp_path / "new"))
    train(tmp_path, where, resume_from_checkpoint=where, output_dir=str(tmp_path / "new"), max_steps=4)
    train(tmp_path, where, resume_folder=where, output_dir=str(tmp_path / "new2"), max_steps=4)
    rows = read(tmp_path / "ledger")
    assert [row["step"] for row in rows] == sorted([1, 2, 3, 4] * 4)
    assert {row["attempt"] for row in rows} == {1, 3}
    with pytest.raises(ConfigError, match="and training starts from the beginning"):
        train(tmp_path, None, resume_folder=where)


def test_another_checkpoint_of_the_same_step_is_not_taken_for_the_one_resumed(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2)
    folder = tmp_path / "out" / "checkpoint-2"
    kept = json.loads((folder / "trainer_state.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    kept["log_history"][0]["loss"] = 7.0
    (other / "trainer_state.json").write_text(json.dumps(kept))
    with pytest.raises(LedgerError, match="its checkpoint is not at"):
        train(tmp_path, str(other))
    (folder / "ledger_position.json").unlink()
    with pytest.raises(LedgerError, match=r"holds no ledger_position\.json"):
        train(tmp_path, str(folder))
    (folder / "ledger_position.json").write_text("{")
    with pytest.raises(LedgerError, match=r"ledger_position\.json: cannot be read"):
        train(tmp_path, str(folder))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2)
    with pytest.raises(LedgerError, match="is a checkpoint of run `run`; give Recorder that run_id"):
        train(tmp_path, str(tmp_path / "out" / "checkpoint-2"), run_id="other")


def test_without_the_callback_a_resumed_training_is_refused_and_a_second_one_too(tmp_path: Path) -> None:
    functions = recorded([length], tmp_path / "ledger", "run")
    with pytest.raises(LedgerError, match=r"training continues after step 3, .* callbacks=\[recorder.callback\(\)\]"):
        functions[0](**batch("a", trainer_state=state(3)))
    functions[0](**batch("a", trainer_state=state(0)))
    functions[0](**batch("b", trainer_state=state(1)))
    with pytest.raises(LedgerError, match="went back from step 2 to step 1"):
        functions[0](**batch("a", trainer_state=state(0)))


def test_training_again_from_the_start_says_what_no_longer_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path)
    assert "no longer count" not in caplog.text
    train(tmp_path, max_steps=2)
    assert "run `run` starts from the beginning: the 16 sessions that it has on record no longer count" in caplog.text
    assert len(read(tmp_path / "ledger")) == 8


def test_an_evaluation_outside_training_does_not_replace_a_run(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger", "run")
    trainer = FakeTrainer(recorder.wrap([length]), configuration(tmp_path / "out"), [recorder.callback()])
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    recorder.close()
    rows = read(tmp_path / "ledger")
    assert Counter((row["split"], row["attempt"]) for row in rows) == {("train", 1): 16, ("eval", 1): 8}
    assert [row["step"] for row in rows if row["split"] == "eval"] == [0] * 4 + [4] * 4
    again = Recorder(tmp_path / "ledger", "run")
    trainer = FakeTrainer(again.wrap([length]), configuration(tmp_path / "out"), [again.callback()])
    with pytest.raises(LedgerError, match="run `run` has 16 sessions on record, which an evaluation outside"):
        trainer.evaluate()
    assert len(read(tmp_path / "ledger")) == 24


def test_an_evaluation_repeated_at_the_step_of_the_checkpoint_is_a_group_of_its_own(tmp_path: Path) -> None:
    train(tmp_path, eval_steps=2, max_steps=2)
    recorder = Recorder(tmp_path / "ledger", "run")
    args = configuration(tmp_path / "out", max_steps=2)
    trainer = FakeTrainer(recorder.wrap([length, last]), args, [recorder.callback()])
    trainer.train(str(tmp_path / "out" / "checkpoint-2"))  # nothing is left to train
    trainer.evaluate()
    recorder.close()
    groups = {row["group_id"] for row in read(tmp_path / "ledger") if row["split"] == "eval"}
    assert groups == {"eval-2-0", "eval-2-1", "eval-2-attempt-2-0", "eval-2-attempt-2-1"}


def test_advantages_are_the_trainers_and_only_of_training(tmp_path: Path) -> None:
    train(tmp_path, eval_steps=2, advantages=True)
    rows = read(tmp_path / "ledger")
    assert [row["advantage"] for row in rows] == [0.0, 1.0, 2.0, 3.0] * 4 + [None] * 8
    assert [row["advantage_unadjusted"] for row in rows] == [row["advantage"] for row in rows]
    assert "advantage" not in events(tmp_path / "ledger", "attempt_started")[0]["payload"]["not_recorded"]


def test_sessions_that_wait_for_advantages_are_written_when_training_breaks(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger", "run", advantages=True)
    trainer = FakeTrainer(recorder.wrap([length]), configuration(tmp_path / "out"), [recorder.callback()])
    trainer.breaks = True  # after the rewards are there, before it has made advantages of them
    with pytest.raises(MemoryError):
        trainer.train()
    recorder.close()
    assert [row["advantage"] for row in read(tmp_path / "ledger")] == [None] * 4


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
