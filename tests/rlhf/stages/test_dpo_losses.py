"""The losses of `rlhf dpo` through the real command: invariance, checkpoints, rows in the ledger, bad input."""

import json
from pathlib import Path
from typing import get_args

import pytest

from rlhf.cli import main
from rlhf.config.pair_losses import REFERENCE_FREE, PreferenceLoss
from tests.rlhf.stages.test_bad_input import error_line
from tests.rlhf.stages.test_invariance import largest_difference
from tests.rlhf.stages.test_precomputed import losses
from tests.rlhf.stages.tiny_runs import arguments, live_events, live_view, run, run_ranks, summary

GAIN = "reward.differentials=[{category: format, differential: 0.7}]"
FAST = "train.learning_rate=1e-3"
# Each has something of its own that a cut must not change: two denominators and a running mean; the likelihood's
# denominator without a reference; weights from the distribution, lengths within a pair, scores.
CUT = {
    "bco": ["train.loss_type=[bco_pair, sft]", "train.loss_weights=[1.0, 0.3]", "train.beta=2.0", GAIN],
    "orpo": ["train.loss_type=orpo", GAIN],
    "wpo": [
        "train.loss_type=[ipo_mean, exo_pair]",
        "train.label_smoothing=0.1",
        "train.use_weighting=true",
        "train.ld_alpha=0.4",
        "train.f_divergence_type=js_divergence",
        GAIN,
    ],
}


@pytest.mark.parametrize("case", CUT)
def test_one_batch_of_8_and_8_of_1_give_the_same_parameters_in_float64(case: str, tmp_path: Path) -> None:
    keys = [*CUT[case], FAST, "model.dtype=float64", "data.holdout_fraction=0.2"]
    assert run("dpo", tmp_path / "whole", *keys, steps=3, batch=8) == 0
    assert run("dpo", tmp_path / "cut", *keys, "train.gradient_accumulation_steps=8", steps=3, batch=1) == 0
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "cut"), abs=1e-12)
    assert largest_difference(tmp_path / "whole", tmp_path / "cut") < 1e-9
    one, other = (summary(tmp_path / name)["outcome"]["held_out_pairs"] for name in ("whole", "cut"))
    assert one["loss"]["value"] == pytest.approx(other["loss"]["value"], abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CUT)
def test_two_ranks_give_the_parameters_of_one_in_float64(case: str, tmp_path: Path) -> None:
    keys = [*CUT[case], FAST, "model.dtype=float64"]
    assert run("dpo", tmp_path / "one", *keys, steps=3, batch=8) == 0
    done = run_ranks("dpo", tmp_path / "two", 2, *keys, "train.world_size=2", steps=3, batch=4)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-12)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in get_args(PreferenceLoss) if name != "sft"])
def test_every_loss_trains_and_leaves_its_sessions(name: str, tmp_path: Path) -> None:
    smoothing = ["train.label_smoothing=0.1"] if name in ("exo_pair", "robust") else []
    assert run("dpo", tmp_path / "run", f"train.loss_type={name}", *smoothing, "train.learning_rate=3e-3", steps=6) == 0
    rows = live_view(tmp_path / "run", "dpo")
    assert len(rows) == 48 and all(row["baseline_reward"] is not None for row in rows)
    free = name in REFERENCE_FREE
    assert {row["log_ratio_nats"] is None for row in rows} == {free} == {row["reference_id"] is None for row in rows}
    found = live_events(tmp_path / "run", "dpo", "step_stats")
    assert found[-1]["loss"] != found[0]["loss"]
    assert f"loss/{name}" in found[0]


def test_bcos_mean_reward_is_that_of_the_steps_before_and_is_resumed(tmp_path: Path) -> None:
    keys = ["train.loss_type=bco_pair", "train.beta=2.0", "train.learning_rate=1e-2", "train.save_steps=2"]
    keys += ["train.lr_scheduler_type=constant"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("dpo", whole, *keys, steps=5) == 0
    found = live_events(whole, "dpo", "step_stats")
    rewards, deltas = [f["bco/reward"] for f in found], [f["bco/delta"] for f in found]
    assert deltas[0] == 0.0 and abs(deltas[-1]) > 1e-4
    assert deltas == pytest.approx([sum(rewards[:i]) / i if i else 0.0 for i in range(5)], abs=1e-12)
    assert run("dpo", stopped, *keys, steps=2) == 0
    assert run("dpo", stopped, *keys, "--resume", steps=5) == 0
    assert largest_difference(whole, stopped) == 0.0
    assert live_view(whole, "dpo") == live_view(stopped, "dpo")
    assert live_events(whole, "dpo", "step_stats") == live_events(stopped, "dpo", "step_stats")


def test_a_loss_without_a_reference_leaves_its_columns_null_and_opens_none(tmp_path: Path) -> None:
    keys = ["train.loss_type=simpo", GAIN, "train.simpo_gamma=0.2"]
    assert run("dpo", tmp_path / "run", *keys, steps=2) == 0
    rows = live_view(tmp_path / "run", "dpo")
    assert all(row["log_ratio_nats"] is None and row["reference_id"] is None for row in rows)
    assert any(row["category"] == "format" for row in rows)
    for row in rows:
        gain = 1.7 if row["category"] == "format" else 1.0
        assert row["loss_weight"] == pytest.approx(gain)
        assert row["adjusted_reward"] == pytest.approx(row["baseline_reward"] / gain)
    assert not (tmp_path / "run" / "reference").exists()


def test_a_session_of_wpo_carries_the_weight_of_its_pair(tmp_path: Path) -> None:
    assert run("dpo", tmp_path / "run", "train.use_weighting=true", GAIN, steps=2) == 0
    rows = live_view(tmp_path / "run", "dpo")
    found = live_events(tmp_path / "run", "dpo", "step_stats")
    for step in (1, 2):
        mine = [row for row in rows if row["step"] == step]
        weights = [row["loss_weight"] / (1.7 if row["category"] == "format" else 1.0) for row in mine]
        assert 0 < min(weights) < max(weights)
        assert sum(weights) / len(weights) == pytest.approx(found[step - 1]["wpo/weight"], rel=1e-5)


# --- rows with columns, and bad input ---


def pairs_file(folder: Path, **columns: object) -> list[str]:
    """Eight pairs with further columns, as keys of a run."""
    rows = [
        {"prompt": f"say {i}", "chosen": f" well, {i}", "rejected": " no", "category": "ab"[i % 2], **columns}
        for i in range(8)
    ]
    return rows_file(folder, rows)


def rows_file(folder: Path, rows: list[dict[str, object]]) -> list[str]:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.dataset_name={path}", "data.recipe_split=null", "data.max_rows=null", "data.holdout_fraction=0"]


def test_a_soft_label_of_one_half_wants_no_gap_and_a_certain_one_is_the_plain_loss(tmp_path: Path) -> None:
    keys = ["reward.preference_column=p", FAST]
    assert run("dpo", tmp_path / "half", *pairs_file(tmp_path, p=0.5), *keys, steps=2) == 0
    first = live_events(tmp_path / "half", "dpo", "step_stats")[0]
    assert first["grad_norm"] == pytest.approx(0.0, abs=1e-6)
    data = pairs_file(tmp_path, p=1)
    assert run("dpo", tmp_path / "certain", *data, *keys, steps=3) == 0
    assert run("dpo", tmp_path / "plain", *data, FAST, steps=3) == 0
    assert losses(tmp_path / "certain") == pytest.approx(losses(tmp_path / "plain"), abs=1e-7)


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (1.2, []),
        ("high", []),
        (None, []),
        (True, []),
        (1.0, ["train.loss_type=exo_pair"]),
    ],
)
def test_a_row_without_a_probability_is_named(
    value: object, keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"say {i}", "chosen": f" well, {i}", "rejected": " no", "p": 0.8} for i in range(4)
    ]
    rows[2]["p"] = value
    data = rows_file(tmp_path, rows)
    assert run("dpo", tmp_path / "run", *data, "reward.preference_column=p", *keys, steps=1) == 2
    line = error_line(capsys)
    assert "pairs.jsonl:3" in line and "reward.preference_column is `p`" in line and "between 0 and 1" in line


def test_an_offset_enters_the_adjusted_reward_in_units_of_the_margin(tmp_path: Path) -> None:
    keys = [*pairs_file(tmp_path, m=0.3), "reward.margin_column=m", "train.loss_type=ipo_sum", "train.beta=0.5"]
    assert run("dpo", tmp_path / "run", *keys, "reward.differentials=[{category: a, differential: 0.5}]", steps=2) == 0
    for row in live_view(tmp_path / "run", "dpo"):
        gain = 1.5 if row["category"] == "a" else 1.0
        assert row["adjusted_reward"] == pytest.approx((row["baseline_reward"] - 0.3) / gain, abs=1e-6)
        assert row["pivot"] == pytest.approx(0.3)
        assert row["baseline_reward"] == pytest.approx(0.5 * row["log_ratio_nats"], abs=1e-6)
    first = live_events(tmp_path / "run", "dpo", "step_stats")[0]
    # Policy and reference agree: (h - m / beta) / (1 + d) - 1 / (2 beta), squared, with weight 1 + d.
    at_start = [gain * ((0 - 0.3 / 0.5) / gain - 1 / (2 * 0.5)) ** 2 for gain in (1.5, 1.0)]
    assert first["loss"] == pytest.approx(sum(at_start) / 2, rel=1e-5)


def test_a_differential_that_no_row_has_is_refused_and_rows_that_none_reaches_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"say {i}", "chosen": f" well, {i}", "rejected": " no", "category": ["a", "b", None][i % 3]}
        for i in range(6)
    ]
    data = rows_file(tmp_path, rows)
    assert run("dpo", tmp_path / "run", *data, "reward.differentials=[{category: c, differential: 1}]", steps=1) == 2
    assert "names category `c`, which no row has; there are a, b" in error_line(capsys)
    keys = ["reward.differentials=[{category: a, differential: 1}]"]
    argv = arguments("dpo", tmp_path / "run", *data, *keys, steps=1, batch=2)
    assert main([*argv[:-1], "plain"]) == 0
    said = capsys.readouterr().err
    assert "category `b` without a differential: gain 1 (2 rows: " in said
    assert "rows without a category: gain 1 (2 rows: " in said
    assert "pairs.jsonl:3" in said and "pairs.jsonl:6" in said


@pytest.mark.slow
def test_a_loss_that_sorts_the_batch_is_refused_on_two_ranks(tmp_path: Path) -> None:
    done = run_ranks("dpo", tmp_path / "run", 2, "train.loss_type=aot", steps=1, batch=4)
    assert done.returncode != 0  # the launcher's own: a rank that ends with 2 is a failed one to it
    assert "error: train.loss_type: `aot` sorts all pairs of a step" in done.stderr
