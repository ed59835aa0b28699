import json

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import spearmanr

from rewards.analysis.analyze import plain
from rewards.analysis.data import RunData
from rewards.analysis.dose_response import regress, section, spearman
from rewards.analysis.excess import compare
from rewards.analysis.recalibration_comparison import naive
from tests.rewards.accepted import record
from tests.rewards.recalibration_worlds import around

EMPTY = RunData.of_columns("r", [], [], {"compliant": []})


def effect(session, old=12.0, new=15.0, estimate=-0.3, se=0.2):
    honest = {"estimate": estimate, "se": se, "p": 0.1}
    outcomes = [{"outcome": "compliant", "excess": honest}]
    shown = {"session": session, "category": "c0", "old_pct": old, "new_pct": new}
    return shown | {"excess": honest, "outcomes": outcomes}


def effects(n, seed=0, slope=0.0):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        new = float(rng.uniform(12, 30))
        errors = float(rng.uniform(0.1, 0.3))
        found.append(
            effect(500 * i, new=new, estimate=slope * np.log(new / 12) + errors * rng.standard_normal(), se=errors)
        )
    return found


def test_the_slope_equals_weighted_least_squares_with_the_residual_scale():
    rng = np.random.default_rng(1)
    dose, time, errors = rng.standard_normal(24), np.arange(24.0) * 500, rng.uniform(0.1, 0.3, 24)
    effects_found = 0.5 * dose - 1e-4 * time + 2 * errors * rng.standard_normal(24)
    found = regress(effects_found, errors, dose, time)
    oracle = sm.WLS(effects_found, sm.add_constant(np.column_stack([dose, time])), weights=1 / errors**2).fit()
    assert found.scale == pytest.approx(oracle.scale, rel=1e-9) and found.scale > 1
    assert found.estimate == pytest.approx(oracle.params[1], abs=1e-9)
    assert found.time_slope == pytest.approx(oracle.params[2], rel=1e-8)
    assert found.se == pytest.approx(oracle.bse[1], rel=1e-9) and found.p == pytest.approx(oracle.pvalues[1], rel=1e-8)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.conf_int()[1]), rel=1e-8)


def test_effects_that_agree_by_chance_earn_no_narrower_interval():
    dose, time, errors = np.tile([0.1, 0.3, 0.2], 8), np.arange(24.0), np.full(24, 0.5)
    found = regress(2 * dose, errors, dose, time)
    design = np.column_stack([np.ones(24), dose, time])
    assert found.scale == 1.0 and found.estimate == pytest.approx(2.0)
    assert found.se == pytest.approx(0.5 * np.sqrt(np.linalg.inv(design.T @ design)[1, 1]), rel=1e-9)


def test_doses_that_follow_time_exactly_or_are_all_equal_have_no_slope():
    time, errors = np.arange(24.0), np.ones(24)
    for dose in (time * 0.1, np.full(24, 0.2)):
        assert "cannot be told" in regress(np.ones(24), errors, dose, time)
    assert "needs 4" in regress(np.ones(3), errors[:3], time[:3], time[:3])


@pytest.mark.parametrize("n", [4, 12, 19])
def test_under_twenty_events_only_the_interval_is_given(n):
    found = section(EMPTY, effects(n))
    assert found["why"] == f"insufficient: {n} of 20 events" and found["events"] == n
    assert found["low"] < found["high"] and found["mde"] > 0
    assert [found[name] for name in ("slope", "p", "se", "spearman", "time_slope")] == [None] * 5
    assert "insufficient" in found["verdict"]


@pytest.mark.parametrize("n", [1, 3])
def test_with_hardly_any_events_there_is_not_even_an_interval(n):
    found = section(EMPTY, effects(n))
    assert found["low"] is None and found["why"] == f"insufficient: {n} of 20 events"


def test_without_recalibrations_the_section_says_so():
    found = section(EMPTY, [])
    assert found["events"] == 0 and "no recalibration" in found["why"]


def test_twenty_events_give_a_slope_and_both_doses_are_kept():
    found = section(EMPTY, effects(24, seed=3, slope=2.0))
    assert found["low"] < 2.0 < found["high"] and found["p"] < 0.05 and found["why"] is None
    point = found["points"][0]
    assert point["ratio"] == pytest.approx(1 + point["difference_points"] / 12)
    assert point["log_ratio"] == pytest.approx(np.log(point["ratio"]))
    assert "larger excess effects" in found["verdict"]
    json.dumps(plain(found), allow_nan=False)


def test_twelve_to_fifteen_is_three_points_and_a_quarter_more():
    (point,) = section(EMPTY, [effect(10)])["points"]
    assert point["difference_points"] == 3.0 and point["ratio"] == 1.25


def test_events_without_an_estimate_or_without_a_ratio_are_counted_and_left_out():
    given = [*effects(20), effect(1, old=0.0), effect(2, estimate=None), {"session": 3, "excess": None, "outcomes": []}]
    found = section(EMPTY, given)
    assert found["events"] == 20 and found["left_out"] == {"no_estimate": 2, "no_ratio": 1}


def test_rank_correlation_with_ties_equals_scipys():
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 6, 40).astype(float), rng.standard_normal(40)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("events", [12, 24])
def test_no_dose_response_is_found_in_at_most_7_percent_of_null_worlds(events):
    n, rejected = 2000, 0
    for seed in range(n):
        rng = np.random.default_rng([seed, events])
        errors = rng.uniform(0.15, 0.5, events)
        found = regress(
            errors * rng.standard_normal(events), errors, rng.normal(0.2, 0.1, events), np.arange(1.0 * events)
        )
        rejected += found.p < 0.05
    record(f"dose-response, null, {events} events: rejected", rejected / n, "<= 0.07", n)
    assert rejected / n <= 0.07


@pytest.mark.slow
def test_doses_that_escalate_with_the_trend_fool_the_rank_correlation_of_naive_differences_only():
    # Twelve escalating changes of nothing while the fall of the rate slows down: later events see smaller drops.
    n, places, rejected, fooled = 80, np.linspace(3000, 6500, 12).astype(int) // 10 * 10, 0, 0
    for seed in range(n):
        rows = []
        for i, at in enumerate(places):
            rng = np.random.default_rng([seed, i])
            sessions, values, moment, design = around(rng, int(at), 10, before=1500)
            honest = compare(sessions, values, moment.place, moment.treated, moment.controls, design).with_trend.found
            plainly = naive(sessions, values, moment, design.naive_window)["difference"]
            rows.append((*((np.nan, np.nan) if honest is None else (honest.estimate, honest.se)), plainly))
        estimate, errors, plainly = np.array(rows).T
        dose = 0.1 + 0.02 * np.arange(12) + 0.05 * np.random.default_rng(seed).standard_normal(12)
        kept = np.isfinite(estimate)
        rejected += regress(estimate[kept], errors[kept], dose[kept], places[kept].astype(float)).p < 0.05
        fooled += spearmanr(dose, plainly).pvalue < 0.05
    record("dose-response, doses escalate with the trend, 12 events: rejected", rejected / n, "<= 0.07", n)
    record("dose-response, doses escalate with the trend: naive Spearman rejected", fooled / n, ">= 0.40", n)
    assert rejected / n <= 0.07 and fooled / n >= 0.4
