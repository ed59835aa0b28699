"""Advantages against hand arithmetic and an independent loop."""

import math
import statistics

import numpy as np
import pytest

from rewards.advantages import advantages, zero_variance_fraction


def slow(rewards, groups, scale, eps=1e-4):
    """One session at a time, with the standard library."""
    known = [r for r in rewards if r is not None]
    result = []
    for reward, group in zip(rewards, groups, strict=True):
        if reward is None:
            result.append(None)
            continue
        peers = [r for r, g in zip(rewards, groups, strict=True) if g == group and r is not None]
        spread = peers if scale != "batch" else known
        deviation = reward - statistics.fmean(peers)
        if scale == "none":
            result.append(deviation)
        else:
            result.append(deviation / (statistics.stdev(spread) + eps) if len(spread) > 1 else 0.0)
    return result


def as_list(values):
    return [None if math.isnan(v) else v for v in values]


def test_advantages_of_two_groups_by_hand():
    got = advantages([1.0, 3.0, 5.0, 5.0, 5.0], ["a", "a", "b", "b", "b"], "group")
    s = math.sqrt(2.0)  # (1 + 1) / (2 - 1)
    assert got.advantage.tolist() == pytest.approx([-1 / (s + 1e-4), 1 / (s + 1e-4), 0, 0, 0], abs=1e-15)
    assert got.mean.tolist() == [2, 2, 5, 5, 5]
    assert got.std.tolist() == pytest.approx([s, s, 0, 0, 0])
    assert advantages([1.0, 3.0, 5.0], ["a", "a", "b"], "none").advantage.tolist() == [-1, 1, 0]
    batch = advantages([1.0, 3.0, 5.0], ["a", "a", "b"], "batch", eps=0.0)
    assert batch.advantage.tolist() == [-0.5, 0.5, 0]  # std of 1, 3, 5 is 2
    assert batch.std.tolist() == [2, 2, 2]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_a_loop_over_sessions(scale):
    rng = np.random.default_rng(3)
    for _ in range(50):
        size = int(rng.integers(1, 40))
        groups = [f"g{g}" for g in rng.integers(0, 6, size)]
        rewards = [None if rng.random() < 0.15 else float(rng.normal(3, 2)) for _ in range(size)]
        if all(reward is None for reward in rewards):
            continue
        got = as_list(advantages(rewards, groups, scale).advantage)
        want = slow(rewards, groups, scale)
        assert [g is None for g in got] == [w is None for w in want]
        assert [g for g in got if g is not None] == pytest.approx([w for w in want if w is not None], abs=1e-12)


def test_a_null_reward_takes_no_part_and_stays_null():
    with_null = advantages([1.0, None, 3.0, float("nan")], ["a"] * 4, "group")
    without = advantages([1.0, 3.0], ["a"] * 2, "group")
    assert with_null.advantage[[0, 2]].tolist() == without.advantage.tolist()
    assert np.isnan(with_null.advantage[[1, 3]]).all()
    assert np.isnan(with_null.mean[1]) and np.isnan(with_null.std[1])
    assert np.isnan(advantages([None, None], ["a", "b"], "group").advantage).all()


def test_a_group_of_one_has_advantage_zero_and_no_standard_deviation():
    got = advantages([2.0, 1.0, 3.0], ["alone", "b", "b"], "group")
    assert got.advantage[0] == 0.0
    assert np.isnan(got.std[0])
    assert got.mean[0] == 2.0
    assert advantages([2.0], ["a"], "batch").advantage.tolist() == [0.0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_have_advantages_of_exactly_zero(scale):
    got = advantages([0.1] * 7 + [0.3, 0.7], ["a"] * 7 + ["b", "b"], scale)
    assert got.advantage[:7].tolist() == [0.0] * 7


def test_group_standardisation_cancels_an_affine_map_with_positive_slope():
    rng = np.random.default_rng(0)
    b, groups = rng.normal(size=64), np.repeat(np.arange(8), 8).tolist()
    widened = 0.3 + 1.15 * (b - 0.3)
    kept = advantages(b, groups, "group", eps=0.0).advantage
    assert np.allclose(advantages(widened, groups, "group", eps=0.0).advantage, kept, atol=1e-12)
    plain = advantages(b, groups, "none").advantage
    assert np.allclose(advantages(widened, groups, "none").advantage, 1.15 * plain, atol=1e-12)


def test_the_order_of_sessions_and_the_names_of_groups_do_not_matter():
    rng = np.random.default_rng(1)
    rewards, groups = rng.normal(size=20), rng.integers(0, 4, 20)
    order = rng.permutation(20)
    straight = advantages(rewards, groups.tolist(), "group").advantage
    shuffled = advantages(rewards[order], [f"name {g}" for g in groups[order]], "group").advantage
    assert np.allclose(straight[order], shuffled, atol=1e-14)


def test_zero_variance_fraction_counts_sessions_with_a_standard_deviation_of_zero():
    std = advantages([1.0, 1.0, 1.0, 2.0, 7.0, None], ["a", "a", "b", "b", "alone", "b"], "group").std
    assert zero_variance_fraction(std) == 0.5
    assert zero_variance_fraction(np.array([np.nan])) is None


@pytest.mark.parametrize(
    ("rewards", "groups", "scale", "says"),
    [
        ([], [], "group", "empty"),
        ([1.0, float("inf")], ["a", "a"], "group", "reward 1 is infinite"),
        ([1.0], ["a", "b"], "group", "2 group ids for 1"),
        ([1.0], [None], "group", "without group_id"),
        ([1.0], ["a"], "std", "none of group, batch, none"),
    ],
)
def test_what_has_no_advantage_is_an_error(rewards, groups, scale, says):
    with pytest.raises(ValueError, match=says):
        advantages(rewards, groups, scale)
