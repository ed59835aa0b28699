"""Paired differences against enumeration, closed forms, scipy and statsmodels."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportions_ztest

from rewards.analysis.paired import (
    POWER_Z,
    Bca,
    acceleration,
    binary_mde,
    mcnemar,
    mcnemar_table,
    mean_difference,
    mean_mde,
    student_difference,
)
from tests.rewards.accepted import record


def test_the_smallest_paired_difference_at_discordance_15_percent_is_3_4_points_and_1_point_needs_11800():
    assert pytest.approx(2.80, abs=0.002) == POWER_Z
    assert binary_mde(150, 1000) == pytest.approx(0.0343, abs=1e-4)
    needed = next(n for n in range(10_000, 13_000, 10) if binary_mde(0.15 * n, n) <= 0.01)
    assert 11_700 <= needed <= 11_850


def test_no_discordant_pair_still_leaves_a_rate_of_3_in_n_possible():
    assert binary_mde(0, 300) == binary_mde(3, 300) == pytest.approx(2.8016 * np.sqrt(0.01 / 300), rel=1e-3)
    assert binary_mde(1, 1) == 1.0
    with pytest.raises(ValueError, match="discordant"):
        binary_mde(4, 3)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (0, 5), (3, 3), (9, 2), (40, 25)])
def test_mcnemar_is_the_exact_binomial_test_and_the_mid_p_takes_off_what_was_seen_once(worse, better):
    mid, exact = mcnemar(worse, better)
    oracle = statsmodels_mcnemar([[50, worse], [better, 20]], exact=True).pvalue
    assert exact == pytest.approx(min(1.0, oracle), abs=1e-12)
    if worse + better == 0:
        assert mid == 1.0
        return
    fewer = min(worse, better)
    tosses = [sum(t) for t in itertools.product((0, 1), repeat=worse + better)] if worse + better <= 11 else None
    if tosses is not None:
        by_hand = 2 * np.mean([t < fewer for t in tosses]) + np.mean([t == fewer for t in tosses])
        assert mid == pytest.approx(by_hand, abs=1e-12)
    assert mid == pytest.approx(
        2 * stats.binom.cdf(fewer, worse + better, 0.5) - stats.binom.pmf(fewer, worse + better, 0.5)
    )


def test_the_table_counts_pairs_that_changed():
    found = mcnemar_table(np.array([1.0, 1, 0, 0, 1]), np.array([0.0, 1, 1, 0, 0]))
    assert (found["worse"], found["better"], found["discordant"], found["n"]) == (2, 1, 3, 5)


def size_and_power(n, worse, better):
    """Chances of p < .05 for the mid-p and the exact test, by enumeration over how many pairs changed."""
    found = np.zeros(2)
    changed = np.arange(0, n + 1)
    weights = stats.binom.pmf(changed, n, worse + better)
    for m in changed[weights > 1e-9]:
        b = np.arange(m + 1)
        law = stats.binom.pmf(b, m, worse / (worse + better))
        fewer = np.minimum(b, m - b)
        twice = 2 * stats.binom.cdf(fewer, m, 0.5)
        mid = twice - stats.binom.pmf(fewer, m, 0.5)
        found += weights[m] * np.array([law[mid < 0.05].sum(), law[twice < 0.05].sum()])
    return found


@pytest.mark.slow
def test_mcnemars_mid_p_rejects_3_to_6_percent_without_an_effect_and_finds_more_than_the_unpaired_test():
    sizes = [size_and_power(n, rate / 2, rate / 2)[0] for n, rate in ((1000, 0.12), (300, 0.2), (200, 0.1))]
    power, exact = size_and_power(1000, 0.08, 0.05)  # .90 to .87
    rng = np.random.default_rng(0)
    unpaired = 0
    for _ in range(2000):
        both, lost, won, _none = rng.multinomial(1000, [0.82, 0.08, 0.05, 0.05])
        unpaired += proportions_ztest([both + lost, both + won], [1000, 1000])[1] < 0.05
    record("McNemar mid-p, no effect (enumerated)", max(sizes), "3 to 6 %", 3)
    record("McNemar mid-p power, .90 to .87, n 1,000", float(power), "above unpaired z", 1)
    record("unpaired z power, same", unpaired / 2000, "below McNemar", 2000)
    assert all(0.03 <= size <= 0.06 for size in sizes)
    assert 0.70 <= power <= 0.80 and exact < power and unpaired / 2000 < power - 0.1


def test_the_bca_interval_is_scipys():
    rng = np.random.default_rng(3)
    d = rng.exponential(1.0, 60) - 0.6
    found = mean_difference(d, np.random.default_rng(1), replicates=20_000)
    oracle = stats.bootstrap((d,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(2))
    assert found.estimate == d.mean()
    limits = oracle.confidence_interval
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high), abs=0.012)


def test_the_acceleration_of_a_mean_is_its_skewness_over_six_root_n():
    d = np.random.default_rng(0).exponential(1.0, 200)
    assert acceleration(d - d.mean()) == pytest.approx(stats.skew(d) / (6 * np.sqrt(200)))


@pytest.mark.parametrize("shift", [-0.15, 0.0, 0.2])
def test_the_p_value_inverts_the_interval(shift):
    d = np.random.default_rng(5).exponential(1.0, 80) - 1 + shift
    rng = np.random.default_rng(6)
    draws = rng.choice(d, (20_000, 80)).mean(axis=1)
    bootstrap = Bca.of(float(d.mean()), draws, acceleration(d - d.mean()))
    p = bootstrap.p()
    low, high = bootstrap.interval(confidence=1 - p)
    assert min(abs(low), abs(high)) < 0.01


def test_few_valued_differences_are_resampled_by_the_same_law():
    d = np.repeat([-1.0, 0.0, 1.0], [30, 900, 12])
    found = mean_difference(d, np.random.default_rng(0), replicates=20_000)
    oracle = stats.bootstrap((d,), np.mean, n_resamples=9999, method="BCa", batch=500, rng=np.random.default_rng(1))
    limits = oracle.confidence_interval
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high), abs=0.002)
    assert found.mde == pytest.approx(POWER_Z * d.std(ddof=1) / np.sqrt(942))


def test_bundles_of_many_prompts_keep_the_standard_error():
    d = np.random.default_rng(0).standard_normal(30_000) + 0.02
    found = mean_difference(d, np.random.default_rng(1), replicates=1000)
    half = 1.96 * d.std() / np.sqrt(len(d))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert found.n == 30_000


def test_students_interval_and_p_value_are_scipys():
    d = np.random.default_rng(2).standard_normal(12) + 0.7
    found, oracle = student_difference(d), stats.ttest_1samp(d, 0)
    assert found.p == pytest.approx(oracle.pvalue) and found.estimate == d.mean()
    limits = oracle.confidence_interval()
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert mean_difference(d, np.random.default_rng(0)) == found  # too few prompts for a bootstrap
    assert found.mde == mean_mde(d)


def test_what_gives_no_interval_says_why():
    assert student_difference(np.zeros(0)).why == "no prompt is on both sides"
    few = student_difference(np.array([0.1, 0.2]))
    assert few.estimate == pytest.approx(0.15) and few.low is None and "fewer than 4" in few.why
    same = mean_difference(np.zeros(50), np.random.default_rng(0))
    assert same.estimate == 0 and same.p == 1.0 and same.low is None and "equal" in same.why
    fallen = mean_difference(np.full(8, -0.5), np.random.default_rng(0))
    assert fallen.p == pytest.approx(2 / 256) and fallen.low is None
    with pytest.raises(ValueError, match="finite"):
        mean_difference(np.r_[np.zeros(30), np.nan], np.random.default_rng(0))


def pairs(rng, n, shift, rho=0.7):
    common = rng.standard_normal(n) * np.sqrt(rho)
    a, b = (common + rng.standard_normal(n) * np.sqrt(1 - rho) for _ in range(2))
    return a, b + shift


@pytest.mark.slow
def test_pairing_finds_in_75_percent_what_the_unpaired_test_finds_in_30_and_covers_at_the_stated_rate():
    rng = np.random.default_rng(7)
    runs = 400
    found = unpaired = null = covered = 0
    for _ in range(runs):
        a, b = pairs(rng, 500, -0.1)
        result = mean_difference(b - a, rng, replicates=2000)
        found += result.high < 0
        covered += result.low <= -0.1 <= result.high
        unpaired += stats.ttest_ind(a, b, equal_var=False).pvalue < 0.05
        a, b = pairs(rng, 500, 0.0)
        null += mean_difference(b - a, rng, replicates=2000).p < 0.05
    record("paired bootstrap power, .1 sd, corr .7, n 500", found / runs, ">= 75 %", runs)
    record("unpaired test, same", unpaired / runs, "<= 30 %", runs)
    record("paired bootstrap, no effect", null / runs, "about 6 %", runs)
    assert found / runs >= 0.75 and unpaired / runs <= 0.30
    assert 0.02 <= null / runs <= 0.08 and 0.92 <= covered / runs <= 0.975


@pytest.mark.slow
def test_answers_to_one_prompt_counted_as_independent_reject_far_too_often_and_whole_prompts_do_not():
    rng = np.random.default_rng(8)
    runs, clustered, naive = 600, 0, 0
    for _ in range(runs):  # each prompt answers better or worse than before on its own account; no effect in all
        d = np.repeat(rng.standard_normal((100, 1)), 8, axis=1) + rng.standard_normal((100, 8))
        clustered += mean_difference(d.mean(axis=1), rng, replicates=2000).p < 0.05
        naive += stats.ttest_1samp(d.ravel(), 0).pvalue < 0.05
    record("prompts resampled whole, no effect, 8 answers each", clustered / runs, "about 5 %", runs)
    record("naive over answers, same", naive / runs, "fails", runs)
    assert clustered / runs <= 0.08 and naive / runs >= 0.25


def test_differences_that_only_rounding_tells_apart_give_no_interval():
    values = np.random.default_rng(0).normal(size=40)
    found = mean_difference((values + 1) - values, np.random.default_rng(0))
    assert found.low is None and found.mde is None and "all differences are equal" in found.why
