import numpy as np
import pytest
import statsmodels.api as sm
from scipy.integrate import quad
from scipy.signal import lfilter
from scipy.stats import t as student

from rewards.analysis import gao
from tests.rewards.accepted import record

ALPHA, BETA = 1.0, 0.22
PEAK = np.exp(ALPHA / BETA - 1)
TOP = BETA * PEAK  # R(d*) = d* (alpha - beta ln d*) = beta d*


def curve(d):
    return d * (ALPHA - BETA * np.log(d))


def world(rng, reach, noise, points=60):
    """Points up to `reach` times the peak; noise as a share of the highest reward."""
    d = np.linspace(reach * PEAK / points, reach * PEAK, points)
    return d, curve(d) + noise * TOP * rng.standard_normal(points)


def test_kl_of_the_best_of_n_is_the_published_bound_and_the_integral_over_the_best_of_n_uniforms():
    assert np.round(gao.best_of_n_kl(np.array([1, 4, 16, 64])), 3).tolist() == [0.0, 0.636, 1.835, 3.175]
    for n in (2, 5, 16):
        integral, _ = quad(lambda u, n=n: n * u ** (n - 1) * np.log(n * u ** (n - 1)) if u > 0 else 0.0, 0, 1)
        assert gao.best_of_n_kl(np.array([n]))[0] == pytest.approx(integral, abs=1e-6)


def test_kl_of_the_best_of_n_is_only_a_bound_where_rewards_tie():
    p = np.array([0.2, 0.5, 0.3])  # three answers of rising reward; the best of 4 by enumeration of the highest
    below = np.cumsum(p)
    best = below**4 - np.r_[0, below[:-1]] ** 4
    assert (best * np.log(best / p)).sum() < gao.best_of_n_kl(np.array([4]))[0]
    with pytest.raises(ValueError, match="n >= 1"):
        gao.best_of_n_kl(np.array([0.5]))


def test_a_curve_without_noise_gives_its_coefficients_and_its_peak():
    d = np.linspace(0.5, 60, 30)
    found = gao.fit(d, curve(d))
    assert (found.alpha, found.beta) == (pytest.approx(ALPHA), pytest.approx(BETA))
    assert found.peak_kl()["estimate"] == pytest.approx(PEAK**2, rel=1e-6)
    best = gao.fit(d, d * (2 - 0.05 * d), form="bon")
    assert np.exp(best.log_peak[0]) == pytest.approx(20.0)  # alpha / 2 beta
    lifted = gao.fit(d, 3 + curve(d), offset=True)
    assert (lifted.alpha, lifted.offset) == (pytest.approx(ALPHA), pytest.approx(3.0))


def test_a_point_at_no_distance_is_allowed_and_says_nothing_about_the_slope():
    d = np.linspace(0.5, 60, 30)
    with_zero = gao.fit(np.r_[0.0, d], np.r_[0.0, curve(d)])
    assert with_zero.beta == pytest.approx(BETA)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("form", ["rl", "bon"])
def test_coefficients_errors_and_p_equal_those_of_an_independent_regression(form, offset):
    rng = np.random.default_rng(1)
    d, reward = world(rng, 1.5, 0.05, 25)
    weights = rng.uniform(0.5, 2.0, 25)
    found = gao.fit(d, reward, weights, form=form, offset=offset)
    bend = -d * np.log(d) if form == "rl" else -(d**2)
    oracle = sm.WLS(reward, np.stack([d, bend] + ([np.ones(25)] if offset else []), axis=1), weights=weights).fit()
    assert (found.alpha, found.beta) == (pytest.approx(oracle.params[0]), pytest.approx(oracle.params[1]))
    assert found.errors == (pytest.approx(oracle.bse[0]), pytest.approx(oracle.bse[1]))
    row = found.coefficient("beta")
    assert row["p"] == pytest.approx(oracle.pvalues[1], rel=1e-6)
    assert [row["low"], row["high"]] == pytest.approx(oracle.conf_int()[1])
    df = 25 - 2 - offset
    assert row["mde"] == pytest.approx((student.ppf(0.975, df) + student.ppf(0.8, df)) * oracle.bse[1])


@pytest.mark.parametrize("form", ["rl", "bon"])
def test_the_error_of_the_log_peak_uses_the_gradient_that_differences_give(form):
    covariance = np.array([[4e-4, 1e-4], [1e-4, 9e-5]])
    found = gao.Fit(form, 1.0, 0.3, None, covariance, 50, 52, 100.0, 1.0)

    def peak(alpha, beta):
        return gao.Fit(form, alpha, beta, None, covariance, 50, 52, 100.0, 1.0).log_peak[0]

    h = 1e-6
    gradient = np.array(
        [(peak(1 + h, 0.3) - peak(1 - h, 0.3)) / (2 * h), (peak(1, 0.3 + h) - peak(1, 0.3 - h)) / (2 * h)]
    )
    assert found.log_peak[1] == pytest.approx(np.sqrt(gradient @ covariance @ gradient), rel=1e-6)


def test_a_rising_curve_a_faint_bend_and_a_peak_beyond_the_data_are_refused_with_the_reason():
    rng = np.random.default_rng(3)
    d = np.linspace(0.5, 5, 40)
    rising = gao.fit(d, d * (1 + 0.2 * np.log(d)))
    assert rising.peak_kl() is None and "does not turn down" in rising.refusal()
    faint = gao.fit(d, d * (1 - 0.02 * np.log(d)) + 0.5 * rng.standard_normal(40))
    assert faint.peak_kl() is None and "standard errors from none" in faint.refusal()
    beyond = gao.fit(*world(rng, 0.5, 0.01))
    assert beyond.beta / beyond.errors[1] > 3
    assert beyond.peak_kl() is None and "beyond the data" in beyond.refusal()


def test_points_that_depend_on_each_other_widen_every_interval():
    rng = np.random.default_rng(5)
    d, _ = world(rng, 2, 0.0)
    noise = np.zeros(60)
    for i in range(1, 60):
        noise[i] = 0.8 * noise[i - 1] + rng.standard_normal()
    plain, widened = (gao.fit(d, curve(d) + noise, dependent=flag) for flag in (False, True))
    assert plain.inflation == 1.0 and widened.inflation > 1.5
    assert widened.errors[1] == pytest.approx(plain.errors[1] * widened.inflation)


def test_what_cannot_be_fitted_is_refused():
    d, ones = np.linspace(1, 5, 20), np.ones(20)
    for bad, message in (
        ((d[:5], ones[:5]), "at least 8 points"),
        ((d, ones[:5]), "one length"),
        ((-d, ones), "not below 0"),
        ((d, ones * np.nan), "finite"),
        ((ones * 2, ones), "do not differ"),
        ((ones * 0, ones), "do not differ"),
        ((d, ones, np.r_[np.zeros(15), np.ones(5)]), "weight above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            gao.fit(*bad)
    with pytest.raises(ValueError, match="at least three"):
        gao.peak_over_runs([(d, ones)] * 2, np.random.default_rng(0))


def test_drawing_whole_runs_covers_a_peak_that_differs_from_run_to_run_and_treating_points_alike_does_not():
    rng = np.random.default_rng(7)
    d = np.linspace(1, 2 * PEAK, 40)
    hits = naive = 0
    for _ in range(24):
        runs = [(d, d * (ALPHA - (BETA + 0.01 * rng.standard_normal()) * np.log(d))) for _ in range(8)]
        low, high = gao.peak_over_runs(runs, rng, draws=120)
        hits += low <= np.log(PEAK) <= high
        flat = gao.fit(np.tile(d, 8), np.concatenate([reward for _, reward in runs]))
        naive += flat.log_peak_interval[0] <= np.log(PEAK) <= flat.log_peak_interval[1]
    assert hits >= 18  # 8 runs: a bootstrap of so few is somewhat narrow
    assert naive < 14


def test_runs_that_still_rise_have_no_upper_end():
    d = np.linspace(1, 5, 20)
    runs = [(d, d * (1 + 0.2 * np.log(d)))] * 4
    assert gao.peak_over_runs(runs, np.random.default_rng(0), draws=50) is None


@pytest.mark.slow
@pytest.mark.parametrize(("reach", "noise"), [(2.0, 0.05), (2.0, 0.2), (1.2, 0.05)])
def test_with_data_past_the_peak_its_distance_is_found_and_its_interval_covers(reach, noise):
    rng, worlds = np.random.default_rng(int(1000 * noise * reach)), 1500
    errors, hits, declared = [], 0, 0
    for _ in range(worlds):
        found = gao.fit(*world(rng, reach, noise))
        errors.append(abs(np.exp(found.log_peak[0]) / PEAK - 1))
        low, high = found.log_peak_interval
        hits += low <= np.log(PEAK) <= high
        declared += found.refusal() is None
    p95 = float(np.quantile(errors, 0.95))
    record(f"Gao peak, data to {reach:g} d*, noise {noise:g}: error p95", p95, "<= 0.10", worlds)
    record(f"Gao peak, data to {reach:g} d*, noise {noise:g}: coverage", hits / worlds, "0.92 to 0.98", worlds)
    record(f"Gao peak, data to {reach:g} d*, noise {noise:g}: declared", declared / worlds, "reported", worlds)
    assert p95 <= 0.10
    assert 0.92 <= hits / worlds <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "lowest"), [(0.0, 0.92), (0.5, 0.92), (0.8, 0.9)])
def test_along_one_run_the_interval_of_the_peak_covers_about_as_it_says_where_points_taken_as_independent_do_not(
    rho, lowest
):
    rng, worlds = np.random.default_rng(int(10 * rho)), 800
    hits = {False: 0, True: 0}
    d = np.linspace(PEAK / 30, 2 * PEAK, 60)
    for _ in range(worlds):
        noise = lfilter([np.sqrt(1 - rho**2)], [1, -rho], rng.standard_normal(160))[100:]
        reward = 3 + curve(d) + 0.05 * TOP * noise
        for dependent in hits:
            limits = gao.fit(d, reward, offset=True, dependent=dependent).log_peak_interval
            hits[dependent] += limits is not None and limits[0] <= np.log(PEAK) <= limits[1]
    ours, naive = hits[True] / worlds, hits[False] / worlds
    record(f"Gao peak along one run, AR(1) noise {rho:g}: coverage", ours, f">= {lowest:g}, nominal 0.95", worlds)
    record(f"Gao peak along one run, AR(1) noise {rho:g}: coverage as independent", naive, "naive", worlds)
    assert lowest <= ours <= 0.98
    assert rho == 0 or naive < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_with_data_to_half_of_the_peak_a_peak_is_refused_though_every_fit_has_one(noise):
    rng, worlds = np.random.default_rng(9), 1000
    refused, peaks, errors = 0, 0, []
    for _ in range(worlds):
        found = gao.fit(*world(rng, 0.5, noise))
        refused += found.refusal() is not None
        if found.log_peak is not None:
            peaks += 1
            errors.append(abs(np.expm1(min(found.log_peak[0] - np.log(PEAK), 50.0))))
    record(f"Gao peak, data to 0.5 d*, noise {noise:g}: refused", refused / worlds, ">= 0.95", worlds)
    p95 = float(np.quantile(errors, 0.95))
    record(f"Gao peak, data to 0.5 d*, noise {noise:g}: error p95 without the guard", p95, "naive", peaks)
    assert refused / worlds >= 0.95
    assert peaks / worlds > 0.9 and p95 > 0.2
