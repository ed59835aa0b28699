"""What the analysis of recalibrations was accepted for, beside what naive methods do in the same worlds."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from rewards.analysis import recalibration_effect
from rewards.analysis.excess import compare
from rewards.analysis.recalibration_comparison import drift, naive
from rewards.analysis.recalibration_effect import section
from tests.rewards.accepted import record
from tests.rewards.recalibration_worlds import around, event, null_run, run, steady


def simulated(n, at, density, **world):
    """Per seed: estimates with and without the trend term, p of the naive test, and the drift before the event."""
    rows = []
    for seed in range(n):
        sessions, values, moment, design = around(np.random.default_rng([seed, at, density]), at, density, **world)
        found = compare(sessions, values, moment.place, moment.treated, moment.controls, design)
        before = drift(sessions, values, moment, found.width, design)
        plainly = naive(sessions, values, moment, design.naive_window)
        rows.append((found.with_trend.as_dict(), found.without_trend.as_dict(), plainly["p"], before["flag"]))
    return rows


def rejected(rows, place):
    return float(np.mean([row[place]["p"] is not None and row[place]["p"] < 0.05 for row in rows]))


def naively(rows):
    return float(np.mean([row[2] < 0.05 for row in rows]))


@pytest.mark.slow
@pytest.mark.parametrize("at", [2500, 4500])
@pytest.mark.parametrize("density", [1, 10])
def test_a_trend_without_an_effect_is_rejected_in_at_most_7_percent_where_the_naive_test_fails(at, density):
    n = 200
    rows = simulated(n, at, density)
    name = f"recalibration, null trend at {at}, {density}x data"
    for place, term in ((0, "with"), (1, "without")):
        record(f"{name}, {term} trend term: rejected", rejected(rows, place), "<= 0.07", n)
        assert rejected(rows, place) <= 0.07
    record(f"{name}: naive rejected", naively(rows), ">= 0.50 at 10x", n)
    assert density == 1 or naively(rows) >= 0.5
    assert np.mean([row[0]["p"] is not None for row in rows]) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("at", [2500, 4500])
def test_a_true_effect_is_estimated_without_bias_and_covered_at_ten_times_the_data(at):
    n = 300
    rows = simulated(n, at, 10, effect=-0.4)
    for place, term in ((0, "with"), (1, "without")):
        found = [row[place] for row in rows if row[place]["estimate"] is not None]
        bias = abs(float(np.mean([one["estimate"] for one in found])) + 0.4)
        covered = float(np.mean([one["low"] <= -0.4 <= one["high"] for one in found]))
        record(f"recalibration, effect -.40 at {at}, 10x, {term} trend term: bias", bias, "<= 0.05", len(found))
        record(
            f"recalibration, effect -.40 at {at}, 10x, {term} trend term: coverage", covered, "0.92-0.99", len(found)
        )
        assert len(found) >= 0.98 * n and bias <= 0.05 and 0.92 <= covered <= 0.99


@pytest.mark.slow
def test_a_category_whose_trend_is_steeper_fools_the_plain_comparison_and_not_the_trend_term_and_is_flagged():
    n = 200
    rows = simulated(n, 4500, 10, treated_factor=1.3)
    flagged = float(np.mean([row[3] is True for row in rows]))
    record("recalibration, treated trend x1.3, 10x, with trend term: rejected", rejected(rows, 0), "<= 0.08", n)
    record("recalibration, treated trend x1.3, 10x, without it: rejected", rejected(rows, 1), "(fails)", n)
    record("recalibration, treated trend x1.3, 10x: flagged by the drift before", flagged, ">= 0.80", n)
    assert rejected(rows, 0) <= 0.08 and flagged >= 0.8
    assert rejected(rows, 1) >= 0.4 and naively(rows) >= 0.5


@pytest.mark.slow
def test_twelve_recalibrations_without_effect_yield_a_claim_in_at_most_8_percent_of_runs(monkeypatch):
    monkeypatch.setattr(recalibration_effect, "PLACEBO_DATES", 0)
    n, claims, naive_claims, places = 150, 0, 0, np.linspace(800, 12_000, 12).astype(int) // 8 * 8
    for seed in range(n):
        found = section(null_run(np.random.default_rng(seed), places))
        assert len(found) == 12
        claims += any(one["excess"]["p_adjusted"] is not None and one["excess"]["p_adjusted"] < 0.05 for one in found)
        naive_claims += any(one["naive"]["p"] is not None and one["naive"]["p"] < 0.05 for one in found)
    record("recalibration, 12 null events: any claim after Benjamini-Hochberg", claims / n, "<= 0.08", n)
    record("recalibration, 12 null events: any naive claim", naive_claims / n, "(fails)", n)
    assert claims / n <= 0.08 and naive_claims / n >= 0.4


@pytest.mark.slow
def test_a_phrase_trigger_without_effect_fools_its_own_window_and_the_section_refuses_that_and_claims_nothing():
    n, fooled, claimed, tried = 400, 0, 0, 0
    for seed in range(n):
        rng = np.random.default_rng(seed)
        outcome, codes = steady(rng, 6000, rates=(0.1,) * 5)
        fired = first_fire(outcome, codes, after=1600)
        if fired is None or fired > 4400:
            continue
        first, at = fired_window(codes, fired)
        tried += 1
        mine = np.flatnonzero(codes == 0)
        before, later = outcome[mine[mine < at]][-20:], outcome[mine[mine >= at]][:100]
        table = [[before.sum(), len(before) - before.sum()], [later.sum(), len(later) - later.sum()]]
        fooled += fisher_exact(np.array(table, dtype=int)).pvalue < 0.05
        trigger, evidence = {"name": "t", "k": 7, "n": 20}, {"first_session_step": first, "n": 20}
        (found,) = section(run(outcome, codes, [event(step=at // 8, trigger=trigger, evidence=evidence)]))
        assert found["naive"]["refused"] and found["naive"]["p"] is None and found["naive"]["difference"] is None
        claimed += found["excess"]["p"] is not None and found["excess"]["p"] < 0.05
    record("recalibration, endogenous trigger: naive window comparison rejected", fooled / tried, "(fails)", tried)
    record("recalibration, endogenous trigger: naive statistic refused", 1.0, "always", tried)
    record("recalibration, endogenous trigger: honest estimate rejected", claimed / tried, "<= 0.07", tried)
    assert tried >= 40 and fooled / tried >= 0.6 and claimed / tried <= 0.07


def first_fire(outcome, codes, after):
    """The session that completes 7 hits among the last 20 of category 0, at the end of a step; None without one."""
    mine = np.flatnonzero(codes == 0)
    hits = np.convolve(outcome[mine], np.ones(20))[: len(mine)]
    fired = mine[(hits >= 7) & (mine > after)]
    return int(fired[0]) if len(fired) else None


def fired_window(codes, fired):
    """(first step of the window, sessions up to the end of the step it fired in), eight sessions a step."""
    at = (fired // 8 + 1) * 8
    mine = np.flatnonzero(codes[:at] == 0)
    return int(mine[-20]) // 8 + 1, at
