"""Leverage against hand arithmetic and a loop over groups."""

import numpy as np
import pytest

from rewards.advantages import advantages
from rewards.differential import Schedule
from rewards.leverage import MOST_DRAWN, Pulled, change, gamma, gamma_interval, leverage, leverages


def rows(category, group, compliant, advantage, unadjusted):
    return [
        {"category": category, "group_id": group, "compliant": c, "advantage": a, "advantage_unadjusted": u}
        for c, a, u in zip(compliant, advantage, unadjusted, strict=True)
    ]


def slow_gamma(x, a, groups):
    above = below = 0.0
    for group in set(groups):
        own = [i for i, g in enumerate(groups) if g == group]
        centre = sum(x[i] for i in own) / len(own)
        above += sum((x[i] - centre) * a[i] for i in own)
        below += sum((x[i] - centre) ** 2 for i in own)
    return above / below if below else None


def generator():
    return np.random.default_rng(0)


def test_gamma_by_hand():
    # x - mean = 1/2, -1/2, so sum x A = (3 - 1) / 2 = 1 and sum x^2 = 1/2
    assert gamma([1, 0], [3.0, 1.0], ["g", "g"]) == 2.0
    # second group: x - mean = 2/3, -1/3, -1/3; sum x A = 2, sum x^2 = 2/3
    assert gamma([1, 0, 1, 0, 0], [3.0, 1.0, 2.0, -1.0, -1.0], list("gghhh")) == pytest.approx(
        (1 + 2) / (1 / 2 + 2 / 3)
    )


def test_gamma_equals_a_loop_over_groups():
    rng = np.random.default_rng(5)
    for _ in range(30):
        size = int(rng.integers(2, 60))
        x, a = (rng.random(size) < 0.4).astype(float), rng.normal(size=size)
        groups = rng.integers(0, 8, size).tolist()
        want = slow_gamma(x, a, groups)
        got = gamma(x, a, groups)
        assert got == (None if want is None else pytest.approx(want, abs=1e-12))


def test_gamma_does_not_see_the_level_of_a_group_and_is_null_without_a_mixed_group():
    x, groups = [1, 0, 0, 1, 0], list("aabbb")
    a = [1.0, 0.0, 2.0, -1.0, 0.5]
    shifted = [v + (10 if g == "a" else -3) for v, g in zip(a, groups, strict=True)]
    assert gamma(x, a, groups) == pytest.approx(gamma(x, shifted, groups))
    assert gamma([1, 1, 0, 0], [1.0, 2.0, 3.0, 4.0], list("aabb")) is None
    assert gamma([0.1] * 7, range(7), ["a"] * 7) is None


def test_a_null_is_out_of_the_centring_too():
    assert gamma([1, 0, None, 1], [3.0, 1.0, 9.0, None], ["g"] * 4) == gamma([1, 0], [3.0, 1.0], ["g"] * 2)
    assert gamma([1, 0, 1], [3.0, 1.0, 9.0], ["g", "g", None]) == 2.0


def test_leverage_of_a_batch_built_by_hand():
    batch = [
        *rows("c", "1", [True, False], [3.0, 0.0], [2.0, 0.0]),
        *rows("c", "2", [True, False, False], [3.0, 0.0, 0.0], [1.0, 0.0, 1.0]),
        *rows("d", "3", [True, False], [1.0, 0.0], [1.0, 0.5]),
        *rows("d", "4", [True, True], [5.0, 0.0], [1.0, 0.5]),
    ]
    # c: sum x A = 3/2 + 2 over 1 + (2 - 1)/3 = 7/2 over 4/3; d: group 3 only: 1/2 over 1/4
    got = leverage(batch, "c", generator())
    assert got.leverage == pytest.approx((7 / 2) / (4 / 3))
    assert got.spill == pytest.approx(2.0)
    assert got.relative == pytest.approx((7 / 2) / (4 / 3) / 2)
    assert got.n_groups == 2
    assert got.low == pytest.approx(1.5) and got.high == pytest.approx(6.0)  # the two groups alone
    assert (got.spill_low, got.spill_high, got.relative_low) == (None, None, None)  # one mixed group: no interval
    assert set(got.payload()) >= {"leverage", "low", "high", "spill", "relative", "n_groups"}


def test_a_gain_on_the_advantage_is_the_leverage_and_spills_nothing():
    rng = np.random.default_rng(2)
    schedule = Schedule({("c", None): 0.15}, place="advantage")
    batch = []
    for group in range(16):
        category = "cd"[group % 2]
        x = rng.random(8) < 0.5
        plain = advantages(x + rng.normal(size=8) * 0.3, [group] * 8, "group").advantage
        batch += rows(category, group, x.tolist(), (plain * schedule.gain(category)).tolist(), plain.tolist())
    got = leverages(batch, generator())
    assert list(got) == ["c", "d"]
    assert got["c"].leverage == pytest.approx(1.15) and got["c"].spill == 1.0
    assert got["c"].relative == pytest.approx(1.15)
    assert got["c"].low == pytest.approx(1.15) and got["c"].high == pytest.approx(1.15)
    assert got["d"].leverage == 1.0 and got["d"].spill == pytest.approx(1.15)


def test_batch_standardisation_spills_over_to_the_other_category():
    rng = np.random.default_rng(4)
    category = np.repeat(["c", "d"], 64)
    groups = np.repeat(np.arange(16), 8).tolist()
    x = rng.random(128) < 0.5
    b = x + 0.2 * rng.normal(size=128)
    a = np.where(category == "c", 0.5 + 2.0 * (b - 0.5), b)
    plain, adjusted = advantages(b, groups, "batch").advantage, advantages(a, groups, "batch").advantage
    columns = {
        "category": category.tolist(),
        "group_id": groups,
        "compliant": x.tolist(),
        "advantage": adjusted.tolist(),
        "advantage_unadjusted": plain.tolist(),
    }
    got = leverage(columns, "c", generator())
    assert got.spill < 0.95  # the others are divided by a wider spread
    assert got.relative == pytest.approx(2.0)
    assert got.low < got.leverage < 2.0


def test_leverage_is_null_without_mixed_groups_or_when_the_slope_may_be_zero():
    flat = rows("c", "1", [True, True], [1.0, 2.0], [1.0, 2.0])
    assert leverage(flat, "c", generator()).leverage is None
    assert leverage(flat, "c", generator()).n_groups == 0
    opposed = [
        *rows("c", "1", [True, False], [1.0, 0.0], [1.0, 0.0]),
        *rows("c", "2", [True, False], [0.0, 1.0], [0.0, 0.9]),
    ]
    got = leverage(opposed, "c", generator())
    assert (got.leverage, got.low, got.high, got.relative) == (None, None, None, None)
    assert got.n_groups == 2
    silent = rows("c", "1", [True, False], [0.0, 0.0], [0.0, 0.0])  # a group of equal rewards
    assert leverage(silent, "c", generator()).leverage is None
    with pytest.raises(ValueError, match="empty"):
        leverages([], generator())


def test_groups_of_one_name_in_two_steps_or_categories_are_two_groups():
    one = rows("c", "1", [True, False], [2.0, 0.0], [1.0, 0.0])
    other = rows("c", "1", [True, False], [9.0, 8.0], [9.0, 8.0])
    stepped = [{**row, "step": 1} for row in one] + [{**row, "step": 2} for row in other]
    assert leverage(stepped, "c", generator()).n_groups == 2
    assert leverage(one + rows("d", "1", [True, False], [1.0, 0.0], [1.0, 0.0]), "c", generator()).leverage == 2.0


def test_intervals_are_those_of_numpy_and_follow_the_generator():
    rng = np.random.default_rng(9)
    x, a = (rng.random(160) < 0.5).astype(float), rng.normal(size=160)
    groups = np.repeat(np.arange(20), 8).tolist()
    got = gamma_interval(x, a + x, groups, np.random.default_rng(1), resamples=300)
    assert got == gamma_interval(x, a + x, groups, np.random.default_rng(1), resamples=300)
    assert got != gamma_interval(x, a + x, groups, np.random.default_rng(2), resamples=300)
    sums = np.array([slow_sums(x, a + x, groups, g) for g in range(20)]).T
    sums = sums[:, sums[1] > 0]  # mixed groups only
    size = sums.shape[1]
    assert size == got.n_groups == 19
    counts = np.random.default_rng(1).multinomial(size, np.full(size, 1 / size), size=300)
    draws = (counts @ sums[0]) / (counts @ sums[1])
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-12)
    assert gamma_interval([1, 0], [1.0, 0.0], ["g", "g"], generator()).low is None
    assert gamma_interval([1, 1], [1.0, 0.0], ["g", "g"], generator()) is None


def slow_sums(x, a, groups, group):
    own = [i for i, g in enumerate(groups) if g == group]
    centre = np.mean(x[own])
    return ((x[own] - centre) * a[own]).sum(), ((x[own] - centre) ** 2).sum()


def test_the_bootstrap_interval_of_gamma_covers_the_truth():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = (rng.random(240) < 0.5).astype(float)
        a = 0.7 * x + rng.normal(size=240)
        got = gamma_interval(x, a, np.repeat(np.arange(30), 8).tolist(), rng)
        covered += got.low <= 0.7 <= got.high
    assert 0.88 <= covered / 200 <= 0.99


def pulled(rng, groups, times=1.0):
    """Groups of four; the advantage is x plus noise without the schedule, `times` as much with it."""
    group = np.repeat(np.arange(groups), 4)
    x = (rng.random(len(group)) < 0.5).astype(float)
    unadjusted = x + 0.3 * rng.standard_normal(len(x))
    return Pulled(x, times * unadjusted, unadjusted, group)


def test_the_change_of_the_ratio_of_slopes_is_that_of_four_slopes():
    rng = np.random.default_rng(0)
    before, after = pulled(rng, 50, 1.1), pulled(rng, 70)
    after = after._replace(advantage=after.advantage + 0.2 * rng.standard_normal(280))
    found = change(before, after, generator())
    ratios = [
        gamma(s.x, s.advantage, s.group.tolist()) / gamma(s.x, s.unadjusted, s.group.tolist()) for s in (before, after)
    ]
    assert [found.before, found.after] == pytest.approx(ratios, rel=1e-12) and found.before == pytest.approx(1.1)
    assert found.ratio == pytest.approx(ratios[1] / ratios[0]) and found.low < found.ratio < found.high
    mixed = [sum(0 < s.x[s.group == g].mean() < 1 for g in range(70) if (s.group == g).any()) for s in (before, after)]
    assert list(found.n_groups) == mixed


def test_a_change_without_a_mixed_group_or_with_a_slope_that_may_be_0_is_not_known():
    rng = np.random.default_rng(1)
    whole, flat = pulled(rng, 40), pulled(rng, 40)
    none = change(whole, flat._replace(x=np.ones(160)), generator())
    assert none.before == pytest.approx(1) and none.after is none.ratio is none.low is None and none.n_groups[1] == 0
    vague = change(whole._replace(unadjusted=rng.standard_normal(160)), flat, generator())
    assert vague.before is None and vague.ratio is None
    one = change(Pulled(*(part[:4] for part in pulled(np.random.default_rng(3), 1))), whole, generator())
    assert one.n_groups[0] == 1 and one.ratio is not None and one.low is None
    nothing = Pulled(*(np.empty(0) for _ in range(3)), np.empty(0, dtype=np.intp))
    assert change(nothing, whole, generator()).n_groups[0] == 0


def test_neighbours_of_very_many_groups_are_drawn_together_which_leaves_interval_and_estimate():
    rng = np.random.default_rng(2)
    before, after = pulled(rng, 3 * MOST_DRAWN), pulled(rng, 3 * MOST_DRAWN)
    after = after._replace(advantage=after.advantage + 0.5 * rng.standard_normal(len(after.x)))
    found = change(before, after, generator(), 2000)
    part = slice(0, len(after.x) // 3)
    third = change(before, Pulled(*(column[part] for column in after)), generator(), 2000)
    assert found.n_groups[1] > MOST_DRAWN and found.low < found.ratio < found.high
    assert (third.high - third.low) / (found.high - found.low) == pytest.approx(np.sqrt(3), rel=0.15)
