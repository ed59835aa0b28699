import itertools

import numpy as np
import pyarrow as pa
import pytest

from rewards.analysis.convergence import reward_change, reward_curve, step_bins


def table(baseline, adjusted=None, category=None):
    n = len(baseline)
    return pa.table(
        {
            "baseline_reward": pa.array(baseline, pa.float64()),
            "adjusted_reward": pa.array(baseline if adjusted is None else adjusted, pa.float64()),
            "category": pa.array(category or ["a"] * n, pa.string()),
        }
    )


def test_bins_never_cut_a_step_and_cover_every_session():
    rng = np.random.default_rng(0)
    steps = np.repeat(np.arange(1, 500), rng.integers(1, 60, 499))
    bins = step_bins(steps)
    assert 40 <= len(bins) <= 60
    assert bins[0].start == 0 and bins[-1].stop == len(steps)
    for left, right in itertools.pairwise(bins):
        assert left.stop == right.start and steps[left.stop - 1] < steps[right.start]
    assert all(found.first_step == steps[found.start] for found in bins)


def test_twelve_thousand_sessions_in_steps_of_64_make_bins_of_four_steps():
    steps = np.arange(12847) // 64 + 1
    bins = step_bins(steps)
    assert bins[0].stop == 256 and len(bins) == 50
    assert bins[-1].last_step == steps[-1]


def test_a_tiny_remainder_joins_the_last_bin_and_ten_sessions_are_one_bin():
    bins = step_bins(np.r_[np.repeat([1, 2, 3], 40), 4])
    assert [found.stop - found.start for found in bins] == [40, 40, 41]
    assert len(step_bins(np.arange(10))) == 1
    assert step_bins(np.zeros(0, dtype=int)) == []
    with pytest.raises(ValueError, match="order"):
        step_bins(np.array([2, 1]))


def test_the_curve_counts_only_sessions_that_have_a_reward():
    values = [1.0, None, 3.0, 1.0, 3.0] + [2.0] * 59
    (first,) = reward_curve(table(values), step_bins(np.repeat(1, 64)))
    assert first["sessions"] == 64 and first["baseline"]["n"] == 63
    assert first["baseline"]["value"] == 2.0
    assert first["baseline_sd"] == pytest.approx(np.std([1, 3, 1, 3] + [2] * 59, ddof=1))


def test_the_change_splits_by_hand_into_policy_mixture_and_schedule():
    # first bin: 40 a at 0; last bin: 20 a at 1 and 20 b at 3, b paid 0.5 extra by the schedule
    baseline = [0.0] * 40 + [1.0] * 20 + [3.0] * 20
    adjusted = [0.0] * 40 + [1.0] * 20 + [3.5] * 20
    bins = step_bins(np.repeat([1, 2], 40))
    change = reward_change(table(baseline, adjusted, ["a"] * 60 + ["b"] * 20), bins)
    assert change["policy"] == pytest.approx(0.75 * 1.0)  # mean share of a is .75, a rose by 1
    assert change["mixture"] == pytest.approx(-0.5 * 0.5 + 0.5 * 3.0)
    assert change["baseline"]["value"] == pytest.approx(2.0) == change["policy"] + change["mixture"]
    assert change["schedule"]["value"] == pytest.approx(0.25)
    assert change["adjusted"]["value"] == pytest.approx(2.25)
    assert (change["first_n"], change["last_n"]) == (40, 40)


def test_without_a_schedule_the_schedule_part_is_zero_and_a_steady_mixture_adds_nothing():
    rng = np.random.default_rng(1)
    category = ["a", "b"] * 200
    change = reward_change(table(rng.standard_normal(400).tolist(), category=category), step_bins(np.arange(400) // 40))
    assert change["schedule"]["value"] == 0.0 and change["mixture"] == pytest.approx(0.0, abs=1e-12)
    assert change["policy"] == pytest.approx(change["baseline"]["value"])


def test_a_change_that_cannot_be_told_says_why():
    assert "two bins" in reward_change(table([1.0] * 10), step_bins(np.arange(10)))["why"]
    nulls = table([None] * 80)
    assert "both rewards" in reward_change(nulls, step_bins(np.repeat([1, 2], 40)))["why"]
