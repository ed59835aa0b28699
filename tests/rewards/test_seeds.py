"""The interquartile mean over seeds and tasks."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from rewards.analysis.seeds import iqm, iqm_difference, iqm_estimate
from tests.rewards.accepted import record


def table(scores):
    return {f"t{i}": np.asarray(column, dtype=float) for i, column in enumerate(np.asarray(scores).T)}


def test_the_iqm_by_hand_is_the_mean_of_the_middle_half_over_runs_and_tasks_together():
    assert iqm(np.array([0.0, 1, 2, 3, 4, 5, 6, 100])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    found = iqm_estimate(table([[0, 1], [2, 3], [4, 5], [6, 100]]), np.random.default_rng(0))
    assert found["estimate"] == pytest.approx(3.5) and (found["n"], found["seeds"], found["tasks"]) == (8, 4, 2)


def test_the_interval_resamples_runs_within_each_task_as_a_loop_does():
    rng = np.random.default_rng(1)
    scores = table(rng.standard_normal((6, 4)) + np.arange(4))
    found = iqm_estimate(scores, np.random.default_rng(2), replicates=5000)
    draws = []
    for _ in range(1500):
        drawn = [values[rng.integers(0, 6, 6)] for values in scores.values()]
        draws.append(trim_mean(np.concatenate(drawn), 0.25))
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.06)


def test_the_same_generator_gives_the_same_interval():
    scores = table(np.random.default_rng(0).random((5, 3)))
    once, again = (iqm_estimate(scores, np.random.default_rng(9)) for _ in range(2))
    assert once == again and once["warning"] is None


def test_fewer_than_five_seeds_warn_and_one_gives_no_interval():
    rng = np.random.default_rng(3)
    three = iqm_estimate(table(rng.random((3, 4))), rng)
    assert three["warning"].startswith("3 seeds") and three["low"] < three["high"]
    one = iqm_estimate(table(rng.random((1, 4))), rng)
    assert one["low"] is None and one["warning"].startswith("1 seed:") and "no interval" in one["why"]
    nothing = iqm_estimate({}, rng)
    assert nothing["estimate"] is None and nothing["n"] == 0 and nothing["why"] == "no scores"
    with pytest.raises(ValueError, match="one score"):
        iqm(np.array([np.nan]))


def test_missing_scores_are_left_out_of_their_task():
    found = iqm_estimate({"a": np.array([1.0, np.nan, 3.0]), "b": np.array([np.nan])}, np.random.default_rng(0))
    assert (found["n"], found["seeds"], found["tasks"], found["estimate"]) == (2, 2, 1, 2.0)


def test_a_difference_counts_common_tasks_only_and_says_what_it_could_have_found():
    rng = np.random.default_rng(4)
    old = {"a": rng.standard_normal(10), "b": rng.standard_normal(10), "only": np.array([9.0])}
    new = {"a": old["a"] + 3, "b": old["b"] + 3}
    found = iqm_difference(old, new, rng)
    assert found["estimate"] == pytest.approx(3) and found["low"] > 0 and found["tasks"] == 2 and found["n"] == 40
    assert 0 < found["mde"] < 3
    assert iqm_difference({"a": old["a"]}, {"b": old["b"]}, rng)["why"] == "no task has scores on both sides"


@pytest.mark.slow
def test_intervals_cover_less_with_few_seeds_at_the_rates_that_the_warning_states():
    rng = np.random.default_rng(5)
    tasks, runs = 10, 1000
    means = np.linspace(-1, 1, tasks)
    truth = trim_mean((means + rng.standard_normal((400_000, tasks))).ravel(), 0.25)
    for seeds, stated in ((3, 0.88), (5, 0.91), (10, 0.93)):
        hits = 0
        for _ in range(runs):
            found = iqm_estimate(table(means + rng.standard_normal((seeds, tasks))), rng, replicates=500)
            hits += found["low"] <= truth <= found["high"]
        record(f"IQM interval coverage, {seeds} seeds", hits / runs, f"{100 * stated:.0f} % +- 4 points", runs)
        assert abs(hits / runs - stated) <= 0.04
