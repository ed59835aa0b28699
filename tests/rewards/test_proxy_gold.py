import numpy as np
import pytest
from scipy.stats import norm

from rewards.analysis import proxy_gold
from rewards.analysis.gold import golds
from tests.rewards.accepted import record
from tests.rewards.gold_runs import FALL, GROUP, PER_STEP, RISE, pair_run, part, registered, right_or_wrong, run


def test_pairs_are_matched_by_key_and_order_and_no_session_is_used_twice():
    keys = np.array([1, 2, 1, -1, 1, 2, 1, 1, 3, -1])
    steps = np.array([1, 1, 1, 1, 1, 2, 2, 2, 3, 3])
    pairs = proxy_gold.matched_pairs(np.arange(5), np.arange(5, 10), keys, steps)
    assert list(zip(pairs.old.tolist(), pairs.new.tolist(), strict=True)) == [(1, 5), (0, 6), (2, 7)]
    assert pairs.unit.tolist() == [1, 0, 0]  # one unit for the two pairs of key 1 in step 2
    values = np.array([0, 1, 0, 9, 9, 4, 1, 3, 9, 9.0])
    assert proxy_gold.unit_means(values, pairs).tolist() == [2.0, 3.0]
    empty = proxy_gold.matched_pairs(np.arange(0), np.arange(5), keys, steps)
    assert len(empty.old) == len(empty.new) == 0


@pytest.mark.parametrize(("proxy", "gold", "alarm"), [(RISE, FALL, True), (RISE, RISE, False), (FALL, FALL, False)])
def test_the_alarm_needs_a_rising_proxy_and_a_falling_gold(proxy, gold, alarm):
    found = proxy_gold.section(pair_run(6, proxy, gold))
    assert found["alarm"] is alarm and found["paired_by"] == "prompt" and len(found["compared"]) == 4
    if alarm:
        assert found["e_value"] >= 20 and found["proxy_change"]["low"] > 0 > found["gold_change"]["high"]
        assert "rose while gold fell" in found["verdict"]
    else:
        assert "No alarm" in found["verdict"] and found["gold_change"]["mde"] > 0


def test_gold_that_rises_first_and_falls_then_alarms_though_its_ends_are_equal():
    gold = np.r_[np.linspace(0.4, 0.8, 3200), np.linspace(0.8, 0.4, 3200)]
    found = proxy_gold.section(pair_run(7, RISE, gold))
    assert found["alarm"] and found["compared"][3]["alarm"] is False


def test_prompts_that_never_come_again_are_paired_by_category():
    found = proxy_gold.section(pair_run(8, RISE, FALL, prompts=800))
    assert found["paired_by"] == "category" and found["alarm"]


def test_a_gold_component_named_after_a_penalised_one_is_better_when_lower():
    rng = np.random.default_rng(9)
    seen, independent = right_or_wrong(rng, FALL), right_or_wrong(rng, RISE)
    parts = [part("unsolicited", seen, weight=-0.5), part("unsolicited_gold", independent, "gold")]
    data = run(6400, None, -0.5 * seen, parts)
    (gold,) = golds(data)
    assert (gold.proxy, gold.sign) == ("unsolicited", -1.0) and gold.values.tolist() == (-independent).tolist()
    found = proxy_gold.section(data)
    assert found["alarm"] and "lower is better" in found["verdict"]


def test_a_gold_component_of_the_same_function_takes_its_direction_and_another_one_says_that_higher_is_assumed():
    values = np.zeros(640)
    parts = [part("short", values, weight=-1.0), part("held_out", values, "gold"), part("judge", values, "gold")]
    events = [registered("short", fn="len", weight=-1.0), registered("held_out", fn="len"), registered("judge")]
    found = {gold.name: gold for gold in golds(run(640, None, values, parts, events=events))}
    assert (found["held_out"].proxy, found["held_out"].sign) == ("short", -1.0)
    assert (found["judge"].proxy, found["judge"].sign) == ("baseline_reward", 1.0)
    assert "taken as better" in found["judge"].direction


def test_parts_of_a_run_on_either_side_of_a_changed_scorer_are_not_compared():
    events = [registered("judge"), registered("judge", "v2", step=50)]
    found = proxy_gold.section(pair_run(6, RISE, FALL, events=events))
    reasons = [row["why"] for row in found["compared"]]
    assert reasons[0] is None and reasons[2] is None
    assert all("scorer changed" in reasons[place] for place in (1, 3))


@pytest.mark.slow
def test_equal_gold_raises_the_alarm_in_at_most_5_percent_where_a_test_on_sessions_does_far_more_often():
    worlds, alarms, naive = 300, 0, 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        # Prompts differ, and each step's policy moves every prompt a little to and fro.
        groups = np.arange(3200) // GROUP
        logit = rng.normal(0, 1.2, 400)[groups] + rng.normal(0, 0.5, 50)[np.arange(3200) // PER_STEP]
        gold = right_or_wrong(rng, 1 / (1 + np.exp(-logit)))
        proxy = right_or_wrong(rng, np.linspace(0.3, 0.8, 3200))
        data = run(3200, None, proxy, [part("task", proxy), part("judge", gold, "gold")], seed=seed)
        found = proxy_gold.section(data)
        alarms += found["alarm"]
        means = gold.reshape(4, 800).mean(axis=1)
        errors = np.sqrt(means * (1 - means) / 800)
        z = [(means[b] - means[a]) / np.hypot(errors[a], errors[b]) for a, b in proxy_gold.COMPARED]
        naive += min(z) < norm.ppf(0.05)
    record("proxy-gold alarm: false alarms with equal gold", alarms / worlds, "<= 0.05", worlds)
    record("z-tests on sessions between the same parts: false alarms", naive / worlds, "naive", worlds)
    assert alarms / worlds <= 0.05 and naive / worlds >= 0.3


@pytest.mark.slow
def test_a_slow_fall_of_gold_is_found_while_the_proxy_rises():
    worlds = 60
    gold = np.linspace(0.68, 0.60, 12800)  # 0.06 between the first and the last quarter
    proxy = np.linspace(0.3, 0.6, 12800)
    alarms = sum(proxy_gold.section(pair_run(seed, proxy, gold))["alarm"] for seed in range(worlds))
    record("proxy-gold alarm: power at a fall of 0.08 over 12,800 sessions", alarms / worlds, ">= 0.5", worlds)
    assert alarms / worlds >= 0.5
