"""The comparison of two sets of answers: pairing, slices, tails, monitoring and what it says."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from rewards.analysis.compare import SLICE_Q, Pairs, compare, slice_table
from rewards.analysis.outcomes import Outcomes
from rewards.analysis.paired import binary_mde
from rewards.errors import UserError
from tests.rewards.accepted import record


def outcomes(values, prompts=None, categories=None):
    prompts = [f"p{i}" for i in range(len(values))] if prompts is None else prompts
    return Outcomes.of(prompts, values, categories)


def normal(seed, n=300, shift=0.0, rho=0.7):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(n) * np.sqrt(rho)
    a, b = (common + rng.standard_normal(n) * np.sqrt(1 - rho) for _ in range(2))
    return a, b + shift


# -- pairing -----------------------------------------------------------------------------------------------------------


def test_prompts_pair_by_id_in_the_order_of_the_new_side_and_every_prompt_weighs_the_same():
    old = outcomes([1.0, 2, 3, 4, 9], ["a", "b", "c", "d", "gone"])
    new = outcomes([0.0, 1, 5, 3, 3, 2, 8, 7], ["d", "d", "new", "c", "c", "b", "a", "more"])
    pairs = Pairs.of(old, new)
    assert pairs.difference.tolist() == [-3.5, 0.0, 0.0, 7.0]  # d, c, b, a
    assert pairs.prompts == 4 and pairs.pairs == 4 and pairs.unpaired == (1, 2) and not pairs.single


def test_answers_without_a_value_take_no_part_and_are_counted():
    old = outcomes([1.0, np.nan, 3, 4, 5], list("abcde"))
    found = compare(old, outcomes([1.0, 2, 3, 4, 5], list("abcde")))
    assert found["a"]["missing"] == 1 and found["prompts"] == 4 and found["unpaired_b"] == 1


def test_without_common_prompts_there_is_nothing_to_compare():
    with pytest.raises(UserError, match="no prompt in common: 3 prompts in given, 2 in given"):
        compare(outcomes([1.0, 2, 3], list("abc")), outcomes([1.0, 2], list("xy")))
    with pytest.raises(UserError, match="1 prompt in common"):
        compare(outcomes([1.0, 2], list("ab")), outcomes([1.0, 2], list("bc")))


def test_a_prompts_category_is_that_of_the_new_side():
    old = outcomes(np.arange(4.0), categories=["x", "x", "y", None])
    new = outcomes(np.arange(4.0), categories=["x", "y", "y", None])
    pairs = Pairs.of(old, new)
    assert pairs.names == ("x", "y") and pairs.category.tolist() == [0, 1, 1, -1]


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_a_worse_mean_is_a_regression_and_the_verdict_gives_its_interval():
    found = compare(*map(outcomes, normal(1, shift=-0.3)))
    assert found["regression"] and found["worse"][0] == "mean"
    assert found["difference"]["high"] < 0 and found["difference"]["p"] < 0.01
    assert "Regression in the mean" in found["verdict"] and "95 % interval" in found["verdict"]


def test_no_regression_says_the_smallest_one_that_could_have_been_found():
    found = compare(*map(outcomes, normal(2)))
    assert not found["regression"] and found["worse"] == []
    mde = found["difference"]["mde"]
    assert f"{mde:.3g} of the mean" in found["verdict"] and "4 of 5 cases" in found["verdict"]
    assert mde == pytest.approx(2.8016 * (normal(2)[1] - normal(2)[0]).std(ddof=1) / np.sqrt(300), rel=1e-3)


def test_an_improvement_is_no_regression_and_is_told():
    found = compare(*map(outcomes, normal(3, shift=0.4)))
    assert not found["regression"] and found["verdict"].startswith("Better: the mean changed by +")


def test_where_less_is_better_a_rise_is_the_regression_in_the_metrics_own_units():
    a, b = normal(4, shift=0.5)
    found, turned = compare(outcomes(a), outcomes(b), less_is_better=True), compare(outcomes(-a), outcomes(-b))
    assert found["regression"] and turned["regression"]
    assert found["difference"]["estimate"] == pytest.approx((b - a).mean()) and found["difference"]["low"] > 0
    assert found["difference"]["low"] == pytest.approx(-turned["difference"]["high"])
    worst, mirror = found["tails"]["cvar_5"], turned["tails"]["cvar_5"]
    assert worst["a"] == pytest.approx(-mirror["a"]) and worst["low"] == pytest.approx(-mirror["high"])
    quantiles = found["tails"]["quantiles"]
    assert [row["q"] for row in quantiles] == sorted(row["q"] for row in quantiles)
    assert quantiles[3]["a"] == pytest.approx(np.median(a), abs=0.02)


def test_a_yes_or_no_metric_is_tested_by_mcnemar_and_has_its_smallest_effect():
    rng = np.random.default_rng(5)
    a = (rng.random(800) < 0.9).astype(float)
    b = np.where(rng.random(800) < 0.08, 0.0, a)
    found = compare(outcomes(a), outcomes(b), "compliant")
    table = found["mcnemar"]
    assert found["regression"] and table["better"] == 0 and table["worse"] == int((a > b).sum())
    assert found["difference"]["mde"] == pytest.approx(binary_mde(table["discordant"], 800))
    assert "two values" in found["tails"]["why"]
    less = compare(outcomes(a), outcomes(b), "compliant", less_is_better=True)
    assert not less["regression"] and less["mcnemar"]["better"] == table["worse"]


def test_several_answers_a_prompt_have_no_mcnemar_and_say_why():
    a = outcomes([1.0, 0, 1, 1, 0, 1, 1, 0], list("aabbccdd"))
    found = compare(a, outcomes([1.0, 1, 1, 0, 0, 1, 0, 0], list("aabbccdd")))
    assert found["mcnemar"]["p"] is None and "several answers" in found["mcnemar"]["why"]
    assert found["pairs"] == 8 and found["prompts"] == 4


def test_the_same_answers_on_both_sides_are_no_regression_and_claim_no_power_they_lack():
    found = compare(outcomes(np.full(50, 0.5)), outcomes(np.full(50, 0.5)))
    assert not found["regression"] and found["difference"]["mde"] is None
    assert "unknown of the mean (all differences are equal" in found["verdict"]


def test_every_prompt_falling_by_the_same_amount_is_a_regression_although_nothing_spreads():
    found = compare(outcomes(np.full(50, 0.5)), outcomes(np.full(50, 0.2)))
    assert found["regression"] and found["difference"]["low"] is None and found["difference"]["p"] < 1e-10


def test_tail_damage_with_the_same_mean_is_a_regression():
    rng = np.random.default_rng(6)
    a, b = normal(6, 2000)
    hit = rng.random(2000) < 0.03
    found = compare(outcomes(a), outcomes(b - 2.5 * hit + 2.5 * hit.mean()))
    assert found["worse"] == ["worst 5 %"] and "The worst 5 % changed by" in found["verdict"]


def test_equal_input_gives_the_equal_document():
    a, b = normal(7)
    assert compare(outcomes(a), outcomes(b)) == compare(outcomes(a), outcomes(b))


# -- monitoring --------------------------------------------------------------------------------------------------------


def test_the_e_process_reads_the_differences_in_the_order_of_the_new_side():
    values = np.r_[np.ones(60), np.zeros(60)]
    found = compare(outcomes(np.full(120, 0.5)), outcomes(1 - values))["eprocess"]
    assert found["scale"] == 1.0 and found["n"] == 120 and found["alarm_at"] < 60
    shuffled = compare(outcomes(np.full(120, 0.5)), outcomes(values))["eprocess"]
    assert shuffled["alarm_at"] is None or shuffled["alarm_at"] > 60


def test_values_beyond_0_to_1_need_limits_and_must_keep_to_them():
    a, b = outcomes(np.linspace(-1, 1, 40)), outcomes(np.linspace(-1, 0.9, 40))
    assert "--limits" in compare(a, b)["eprocess"]["why"]
    found = compare(a, b, limits=(-1.0, 3.0))["eprocess"]
    assert found["scale"] == 4.0 and found["why"] is None
    with pytest.raises(UserError, match="values reach from -1 to 1"):
        compare(a, b, limits=(0.0, 1.0))


# -- slices ------------------------------------------------------------------------------------------------------------


def test_slices_are_paired_t_tests_adjusted_as_statsmodels_does():
    a, b = normal(8, 400)
    category = np.repeat(np.arange(4), 100)
    d = b - a - 0.4 * (category == 2)
    rows = slice_table(d, category, ["w", "x", "y", "z"])
    want = [stats.ttest_1samp(d[category == code], 0).pvalue for code in range(4)]
    assert [row["p"] for row in rows] == pytest.approx(want)
    assert [row["p_adjusted"] for row in rows] == pytest.approx(multipletests(want, method="fdr_bh")[1].tolist())
    assert rows[2]["verdict"] == "worse" and rows[1]["verdict"] == rows[3]["verdict"] == "no change found"
    assert all(row["n"] == 100 and row["mde"] > 0 for row in rows)


def test_a_slice_that_is_too_small_or_all_alike_is_not_tested_and_does_not_enter_the_adjustment():
    d = np.r_[np.linspace(-1, 0.5, 30), [-1.0, -1.0], np.zeros(10)]
    rows = slice_table(d, np.repeat([0, 1, 2], [30, 2, 10]), ["some", "two", "alike"])
    assert rows[1]["p"] is None and rows[1]["verdict"].startswith("not tested: fewer than 4")
    assert rows[2]["p"] == 1.0 and rows[2]["mde"] is None
    assert rows[0]["p_adjusted"] == pytest.approx(min(1, 2 * rows[0]["p"]))


def test_one_bad_slice_is_a_regression_of_its_own():
    a, b = normal(9, 600)
    names = np.repeat(["w", "x", "y"], 200)
    b = b - np.where(names == "y", 0.5, 0) + np.where(names == "w", 0.5, 0)
    found = compare(outcomes(a, categories=names.tolist()), outcomes(b, categories=names.tolist()))
    assert "slice y" in found["worse"] and "mean" not in found["worse"] and "Slice y changed by" in found["verdict"]


def releases(rng, runs, bad=4, slices=40, n=150, shift=0.35, shared=0.3):
    """Differences (run, slice, prompt): every slice holds translations of the same prompts, so all move together."""
    effect = np.where(np.arange(slices) < bad, -shift, 0.0)
    for _ in range(runs):
        common = rng.standard_normal(n) * np.sqrt(shared)
        yield effect[:, None] + common + rng.standard_normal((slices, n)) * np.sqrt(1 - shared)


@pytest.mark.slow
def test_slices_after_adjustment_keep_the_false_discovery_rate_where_bare_p_values_cry_wolf_in_half_of_releases():
    rng = np.random.default_rng(10)
    runs, names = 200, [f"s{i:02}" for i in range(40)]
    category = np.repeat(np.arange(40), 150)
    false_share, power, bare = [], [], 0
    for d in releases(rng, runs):
        rows = slice_table(d.ravel(), category, names)
        worse = np.array([row["verdict"] == "worse" for row in rows])
        found = np.array([row["p_adjusted"] <= SLICE_Q for row in rows])
        false_share.append(found[4:].sum() / max(1, found.sum()))
        power.append(worse[:4].mean())
        bare += any(row["p"] < 0.05 for row in rows[4:])
    record("slices, false discovery rate after BH at .1", float(np.mean(false_share)), "<= 10 %", runs)
    record("slices, share of bad ones found", float(np.mean(power)), "about 97 %", runs)
    record("releases with a false slice at bare p < .05", bare / runs, "about 54 %", runs)
    assert np.mean(false_share) <= SLICE_Q and np.mean(power) >= 0.9 and bare / runs >= 0.4


@pytest.mark.slow
def test_a_release_without_change_is_rarely_called_a_regression():
    rng = np.random.default_rng(11)
    runs, names = 150, np.repeat([f"s{i}" for i in range(5)], 100).tolist()
    called = 0
    for _ in range(runs):
        common = rng.standard_normal(500) * np.sqrt(0.7)
        a, b = (common + rng.standard_normal(500) * np.sqrt(0.3) for _ in range(2))
        called += compare(outcomes(a, categories=names), outcomes(b, categories=names))["regression"]
    record("regression called without a change: mean, 5 slices and tail together", called / runs, "<= 12 %", runs)
    assert called / runs <= 0.12
