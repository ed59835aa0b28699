import numpy as np
import pytest
import statsmodels.api as sm

from rewards.analysis import plateau
from rewards.analysis.plateau import BANDWIDTH, CRITICAL, drift_of, variance_ratio, window_of
from tests.rewards.accepted import record
from tests.rewards.series_worlds import N, T, ar1, levels, run_of

WINDOW = 2000


def collapsed_run(rng, rho, drift=0.0, last_sd=0.1):
    """sd 1, .5 and last_sd; the mean moves by `drift` along the last 2,000 sessions."""
    return np.interp(T, (N - WINDOW, N), (0, drift)) + levels(1, 0.5, last_sd) * ar1(rng, rho)


def test_the_slope_and_its_standard_error_are_those_of_statsmodels():
    x = ar1(np.random.default_rng(1), 0.5, 2000)
    found = drift_of(x)
    lags = int(BANDWIDTH * 2000)
    fit = sm.OLS(x, sm.add_constant(np.arange(2000.0))).fit(
        cov_type="HAC", cov_kwds={"maxlags": lags - 1, "kernel": "bartlett", "use_correction": False}
    )
    assert found.value == pytest.approx(2000 * fit.params[1])
    assert found.se == pytest.approx(2000 * fit.bse[1])
    assert found.half == pytest.approx(CRITICAL * found.se)


def test_a_long_window_gives_the_same_drift_from_means_of_neighbours():
    x = np.linspace(0, 1, 50_000) + ar1(np.random.default_rng(2), 0.5, 50_000)
    lines = np.polyfit(np.arange(50_000), x, 1)
    found = drift_of(x)
    assert found.value == pytest.approx(lines[0] * 50_000, abs=2e-3) and found.n == 50_000
    with pytest.raises(ValueError, match="20 values"):
        drift_of(x[:10])


def test_the_window_is_two_thousand_sessions_a_tenth_of_a_long_run_or_a_third_of_a_short_one():
    assert [window_of(n) for n in (300, 3000, 12847, 1_000_000)] == [100, 1000, 2000, 100_000]


def test_a_collapsed_run_is_flat_and_says_so_with_its_numbers():
    found = plateau.section(run_of(collapsed_run(np.random.default_rng(3), 0.3)))
    assert found["mean_flat"] is found["variance_collapsed"] is found["collapsed"] is found["converged"] is True
    assert found["delta"] == pytest.approx(0.1, rel=0.05) and "the first 2,000" in found["delta_of"]
    assert found["variance_ratio"]["low"] < 0.01 < found["variance_ratio"]["high"] < 0.05
    assert found["variance_ratio"]["of"] == "geometric mean of block variances"
    assert f"geometric mean of block variances {found['variance_ratio']['estimate']:.3g} times" in found["verdict"]
    assert found["slope_change"]["low"] < 0 < found["slope_change"]["high"]
    assert "flat over the last 2,000" in found["verdict"] and "n 2,000" in found["verdict"]


def test_a_flat_run_that_keeps_its_spread_has_converged_and_not_collapsed():
    x = np.r_[np.zeros(20_000), np.full(280_000, 2.0)] + ar1(np.random.default_rng(4), 0.3, 300_000)
    found = plateau.section(run_of(x))
    assert found["converged"] is True and found["variance_collapsed"] is False and found["collapsed"] is False
    assert found["variance_ratio"]["low"] > 0.8


def test_a_window_that_is_too_short_to_tell_says_null_and_what_it_would_take():
    found = plateau.section(run_of(ar1(np.random.default_rng(5), 0.3)))
    assert found["converged"] is None and "cannot be told" in found["verdict"] and "sessions even" in found["verdict"]
    assert found["slope_change"]["mde"] > found["delta"]


def test_a_run_that_still_climbs_has_not_converged():
    found = plateau.section(run_of(T / N * 5 + 0.1 * ar1(np.random.default_rng(6), 0.3)))
    assert found["converged"] is False and "still moves" in found["verdict"]


def test_two_valued_rewards_compare_pooled_variances():
    rng = np.random.default_rng(7)
    x = (rng.random(N) < levels(0.5, 0.2, 0.01)).astype(float)
    found = plateau.section(run_of(x))
    low, high = (found["variance_ratio"][end] for end in ("low", "high"))
    assert low < 0.01 * 0.99 / 0.25 < high and high < 0.08


def test_a_frozen_end_has_collapsed_without_an_interval():
    x = np.r_[np.random.default_rng(8).standard_normal(4000), np.full(4000, 0.5)]
    found = plateau.section(run_of(x))
    assert found["variance_ratio"]["estimate"] == 0.0 and found["variance_ratio"]["high"] is None
    assert found["collapsed"] is True and "no interval" in found["verdict"]
    assert "pooled variance of blocks 0 times" in found["verdict"]


@pytest.mark.parametrize(
    ("x", "why"), [(np.zeros(0), "0 sessions"), (np.arange(10.0), "10 sessions"), (np.full(900, 0.5), "equal")]
)
def test_what_cannot_be_judged_says_why(x, why):
    found = plateau.section(run_of(x))
    assert why in found["why"] and found["converged"] is None and found["verdict"] is None


def test_no_spread_at_first_leaves_the_variance_undecided():
    x = np.r_[np.full(4000, 0.5), np.random.default_rng(9).standard_normal(4000)]
    found = plateau.section(run_of(x))
    assert found["variance_ratio"] is None and found["collapsed"] in (None, False)
    assert variance_ratio(x, np.repeat([1, 2], 4000), 2000) is None  # one block a window


@pytest.mark.slow
def test_the_critical_value_leaves_five_percent_on_either_side_of_a_flat_trend():
    seeds = 20_000
    n = 400
    x = np.random.default_rng(10).standard_normal((seeds, n))
    t = np.arange(n) - (n - 1) / 2
    slope = x @ t / (t @ t)
    scores = t * (x - x.mean(axis=1, keepdims=True) - slope[:, None] * t)
    lags = int(BANDWIDTH * n)
    long_run = (scores**2).sum(axis=1)
    for lag in range(1, lags):
        long_run += 2 * (1 - lag / lags) * (scores[:, lag:] * scores[:, :-lag]).sum(axis=1)
    ratio = slope * (t @ t) / np.sqrt(long_run)
    above = float((np.abs(ratio) > CRITICAL).mean()) / 2
    naive = float((np.abs(ratio) > 1.645).mean()) / 2
    record("plateau: one-sided size of the fixed-b slope test", above, ".05 +- .005", seeds)
    record("plateau: the same with the normal critical value", naive, ">= .07", seeds)
    assert above == pytest.approx(0.05, abs=0.005) and naive >= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.3, 0.6])
def test_collapse_is_declared_where_it_is_and_not_at_a_drift_or_a_wider_spread(rho):
    seeds = 300
    delta = 0.1  # a tenth of the sd that the run began with
    declared = {}
    for name, drift, last_sd in (
        ("collapsed", 0.0, 0.1),
        ("drift at delta", delta, 0.1),
        ("drift 1.5 delta", 1.5 * delta, 0.1),
        ("variance .0625", 0.0, 0.25),
    ):
        runs = (collapsed_run(np.random.default_rng([11, seed]), rho, drift, last_sd) for seed in range(seeds))
        declared[name] = sum(plateau.plateau(x)["collapsed"] is True for x in runs) / seeds
    accepted = {"collapsed": "1", "drift at delta": "<= .05 (+ 2 se)", "drift 1.5 delta": "0", "variance .0625": "0"}
    for name, share in declared.items():
        record(f"plateau: declared, {name}, AR(1) {rho}", share, accepted[name], seeds)
    assert declared["collapsed"] == 1.0
    assert declared["drift at delta"] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / seeds)
    assert declared["drift 1.5 delta"] == declared["variance .0625"] == 0.0


@pytest.mark.slow
def test_a_slope_with_p_above_5_percent_is_no_evidence_of_convergence():
    seeds, short = 300, 200
    naive = ours = 0
    for seed in range(seeds):
        x = np.linspace(0, 0.3, short) + ar1(np.random.default_rng([12, seed]), 0.3, short)
        fit = sm.OLS(x, sm.add_constant(np.arange(float(short)))).fit()
        naive += fit.pvalues[1] > 0.05
        found = drift_of(x)
        ours += max(abs(found.value - found.half), abs(found.value + found.half)) < 0.1
    record("plateau: 'p > .05' calls a drift of .3 sd converged", naive / seeds, ">= .6", seeds)
    record("plateau: TOST calls the same drift flat", ours / seeds, "0", seeds)
    assert naive / seeds >= 0.6 and ours == 0
