import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import norm

from rewards.analysis import length_bias, proxy_gold
from tests.rewards.accepted import record
from tests.rewards.gold_runs import FALL, PER_STEP, RISE, pair_run, part, right_or_wrong, run


def test_partial_correlation_equals_that_of_regression_residuals():
    rng = np.random.default_rng(10)
    cells, clusters = np.repeat(np.arange(5), 80), np.repeat(np.arange(40), 10)
    gold = rng.standard_normal(400) + cells
    x, y = gold + rng.standard_normal(400), 0.5 * gold + cells + rng.standard_normal(400)
    design = np.column_stack([np.eye(5)[cells], gold])
    residuals = [sm.OLS(values, design).fit().resid for values in (x, y)]
    found = length_bias.partial_correlation(x, y, cells, clusters, [gold])
    assert found["estimate"] == pytest.approx(np.corrcoef(*residuals)[0, 1])
    assert found["low"] < found["estimate"] < found["high"] and (found["n"], found["clusters"]) == (400, 40)


def test_length_that_comes_with_quality_is_no_bias_once_gold_is_held_fixed():
    rng = np.random.default_rng(11)
    quality = rng.standard_normal(3200)
    reward, length = quality + 0.5 * rng.standard_normal(3200), 50 + 10 * quality + 5 * rng.standard_normal(3200)
    found = length_bias.section(run(3200, None, reward, [part("judge", quality, "gold")], response_tokens=length))
    assert found["correlation"]["low"] > 0.7
    assert found["partial_correlation"]["low"] < 0 < found["partial_correlation"]["high"]
    assert "none is shown" in found["verdict"] and found["given"] == ["judge"]
    paid = length_bias.section(
        run(3200, None, reward + 0.02 * length, [part("judge", quality, "gold")], response_tokens=length)
    )
    assert paid["partial_correlation"]["low"] > 0 and "longer answers" in paid["verdict"]


def test_reward_and_length_that_both_rise_over_the_run_are_not_correlated_for_that():
    rng = np.random.default_rng(12)
    trend = np.linspace(0, 3, 6400)
    reward, length = trend + rng.standard_normal(6400), 40 + 10 * trend + 10 * rng.standard_normal(6400)
    found = length_bias.section(run(6400, None, reward, response_tokens=length))
    assert np.corrcoef(reward, length)[0, 1] > 0.3
    assert found["correlation"]["low"] < 0 < found["correlation"]["high"]
    assert found["partial_correlation"] is None and "gold" in found["why"]


def test_the_win_rate_at_equal_length_equals_an_independent_regression():
    rng = np.random.default_rng(13)
    extra, unit = 30 * rng.standard_normal(600), np.repeat(np.arange(120), 5)
    wins = rng.choice([0.0, 0.5, 1.0], 600, p=[0.3, 0.2, 0.5])
    found = length_bias.controlled_win_rate(wins, extra, unit)
    design = np.column_stack([np.ones(600), np.tanh(extra / extra.std())])
    oracle = sm.Logit(wins, design).fit(disp=0)
    assert found["estimate"] == pytest.approx(1 / (1 + np.exp(-oracle.params[0])), abs=1e-6)
    clustered = sm.GLM(wins, design, sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": unit, "use_correction": False}
    )
    half = norm.ppf(0.975) * clustered.bse[0] * np.sqrt(120 / 119)
    low, high = 1 / (1 + np.exp(-(clustered.params[0] + half * np.array([-1, 1]))))
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


def test_a_judge_that_likes_length_is_seen_through_at_equal_length():
    rng = np.random.default_rng(14)
    extra, unit = 20 + 20 * rng.standard_normal(4000), np.repeat(np.arange(800), 5)
    wins = right_or_wrong(rng, 1 / (1 + np.exp(-1.5 * np.tanh(extra / extra.std()))))
    found = length_bias.controlled_win_rate(wins, extra, unit)
    assert found["raw"] > 0.6 and found["low"] < 0.5 < found["high"]


def test_wins_that_length_decides_alone_have_no_rate_at_equal_length():
    rng = np.random.default_rng(15)
    extra, unit = rng.standard_normal(400), np.arange(400) // 4
    assert "alone decides" in length_bias.controlled_win_rate((extra > 0) * 1.0, extra, unit)["why"]
    assert "every pair" in length_bias.controlled_win_rate(np.ones(400), extra, unit)["why"]
    assert "fewer than" in length_bias.controlled_win_rate(np.ones(4), extra[:4], unit[:4])["why"]
    same = length_bias.controlled_win_rate((extra > 0) * 1.0, np.zeros(400), unit)
    assert same["estimate"] == pytest.approx(same["raw"])


@pytest.mark.slow
def test_the_interval_of_a_partial_correlation_covers_though_answers_of_a_step_resemble_each_other():
    worlds, hits, naive = 1500, 0, 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        steps = np.repeat(np.arange(60), 40)
        # What a step adds to both makes products of one step alike; the correlation over steps is 0.
        common = rng.standard_normal((2, 60))[:, steps] * 0.5
        x, y = common + rng.standard_normal((2, 2400))
        found = length_bias.partial_correlation(x, y, np.zeros(2400, dtype=int), steps)
        hits += found["low"] <= 0 <= found["high"]
        naive += abs(np.arctanh(np.corrcoef(x, y)[0, 1])) * np.sqrt(2397) < norm.ppf(0.975)
    record("length: coverage of the partial correlation's interval", hits / worlds, "0.92 to 0.98", worlds)
    record("length: coverage of the interval for independent sessions", naive / worlds, "naive", worlds)
    assert 0.92 <= hits / worlds <= 0.98 and naive / worlds < 0.85


def test_the_win_rate_of_late_answers_over_early_ones_to_the_same_prompts_is_told_with_its_judge():
    data = pair_run(18, RISE, FALL, response_tokens=50 + np.arange(6400) / 200)
    win = length_bias.section(data)["win_rate"]
    assert (win["judge"], win["paired_by"]) == ("judge", "prompt")
    assert win["high"] < 0.5 and "late answers win" in win["verdict"]


def test_a_long_run_is_read_at_whole_steps_and_in_parts_and_says_the_same(monkeypatch):
    rng = np.random.default_rng(19)
    quality = rng.standard_normal(12_800)
    reward, length = quality + rng.standard_normal(12_800), 50 + 5 * quality + 5 * rng.standard_normal(12_800)
    gold = right_or_wrong(rng, np.repeat(FALL, 2))
    parts = [part("task", reward), part("judge", gold, "gold")]
    data = run(12_800, None, np.linspace(0, 1, 12_800) + reward, parts, response_tokens=length)
    whole = length_bias.section(data)["correlation"], proxy_gold.section(data)
    monkeypatch.setattr(length_bias, "MOST_SESSIONS", 5_000)
    monkeypatch.setattr(proxy_gold, "LONGEST", 1_600)
    thin = length_bias.section(data)["correlation"], proxy_gold.section(data)
    assert thin[0]["n"] % PER_STEP == 0 and whole[0]["n"] / 4 < thin[0]["n"] < whole[0]["n"]
    assert thin[0]["estimate"] == pytest.approx(whole[0]["estimate"], abs=0.05)
    ends = [found[1]["compared"][3] for found in (whole, thin)]
    assert ends[1]["sessions"] == [[1, 1600], [11_201, 12_800]] and ends[1]["pairs"] < ends[0]["pairs"]
    assert ends[1]["gold_change"]["high"] < 0
