import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit, logit

from rewards.analysis.analyze import plain
from rewards.analysis.data import RunData
from rewards.analysis.event_bins import Pair, Place, Sessions, bins_around, correlation_time
from rewards.analysis.excess import excess, slope
from rewards.analysis.recalibration_comparison import needed_sessions
from rewards.analysis.recalibration_effect import adjust, section
from tests.rewards.recalibration_worlds import ar1, event, run, steady

# -- bins and the estimator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_step", [1, 8, 64, 200])
def test_bins_hold_whole_steps_meet_at_the_event_and_are_wide_enough(per_step):
    steps = np.repeat(np.arange(4000 // per_step), per_step)
    sessions = Sessions.of(steps, np.zeros(len(steps), dtype=np.int16), 1)
    at = per_step * (2000 // per_step)
    bins = bins_around(sessions.edges, Place(at, at - 1500, at + 1500), 125)
    assert all(stop - start >= 125 and stop - start < 125 + per_step for start, stop in bins)
    assert all(steps[start] != steps[start - 1] and steps[stop] != steps[stop - 1] for start, stop in bins)
    assert [stop for _, stop in bins[:-1]] == [start for start, _ in bins[1:]]
    assert any(stop == at for _, stop in bins) and at - 1500 <= bins[0][0] and bins[-1][1] <= at + 1500


def test_what_lies_beside_a_triggered_event_is_left_out_to_whole_steps():
    steps = np.repeat(np.arange(500), 8)
    sessions = Sessions.of(steps, np.zeros(4000, dtype=np.int16), 1)
    bins = bins_around(sessions.edges, Place(2000, 500, 3500, gap_before=201, gap_after=99), 120)
    gap = [(one[1], other[0]) for one, other in pairwise(bins) if one[1] != other[0]]
    assert gap == [(1792, 2104)]


def test_equal_bins_give_the_difference_of_differences_of_logits():
    k = np.array([[6.0] * 4 + [3.0] * 4, [40.0] * 4 + [36.0] * 4])
    n = np.array([[20.0] * 8, [80.0] * 8])
    both = Pair(k, n, np.arange(8) - 3.5, np.arange(8) >= 4)
    by_hand = (logit(3 / 20) - logit(36 / 80)) - (logit(6 / 20) - logit(40 / 80))
    found = excess(both, trend=False)
    assert found.found.estimate == pytest.approx(by_hand, abs=1e-10)
    se = np.sqrt(sum(1 / count for side in (0, 1) for half in (0, 4) for count in _cells(k, n, side, half)))
    assert found.phi == 1.0 and found.df == 6
    assert found.found.se == pytest.approx(se, rel=1e-9)
    assert found.as_dict()["points"] == pytest.approx(100 * (expit(logit(24.5 / 81) + by_hand) - 24.5 / 81))


def _cells(k, n, side, half):
    hits = k[side, half : half + 4].sum()
    return hits, n[side, half : half + 4].sum() - hits


def test_a_trend_that_all_categories_share_is_absorbed_and_a_straight_difference_only_with_the_trend_term():
    middle, n = np.arange(24) / 8 - 23 / 16, np.full((2, 24), 1e6)
    shared = logit(0.3) - 1.2 * np.tanh(middle) + 0.3 * np.sin(9 * middle)
    for apart, without in ((0.0, True), (0.4, False)):
        p = expit(np.stack([shared + 0.2 + apart * middle - 0.4 * (middle > 0), shared]))
        both = Pair(n * p, n, middle, middle > 0)
        assert excess(both, trend=True).found.estimate == pytest.approx(-0.4, abs=1e-3)
        assert (abs(excess(both, trend=False).found.estimate + 0.4) < 1e-3) == without
        before = middle < 0
        found = slope(Pair(both.successes[:, before], n[:, before], middle[before], both.post[before]))
        assert found.estimate == pytest.approx(apart, abs=1e-3)


def test_bins_without_news_are_left_out_and_do_not_change_the_estimate():
    rng = np.random.default_rng(0)
    n = np.tile([[25.0], [100.0]], (1, 12))
    k = rng.binomial(n.astype(int), 0.2).astype(float)
    middle = np.arange(12) - 5.5
    more_k, more_n = np.hstack([k, [[0, 3], [0, 9]]]), np.hstack([n, [[25, 0], [100, 40]]])
    found = excess(Pair(more_k, more_n, np.r_[middle, 8, 9], np.r_[middle, 8, 9] > 0))
    assert found.bins == 12 and found.as_dict() == excess(Pair(k, n, middle, middle > 0)).as_dict()


def test_a_phrase_that_vanishes_gives_no_number_but_says_why():
    n = np.tile([[25.0], [100.0]], (1, 12))
    k = np.vstack([np.r_[np.full(6, 4.0), np.zeros(6)], np.full(12, 10.0)])
    found = excess(Pair(k, n, np.arange(12) - 5.5, np.arange(12) > 5), trend=False)
    assert found.found is None and "never or always" in found.why
    assert found.as_dict()["estimate"] is None and found.as_dict()["points"] is None


def test_correlation_time_grows_with_the_drift_of_the_category_and_is_short_without():
    times = []
    for sd in (0.0, 1.0):
        found = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            n = np.tile([[300.0], [1200.0]], (1, 96))
            rates = expit(-1 + np.stack([sd * ar1(rng, 96 * 10, 1.0)[::10], np.zeros(96)]))
            k = rng.binomial(n.astype(int), rates).astype(float)
            found.append(correlation_time(Pair(k, n, np.arange(96) - 47.5, np.arange(96) > 47), 10))
        times.append(np.mean(found))
    assert times[0] < 8 and 20 < times[1] < 60  # truth: none and about 50; taking out a trend shortens it


def test_counting_noise_does_not_hide_the_correlation_time_of_a_drift():
    times = {"few": [], "many": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = expit(-1 + np.stack([ar1(rng, 960, 0.6)[::10], np.zeros(96)]))
        for name, size in (("few", 1.0), ("many", 1e4)):
            n = size * np.tile([[60.0], [240.0]], (1, 96))
            k = rng.binomial(n.astype(int), p).astype(float)
            times[name].append(correlation_time(Pair(k, n, np.arange(96) - 47.5, np.arange(96) > 47), 10))
    few, many = np.mean(times["few"]), np.mean(times["many"])
    assert many > 20 and 0.7 < few / many < 1.4


def test_adjusted_p_are_those_of_benjamini_and_hochberg_by_hand():
    assert adjust([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])
    assert adjust([]) == []


# -- the section -------------------------------------------------------------------------------------------------------


def test_a_large_excess_effect_is_found_and_stands_beside_the_naive_one():
    rng = np.random.default_rng(1)
    outcome, codes = steady(rng, after=(0.75, 0.3, 0.3, 0.3, 0.3))
    (found,) = section(run(outcome, codes, [event(step=375)]))
    assert found["session"] == 3000 and found["category"] == "c0" and not found["triggered"]
    honest = found["excess"]
    assert honest["low"] < logit(0.75) - logit(0.3) < honest["high"] and honest["p_adjusted"] < 0.05
    assert honest["points_low"] < 45 < honest["points_high"] and honest["with_trend"]
    assert not found["without_trend"]["with_trend"] and found["without_trend"]["se"] < honest["se"]
    assert found["naive"]["difference"] == pytest.approx(0.45, abs=0.15) and found["naive"]["n_before"] > 60
    assert "an excess effect of" in found["verdict"] and "caused" not in found["verdict"]
    assert found["outcomes"][0]["excess"] == honest and found["pretrend"]["flag"] is False
    assert found["placebo"]["in_space"]["smallest_p"] == 1 / 5 and found["placebo"]["in_space"]["n"] == 4
    json.dumps(plain(found), allow_nan=False)


def test_no_effect_is_said_with_what_could_have_been_found():
    outcome, codes = steady(np.random.default_rng(2))
    (found,) = section(run(outcome, codes, [event(step=375, claim={"points": -8, "sessions": 500})]))
    assert f"this run could have found {found['mde_points']:.0f} points or more" in found["verdict"]
    assert "covers 0: no effect claimed" in found["verdict"]
    assert "The record claims -8 points in 500 sessions; this run cannot support it" in found["verdict"]
    rate = found["excess"]["rate_before"]
    needed = found["needed_sessions"]["8"]
    assert needed["category_sessions"] == needed_sessions(rate, 8.0)
    assert needed["run_sessions"] > 1500 and found["claim"]["category_sessions_needed"] == needed["category_sessions"]
    assert found["mde_points"] == max(found["outcomes"][0]["mde_points_up"], found["outcomes"][0]["mde_points_down"])


def test_eight_points_at_thirty_percent_need_515_sessions_a_side():
    assert needed_sessions(0.3, 8.0) == 516  # 515.1


def test_equal_input_gives_equal_output():
    outcome, codes = steady(np.random.default_rng(3))
    data = [run(outcome, codes, [event(step=375)]) for _ in range(2)]
    assert section(data[0]) == section(data[1])


def test_a_run_without_recalibrations_has_none():
    outcome, codes = steady(np.random.default_rng(3), 200)
    assert section(run(outcome, codes, [])) == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"step": None}, "names no step"),
        ({"category": None}, "no category"),
        ({"category": "elsewhere"}, "no session of category elsewhere"),
        ({"step": 0}, "no sessions on one side"),
        ({"step": 10_000}, "no sessions on one side"),
    ],
)
def test_an_event_that_cannot_be_placed_says_so(changed, why):
    outcome, codes = steady(np.random.default_rng(4), 800)
    (found,) = section(run(outcome, codes, [event(**changed)]))
    assert why in found["why"] and why in found["verdict"]
    assert found["excess"] is None and found["outcomes"] == []


@pytest.mark.parametrize("case", ["constant", "null", "one category", "ten sessions", "no control has it"])
def test_poor_input_gives_a_reason_and_no_number(case):
    outcome, codes = steady(np.random.default_rng(5), 3200, at=1600)
    step = 200
    if case == "constant":
        outcome[:] = 1.0
    elif case == "null":
        outcome[:] = np.nan
    elif case == "one category":
        codes[:] = 0
    elif case == "no control has it":
        outcome[codes != 0] = np.nan
    else:
        outcome, codes, step = outcome[:10], codes[:10], 1
        codes[[0, 9]] = 0
    (found,) = section(run(outcome, codes, [event(step=step)]))
    assert found["excess"]["estimate"] is None and found["excess"]["p_adjusted"] is None
    assert found["mde_points"] is None and found["excess"]["why"] and found["excess"]["why"] in found["verdict"]
    if case == "null":
        assert found["naive"]["p"] is None and found["naive"]["why"]
    json.dumps(plain(found), allow_nan=False)


def test_an_event_without_an_empty_run_does_not_crash():
    empty = RunData.of_columns("r", [], [], {"compliant": []}, [event()])
    (found,) = section(empty)
    assert found["why"] and found["outcomes"] == []


def test_a_triggered_event_gets_no_naive_figure_and_a_gap_around_it():
    outcome, codes = steady(np.random.default_rng(6))
    trigger = {"name": "t", "phrase": "no more", "k": 7, "n": 20, "hits": 7}
    evidence = {"first_session_step": 364, "step": 375, "hits": 7, "n": 20}
    texts = {"response": ["NO  more of it" if i % 11 == 0 else "fine" for i in range(6000)]}
    events = [event(step=375, trigger=trigger, evidence=evidence)]
    (found,) = section(run(outcome, codes, events, texts=texts))
    assert found["triggered"] and [one["outcome"] for one in found["outcomes"]] == ["compliant", "phrase: no more"]
    for one in found["outcomes"]:
        numbers = [one["naive"][name] for name in ("before", "after", "difference", "low", "high", "p")]
        assert numbers == [None] * 6 and "regression to the mean" in one["naive"]["refused"]
        assert one["donut"] == {"before": 192, "after": 96} and one["donut_sessions"] == 288
        assert one["excess"]["estimate"] is not None
    assert found["outcomes"][1]["excess"]["rate_before"] == pytest.approx(1 / 11, abs=0.03)
    assert "regression to the mean" in found["verdict"] and found["comparisons"] == 2


def test_without_a_first_step_the_gap_counts_sessions_of_the_category_back():
    codes = np.tile(np.arange(5), 1200)
    outcome = (np.random.default_rng(7).random(6000) < 0.3).astype(float)
    (found,) = section(run(outcome, codes, [event(step=375, trigger={"name": "t", "n": 20})]))
    assert found["outcomes"][0]["donut"] == {"before": 200, "after": 100}


def test_withheld_triggers_serve_as_placebos_where_nothing_was_done_nearby():
    rng = np.random.default_rng(8)
    outcome, codes = steady(rng, 12_000)
    trigger = {"name": "t", "n": 20}
    kept = [event("trigger_evaluated", step=step, trigger=trigger, applied=False) for step in (400, 1190, 1195)]
    applied = [event("trigger_evaluated", step=800, trigger=trigger, applied=True), event(step=800, trigger=trigger)]
    (found,) = section(run(outcome, codes, [*kept, *applied]))
    placebos = found["placebo"]["triggers"]
    assert [one["session"] for one in placebos["placebos"]] == [3200, 9520] and placebos["n"] == 2
    assert placebos["median"] == pytest.approx(np.mean([one["estimate"] for one in placebos["placebos"]]))


@pytest.mark.parametrize(("spill", "refused"), [(1.04, False), (1.1, True), (0.9, True)])
def test_the_comparison_is_refused_where_the_schedule_moved_the_controls_too(spill, refused):
    outcome, codes = steady(np.random.default_rng(9), after=(0.8, 0.3, 0.3, 0.3, 0.3))
    stats = [
        event(
            "step_stats",
            step=step,
            leverage={"c0": {"leverage": 1.2, "spill": spill if step > 375 else 1.0, "relative": 1.1}},
        )
        for step in range(366, 386)
    ]
    (found,) = section(run(outcome, codes, [event(step=375), *stats]))
    assert found["leverage"]["after"]["leverage"] == {"median": 1.2, "n": 10}
    assert found["spill_refused"] is refused
    if refused:
        shown = found["outcomes"][0]
        assert f"spill after the event is {spill:.2f}" in found["verdict"] and found["excess"]["p"] is None
        assert shown["mde_points"] is None and shown["placebo"]["in_space"]["p"] is None
        assert found["without_trend"]["estimate"] is None and found["comparisons"] == 0
        assert found["naive"]["difference"] is not None
    else:
        assert found["excess"]["p_adjusted"] < 0.05


def test_the_window_ends_at_another_change_of_the_category_and_changed_categories_are_no_controls():
    outcome, codes = steady(np.random.default_rng(10))
    events = [
        event(step=375),
        event(step=450, new_pct=20.0),
        event(step=400, category="c3"),
        event(step=10, category="c2"),
    ]
    first, second, third, _ = section(run(outcome, codes, events))
    assert first["outcomes"][0]["window"] == {"first_session": 1501, "last_session": 3600}
    assert second["outcomes"][0]["window"] == {"first_session": 3001, "last_session": 5100}
    assert first["controls"] == ["c1", "c2", "c4"] and third["controls"] == ["c1", "c2", "c4"]
    assert first["same_window"] == ["recalibration of c0 at session 3,600", "recalibration of c3 at session 3,200"]


def test_long_steps_widen_the_window_to_twelve_of_them():
    outcome, codes = steady(np.random.default_rng(11), 20_000, at=10_240)
    (found,) = section(run(outcome, codes, [event(step=20)], per_step=512))
    assert found["outcomes"][0]["window"]["first_session"] == 10_240 - 6000 + 1  # 500 a step
    assert found["excess"]["bins"] > 8 and found["outcomes"][0]["bin_sessions"] >= 500


def test_a_null_compliance_has_no_part_and_a_randomised_delay_is_said():
    outcome, codes = steady(np.random.default_rng(12))
    outcome[codes == 4] = np.nan
    (found,) = section(run(outcome, codes, [event(step=375, randomised_delay=3)]))
    assert found["excess"]["n_controls"] < 2100 and "delay was randomised (3)" in found["verdict"]


def test_where_all_other_categories_changed_too_nothing_is_compared():
    outcome, codes = steady(np.random.default_rng(13))
    found = section(run(outcome, codes, [event(step=375, category=f"c{i}") for i in range(5)]))
    assert all(one["controls"] == [] and one["excess"]["estimate"] is None for one in found)
    assert all("was left alone" in one["verdict"] and one["needed_sessions"] for one in found)


def test_the_window_is_halved_where_that_leaves_a_control():
    outcome, codes = steady(np.random.default_rng(14))
    others = [event(step=375 + 100 + i, category=f"c{i}") for i in range(1, 5)]
    found = section(run(outcome, codes, [event(step=375), *others]))[0]
    assert found["outcomes"][0]["window"] == {"first_session": 2251, "last_session": 3750}
    assert found["controls"] == ["c1", "c2", "c3", "c4"] and found["excess"]["estimate"] is not None


def test_a_claim_about_something_that_is_not_on_record_is_not_lost():
    outcome, codes = steady(np.random.default_rng(15))
    (found,) = section(run(outcome, codes, [event(step=375, claim={"points": -11, "outcome": "mood"})]))
    assert found["claim_judged"] is False and found["claim"]["points"] == -11
    assert "names no outcome that is on record" in found["verdict"]


def test_a_claim_of_more_points_than_the_rate_had_is_called_impossible():
    outcome, codes = steady(np.random.default_rng(16), rates=(0.06,) * 5)
    (found,) = section(run(outcome, codes, [event(step=375, claim={"points": -11, "sessions": 400})]))
    assert "so such a change is not possible" in found["verdict"] and "cannot support it" in found["verdict"]
