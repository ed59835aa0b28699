"""Tails against hand arithmetic, numpy's quantiles and simulated damage."""

import numpy as np
import pytest
from scipy import stats

from rewards.analysis.tails import QUANTILES, Answers, cvar, tail_changes
from tests.rewards.accepted import record


def single(values):
    return Answers(np.asarray(values, dtype=float), np.arange(len(values)))


def changes(a, b, seed=0, **more):
    return tail_changes(single(a), single(b), len(a), np.random.default_rng(seed), **more)


def test_cvar_by_hand_counts_the_value_at_the_edge_in_part():
    assert cvar(np.arange(100.0)) == pytest.approx(np.mean([0, 1, 2, 3, 4]))
    assert cvar(np.arange(30.0)) == pytest.approx((0 + 0.5 * 1) / 1.5)  # 5 % of 30 are one and a half
    assert cvar(np.arange(10.0), 1.0) == 4.5
    with pytest.raises(ValueError, match="share"):
        cvar(np.arange(3.0), 0.0)


def test_the_point_estimates_are_cvar_and_the_empirical_quantiles():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(400), rng.standard_normal(400) - 0.3
    found = changes(a, b, replicates=200)
    assert found["cvar_5"]["a"] == pytest.approx(cvar(a)) and found["cvar_5"]["b"] == pytest.approx(cvar(b))
    assert found["cvar_5"]["estimate"] == pytest.approx(cvar(b) - cvar(a))
    old = np.quantile(a, QUANTILES, method="inverted_cdf")
    new = np.quantile(b, QUANTILES, method="inverted_cdf")
    assert [row["a"] for row in found["quantiles"]] == pytest.approx(old.tolist())
    assert [row["estimate"] for row in found["quantiles"]] == pytest.approx((new - old).tolist())
    assert found["n"] == found["cvar_5"]["n"] == 400 and found["cvar_5"]["mde"] > 0


def test_resamples_equal_cvar_of_the_drawn_values():
    rng = np.random.default_rng(2)
    values = rng.standard_normal(150)
    ordered = single(values).sorted(150)
    counts = rng.multinomial(150, np.full(150, 1 / 150), size=20)
    worst, at = ordered.read(counts, QUANTILES)
    for row, value, quantiles in zip(counts, worst, at, strict=True):
        drawn = np.repeat(values, row)
        assert value == pytest.approx(cvar(drawn))
        assert quantiles == pytest.approx(np.quantile(drawn, QUANTILES, method="inverted_cdf"))


def test_eight_equal_answers_to_a_prompt_say_no_more_than_one():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal(200), rng.standard_normal(200)
    prompt = np.repeat(np.arange(200), 8)
    once = changes(a, b, replicates=500)
    eight = tail_changes(
        Answers(np.repeat(a, 8), prompt), Answers(np.repeat(b, 8), prompt), 200, np.random.default_rng(0), 500
    )
    assert eight["cvar_5"]["estimate"] == pytest.approx(once["cvar_5"]["estimate"])
    assert eight["cvar_5"]["mde"] == pytest.approx(once["cvar_5"]["mde"], rel=0.1)


def test_the_same_answers_on_both_sides_have_no_change_and_no_interval():
    a = np.random.default_rng(4).standard_normal(120)
    found = changes(a, a, replicates=100)
    assert found["cvar_5"]["estimate"] == 0 and found["cvar_5"]["low"] is None and found["cvar_5"]["why"]
    assert all(row["estimate"] == 0 and row["low"] is None for row in found["quantiles"])


def test_a_worst_part_at_the_metrics_floor_on_both_sides_has_no_interval_and_claims_no_power():
    rng = np.random.default_rng(8)
    a, b = (rng.choice([-0.5, 0.0, 0.5, 1.0], 400, p=[0.1, 0.3, 0.3, 0.3]) for _ in range(2))
    found = changes(a, b, replicates=400)["cvar_5"]
    assert found["estimate"] == 0 and found["low"] is None and found["mde"] is None and "one value" in found["why"]
    fewer = changes(rng.choice([-0.5, 0.0, 1.0], 400, p=[0.01, 0.3, 0.69]), b, replicates=400)["cvar_5"]
    assert fewer["high"] < 0  # the floor was rare before
    never = changes(rng.choice([0.0, 1.0], 400, p=[0.3, 0.7]), np.where(b < 0, b - 1, 1.0), replicates=400)["cvar_5"]
    assert never["estimate"] == -1.5 and never["high"] == -1.5 and never["p"] < 0.01 and never["mde"] is None


def test_too_few_prompts_and_a_metric_of_two_values_say_why():
    rng = np.random.default_rng(5)
    few = changes(rng.standard_normal(60), rng.standard_normal(60))
    assert "60 prompts" in few["why"] and few["cvar_5"]["estimate"] is None and few["quantiles"] == []
    flags = changes(rng.integers(0, 2, 300), rng.integers(0, 2, 300))
    assert "two values" in flags["why"]


def test_a_hundred_thousand_answers_are_thinned_and_n_says_so():
    rng = np.random.default_rng(6)
    prompt = np.repeat(np.arange(12_500), 8)
    a, b = (Answers(rng.standard_normal(100_000), prompt) for _ in range(2))
    found = tail_changes(a, b, 12_500, rng, replicates=20)
    assert found["n"] == 6_250 and abs(found["cvar_5"]["estimate"]) < 0.2


def damaged(rng, n=2000, harmed=True, rho=0.7):
    common = rng.standard_normal(n) * np.sqrt(rho)
    a, b = (common + rng.standard_normal(n) * np.sqrt(1 - rho) for _ in range(2))
    if harmed:
        hit = rng.random(n) < 0.03
        b = b - 2.5 * hit + 2.5 * 0.03  # the mean stays
    return a, b


@pytest.mark.slow
def test_damage_to_3_percent_of_the_items_is_found_where_mean_and_ks_tests_miss_it():
    rng = np.random.default_rng(7)
    runs = 100
    tail = ks = mean = null = band = 0
    for _ in range(runs):
        a, b = damaged(rng)
        tail += changes(a, b, rng.integers(1 << 30))["cvar_5"]["high"] < 0
        ks += stats.ks_2samp(a, b).pvalue < 0.05
        mean += stats.ttest_rel(a, b).pvalue < 0.05
        found = changes(*damaged(rng, harmed=False), rng.integers(1 << 30))
        null += not found["cvar_5"]["low"] <= 0 <= found["cvar_5"]["high"]
        band += any(not row["low"] <= 0 <= row["high"] for row in found["quantiles"])
    record("tail damage found by CVaR 5 %", tail / runs, ">= 95 %", runs)
    record("tail damage found by Kolmogorov-Smirnov", ks / runs, "misses", runs)
    record("tail damage found by the paired t test", mean / runs, "misses", runs)
    record("CVaR 5 %, no damage", null / runs, "below the 7.7 % of percentile limits", runs)
    record("quantile band leaves out 0, no damage", band / runs, "<= 10 %", runs)
    assert tail / runs >= 0.95 and ks / runs <= 0.4 and mean / runs <= 0.15
    assert null / runs <= 0.10 and band / runs <= 0.10
