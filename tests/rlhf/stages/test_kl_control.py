"""Controllers of the coefficient and divergences over the vocabulary, through the real command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.cli import main
from tests.rlhf.stages.tiny_runs import arguments, live_events, live_view, run, run_ranks, weights

FAST = "train.learning_rate=1e-2"
TOKEN = ["reference.beta=0.1", "reference.kl_target=0.01"]
SEQUENCE = ["reference.kl={preset: trl_rloo}", "train.scale_rewards=none"]


def stats(folder: Path) -> list[dict[str, Any]]:
    return live_events(folder, "grpo", "step_stats")


def train_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in live_view(folder, "grpo") if row["split"] == "train"]


def by_hand(kind: str, start: float, beta: float, kl: float, target: float, gain: float) -> float:
    error = kl / target - 1
    return beta * (1 + gain * min(max(error, -0.2), 0.2)) if kind == "adaptive" else beta + gain * start * error


@pytest.mark.parametrize("kind", ["adaptive", "dual"])
def test_beta_follows_its_rule_from_rollout_to_rollout_and_changes_the_training(kind: str, tmp_path: Path) -> None:
    keys = [*TOKEN, f"reference.controller={kind}", "reference.kl_gain=0.5", "train.num_iterations=2", FAST]
    assert run("grpo", tmp_path / "run", *keys, steps=6) == 0
    found = stats(tmp_path / "run")
    assert [event["beta"] for event in found[0::2]] == [event["beta"] for event in found[1::2]]
    assert not any("beta_next" in event for event in found[1::2])
    for event, after in zip(found[0::2], [*found[2::2], None], strict=True):
        kl = event["divergence_nats/token"]
        wanted = max(0.0, by_hand(kind, 0.1, event["beta"], kl, 0.01, 0.5))
        assert event["beta_next"] == pytest.approx(wanted, rel=1e-9)
        assert after is None or after["beta"] == event["beta_next"]
    # On the first rollout the policy is its reference.
    assert found[0]["divergence_nats/token"] == pytest.approx(0, abs=1e-6) and found[2]["beta"] < 0.1
    assert run("grpo", tmp_path / "fixed", "reference.beta=0.1", "train.num_iterations=2", FAST, steps=6) == 0
    assert {event["beta"] for event in stats(tmp_path / "fixed")} == {0.1}
    assert stats(tmp_path / "fixed")[-1]["loss"] != found[-1]["loss"]
    moved, fixed = weights(tmp_path / "run"), weights(tmp_path / "fixed")
    assert any(not torch.equal(moved[name], fixed[name]) for name in moved)


def test_the_controlled_divergence_is_the_mean_of_the_sessions_and_advantages_take_the_beta_in_force(
    tmp_path: Path,
) -> None:
    keys = [
        *SEQUENCE,
        "reference.beta=0.5",
        "reference.controller=adaptive",
        "reference.kl_target=0.05",
        "reference.kl_gain=4",
        FAST,
    ]
    assert run("grpo", tmp_path / "run", *keys, steps=4) == 0
    found = stats(tmp_path / "run")
    assert len({event["beta"] for event in found}) == 4
    for event in found:
        rows = [row for row in train_rows(tmp_path / "run") if row["step"] == event["step"]]
        kl = np.array([row["kl_nats"] for row in rows])
        assert event["divergence_nats/sequence"] == pytest.approx(kl.mean(), abs=1e-9)
        tokens = sum(row["response_tokens"] for row in rows)
        assert event["divergence_nats/token"] == pytest.approx(kl.sum() / tokens, abs=1e-9)
        penalised = (np.array([row["adjusted_reward"] for row in rows]) - event["beta"] * kl).reshape(-1, 4)
        centred = (penalised - penalised.mean(axis=1, keepdims=True)).ravel()
        assert np.array([row["advantage"] for row in rows]) == pytest.approx(centred, abs=1e-4)


@pytest.mark.parametrize(
    "knob", ["reference.kl_target=1", "reference.kl_gain=0.9", "reference.beta_min=0.09", "reference.beta_max=0.1"]
)
def test_every_key_of_a_controller_changes_the_coefficient(knob: str, tmp_path: Path) -> None:
    # At first below the target, then above it.
    keys = [
        "reference.beta=0.1",
        "reference.kl_target=1e-3",
        "reference.controller=dual",
        "reference.kl_gain=0.2",
        FAST,
    ]
    found = []
    for name, extra in (("plain", []), ("other", [knob])):
        given = {key.split("=")[0]: key for key in [*keys, *extra]}
        assert run("grpo", tmp_path / name, *given.values(), steps=3) == 0
        found.append([event["beta_next"] for event in stats(tmp_path / name)])
    assert found[0] != found[1]


@pytest.mark.parametrize("kind", ["adaptive", "dual"])
def test_resuming_goes_on_with_the_coefficient_that_was_reached_also_in_the_middle_of_a_rollout(
    kind: str, tmp_path: Path
) -> None:
    keys = [*TOKEN, f"reference.controller={kind}", "train.num_iterations=2", FAST, "train.save_steps=3"]
    keys += ["train.lr_scheduler_type=constant"]
    assert run("grpo", tmp_path / "whole", *keys, steps=7) == 0
    assert run("grpo", tmp_path / "cut", *keys, steps=3) == 0
    assert run("grpo", tmp_path / "cut", *keys, "--resume", steps=7) == 0
    whole, cut = stats(tmp_path / "whole"), stats(tmp_path / "cut")
    assert [event["beta"] for event in whole] == [event["beta"] for event in cut]
    assert len({event["beta"] for event in whole}) == 4
    assert [event["loss"] for event in whole] == [event["loss"] for event in cut]
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert live_view(tmp_path / "whole", "grpo") == live_view(tmp_path / "cut", "grpo")


def test_dual_takes_the_penalty_away_while_the_constraint_does_not_bind_and_goes_on_measuring(tmp_path: Path) -> None:
    keys = ["reference.beta=0.1", "reference.kl_target=1000", "reference.controller=dual", "reference.kl_gain=0.6"]
    assert run("grpo", tmp_path / "run", *keys, "reference.kl={estimator: full}", FAST, steps=4) == 0
    found = stats(tmp_path / "run")
    assert [event["beta"] for event in found] == pytest.approx([0.1, 0.04, 0.0, 0.0], abs=1e-4)
    assert all("loss/kl" in event and event["divergence_nats/token"] is not None for event in found)
    assert found[3]["loss"] == pytest.approx(found[3]["loss/policy"], abs=1e-12) and found[3]["loss/kl"] > 0


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (["reference.beta=0.05"], "beta = 0.05 per nat and token"),
        ([*SEQUENCE, "reference.beta=0.02"], "beta = 0.02 per nat and sequence"),
    ],
)
def test_a_run_says_in_what_unit_its_coefficient_is(
    keys: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments("grpo", tmp_path / "run", *keys, steps=1)[:-1], "plain"]) == 0
    assert f"grpo: {wanted}" in capsys.readouterr().err.splitlines()


def test_each_divergence_trains_to_another_policy_and_alpha_matters(tmp_path: Path) -> None:
    found: dict[str, list[float]] = {}
    kinds = ["divergence: reverse", "divergence: forward", "divergence: js", "divergence: alpha"]
    kinds += ["divergence: alpha, alpha: 0.1"]
    for i, kind in enumerate(kinds):
        keys = [f"reference.kl={{estimator: full, {kind}}}", "reference.beta=1", FAST]
        assert run("grpo", tmp_path / str(i), *keys, steps=3) == 0
        found[kind] = [event["loss/kl"] for event in stats(tmp_path / str(i))]
    assert len({values[-1] for values in found.values()}) == len(kinds)
    assert all(abs(values[0]) < 1e-6 < values[-1] for values in found.values())
    assert max(found["divergence: js"]) < np.log(2)


def test_with_a_nucleus_only_the_full_vocabulary_gives_a_kl_and_sampled_texts_a_log_ratio(tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "sampled", "train.top_p=0.7", FAST, steps=2) == 0
    assert run("grpo", tmp_path / "full", "train.top_p=0.7", FAST, "reference.kl={estimator: full}", steps=2) == 0
    assert run("grpo", tmp_path / "own", FAST, "reference.kl={estimator: full}", steps=2) == 0
    sampled, full, own = (
        [row for row in train_rows(tmp_path / name) if row["step"] == 2] for name in ("sampled", "full", "own")
    )
    for row in sampled:
        assert row["kl_nats"] is None and row["kl_k3_nats"] is None and row["log_ratio_nats"] is not None
    assert "divergence_nats/token" not in stats(tmp_path / "sampled")[-1]
    # A sum of full-vocabulary divergences is never negative; a sampled log-ratio is now and then.
    for row in full:
        assert row["kl_nats"] >= 0 and row["kl_k3_nats"] is None and row["log_ratio_nats"] is not None
    for row in own:
        assert row["kl_nats"] >= 0 and row["kl_k3_nats"] >= 0 and row["log_ratio_nats"] is None
    for folder, rows in (("full", full), ("own", own)):
        mean = np.mean([row["kl_nats"] for row in rows])
        assert stats(tmp_path / folder)[-1]["divergence_nats/sequence"] == pytest.approx(mean, rel=1e-6)


def test_sft_trains_against_the_divergence_that_is_named(tmp_path: Path) -> None:
    found = {}
    for name in ("forward", "reverse", "js", "alpha"):
        keys = ["reference.kl_coefficient=1", f"reference.kl={{estimator: full, divergence: {name}}}", FAST]
        assert run("sft", tmp_path / name, *keys, steps=3) == 0
        found[name] = live_events(tmp_path / name, "sft", "step_stats")[-1]["loss/kl"]
    assert len(set(found.values())) == 4
    assert run("sft", tmp_path / "plain", "reference.kl_coefficient=1", FAST, steps=3) == 0
    assert live_events(tmp_path / "plain", "sft", "step_stats")[-1]["loss/kl"] == found["forward"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adaptive", "dual"])
def test_two_ranks_move_the_coefficient_as_one_does(kind: str, tmp_path: Path) -> None:
    keys = [*TOKEN, f"reference.controller={kind}", "train.learning_rate=1e-3"]
    assert run("grpo", tmp_path / "one", *keys, steps=3, batch=8) == 0
    done = run_ranks("grpo", tmp_path / "two", 2, *keys, steps=3, batch=4)
    assert done.returncode == 0, done.stderr
    one, two = ([event["beta_next"] for event in stats(tmp_path / name)] for name in ("one", "two"))
    assert len(set(one)) == 3 and two == pytest.approx(one, rel=1e-4)
