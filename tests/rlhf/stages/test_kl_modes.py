"""Every KL form that online RL accepts, its sampling knobs and its normalisations, through the real command."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.errors import ConfigError
from rlhf.cli import main
from rlhf.config.kl import KLSettings, refuse
from tests.rlhf.stages.tiny_runs import arguments, live_events, live_view, run

FAST = "train.learning_rate=1e-2"
FOUR = ("estimator", "place", "level", "ratio")
ESTIMATORS, RATIOS = ("k1", "k2", "k3", "full"), ("none", "live", "detached")


def accepted() -> Iterator[KLSettings]:
    for estimator in ESTIMATORS:
        for level in ("token", "sequence"):
            for ratio in RATIOS:
                for place in ("loss", "reward"):
                    settings = KLSettings(estimator, place, level, ratio)  # type: ignore[arg-type]
                    try:
                        refuse(settings, scale_rewards="none")
                    except ConfigError:
                        continue
                    yield settings


ACCEPTED = sorted(accepted(), key=str)


def keys_of(settings: KLSettings) -> list[str]:
    fields = ", ".join(f"{name}: {value}" for name, value in vars(settings).items() if name in FOUR)
    return [f"reference.kl={{{fields}}}", "train.scale_rewards=none", "reference.beta=0.1"]


def train_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in live_view(folder, "grpo") if row["split"] == "train"]


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in live_events(folder, "grpo", "step_stats")]


def test_the_accepted_forms_are_these_many() -> None:
    assert len(ACCEPTED) == 19


def test_every_accepted_form_trains_counts_and_is_another_loss_than_every_other(tmp_path: Path) -> None:
    keys = [FAST, "train.num_iterations=2", "train.scale_rewards=none", "reference.beta=0"]
    # The second rollout is sampled from a policy that the penalty has moved, or is penalised itself; ratios are not 1
    # on the second step over it.
    assert run("grpo", tmp_path / "free", *keys, steps=4) == 0
    found = {"free": losses(tmp_path / "free")}
    for settings in ACCEPTED:
        name = "-".join(getattr(settings, part) for part in FOUR)
        folder = tmp_path / name
        assert run("grpo", folder, *keys_of(settings), FAST, "train.num_iterations=2", steps=4) == 0
        found[name] = losses(folder)
        assert all(math.isfinite(loss) for loss in found[name])
        terms = live_events(folder, "grpo", "step_stats")[-1]
        assert ("loss/kl" in terms) == (settings.place == "loss")
    gaps = {
        (one, other): max(abs(a - b) for a, b in zip(found[one], found[other], strict=True))
        for one, other in itertools.combinations(found, 2)
    }
    assert len(gaps) == 19 * 20 / 2 and min(gaps.values()) > 1e-6, min(gaps, key=lambda pair: gaps[pair])


@pytest.mark.parametrize("preset", ["trl_grpo", "grpo_paper", "trl_rloo", "sequence_k2"])
def test_every_preset_trains(preset: str, tmp_path: Path) -> None:
    keys = [f"reference.kl={{preset: {preset}}}", "train.scale_rewards=none", "reference.beta=0.1", FAST]
    assert run("grpo", tmp_path / "run", *keys, steps=2) == 0
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


@pytest.mark.parametrize("scale", ["none", "batch"])
def test_a_penalty_in_the_reward_enters_the_advantage_and_never_the_adjusted_reward(scale: str, tmp_path: Path) -> None:
    keys = ["reference.kl={preset: trl_rloo}", f"train.scale_rewards={scale}", "reference.beta=0.5", FAST]
    assert run("grpo", tmp_path / "run", *keys, steps=3) == 0
    rows = [row for row in train_rows(tmp_path / "run") if row["step"] == 3]
    assert any(abs(row["kl_nats"]) > 0.01 for row in rows)
    for row in rows:
        expected = sum(part["weight"] * part["value"] for part in row["components"] if part["value"] is not None)
        assert row["adjusted_reward"] == pytest.approx(expected) == pytest.approx(row["baseline_reward"])
    # By hand: adjusted reward less beta times the sequence KL, centred in the group of 4.
    penalised = np.array([row["adjusted_reward"] - 0.5 * row["kl_nats"] for row in rows]).reshape(-1, 4)
    centred = (penalised - penalised.mean(axis=1, keepdims=True)).ravel()
    if scale == "batch":
        centred /= penalised.std(ddof=1) + 1e-4
    assert np.array([row["advantage"] for row in rows]) == pytest.approx(centred, abs=1e-4)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_divided_by_the_standard_deviation_that_is_named(scale: str, tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "run", f"train.scale_rewards={scale}", steps=1) == 0
    rows = train_rows(tmp_path / "run")
    rewards = np.array([row["adjusted_reward"] for row in rows]).reshape(-1, 4)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    std = {"group": rewards.std(axis=1, ddof=1, keepdims=True), "batch": rewards.std(ddof=1), "none": 1 - 1e-4}[scale]
    assert np.array([row["advantage"] for row in rows]) == pytest.approx((centred / (std + 1e-4)).ravel(), abs=1e-5)


def test_the_loss_types_divide_the_same_token_losses_differently(tmp_path: Path) -> None:
    found = {}
    # Two inner steps: on the first one ratios are 1 and group-centred advantages sum to about 0.
    for name in ("grpo", "dapo", "dr_grpo"):
        keys = [f"train.loss_type={name}", "train.num_iterations=2", FAST, "reference.kl={estimator: full}"]
        assert run("grpo", tmp_path / name, *keys, steps=2) == 0
        found[name] = live_events(tmp_path / name, "grpo", "step_stats")[0]
    rows = train_rows(tmp_path / "dapo")
    lengths = [row["response_tokens"] for row in rows]
    if len(set(lengths)) > 1:
        assert found["grpo"]["loss/policy"] != pytest.approx(found["dapo"]["loss/policy"], abs=1e-9)
    share = sum(lengths) / (12 * len(lengths))
    assert found["dr_grpo"]["loss/policy"] == pytest.approx(share * found["dapo"]["loss/policy"], abs=1e-7)


@pytest.mark.parametrize("knobs", [["train.temperature=0.6"], ["train.top_p=0.7"], ["train.temperature=1.7"]])
def test_policy_reference_and_sampler_agree_at_the_temperature_of_sampling(knobs: list[str], tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "run", *knobs, FAST, steps=2) == 0
    rows = train_rows(tmp_path / "run")
    assert all(row["sampler_mismatch_max_nats"] < 1e-4 for row in rows)
    # Texts of a nucleus are not the policy's own: their log-ratio is no KL.
    name = "log_ratio_nats" if knobs == ["train.top_p=0.7"] else "kl_nats"
    assert all(abs(row[name]) < 1e-4 for row in rows if row["step"] == 1)
    plain = tmp_path / "plain"
    assert run("grpo", plain, FAST, steps=2) == 0
    assert [row["response"] for row in rows] != [row["response"] for row in train_rows(plain)]


def test_masked_truncated_completions_teach_nothing_and_nothing_is_measured_of_them(tmp_path: Path) -> None:
    keys = ["train.mask_truncated_completions=true", "train.max_completion_length=96", "train.temperature=1.3"]
    keys += ["reward.reward_funcs=[{name: brevity, fn: length, weight: -0.1}]", "train.max_length=256"]
    keys += ["model.tiny_vocab_size=300"]
    assert run("grpo", tmp_path / "run", *keys, steps=1, batch=16) == 0
    rows = train_rows(tmp_path / "run")
    cut, whole = ([row for row in rows if row["truncated"] is wanted] for wanted in (True, False))
    assert cut and whole
    measured = ("logp_nats", "entropy_nats", "kl_nats", "kl_k3_nats", "sampler_mismatch_max_nats")
    assert all(row[name] is None for row in cut for name in measured)
    assert all(row[name] is not None for row in whole for name in measured)
    assert all(row["advantage"] is not None for row in rows)


@pytest.mark.parametrize("steps", [3, 4])
def test_max_steps_counts_optimizer_steps_also_with_inner_iterations(steps: int, tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "run", "train.num_iterations=2", steps=steps) == 0
    assert [event["step"] for event in live_events(tmp_path / "run", "grpo", "step_stats")] == list(range(1, steps + 1))


def test_a_differential_on_the_advantage_multiplies_it_and_leaves_the_reward(tmp_path: Path) -> None:
    rule = "reward.differentials=[{category: arithmetic, differential: 0.5}]"
    assert run("grpo", tmp_path / "run", "reward.place=advantage", rule, steps=2, batch=16) == 0
    rows = train_rows(tmp_path / "run")
    assert {row["category"] for row in rows} > {"arithmetic"}
    for row in rows:
        assert row["adjusted_reward"] == row["baseline_reward"]
        gain = 1.5 if row["category"] == "arithmetic" else 1.0
        assert row["differential_pct"] == pytest.approx(100 * (gain - 1))
        assert row["advantage"] == pytest.approx(gain * row["advantage_unadjusted"], abs=1e-6)


def test_what_an_explicit_clip_changes_is_counted(tmp_path: Path) -> None:
    functions = "reward.reward_funcs=[{name: brevity, fn: length, clip: [6, 10]}, {name: free, fn: length}]"
    assert run("grpo", tmp_path / "run", functions, steps=2) == 0
    rows = train_rows(tmp_path / "run")
    clipped = dict.fromkeys((1, 2), 0)
    for row in rows:
        brevity = row["components"][0]
        assert brevity["value"] == min(max(brevity["raw"], 6), 10)
        clipped[row["step"]] += brevity["value"] != brevity["raw"]
    assert sum(clipped.values()) > 0
    for event in live_events(tmp_path / "run", "grpo", "step_stats"):
        assert event["clipped/brevity"] == clipped[event["step"]] and "clipped/free" not in event


def test_a_category_that_no_prompt_has_is_refused_and_those_without_a_differential_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = "reward.differentials=[{category: arithmetics, component: task, differential: 0.5}]"
    assert run("grpo", tmp_path / "run", rule, steps=1) == 2
    assert "names category `arithmetics`, which no row has; there are arithmetic, " in capsys.readouterr().err
    argv = arguments("grpo", tmp_path / "run", rule.replace("arithmetics", "arithmetic"), steps=1)
    assert main([*argv[:-1], "plain"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "without a differential" in line]
    assert len(told) >= 3 and all(line.startswith("grpo: category `") for line in told)
    assert all(": gain 1 (" in line and " rows: wild7/" in line for line in told)
    assert not any("`arithmetic`" in line for line in told)


def test_evaluations_during_training_are_told_from_the_one_after_it(tmp_path: Path) -> None:
    keys = ["evaluation.prompts=wild7", "evaluation.eval_recipe_split=prompts", "evaluation.num_samples=4"]
    keys += ["train.eval_strategy=steps", "train.eval_steps=1", "evaluation.before=true"]
    keys += ["evaluation.eval_max_completion_length=8"]
    assert run("grpo", tmp_path / "run", *keys, steps=2) == 0
    found = live_events(tmp_path / "run", "grpo", "evaluation")
    assert [(event["when"], event["step"]) for event in found] == [
        ("before", 0),
        ("step", 1),
        ("step", 2),
        ("after", 2),
    ]


def test_reference_pivots_are_measured_on_another_model_where_that_is_the_reference(tmp_path: Path) -> None:
    # The reference answers with the same tokenizer but other weights.
    assert run("sft", tmp_path / "sft", "train.learning_rate=1e-2", steps=20) == 0
    folder = tmp_path / "sft" / "model"
    assert (
        run("sft", tmp_path / "start", f"model.model_name_or_path={folder}", "train.learning_rate=1e-9", steps=1) == 0
    )
    keys = ["reward.differentials=[{category: arithmetic, component: brevity, differential: 0.5}]"]
    keys += ["reward.pivot_samples=24", f"model.model_name_or_path={tmp_path / 'start' / 'model'}"]
    assert run("grpo", tmp_path / "own", *keys, steps=1) == 0
    assert run("grpo", tmp_path / "same", *keys, f"reference.reference_model={folder}", steps=1) == 0
    (own,), (same,) = (live_events(tmp_path / name, "grpo", "pivot_set") for name in ("own", "same"))
    assert own["value"] == same["value"]
