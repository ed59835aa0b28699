"""Trackers beside the ledger."""

from pathlib import Path

import pytest

from tests.rlhf.stages.tiny_runs import live_events, run


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_tensorboard_holds_the_losses_of_the_ledger(stage: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keys = ["tracking.report_to=tensorboard", "tracking.project=board", "train.logging_steps=2"]
    assert run(stage, tmp_path / "run", *keys, steps=4) == 0
    (path,) = (tmp_path / "run" / "board").glob("events.out.tfevents.*")
    found = EventAccumulator(str(path))
    found.Reload()
    expected = {e["step"]: e["loss"] for e in live_events(tmp_path / "run", stage, "step_stats") if e["step"] % 2 == 0}
    assert {e.step: pytest.approx(e.value, abs=1e-6) for e in found.Scalars("loss")} == expected


def test_a_tracker_that_is_not_installed_is_an_error_and_not_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import rlhf.stages.run

    monkeypatch.setattr(rlhf.stages.run, "get_available_trackers", list)
    assert run("sft", tmp_path / "run", "tracking.report_to=wandb", steps=1) == 2
    assert "pip install wandb" in capsys.readouterr().err
