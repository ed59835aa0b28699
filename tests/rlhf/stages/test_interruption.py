"""A run that a person or a scheduler ends says so in the ledger; reward functions see what TRL shows them."""

from pathlib import Path
from typing import Any

import pytest

from tests.rlhf.stages.tiny_runs import ledger_of, live_events, live_view, run

seen: list[dict[str, Any]] = []


def interrupts(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    raise KeyboardInterrupt


def notes(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    seen.append(columns)
    return [float(len(ids)) for ids in columns["completion_ids"]]


def test_an_interrupted_run_is_recorded_as_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    functions = f"reward.reward_funcs=['{__name__}:interrupts']"
    assert run("grpo", tmp_path / "run", functions, steps=2) == 130
    assert "ended by Ctrl-C" in capsys.readouterr().err
    (stop,) = live_events(tmp_path / "run", "grpo", "stopped")
    assert stop["reason"] == "KeyboardInterrupt"
    ledger = ledger_of(tmp_path / "run")
    assert ledger.runs()[0]["status"] == "stopped" and ledger.verify().ok
    ledger.close()


def test_reward_functions_get_completion_ids_and_the_columns_of_the_data(tmp_path: Path) -> None:
    seen.clear()
    assert run("grpo", tmp_path / "run", f"reward.reward_funcs=['{__name__}:notes']", steps=1) == 0
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert [row["baseline_reward"] for row in rows] == [row["response_tokens"] for row in rows]
    assert {"category", "answer", "row_id"} & set(seen[0]) >= {"category", "answer"}
