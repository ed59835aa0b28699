import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from scipy.stats import norm, t

from rewards.analysis.binomial import SEPARATED, fit_logit


def overdispersed(seed, rows=30, spread=0.6):
    rng = np.random.default_rng(seed)
    trials = rng.integers(20, 120, rows).astype(float)
    design = np.column_stack([np.ones(rows), rng.standard_normal(rows), rng.integers(0, 2, rows)])
    eta = design @ [-0.8, 0.4, -0.5] + spread * rng.standard_normal(rows)
    return rng.binomial(trials.astype(int), expit(eta)).astype(float), trials, design


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_equals_the_weighted_glm_with_pearson_scale_to_1e_9(seed):
    successes, trials, design = overdispersed(seed)
    model = sm.GLM(successes / trials, design, sm.families.Binomial(), var_weights=trials)
    oracle = model.fit(scale="X2", tol=1e-14, maxiter=200)
    fit = fit_logit(successes, trials, design)
    assert oracle.scale == pytest.approx(oracle.pearson_chi2 / oracle.df_resid, rel=1e-12)
    assert fit.phi == pytest.approx(oracle.scale, rel=1e-9) and fit.phi > 1
    np.testing.assert_allclose(fit.coefficients, oracle.params, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.covariance)), oracle.bse, rtol=1e-9)
    assert fit.df == oracle.df_resid


def test_the_two_column_glm_ignores_the_trials_in_its_scale_and_claims_far_too_small_an_error():
    successes, trials, design = overdispersed(7)
    pairs = np.column_stack([successes, trials - successes])
    trap = sm.GLM(pairs, design, sm.families.Binomial()).fit(scale="X2")
    fit = fit_logit(successes, trials, design)
    np.testing.assert_allclose(trap.params, fit.coefficients, atol=1e-7)
    assert abs(trap.scale - trap.pearson_chi2 / trap.df_resid) > 0.5 * fit.phi
    ratio = np.sqrt(np.diag(fit.covariance)) / trap.bse
    assert np.all(ratio > 5)


def test_the_slope_of_a_two_by_two_table_is_the_log_odds_ratio_with_its_textbook_error():
    successes, trials = np.array([[12.0, 30.0], [20.0, 25.0]]), np.array([[50.0, 60.0], [80.0, 45.0]])
    design = np.column_stack([np.ones(4), [0, 0, 1, 1]])
    fit = fit_logit(successes.ravel(), trials.ravel(), design)
    pooled, of = successes.sum(axis=1), trials.sum(axis=1)
    assert fit.coefficient(1).estimate == pytest.approx(logit(pooled[1] / of[1]) - logit(pooled[0] / of[0]), abs=1e-12)
    alone = np.sqrt(fit.phi * (1 / pooled + 1 / (of - pooled)).sum())
    assert fit.coefficient(1).se == pytest.approx(alone, rel=1e-10)


def test_interval_p_and_smallest_effect_use_t_at_the_residual_degrees_of_freedom():
    successes, trials, design = overdispersed(3, rows=9)
    found = fit_logit(successes, trials, design).coefficient(1)
    quantile = t.ppf(0.975, 6)
    assert found.high - found.low == pytest.approx(2 * quantile * found.se, rel=1e-10)
    assert found.p == pytest.approx(2 * t.sf(abs(found.estimate) / found.se, 6), rel=1e-9)
    assert found.mde == pytest.approx((quantile + t.ppf(0.8, 6)) * found.se, rel=1e-10)
    assert found.mde > (norm.ppf(0.975) + norm.ppf(0.8)) * found.se


def test_chance_underdispersion_earns_no_narrower_interval():
    trials = np.full(12, 40.0)
    fit = fit_logit(np.full(12, 10.0), trials, np.ones((12, 1)))
    assert fit.pearson == pytest.approx(0, abs=1e-12) and fit.phi == 1.0
    assert fit.coefficient(0).se == pytest.approx(1 / np.sqrt(12 * 40 * 0.25 * 0.75), rel=1e-10)


@pytest.mark.parametrize(
    ("successes", "trials"),
    [
        ([5, 6, 0, 0], [20, 20, 20, 20]),  # never on one side
        ([5, 6, 20, 20], [20, 20, 20, 20]),  # always on one side
        ([0, 0, 0, 0], [20, 20, 20, 20]),
        ([5, 6, 0, 0], [2e6, 2e6, 2e6, 2e6]),
    ],
)
def test_separation_is_said_and_gives_no_wild_number(successes, trials):
    design = np.column_stack([np.ones(4), [0, 0, 1, 1]])
    fit = fit_logit(np.array(successes, dtype=float), np.array(trials, dtype=float), design)
    assert fit.why == SEPARATED and np.all(np.isnan(fit.coefficients))
    with pytest.raises(ValueError, match="no finite estimate"):
        fit.coefficient(1)


def test_a_covariate_that_separates_along_a_line_is_found_too():
    x = np.arange(8.0)
    fit = fit_logit((x > 3.5).astype(float) * 10, np.full(8, 10.0), np.column_stack([np.ones(8), x]))
    assert fit.why == SEPARATED


def test_a_rare_outcome_is_no_separation():
    fit = fit_logit(np.array([1.0, 2, 3, 1]), np.full(4, 1e6), np.column_stack([np.ones(4), [0, 0, 1, 1]]))
    assert fit.why is None
    assert fit.coefficient(1).estimate == pytest.approx(logit(4 / 2e6) - logit(3 / 2e6), abs=1e-9)


def test_dependent_columns_and_too_few_rows_are_said():
    ones = np.ones((5, 1))
    assert "depend on each other" in fit_logit(np.full(5, 2.0), np.full(5, 9.0), np.hstack([ones, 2 * ones])).why
    assert "no degree of freedom" in fit_logit(np.full(2, 2.0), np.full(2, 9.0), np.eye(2)).why


def test_rows_without_trials_have_no_part():
    successes, trials, design = overdispersed(1)
    more = fit_logit(np.r_[successes, 0, 0], np.r_[trials, 0, 0], np.vstack([design, [[1, 9, 9], [1, -9, 4]]]))
    np.testing.assert_array_equal(more.coefficients, fit_logit(successes, trials, design).coefficients)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="successes <= trials"):
        fit_logit(np.array([3.0, 1, 1]), np.array([2.0, 5, 5]), np.ones((3, 1)))
