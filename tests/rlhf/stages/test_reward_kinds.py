"""Reward models from scores, levels and steps through the real command: rows, splits, resume, what is saved."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.models.load import load_reward_model
from rlhf.stages.reward_heads import Bootstrap
from rlhf.stages.reward_scalar import _pair_accuracy
from tests.rlhf.stages.reward_rows import rated, responses, sums, write
from tests.rlhf.stages.test_invariance import largest_difference
from tests.rlhf.stages.tiny_runs import live_events, live_view, run, run_ranks, summary

HELD = "data.holdout_fraction=0.3"
REGRESSION = ["train.loss_type=regression", "train.score_scale=[1, 5]"]
ORDINAL = ["train.loss_type=ordinal", "train.score_scale=[1, 5]"]
TWO = [
    "train.loss_type=regression",
    "train.score_scale=[0, 4]",
    "train.attributes=[help, length]",
    "train.attribute_weights={help: 0.75, length: -0.25}",
]
PROCESS = ["train.loss_type=process"]


def keys_of(kind: str, folder: Path) -> list[str]:
    rows: dict[str, Any] = {"regression": responses, "ordinal": responses, "attributes": rated, "process": sums}
    own = {"regression": REGRESSION, "ordinal": ORDINAL, "attributes": TWO, "process": PROCESS}
    return [*write(folder / f"{kind}.jsonl", rows[kind]()), *own[kind]]


KINDS = ["regression", "ordinal", "attributes", "process"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_row_is_a_session_and_leaves_a_model_that_scores_on_its_scale(kind: str, tmp_path: Path) -> None:
    keys = [*keys_of(kind, tmp_path), HELD, "train.ensemble_size=2", "train.max_length=256"]
    assert run("reward", tmp_path / "run", *keys, steps=3) == 0
    rows = [row for row in live_view(tmp_path / "run", "reward") if row["split"] == "train"]
    assert len(rows) == 24
    low, high = {"process": (0, 1), "attributes": (-2, 4)}.get(kind, (-1, 7))
    for row in rows:
        assert row["baseline_reward"] == row["adjusted_reward"] and low <= row["baseline_reward"] <= high
        parts = {part["name"]: part for part in row["components"]}
        assert parts["disagreement"]["role"] == "observed" and parts["disagreement"]["raw"] > 0
        assert any(part["role"] == "gold" for part in parts.values())
    model, _ = load_reward_model(tmp_path / "run" / "model")
    assert model.spec.kind == {"attributes": "regression"}.get(kind, kind) and model.spec.members == 2
    outcome = summary(tmp_path / "run")["outcome"]
    assert outcome["identity"] and outcome["scorer_id"] and "length_shift" in outcome["probes"]
    losses = [event["loss"] for event in live_events(tmp_path / "run", "reward", "step_stats")]
    assert len(losses) == 3
    suites = {event["suite"]: event for event in live_events(tmp_path / "run", "reward", "evaluation")}
    # What says right or wrong is calibrated: a level in the upper half, a step.
    assert ("reward_calibration" in suites) == (kind in ("ordinal", "process"))
    if kind in ("ordinal", "process"):
        calibration = suites["reward_calibration"]
        n = calibration["metrics"]["brier_before"]["n"]
        assert sum(part["n"] for part in calibration["reliability"]) == n > 5


def test_each_head_of_an_ensemble_takes_each_row_a_poisson_number_of_times_of_its_own() -> None:
    rows = [f"rows.jsonl:{i}" for i in range(10_000)]
    counts_BK = Bootstrap(0, 3)(rows)
    assert torch.equal(Bootstrap(0, 3)(rows[::-1]), counts_BK.flip(0))
    assert not torch.equal(Bootstrap(1, 3)(rows), counts_BK)
    # Within four standard errors: of the mean 0.01, of the variance 0.017, of the share of zeros 0.005, of r 0.01.
    assert (counts_BK.mean(0) - 1).abs().max() < 0.04
    assert (counts_BK.var(0) - 1).abs().max() < 0.07
    assert ((counts_BK == 0).double().mean(0) - math.exp(-1)).abs().max() < 0.02
    assert (torch.corrcoef(counts_BK.t()) - torch.eye(3)).abs().max() < 0.04
    assert torch.equal(Bootstrap(0, 1)(rows[:5]), torch.ones(5, 1).double())


def test_the_loss_of_an_ensemble_counts_rows_as_the_bootstrap_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("drawn", "once"):
        if name == "once":
            monkeypatch.setattr(Bootstrap, "__call__", lambda self, rows: torch.ones(len(rows), self.members).double())
        assert run("reward", tmp_path / name, "train.ensemble_size=2", "evaluation.probes=false", steps=1) == 0
        found.append(live_events(tmp_path / name, "reward", "step_stats")[0]["loss"])
    assert abs(found[0] - found[1]) > 1e-6


@pytest.mark.parametrize("kind", [*KINDS, "pairs"])
def test_an_ensemble_learns_the_same_however_its_batch_is_cut(kind: str, tmp_path: Path) -> None:
    keys = [] if kind == "pairs" else keys_of(kind, tmp_path)
    keys += ["train.ensemble_size=3", "train.learning_rate=1e-3", "model.dtype=float64", "evaluation.probes=false"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("reward", whole, *keys, steps=3, batch=8) == 0
    assert run("reward", cut, *keys, "train.gradient_accumulation_steps=8", steps=3, batch=1) == 0
    assert largest_difference(whole, cut) < 1e-9
    ours, theirs = (live_view(folder, "reward") for folder in (whole, cut))
    for a, b in zip(ours, theirs, strict=True):
        assert a["row_id"] == b["row_id"] and a["baseline_reward"] == pytest.approx(b["baseline_reward"], abs=1e-9)


@pytest.mark.parametrize("kind", ["ordinal", "process", "ensemble"])
def test_a_resumed_run_equals_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    keys = ["train.ensemble_size=2"] if kind == "ensemble" else keys_of(kind, tmp_path)
    keys += [HELD, "train.save_steps=2", "train.learning_rate=1e-3", "train.lr_scheduler_type=constant"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("reward", whole, *keys, steps=4) == 0
    assert run("reward", stopped, *keys, steps=2) == 0
    assert run("reward", stopped, *keys, "--resume", steps=4) == 0
    assert largest_difference(whole, stopped) == 0.0
    ours, theirs = (
        [row for row in live_view(folder, "reward") if row["split"] == "train"] for folder in (whole, stopped)
    )
    assert ours == theirs
    a, b = (summary(folder)["outcome"] for folder in (whole, stopped))
    assert a == b


def test_a_finished_run_that_is_resumed_records_its_probes_and_figures_once(tmp_path: Path) -> None:
    keys = [HELD, "train.save_steps=2"]
    assert run("reward", tmp_path / "run", *keys, steps=2) == 0
    before = live_view(tmp_path / "run", "reward")
    assert run("reward", tmp_path / "run", *keys, "--resume", steps=2) == 0
    assert len(live_view(tmp_path / "run", "reward")) == len(before)
    suites = [event["suite"] for event in live_events(tmp_path / "run", "reward", "evaluation")]
    assert sorted(suites) == ["heldout_pairs", "reward_calibration", "reward_probes"]


def test_a_missing_attribute_is_left_out_of_the_loss_and_null_in_the_row(tmp_path: Path) -> None:
    rows = rated()
    zero = [{**row, "length": 0 if row["length"] is None else row["length"]} for row in rows]
    folders = tmp_path / "null", tmp_path / "zero"
    for folder, table in zip(folders, (rows, zero), strict=True):
        keys = [*write(tmp_path / f"{folder.name}.jsonl", table), *TWO, "data.holdout_fraction=0"]
        # The name of the file is the row's id unless the row has one.
        assert run("reward", folder, *keys, "train.learning_rate=1e-3", steps=2) == 0
    assert largest_difference(*folders) > 0
    for row in live_view(folders[0], "reward"):
        label = next(part for part in row["components"] if part["name"] == "length_label")
        number = int(row["row_id"].rsplit(":", 1)[1]) - 1
        assert label["raw"] == rows[number]["length"]
        assert label["status"] == ("na" if rows[number]["length"] is None else "ok")


def test_the_gain_of_a_category_weighs_its_scores(tmp_path: Path) -> None:
    keys = [*write(tmp_path / "rows.jsonl", rated()), *TWO, "data.holdout_fraction=0", "train.learning_rate=1e-3"]
    gain = "reward.differentials=[{category: a, differential: 3.0}]"
    assert run("reward", tmp_path / "plain", *keys, steps=2) == 0
    assert run("reward", tmp_path / "gain", *keys, gain, steps=2) == 0
    assert largest_difference(tmp_path / "plain", tmp_path / "gain") > 0
    rows = live_view(tmp_path / "gain", "reward")
    assert {(row["category"], row["loss_weight"]) for row in rows} == {("a", 4.0), ("b", 1.0)}


@pytest.mark.parametrize(
    ("kind", "knob"),
    [
        ("pairs", "train.label_noise=0.2"),
        ("pairs", "reward.preference_column=sure"),
        ("pairs", "train.ensemble_size=2"),
        ("regression", "train.huber_delta=0.05"),
        ("regression", "train.score_scale=[1, 9]"),
        ("attributes", "train.attributes=[help]"),
        ("process", "train.step_separator= then "),
    ],
)
def test_a_knob_that_is_read_changes_what_is_learned(kind: str, knob: str, tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "sure": 0.5 + i % 2 / 4} for i in range(16)
    ]
    keys = write(tmp_path / "pairs.jsonl", pairs) if kind == "pairs" else keys_of(kind, tmp_path)
    keys += ["train.learning_rate=1e-3", "evaluation.probes=false", "data.holdout_fraction=0"]
    if knob == "train.attributes=[help]":
        changed = [*(key for key in keys if not key.startswith("train.attribute")), knob]
    else:
        changed = [*(key for key in keys if key.split("=")[0] != knob.split("=")[0]), knob]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("reward", one, *keys, steps=2) == 0
    assert run("reward", two, *changed, steps=2) == 0
    losses = [[e["loss"] for e in live_events(folder, "reward", "step_stats")] for folder in (one, two)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("kind", "knob"),
    [
        ("process", "train.step_aggregation=product"),
        ("process", "train.step_aggregation=last"),
        ("regression", "train.ensemble_std_coefficient=1.5"),
        ("attributes", "train.attribute_weights={help: 1.0, length: 1.0}"),
    ],
)
def test_a_knob_of_the_reported_score_changes_it_and_nothing_that_is_learned(
    kind: str, knob: str, tmp_path: Path
) -> None:
    keys = [*keys_of(kind, tmp_path), "train.ensemble_size=2", "evaluation.probes=false"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("reward", one, *keys, steps=2) == 0
    changed = [*(key for key in keys if key.split("=")[0] != knob.split("=")[0]), knob]
    assert run("reward", two, *changed, steps=2) == 0
    assert largest_difference(one, two) == 0.0
    a, b = ([row["baseline_reward"] for row in live_view(folder, "reward")] for folder in (one, two))
    assert a != b


def bad(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], *keys: str) -> str:
    keys = (*write(tmp_path / "rows.jsonl", rows), "data.holdout_fraction=0", *keys)
    assert run("reward", tmp_path / "run", *keys) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert not (tmp_path / "run" / "ledger").exists()
    return line


def test_a_row_without_a_score_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = responses()
    rows[4]["scores"][1] = None
    line = bad(tmp_path, capsys, rows, *REGRESSION)
    assert "rows.jsonl:5 (response 2)" in line and "has no score in `score`" in line


def test_a_score_off_the_scale_or_between_levels_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = responses()
    rows[2]["scores"][0] = 6
    line = bad(tmp_path, capsys, rows, *REGRESSION)
    assert "rows.jsonl:3 (response 1)" in line and "outside train.score_scale 1..5" in line
    rows[2]["scores"][0] = 2.5
    assert "which is no level" in bad(tmp_path, capsys, rows, *ORDINAL)
    rows[2]["scores"][0] = "two"
    assert "rows.jsonl:3 (response 1)" in (line := bad(tmp_path, capsys, rows, *ORDINAL)) and "no number" in line


def test_responses_and_scores_of_different_number_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = responses()
    rows[1]["scores"].pop()
    assert "rows.jsonl:2: row 2 has 3 responses and 2 scores" in bad(tmp_path, capsys, rows, *REGRESSION)


def test_one_level_or_one_label_only_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "scores": [3, 3, 3]} for row in responses()]
    assert "have the level 3 in `score`" in bad(tmp_path, capsys, rows, *ORDINAL)
    right = [{**row, "labels": [True] * len(row["labels"])} for row in sums()]
    assert "steps are labelled right" in bad(tmp_path, capsys, right, *PROCESS)


def test_steps_without_labels_and_empty_steps_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = sums()
    rows[3]["labels"] = rows[3]["labels"][1:]
    assert "rows.jsonl:4: row 4 has" in bad(tmp_path, capsys, rows, *PROCESS)
    del rows[3]["labels"]
    assert "rows.jsonl:4" in bad(tmp_path, capsys, rows, *PROCESS)
    rows = sums()
    rows[5]["completions"][1] = " "
    assert "rows.jsonl:6: row 6 has an empty step 2" in bad(tmp_path, capsys, rows, *PROCESS)


def test_an_attribute_that_no_row_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [key for key in TWO if not key.startswith("train.attribute")]
    keys += ["train.attributes=[help, wit]", "train.attribute_weights={help: 1}"]
    assert "names `wit`, and no row has a score there" in bad(tmp_path, capsys, rated(), *keys)


def test_rows_of_another_kind_say_what_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = bad(tmp_path, capsys, sums(), *REGRESSION)
    assert "reward takes scored completions" in line and "found stepwise supervision" in line
    line = bad(tmp_path, capsys, responses(), *PROCESS)
    assert "reward takes stepwise supervision" in line


def test_a_preference_that_is_no_probability_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "sure": 0.7} for i in range(8)]
    rows[5]["sure"] = 1.2
    line = bad(tmp_path, capsys, rows, "reward.preference_column=sure")
    assert "rows.jsonl:6" in line and "between 0 and 1" in line


def test_every_response_is_a_row_and_prompts_stay_on_one_side(tmp_path: Path) -> None:
    keys = [*keys_of("regression", tmp_path), HELD]
    assert run("reward", tmp_path / "run", *keys, steps=12) == 0
    rows = live_view(tmp_path / "run", "reward")
    train, held = ({row["prompt_id"] for row in rows if row["split"] == split} for split in ("train", "eval"))
    assert held and not train & held
    assert {row["row_id"].rsplit("#", 1)[1] for row in rows} == {"1", "2", "3"}
    figures = summary(tmp_path / "run")["outcome"]["held_out_attributes"]["score"]
    assert figures["error"]["low"] < figures["error"]["value"] < figures["error"]["high"]
    assert figures["pair_accuracy"]["n"] <= 24
    config = json.loads((tmp_path / "run" / "model" / "value_head.json").read_text())
    assert config["scale"] == [1.0, 5.0] and config["attributes"] == ["score"]


def test_pair_accuracy_of_scores_counts_prompts_and_halves_ties() -> None:
    # a: in order. b: of its three pairs one in order, one tied, one reversed. c and d: no pair with different labels.
    prompts = ["a", "a", "b", "b", "b", "c", "c", "d"]
    labels = np.array([3.0, 1.0, 1.0, 2.0, 3.0, 2.0, 2.0, 5.0])
    values = np.array([0.9, 0.1, 0.5, 0.7, 0.5, 0.0, 1.0, 0.3])
    found = _pair_accuracy(values, labels, prompts)
    assert found is not None and found["n"] == 2
    share, n, z = (1 + 0.5) / 2, 2, 1.959964
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert found["value"] == pytest.approx(share)
    bounds = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert [found["low"], found["high"]] == pytest.approx(bounds, rel=1e-6)
    assert _pair_accuracy(values[5:], labels[5:], prompts[5:]) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ordinal", "process"])
def test_two_ranks_give_the_model_and_the_figures_of_one(kind: str, tmp_path: Path) -> None:
    keys = [*keys_of(kind, tmp_path), HELD, "train.ensemble_size=2", "model.dtype=float64", "train.learning_rate=1e-3"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("reward", one, *keys, steps=3, batch=8) == 0
    done = run_ranks("reward", two, 2, *keys, steps=3, batch=4)
    assert done.returncode == 0, done.stderr[-3000:]
    assert largest_difference(one, two) < 1e-9
    a, b = (summary(folder)["outcome"] for folder in (one, two))
    assert a["probes"].keys() == b["probes"].keys()
    for name, figure in a["probes"].items():
        assert figure["value"] == pytest.approx(b["probes"][name]["value"], abs=1e-6)
    ours, theirs = (len(live_view(folder, "reward")) for folder in (one, two))
    assert ours == theirs
