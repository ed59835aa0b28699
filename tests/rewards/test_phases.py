import itertools

import numpy as np
import pytest

from rewards.analysis import phases
from rewards.analysis.intervals import mean_estimate
from rewards.analysis.phase_series import long_mean, midpoint, ratio_reached
from rewards.analysis.segmentation import (
    LEAST_BLOCKS,
    best_cuts,
    block_size,
    phase_costs,
    phase_penalty,
    series_blocks,
    spread_noise,
    step_edges,
)
from tests.rewards.series_worlds import BREAKS, N, T, ar1, found_cuts, levels, near, run_of

# blocks


def test_blocks_are_whole_steps_of_enough_sessions_and_a_small_rest_joins_the_last():
    rng = np.random.default_rng(0)
    steps = np.repeat(np.arange(300), rng.integers(1, 40, 300))
    edges = step_edges(steps, 26)
    assert edges[0] == 0 and edges[-1] == len(steps)
    assert np.diff(edges).min() >= 26 and np.diff(edges).max() < 26 + 40 + 26
    assert all(steps[edge - 1] < steps[edge] for edge in edges[1:-1])
    assert step_edges(np.array([1, 1, 1, 2, 2, 3]), 2).tolist() == [0, 3, 6]


def test_a_run_makes_at_most_500_blocks_whatever_its_length():
    assert block_size(np.arange(N, dtype=float)) == 26
    assert len(series_blocks(T, np.random.default_rng(0).standard_normal(N))) == 494
    assert block_size(np.arange(1_000_000, dtype=float)) == 2000
    rare = np.zeros(N)
    rare[::100] = 1.0
    assert block_size(rare) == 996  # ten of the rarer value in a block


@pytest.mark.parametrize("n", [8, 25])
def test_the_log_variance_of_a_small_block_is_unbiased(n):
    x = np.random.default_rng(1).standard_normal(n * 20_000)
    steps = np.repeat(np.arange(20_000), n)
    spread = series_blocks(steps, x, size=n).spread
    assert spread.mean() == pytest.approx(0, abs=0.02)
    assert spread_noise(spread) == pytest.approx(spread.std(), rel=0.06)


# the partition


def test_a_phase_costs_in_a_short_run_more_than_the_number_of_its_blocks_would_say_and_in_a_long_one_as_much():
    assert phase_penalty(494) == pytest.approx(4 * np.log(494), abs=0.05)  # 12,847 sessions
    assert [phase_penalty(k) for k in (16, 50, 100, 250, 500)] == pytest.approx(4 * np.log([100, 100, 200, 500, 500]))
    assert phase_penalty(2000) == 4 * np.log(2000)


def test_four_hundred_sessions_of_noise_rarely_have_phases_and_a_halved_spread_is_found():
    alarms = found = 0
    for seed in range(60):
        x = np.random.default_rng([21, seed]).standard_normal(400)
        alarms += found_cuts(x, np.arange(400))[0] != "none"
        found += found_cuts(np.where(np.arange(400) < 200, 1.0, 0.5) * x, np.arange(400))[0] == "steps"
    assert alarms <= 3 and found >= 57


def brute_force(cost, penalty):
    k = len(cost) - 1
    best = (np.inf, ())
    for count in range(k // LEAST_BLOCKS):
        for cuts in itertools.combinations(range(LEAST_BLOCKS, k - LEAST_BLOCKS + 1), count):
            edges = [0, *cuts, k]
            total = sum(cost[b, a] for a, b in itertools.pairwise(edges)) + penalty * count
            best = min(best, (float(total), cuts))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_partition_is_the_best_of_all_partitions(seed):
    rng = np.random.default_rng(seed)
    scale = np.repeat([1.0, 0.3, 2.0], [300, 250, 290])
    blocks = series_blocks(np.arange(840), scale * rng.standard_normal(840), size=24)
    cost = phase_costs(blocks)
    assert len(blocks) == 35
    for penalty in (1.0, 4 * np.log(35)):
        total, expected = brute_force(cost, penalty)
        fit, cuts = best_cuts(cost, penalty, np.full(35, np.inf))
        assert tuple(cuts) == expected and fit + penalty * len(cuts) == pytest.approx(total)


def test_the_cost_of_a_phase_is_its_formula():
    blocks = series_blocks(np.arange(600), ar1(np.random.default_rng(2), 0.3, 600), size=20)
    cost = phase_costs(blocks)
    v, m = blocks.spread, blocks.level / blocks.level.std()
    for s, t in ((0, 30), (5, 20), (11, 19)):
        expected = ((v[s:t] - v[s:t].mean()) ** 2).sum() / spread_noise(v) ** 2 + (t - s) * np.log(m[s:t].var())
        assert cost[t, s] == pytest.approx(expected)
    assert np.isinf(cost[12, 5]) and np.isinf(cost[5, 20])


def test_steps_of_mean_and_variance_are_steps_and_a_slow_narrowing_is_a_ramp():
    rng = np.random.default_rng(0)
    kind, cuts = found_cuts(levels(0, 0.3, 0.5) + levels(1, 0.5, 0.1) * ar1(rng, 0.3))
    assert kind == "steps" and len(cuts) == 2 and near(cuts, BREAKS, 50)
    narrowing = np.exp(np.interp(T, BREAKS, [0, np.log(0.1)]))
    kind, cuts = found_cuts(narrowing * ar1(rng, 0.3))
    assert kind == "ramp" and near(cuts, BREAKS, 300)


def test_a_mean_that_rises_evenly_is_one_ramp_and_no_staircase():
    rng = np.random.default_rng(5)
    kind, cuts = found_cuts(np.interp(T, (1000, 6000), [0, 2]) + ar1(rng, 0.3))
    assert kind == "ramp" and near(cuts, (1000, 6000), 500)


def test_a_step_inside_a_block_makes_no_phase_of_its_own():
    x = 0.1 * np.random.default_rng(6).standard_normal(200_000) + (np.arange(200_000) >= 100_210)
    kind, cuts = found_cuts(x, np.arange(200_000))
    assert kind == "steps" and len(cuts) == 1 and abs(cuts[0] - 100_210) <= 400
    blocks = series_blocks(np.arange(200_000), x)
    _, naive = best_cuts(phase_costs(blocks), 4 * np.log(len(blocks)), np.full(len(blocks), np.inf))
    assert len(naive) == 2


# the section


def test_the_section_tells_phases_with_intervals_ratios_and_the_events_beside_them():
    rng = np.random.default_rng(3)
    x = levels(0, 0.3, 0.5) + levels(1, 0.5, 0.1) * ar1(rng, 0.3)
    change = {"category": "a", "op": "set", "old_pct": 12.0, "new_pct": 15.0, "reason": "asked"}
    events = [
        {"run_id": "r", "attempt": 1, "step": 2500, "kind": "recalibration", "payload": change},
        {"run_id": "r", "attempt": 1, "step": 5000, "kind": "recalibration", "payload": {**change, "new_pct": 20.0}},
        {"run_id": "r", "attempt": 1, "step": None, "kind": "mixture_changed", "payload": {"category": "b"}},
    ]
    found = phases.section(run_of(x, events=events))
    assert found["why"] is None and found["shape"] == "steps" and found["blocks"] == 494
    assert [row["kind"] for row in found["boundaries"]] == ["step", "step"]
    assert found["boundaries"][0]["near_event"] == "recalibration of a from 12 to 15 %"
    assert found["boundaries"][1]["near_event"] is None
    assert [row["session"] for row in found["known_breaks"]] == [None, 2500, 5000]
    first, middle, last = found["phases"]
    assert first["first_session"] == 1 and last["last_session"] == N
    assert middle["first_session"] == first["last_session"] + 1 == found["boundaries"][0]["session"]
    assert sum(phase["n"] for phase in found["phases"]) == N
    assert middle["mean"]["low"] < 0.3 < middle["mean"]["high"] and middle["mean"]["ess"] < middle["n"]
    for phase, truth in ((middle, 0.5), (last, 0.1)):
        low, high = phase["sd_ratio_interval"]
        assert low < truth < high < 1.2 * low
    assert "3 phases" in found["verdict"] and "12,847" in found["verdict"]
    assert 0 < found["mde"]["mean_shift"] < 0.5 and 0.5 < found["mde"]["sd_ratio"] < 1


def test_sessions_without_a_reward_are_left_out_and_numbers_stay_those_of_the_run():
    rng = np.random.default_rng(4)
    x = np.r_[np.full(1000, np.nan), rng.standard_normal(2000), 3 + rng.standard_normal(2000)]
    found = phases.section(run_of(x))
    assert sum(phase["n"] for phase in found["phases"]) == 4000
    assert found["boundaries"][0]["session"] == pytest.approx(3001, abs=50)
    assert found["phases"][0]["first_session"] == 1


def test_a_changed_mixture_is_told_apart_from_a_changed_policy():
    rng = np.random.default_rng(6)
    easy = rng.random(N) < np.where(T < 6000, 0.2, 0.8)
    x = np.where(easy, 1.0, 0.0) + 0.5 * rng.standard_normal(N)
    found = phases.section(run_of(x, np.where(easy, "easy", "hard").tolist()))
    assert len(found["boundaries"]) == 1 and abs(found["boundaries"][0]["session"] - 6000) < 60
    assert found["reweighted"]["shape"] == "none"
    assert found["reweighted"]["mixture_only"] == [found["boundaries"][0]["session"]]
    assert "sufficient account" in found["reweighted"]["verdict"]
    assert [(row["category"], row["shape"]) for row in found["by_category"]] == [("easy", "none"), ("hard", "none")]
    real = phases.section(run_of(x + (T >= 6000), np.where(easy, "easy", "hard").tolist()))
    assert real["reweighted"]["shape"] == "steps" and real["reweighted"]["mixture_only"] == []


def test_a_category_that_enters_half_way_does_not_break_the_reweighted_series():
    rng = np.random.default_rng(7)
    late = (T >= 6000) & (rng.random(N) < 0.5)
    x = np.where(late, 2.0, 0.0) + 0.5 * rng.standard_normal(N)
    found = phases.section(run_of(x, np.where(late, "late", "always").tolist()))
    assert found["shape"] == "steps" and found["reweighted"]["shape"] == "none"
    assert found["reweighted"]["left_out"] == ["late"]


def test_two_valued_rewards_are_divided_on_log_odds_and_say_so():
    rng = np.random.default_rng(8)
    x = (rng.random(N) < levels(0.35, 0.15, 0.05)).astype(float)
    found = phases.section(run_of(x))
    assert found["shape"] == "steps" and len(found["boundaries"]) == 2
    assert near([row["session"] for row in found["boundaries"]], BREAKS, 400)
    assert any("two values" in text for text in found["warnings"]) and found["mde"]["log_odds"]
    rare = np.zeros(3000)
    rare[[10, 2000]] = 1.0
    assert "rare" in phases.section(run_of(rare))["why"]


def test_a_cap_that_many_sessions_reach_is_named_beside_the_narrowing_it_makes():
    rng = np.random.default_rng(9)
    x = np.minimum(np.interp(T, (2500, 8000), (0, 3)) + rng.standard_normal(N), 2.0)
    warnings = phases.section(run_of(x))["warnings"]
    assert any("exactly on the highest reward, 2" in text for text in warnings)
    free = phases.section(run_of(rng.standard_normal(N)))["warnings"]
    assert not any("cap" in text for text in free)


def test_values_that_were_clipped_to_their_scale_are_named():
    rng = np.random.default_rng(10)
    raw = rng.standard_normal(1000) + 1
    part = {"name": "task", "weight": 1.0, "role": "optimised"}
    parts = [[{**part, "raw": float(x), "value": float(min(x, 1.0))}] for x in raw]
    data = run_of(np.minimum(raw, 1.0), components=parts)
    assert any("component task were clipped" in text for text in phases.section(data)["warnings"])


@pytest.mark.parametrize(
    ("baseline", "steps", "why"),
    [
        (np.zeros(0), None, "0 sessions"),
        (np.arange(10.0), None, "10 sessions"),
        (np.full(500, np.nan), None, "0 sessions"),
        (np.full(500, 0.25), None, "equal"),
        (np.arange(500.0), np.repeat([1, 2, 3, 4, 5], 100), "5 blocks"),
    ],
)
def test_what_cannot_be_divided_says_why(baseline, steps, why):
    found = phases.section(run_of(baseline, steps=steps))
    assert why in found["why"] and found["phases"] == [] and found["shape"] is None


def test_rewards_that_freeze_say_how_many_blocks_have_no_spread():
    rng = np.random.default_rng(11)
    x = np.r_[rng.standard_normal(4000), np.full(4000, 0.5)]
    found = phases.section(run_of(x))
    assert any("no spread at all" in text for text in found["warnings"])
    assert found["phases"][-1]["sd_ratio_to_first"] == 0.0 and found["phases"][-1]["mean"]["low"] is None
    per_step = phases.section(run_of(np.repeat(rng.standard_normal(40), 20), steps=np.repeat(np.arange(40), 20)))
    assert per_step["why"] is None and per_step["shape"] == "none"


def test_a_run_that_starts_to_rise_at_once_is_a_ramp_from_its_first_blocks():
    found = phases.section(
        run_of(np.interp(np.arange(2000), (20, 800), (0, 5)) + np.random.default_rng(15).random(2000))
    )
    assert found["shape"] == "ramp" and found["boundaries"][0]["session"] < 100
    assert [phase["kind"] for phase in found["phases"]][-2:] == ["ramp", "level"]
    ratios = [phase["sd_ratio_to_first"] for phase in found["phases"]]
    assert ratios[0] == 1.0 and all(ratio > 0 for ratio in ratios)


def test_a_change_that_is_only_read_otherwise_without_the_mixture_is_not_put_down_to_it():
    rng = np.random.default_rng(16)
    easy = rng.random(N) < np.where(T < 6000, 0.2, 0.8)
    x = easy + np.interp(T, (3000, 9000), (0, 1)) + 0.5 * rng.standard_normal(N)
    found = phases.section(run_of(x, np.where(easy, "easy", "hard").tolist()))
    assert (found["shape"], found["reweighted"]["shape"]) == ("steps", "ramp")
    assert found["reweighted"]["mixture_only"] == [] and "reads as a gradual change" in found["reweighted"]["verdict"]


def test_a_category_of_few_sessions_says_why_it_has_no_phases():
    found = phases.section(run_of(ar1(np.random.default_rng(12), 0, 1000), ["a"] * 990 + ["b"] * 10))
    assert "10 sessions" in found["by_category"][1]["why"] and found["by_category"][1]["n"] == 10


def test_equal_input_gives_an_equal_section():
    x = ar1(np.random.default_rng(13), 0.3, 3000)
    assert phases.section(run_of(x)) == phases.section(run_of(x.copy()))


# ratios and means


def test_the_session_from_which_a_ratio_holds_is_found_by_hand():
    values = np.array([1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1], dtype=float)
    found = ratio_reached(values, 0.5, ratios=(1, 3, 5), window=4)
    # ones among the last four, from the fourth value on: 2 2 3 3 3 3 3 4
    assert found["reached"] == [
        {"ratio": 1, "session": 4},
        {"ratio": 3, "session": 6},
        {"ratio": 5, "session": 11},
    ]
    assert found["last_ratio"] is None and (found["n"], found["window"]) == (11, 4)
    assert ratio_reached(1 - values, 0.5, window=4)["reached"][0]["session"] is None
    assert ratio_reached(np.zeros(0), 0.5)["reached"] == []


def test_a_ratio_that_is_lost_again_was_not_reached():
    values = np.r_[np.ones(1000), np.tile([0.0, 1.0], 500), np.ones(1000)]
    row = ratio_reached(values, midpoint(values), ratios=(3,))["reached"][0]
    assert 2000 < row["session"] < 2500


def test_the_midpoint_ignores_a_few_outliers_and_not_a_rare_value():
    assert midpoint(np.r_[np.linspace(0, 1, 2001), 100.0]) == pytest.approx(0.5, abs=0.01)
    assert midpoint(np.r_[np.zeros(10_000), 1.0]) == 0.5


def test_the_mean_of_a_long_series_has_the_interval_of_the_whole_one():
    x = ar1(np.random.default_rng(14), 0.6, 300_000)
    short, whole = long_mean(x), mean_estimate(x)
    assert short.value == pytest.approx(whole.value, abs=1e-4) and short.n == whole.n
    assert short.high - short.low == pytest.approx(whole.high - whole.low, rel=0.1)
    assert short.ess == pytest.approx(whole.ess, rel=0.2)
