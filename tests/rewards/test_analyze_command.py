"""`rewards analyze` and the report's other forms, through the commands, on records that lack this or that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards import Ledger
from rewards.analysis.alerts import SEVERITIES, alerts
from rewards.cli import main
from rewards.commands.analyze import _effect
from tests.rewards import simulated

KEYS = {
    "run",
    "sessions",
    "phases",
    "converged",
    "recalibrations",
    "dose_response",
    "overoptimization",
    "behaviour",
    "transitions",
    "agreement",
    "alerts",
}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("analyze") / "ledger"
    with Ledger.open(path, create=True) as opened:
        simulated.fill(opened, simulated.grpo_rows(sessions=3205))
    return path


def analysis(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["analyze", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def written(path: Path, rows: list[dict[str, Any]], per_step: int = 8, events: list[Any] = ()) -> Path:
    with Ledger.open(path, create=True) as opened, opened.writer("r") as writer:
        writer.event("attempt_started", {"pipeline": "grpo"})
        for step in range(-(-len(rows) // per_step)):
            writer.append(step=step + 1, rows=rows[step * per_step : (step + 1) * per_step])
        for kind, payload, step in events:
            writer.event(kind, payload, step=step)
    return path


def row(place: int, **changes: Any) -> dict[str, Any]:
    plain = {"pipeline": "grpo", "split": "train", "prompt_id": f"p{place % 40}", "group_id": f"g{place // 8}"}
    return plain | {"baseline_reward": 1.0, "adjusted_reward": 1.0} | changes


def test_the_document_has_every_section_and_the_default_run_is_the_online_one(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = analysis(capsys, str(ledger))
    assert found["run"] == "demo/grpo"
    assert found["sessions"] == 3205
    assert set(found) >= KEYS
    (change,) = found["recalibrations"]
    wanted = {"session", "category", "old_pct", "new_pct", "naive", "excess", "mde_points", "pretrend", "leverage"}
    assert set(change) >= wanted | {"verdict"}


def test_a_triggered_change_gets_no_before_and_after_figure(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (change,) = analysis(capsys, str(ledger))["recalibrations"]
    assert change["triggered"]
    assert change["naive"]["difference"] is None
    assert "regression to the mean" in change["verdict"]


def test_the_same_ledger_gives_the_same_document(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis(capsys, str(ledger)) == analysis(capsys, str(ledger))


def test_the_lines_begin_with_the_alerts_and_name_each_phase(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = analysis(capsys, str(ledger))
    assert main(["analyze", str(ledger)]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = len(document["alerts"])
    assert [line.split("]")[0].strip("[") for line in lines[1 : 1 + count]] == [
        alert["severity"] for alert in document["alerts"]
    ]
    assert sum(line.startswith("phase ") for line in lines) == len(document["phases"])
    assert f"phases: {document['segmentation']['verdict']}" in lines


def test_alerts_come_worst_first(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = [SEVERITIES.index(alert["severity"]) for alert in analysis(capsys, str(ledger))["alerts"]]
    assert order == sorted(order)


def test_a_collapse_next_to_high_compliance_is_critical_and_says_so() -> None:
    document: dict[str, Any] = {
        "behaviour": {"collapse": {"alarm": True, "verdict": "Diversity collapsed."}},
        "compliance": {"last": {"value": 0.97, "n": 1000}},
        "overoptimization": {},
        "transitions": [],
        "recalibrations": [],
        "agreement": {},
        "plateau": {},
        "segmentation": {},
    }
    (found,) = alerts(document)
    assert found["severity"] == "critical"
    assert "0.97" in found["text"] and "must not be read alone" in found["text"]


def bad_records() -> dict[str, list[dict[str, Any]]]:
    rng = np.random.default_rng(3)
    noisy = [float(value) for value in rng.normal(size=400)]
    return {
        "constant rewards": [row(i, category="a") for i in range(400)],
        "one category": [row(i, category="a", baseline_reward=noisy[i], compliant=i % 3 > 0) for i in range(400)],
        "no category": [row(i, baseline_reward=noisy[i]) for i in range(400)],
        "null rewards": [row(i, baseline_reward=None, adjusted_reward=None) for i in range(400)],
        "some rewards missing": [row(i, baseline_reward=noisy[i] if i % 3 else None) for i in range(400)],
        "ten sessions": [row(i, category="a", baseline_reward=noisy[i]) for i in range(10)],
        "one session": [row(0)],
        "no session": [],
    }


@pytest.mark.parametrize("name", bad_records())
def test_a_poor_record_is_analysed_and_reported_with_reasons(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "ledger", bad_records()[name])
    found = analysis(capsys, str(path))
    assert found["recalibrations"] == []
    assert found["dose_response"]["why"]
    assert found["agreement"]["why"]
    assert found["overoptimization"]["why"] or found["overoptimization"]["fits"]
    assert main(["analyze", str(path)]) == 0
    assert main(["report", str(path), "--out", str(tmp_path / "r.html"), "--md", str(tmp_path / "r.md")]) == 0
    capsys.readouterr()
    assert "nan" not in (tmp_path / "r.md").read_text().split()


def test_a_recalibration_without_controls_or_outcome_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"category": "a", "op": "set", "old_pct": 0.0, "new_pct": 15.0, "reason": "by hand"}
    rows = [row(i, category="a", baseline_reward=float(i % 5)) for i in range(400)]
    path = written(tmp_path / "ledger", rows, events=[("recalibration", changed, 25)])
    (found,) = analysis(capsys, str(path))["recalibrations"]
    assert found["excess"].get("estimate") is None
    assert found["verdict"]


def test_an_unknown_run_is_one_line_and_exit_2(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", str(ledger), "--run", "nobody"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "no run `nobody`" in said[0]


def test_the_markdown_carries_the_findings_and_their_origin(ledger: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    assert main(["report", str(ledger), "--md", str(path)]) == 0
    text = path.read_text()
    with Ledger.open(ledger) as opened:
        assert opened.head() in text
    assert "## What needs attention" in text and "## What this record cannot say" in text
    assert "</script>" not in text


def test_the_picture_is_a_png_of_some_size(ledger: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    assert main(["report", str(ledger), "--png", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


def test_a_picture_without_a_curve_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "ledger", bad_records()["ten sessions"])
    assert main(["report", str(path), "--png", str(tmp_path / "r.png")]) == 2
    assert "no curve to draw" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["analyze"], ["why", "first", "last"], ["replay", "--weights", "x=2"], ["report"]])
def test_numbers_that_cannot_be_squared_are_refused_in_one_line(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {"name": "x", "role": "optimised", "weight": 1.0}
    rows = [
        row(i, baseline_reward=value, adjusted_reward=value, components=[part | {"value": value}])
        for i, value in enumerate([1e300, -1e300] * 100)
    ]
    path = written(tmp_path / "ledger", rows)
    more = ["--md", str(tmp_path / "r.md")] if argv == ["report"] else []
    assert main([argv[0], str(path), *argv[1:], *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "1e+300" in said[0]


def test_the_picture_is_written_under_the_name_it_was_given(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "curves.xyz"
    assert main(["report", str(ledger), "--png", str(odd)]) == 0
    assert odd.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "folder").mkdir()
    assert main(["report", str(ledger), "--png", str(tmp_path / "folder")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert sorted(found.name for found in tmp_path.iterdir()) == ["curves.xyz", "folder"]


def test_what_was_written_before_a_refused_picture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path / "ledger", bad_records()["ten sessions"]), tmp_path / "r.json"
    assert main(["report", str(path), "--png", str(tmp_path / "r.png"), "--json", str(out)]) == 2
    assert f"document: {out}" in capsys.readouterr().err
    assert json.loads(out.read_text())["sessions"] == 10


def test_an_effect_is_told_in_points_with_its_counts() -> None:
    excess = {"estimate": 0.2, "points": 3.0, "points_low": -20.1, "points_high": 27.6, "p_adjusted": 0.6}
    text = _effect({"excess": excess | {"n_treated": 472, "n_controls": 2348}, "mde_points": 33.0})
    assert text.startswith("excess effect +3.0 points [-20.1, +27.6], n 472 and 2,348")
