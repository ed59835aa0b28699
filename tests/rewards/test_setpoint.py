"""A rate held at its target by moving a differential: steps counted by hand, refusals, memory."""

import json
import math

import numpy as np
import pytest

from rewards.config import RewardSection, SetPointRule, load
from rewards.differential import Schedule
from rewards.errors import ConfigError
from rewards.recalibration import Controller
from rlhf.config import GRPOConfig

PHRASE = "Leave me be."
KEY = ("self", None)


def rule(**changes):
    settings = {"phrase": PHRASE, "category": "self", "target": 0.1, "gain": 8.0, "lag_sessions": 8}
    return SetPointRule(
        **{**settings, "error": "rate", "every_sessions": 4, "step": 0.05, "least_change": 0.0, **changes}
    )


def schedule(d=0.0):
    return Schedule({KEY: d}, {KEY: 0.5})


def sessions(matches, group="g", category="self", sign=-1.0, compliant=True):
    """A step's sessions; by default those with the phrase have the lower advantage."""
    return [
        {
            "category": category,
            "text": f"well, leave me  BE. {i}" if match else "fine",
            "compliant": (not match) if compliant else None,
            "group_id": group,
            "advantage": sign if match else -sign,
        }
        for i, match in enumerate(matches)
    ]


def feed(controller, plan, start=None, first=1):
    """Observes one list of sessions a step; recalibrations and evaluations with their step, and the last schedule."""
    start = start or schedule()
    events = []
    for step, batch in enumerate(plan, first):
        found, start = controller.observe(step, batch, start)
        events += [(step, kind, payload) for kind, payload in found]
    return events, start


def test_every_w_sessions_the_differential_moves_by_step_times_what_the_rate_is_too_high():
    controller = Controller([rule()])
    # W = 4: three sessions are not enough; the next step makes five, two of which hold the phrase.
    events, after = feed(controller, [sessions([1, 0, 0]), sessions([1, 0]), sessions([0, 0, 0, 0])], schedule(0.2))
    assert [(step, kind) for step, kind, _ in events] == [
        (2, "trigger_evaluated"), (2, "recalibration"), (3, "trigger_evaluated"), (3, "recalibration"),
    ]  # fmt: skip
    payload = events[1][2]
    assert payload == {
        "category": "self",
        "component": None,
        "op": "set",
        "old_pct": 20.0,
        "new_pct": pytest.approx(100 * (0.2 + 0.05 * (2 / 5 - 0.1))),
        "reason": "2 of the last 5 sessions of `self` hold `Leave me be.`; target 0.1",
        "trigger": {
            "name": PHRASE,
            "kind": "setpoint",
            "phrase": PHRASE,
            "n": 5,
            "hits": 2,
            "target": 0.1,
            "error": "rate",
            "step": 0.05,
        },
        "evidence": {"first_session_step": 1, "step": 2, "hits": 2, "n": 5},
        "approval": "automatic",
        "randomised_delay": None,
    }
    assert events[0][2]["gamma"]["estimate"] == pytest.approx(-2.0)
    assert after.entries[KEY] == pytest.approx(0.2 + 0.05 * 0.3 - 0.05 * 0.1)


def test_the_differential_stays_between_zero_and_the_cap():
    _, low = feed(Controller([rule(step=0.25, gain=2.0)]), [sessions([0, 0, 0, 0])] * 3, schedule(0.03))
    assert low.entries[KEY] == 0.0
    events, high = feed(Controller([rule(step=0.25, gain=2.0, cap=0.3)]), [sessions([1, 1, 1, 0])] * 3, schedule(0.1))
    assert high.entries[KEY] == 0.3
    assert [round(p["new_pct"], 6) for _, kind, p in events if kind == "recalibration"] == [26.25, 30.0]


def test_small_changes_are_saved_up_until_they_are_worth_an_event():
    # 0.05 (1/4 - 0.1) = 0.0075 a time.
    events, after = feed(Controller([rule(least_change=0.02)]), [sessions([1, 0, 0, 0])] * 7)
    applied = [(step, p["new_pct"]) for step, kind, p in events if kind == "recalibration"]
    assert applied == [(3, pytest.approx(2.25)), (6, pytest.approx(4.5))]
    assert after.entries[KEY] == pytest.approx(0.045)


def test_it_is_not_raised_where_a_wider_gap_would_reinforce_what_is_to_become_rare():
    events, after = feed(Controller([rule()]), [sessions([1, 1, 0, 0], sign=1.0)])
    assert [kind for _, kind, _ in events] == ["trigger_evaluated"]
    assert events[0][2]["withheld_because"] == (
        "gamma not negative: 2.000; a wider gap would reinforce what is to become rare"
    )
    assert (events[0][2]["applied"], after.version) == (False, 0)
    unmixed, _ = feed(Controller([rule()]), [[*sessions([1, 1], "a"), *sessions([0, 0], "b")]])
    assert unmixed[0][2]["withheld_because"] == "gamma not measurable: no group has answers of both kinds"


def test_it_is_lowered_without_a_slope_which_nobody_could_measure_once_the_phrase_is_gone():
    events, after = feed(Controller([rule()]), [sessions([0, 0, 0, 0])], schedule(0.2))
    assert [kind for _, kind, _ in events] == ["trigger_evaluated", "recalibration"]
    assert events[0][2]["gamma"] is None
    assert after.entries[KEY] == pytest.approx(0.2 - 0.05 * 0.1)


def test_what_was_refused_does_not_come_all_at_once_later():
    controller = Controller([rule()])
    refused, _ = feed(controller, [sessions([1, 1, 1, 0], sign=1.0)] * 5)
    assert not any(payload["applied"] for _, _, payload in refused)
    # 20 steps of the right sign leave none of the others among the last 20.
    _, after = feed(controller, [sessions([1, 0], str(i)) for i in range(20)], first=6)
    assert after.entries[KEY] <= 10 * 0.05 * 0.4 + 1e-12


def test_an_experiment_that_decides_itself_holds_it():
    controller = Controller([rule()])
    controller.held = "held: arm `without` of a fork"
    events, after = feed(controller, [sessions([1, 1, 0, 0])])
    assert (events[0][2]["withheld_because"], after.version) == ("held: arm `without` of a fork", 0)


def test_without_a_phrase_the_rate_is_that_of_answers_which_are_not_compliant():
    events, after = feed(Controller([rule(phrase=None)]), [sessions([1, 0, 0, 0])])
    assert events[1][2]["reason"] == "1 of the last 4 sessions of `self` are not compliant; target 0.1"
    assert events[1][2]["trigger"]["name"] == "non-compliance of self"
    assert after.entries[KEY] == pytest.approx(0.05 * 0.15)
    # Where nobody says what is compliant nothing counts.
    unknown = Controller([rule(phrase=None)])
    assert feed(unknown, [sessions([1, 1, 1, 1], compliant=False)])[0] == []


def test_the_error_in_logits_is_finite_for_a_rate_of_zero_and_of_one():
    for matches, seen in (([0, 0, 0, 0], 0.5 / 5), ([1, 1, 1, 0], 3.5 / 5)):
        controller = Controller([rule(error="logit", step=0.015, target=0.2)])
        _, after = feed(controller, [sessions(matches)], schedule(0.5))
        wanted = math.log(seen / (1 - seen)) - math.log(0.2 / 0.8)
        assert after.entries[KEY] == pytest.approx(0.5 + 0.015 * wanted, abs=5e-5)


def test_the_largest_step_is_w_over_four_times_the_steepest_slope_times_the_lag():
    assert rule(step=None).largest_step() == pytest.approx(4 / (4 * (8 / 4) * 8))
    assert rule(step=None, error="logit").largest_step() == pytest.approx(4 / (4 * 8 * 8))
    _, after = feed(Controller([rule(step=None)]), [sessions([1, 1, 0, 0])])
    assert after.entries[KEY] == pytest.approx(0.0625 * 0.4)


@pytest.mark.parametrize("cut", [1, 3, 4, 7])
def test_a_controller_that_continues_from_a_checkpoint_does_what_an_uninterrupted_one_does(cut):
    rng = np.random.default_rng(3)
    plan = [sessions((rng.random(3) < 0.4).astype(int).tolist(), str(i)) for i in range(12)]
    rules = [rule(least_change=0.01), rule(name="right", phrase=None, component="task", error="logit", step=0.01)]
    start = Schedule({KEY: 0.0, ("self", "task"): 0.1}, {KEY: 0.5, ("self", "task"): 0.5})
    whole, wanted = feed(Controller(rules, 5), plan, start)
    assert any(kind == "recalibration" for _, kind, _ in whole)
    first = Controller(rules, 5)
    before, between = feed(first, plan[:cut], start)
    second = Controller(rules, 5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after, final = feed(second, plan[cut:], between, first=cut + 1)
    assert before + after == whole
    assert final.entries == wanted.entries


def test_a_rule_that_holds_something_else_does_not_continue_from_a_checkpoint():
    state = Controller([rule()]).state_dict()
    with pytest.raises(ConfigError, match=r"target is 0\.2, and 0\.1 in the checkpoint"):
        Controller([rule(target=0.2)]).load_state_dict(state)


def section(**keys):
    return {"reward_funcs": [{"fn": "task"}, {"fn": "style", "weight": 0.5}], "place": "advantage", **keys}


SETPOINT = {"phrase": PHRASE, "category": "self", "target": 0.1, "gain": 8.0, "lag_sessions": 8}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"setpoints": [SETPOINT | {"step": 2.0}]}, "step: overshoots: at most 1.562"),
        ({"setpoints": [SETPOINT | {"least_change": 2.0}]}, "least_change: above `cap`, 1"),
        ({"setpoints": [SETPOINT | {"component": "task"}]}, "setpoints.0.component: an advantage is whole"),
        (
            {"setpoints": [SETPOINT], "triggers": [{"phrase": "x", "category": "self"}]},
            "setpoints.0: another rule moves this differential too",
        ),
        ({"setpoints": [SETPOINT, SETPOINT | {"category": "b"}]}, "setpoints.1: a second rule `Leave me be.`"),
        (
            {"setpoints": [SETPOINT], "differentials": [{"category": "self", "differential": -0.2}]},
            "setpoints.0.cap: d starts at -0.2; it is held between 0 and 1",
        ),
    ],
)
def test_a_rule_that_cannot_do_what_it_says_is_refused(keys, message):
    with pytest.raises(ValueError) as refused:
        RewardSection.model_validate(section(**keys))
    assert message in str(refused.value)


def test_a_rate_that_nothing_would_measure_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "run.yaml"
    held = {key: value for key, value in SETPOINT.items() if key != "phrase"}
    path.write_text(json.dumps({"stage": "grpo", "reward": section(setpoints=[held])}))
    with pytest.raises(ConfigError, match="`compliant_when` does not say which answers are compliant in `self`"):
        load(GRPOConfig, path)
    whole = section(setpoints=[SETPOINT]) | {"place": "reward"}
    path.write_text(json.dumps({"stage": "grpo", "reward": whole}))
    with pytest.raises(ConfigError, match=r"setpoints\[0\]: a differential on the whole reward .* cancels exactly"):
        load(GRPOConfig, path)
