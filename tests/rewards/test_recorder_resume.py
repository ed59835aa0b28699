import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rewards import Ledger, Recorder, recorded
from rewards.errors import ConfigError, LedgerError
from tests.rewards.fake_trainer import FakeTrainer, configuration
from tests.rewards.recorder_parts import batch, events, last, length, read, state, train


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


def test_one_trainer_may_train_again_in_the_same_process(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger", "run")
    functions = recorder.wrap([length])
    trainer = FakeTrainer(functions, configuration(tmp_path / "out"), [recorder.callback()])
    trainer.breaks_at = 3
    with pytest.raises(MemoryError):
        trainer.train()
    trainer.breaks_at = None
    trainer.train(str(tmp_path / "out" / "checkpoint-2"))
    recorder.close()
    rows = read(tmp_path / "ledger")
    assert Counter((row["attempt"], row["step"]) for row in rows) == {(1, 1): 4, (1, 2): 4, (2, 3): 4, (2, 4): 4}
    assert len(read(tmp_path / "ledger", live=False)) == 20


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
