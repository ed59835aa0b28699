import numpy as np
import pytest
from scipy.signal import lfilter

from rewards.analysis.intervals import (
    effective_sample_size,
    jackknife_interval,
    mean_estimate,
    rate_mde,
    share_estimate,
    wilson,
)


def ar1(rng, rho, n):
    noise = rng.standard_normal(n + 200)
    return lfilter([np.sqrt(1 - rho**2)], [1, -rho], noise)[200:]


def test_wilson_equals_the_published_example_and_inverts_the_score_test():
    low, high = wilson(81, 263)  # Newcombe 1998, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    for limit in (low, high):
        z = (81 / 263 - limit) / np.sqrt(limit * (1 - limit) / 263)
        assert abs(z) == pytest.approx(1.959964, abs=1e-5)


def test_wilson_of_none_in_three_hundred_still_allows_more_than_one_percent():
    low, high = wilson(0, 300)
    assert low == 0.0 and 0.010 < high < 0.014


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="share needs"):
        wilson(successes, n)


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_effective_sample_size_of_an_ar1_series_is_what_theory_says(rho):
    rng = np.random.default_rng(5)
    sizes = [effective_sample_size(ar1(rng, rho, 4000)) for _ in range(100)]
    assert np.mean(sizes) == pytest.approx(4000 * (1 - rho) / (1 + rho), rel=0.08)


def test_repeating_every_value_eight_times_divides_the_effective_sample_size_by_about_eight():
    rng = np.random.default_rng(3)
    x = rng.standard_normal(250)
    assert effective_sample_size(np.repeat(x, 8)) == pytest.approx(250, rel=0.2)


def test_a_constant_series_is_worth_its_length_and_an_alternating_one_no_more():
    assert effective_sample_size(np.full(50, 0.1)) == 50
    assert effective_sample_size(np.tile([0.0, 1.0], 50)) == 100


def test_an_empty_or_infinite_series_has_no_effective_sample_size():
    for bad in ([], [1.0, np.inf]):
        with pytest.raises(ValueError, match="finite"):
            effective_sample_size(np.array(bad))


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_mean_interval_covers_in_92_to_98_percent_of_autocorrelated_series(rho):
    rng = np.random.default_rng(int(rho * 10))
    hits = 0
    for _ in range(2000):
        estimate = mean_estimate(ar1(rng, rho, 500))
        hits += estimate.low <= 0 <= estimate.high
    assert 0.92 <= hits / 2000 <= 0.98


@pytest.mark.slow
def test_share_interval_covers_when_eight_sessions_share_a_prompt():
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(1000):
        rates = rng.beta(1.5, 3.5, 125)  # mean .3: answers to a prompt resemble each other
        x = (rng.random((125, 8)) < rates[:, None]).astype(float).ravel()
        estimate = share_estimate(x)
        hits += estimate.low <= 0.3 <= estimate.high
    assert 0.92 <= hits / 1000 <= 0.98


def test_missing_values_are_left_out_and_the_count_says_so():
    estimate = mean_estimate(np.array([1.0, np.nan, 3.0, 1.0, 3.0, np.inf]))
    assert estimate.value == 2.0 and estimate.n == 4
    nothing = mean_estimate(np.array([np.nan]))
    assert nothing.value is None and nothing.n == 0 and nothing.why == "no values"
    equal = mean_estimate(np.full(4, 0.5))
    assert equal.value == 0.5 and equal.low is None and "all values are equal" in equal.why
    few = mean_estimate(np.array([1.0, 2.0]))
    assert few.value == 1.5 and few.low is None and "fewer than 4" in few.why


def test_jackknife_of_a_mean_is_the_textbook_standard_error():
    x = np.random.default_rng(1).standard_normal(40)
    left_out = [np.delete(x, i).mean() for i in range(40)]
    low, high = jackknife_interval(x.mean(), left_out)
    half = 2.0226909 * x.std(ddof=1) / np.sqrt(40)
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=1e-6)


def test_smallest_detectable_rate_is_18_points_at_100_a_side_and_8_points_need_515():
    assert rate_mde(0.3, 100, 100) == pytest.approx(0.1816, abs=1e-4)
    assert rate_mde(0.3, 516, 516) < 0.08 < rate_mde(0.3, 515, 515)
