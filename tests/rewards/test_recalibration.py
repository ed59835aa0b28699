"""Triggers and their controller: windows counted by hand, and the exact law."""

import json

import numpy as np
import pytest

from rewards.analysis.trigger_design import run_length_false_alarm
from rewards.config import TriggerRule
from rewards.differential import Schedule
from rewards.errors import ConfigError
from rewards.recalibration import Controller

PHRASE = "Leave me be."


def rule(**changes):
    settings = {"phrase": PHRASE, "category": "self", "k": 2, "n": 4, "armed_window": 4, "cooldown_sessions": 0}
    return TriggerRule(**{**settings, **changes})


def schedule(d=0.0, component=None):
    return Schedule({("self", component): d}, {("self", component): 0.5})


def sessions(matches, category="self", group="g", advantage=None):
    """A step's sessions; by default the phrase has the lower advantage."""
    return [
        {
            "category": category,
            "text": f"well, leave me  BE. {i}" if match else "fine",
            "group_id": group,
            "advantage": (-1.0 if match else 1.0) if advantage is None else advantage[i],
        }
        for i, match in enumerate(matches)
    ]


def feed(controller, plan, start=None, first=1):
    """Observes one list of sessions a step; all events with their step, and the last schedule."""
    start = start or schedule()
    events = []
    for step, batch in enumerate(plan, first):
        found, start = controller.observe(step, batch, start)
        events += [(step, kind, payload) for kind, payload in found]
    return events, start


CALM = sessions([0, 0, 0, 0], "other")


def test_k_of_the_last_n_widens_from_the_next_step_on():
    controller = Controller([rule()])
    events, after = feed(controller, [CALM, sessions([1, 0]), sessions([0, 1]), sessions([0])])
    assert [(step, kind) for step, kind, _ in events] == [(3, "trigger_evaluated"), (3, "recalibration")]
    payload = events[1][2]
    assert payload == {
        "category": "self",
        "component": None,
        "op": "widen",
        "old_pct": 0.0,
        "new_pct": pytest.approx(15.0),
        "reason": "2 of the last 4 sessions of `self` hold `Leave me be.`",
        "trigger": {"name": PHRASE, "phrase": PHRASE, "k": 2, "n": 4, "hits": 2},
        "evidence": {
            "first_session_step": 2,
            "step": 3,
            "hits": 2,
            "n": 4,
            "rate_before": 0.0,
            "window_before": 4,
        },
        "approval": "automatic",
        "randomised_delay": None,
    }
    evaluated = events[0][2]
    assert {key: evaluated[key] for key in payload} == payload
    assert (evaluated["applied"], evaluated["withheld_because"]) == (True, None)
    assert evaluated["gamma"]["estimate"] == pytest.approx(-2.0)
    assert evaluated["gamma"]["n_groups"] == 2
    assert after.entries[("self", None)] == pytest.approx(0.15)
    assert after.version == 1


def test_hits_that_leave_the_window_or_fall_short_of_k_are_no_event():
    controller = Controller([rule()])
    plan = [CALM, sessions([1, 0, 0, 0]), sessions([1, 0, 0, 0]), sessions([0])]
    assert feed(controller, plan)[0] == []


def test_a_step_without_the_category_is_not_evaluated_again():
    controller = Controller([rule(cap=0.01)])
    events, _ = feed(controller, [CALM, sessions([1, 1, 0]), CALM, CALM, sessions([0])])
    assert [step for step, _, _ in events] == [2, 5]


def test_the_rate_before_the_window_counts_all_categories_of_the_run():
    # Window of 4 in step 2; before it come 4 sessions of another category, one of which holds the phrase.
    noisy = sessions([0, 1, 0, 0], "other")
    withheld, after = feed(Controller([rule(armed_below=0.25)]), [noisy, sessions([1, 1, 0, 0])])
    assert [kind for _, kind, _ in withheld] == ["trigger_evaluated"]
    assert withheld[0][2]["withheld_because"] == "not armed: the rate before the window, 0.250, is not below 0.25"
    assert withheld[0][2]["evidence"]["rate_before"] == 0.25
    assert withheld[0][2]["applied"] is False
    assert withheld[0][2]["new_pct"] == pytest.approx(15.0)
    assert after.version == 0
    armed, _ = feed(Controller([rule(armed_below=0.26)]), [noisy, sessions([1, 1, 0, 0])])
    assert [kind for _, kind, _ in armed] == ["trigger_evaluated", "recalibration"]


def test_the_sessions_before_the_window_are_those_just_before_its_first_one():
    # The window is the last 4 of 6 sessions of the category; before it: two of `other`, then two of the category.
    plan = [sessions([0, 0, 0, 0, 1], "other"), sessions([1, 0]), sessions([0, 0, 1, 1])]
    events, _ = feed(Controller([rule(armed_below=0.6)]), plan)
    assert events[0][2]["evidence"] == {
        "first_session_step": 3,
        "step": 3,
        "hits": 2,
        "n": 4,
        "rate_before": 0.5,  # of 0, 1 (other) and 1, 0 (the category)
        "window_before": 4,
    }


def test_too_few_sessions_before_the_window_are_not_a_low_rate():
    events, _ = feed(Controller([rule()]), [sessions([0, 0, 0], "other"), sessions([1, 1, 0, 0])])
    assert events[0][2]["withheld_because"] == "not armed: 3 of 4 sessions came before the window"
    none_before, _ = feed(Controller([rule()]), [sessions([1, 1, 0])])
    assert none_before[0][2]["evidence"]["rate_before"] is None


def test_after_a_recalibration_the_window_starts_empty_and_the_cooldown_counts_the_category():
    controller = Controller([rule(cooldown_sessions=6, armed_below=1.0)])
    plan = [CALM, sessions([1, 1, 0]), sessions([1, 0]), sessions([1, 0]), CALM, sessions([1, 0]), sessions([0])]
    events, after = feed(controller, plan)
    seen = [(step, kind, payload.get("withheld_because")) for step, kind, payload in events]
    assert seen == [
        (2, "trigger_evaluated", None),
        (2, "recalibration", None),
        # step 3 holds one hit of an empty window: no event
        (4, "trigger_evaluated", "cooldown: 4 of 6 sessions since the last one"),
        (6, "trigger_evaluated", None),
        (6, "recalibration", None),
    ]
    assert after.entries[("self", None)] == pytest.approx(1.15**2 - 1)


def test_a_step_that_would_pass_the_cap_is_withheld_and_not_clamped():
    events, after = feed(Controller([rule(cap=0.2)]), [CALM, sessions([1, 1, 0])], schedule(0.15))
    assert events[0][2]["withheld_because"] == "cap: 32.2 % would pass 20.0 %"
    assert after.entries[("self", None)] == 0.15
    exactly, _ = feed(Controller([rule(cap=0.15)]), [CALM, sessions([1, 1, 0])], schedule(0.0))
    assert [kind for _, kind, _ in exactly] == ["trigger_evaluated", "recalibration"]


def test_a_phrase_that_the_advantages_favour_is_not_widened():
    favoured = sessions([1, 1, 0], advantage=[1.0, 1.0, -1.0])
    events, _ = feed(Controller([rule()]), [CALM, favoured])
    assert [kind for _, kind, _ in events] == ["trigger_evaluated"]
    assert events[0][2]["withheld_because"].startswith("gamma not negative: 2.000")
    unmixed, _ = feed(Controller([rule()]), [CALM, sessions([1, 1])])
    assert unmixed[0][2]["gamma"] is None
    assert unmixed[0][2]["withheld_because"].startswith("gamma not measurable")


def test_gamma_spans_the_categorys_last_twenty_steps_with_an_advantage():
    # One mixed group long ago, its advantages in favour of the phrase; since then groups without the phrase.
    old = sessions([1, 0], advantage=[1.0, -1.0])
    quiet = [sessions([0], advantage=[None])] * 18
    inside, _ = feed(Controller([rule(armed_below=1.0)]), [CALM, old, *quiet, sessions([1, 1])])
    assert inside[-1][2]["gamma"] == {"estimate": 2.0, "low": None, "high": None, "n_groups": 1}
    outside, _ = feed(Controller([rule(armed_below=1.0)]), [CALM, old, *quiet, quiet[0], sessions([1, 1])])
    assert outside[-1][2]["gamma"] is None


def test_all_objections_are_named():
    events, _ = feed(Controller([rule(cap=0.1)]), [sessions([1, 1])])
    assert events[0][2]["withheld_because"].count(";") >= 2


def test_a_component_is_widened_where_the_rule_names_one():
    controller = Controller([rule(component="calm")])
    events, after = feed(controller, [CALM, sessions([1, 1, 0])], schedule(0.0, "calm"))
    assert events[1][2]["component"] == "calm"
    assert after.entries[("self", "calm")] == pytest.approx(0.15)


def test_two_triggers_of_one_category_act_one_after_the_other():
    controller = Controller([rule(name="a"), rule(name="b", phrase="be.", cap=0.2)])
    events, after = feed(controller, [CALM, sessions([1, 1, 0])])
    assert [(kind, payload["trigger"]["name"]) for _, kind, payload in events] == [
        ("trigger_evaluated", "a"),
        ("recalibration", "a"),
        ("trigger_evaluated", "b"),
    ]
    assert events[2][2]["old_pct"] == pytest.approx(15.0)
    assert "cap" in events[2][2]["withheld_because"]
    assert after.version == 1
    with pytest.raises(ConfigError, match="two triggers are called `a`"):
        Controller([rule(name="a"), rule(name="a")])


def test_a_trigger_without_its_pivot_is_refused_at_the_first_step():
    waiting = Schedule({("self", None): 0.0}, awaiting=(("self", None),))
    with pytest.raises(ConfigError, match="category `self`, the whole reward has not been measured"):
        Controller([rule()]).observe(1, CALM, waiting)


def test_steps_only_go_forward():
    controller = Controller([rule()])
    controller.observe(2, CALM, schedule())
    with pytest.raises(ValueError, match="step 2 comes after step 2"):
        controller.observe(2, CALM, schedule())


def random_plan(steps, seed=0):
    rng = np.random.default_rng(seed)
    plan = []
    for step in range(steps):
        batch = []
        for group in range(3):
            category = "self" if rng.random() < 0.4 else "other"
            matches = rng.random(4) < (0.3 if category == "self" else 0.02)
            advantage = [None if rng.random() < 0.1 else float(a) for a in rng.normal(size=4) - matches]
            batch += sessions(matches.tolist(), category, f"{step}/{group}", advantage)
        plan.append(batch)
    return plan


def test_a_resumed_controller_equals_an_uninterrupted_one():
    rules = [rule(armed_window=10, armed_below=0.4, cooldown_sessions=9, widen=0.01), rule(name="b", phrase="fine")]
    plan = random_plan(60)
    whole, end = feed(Controller(rules, seed=3), plan)
    assert {kind for _, kind, _ in whole} == {"trigger_evaluated", "recalibration"}
    assert len(whole) > 20
    for cut in (1, 17, 30, 44):
        first = Controller(rules, seed=3)
        before, middle = feed(first, plan[:cut])
        state = json.loads(json.dumps([first.state_dict(), middle.state_dict()]))
        second = Controller(rules, seed=3)
        second.load_state_dict(state[0])
        after, last = feed(second, plan[cut:], Schedule.from_state(state[1]), first=cut + 1)
        assert before + after == whole
        assert last == end


def test_counts_do_not_continue_under_a_rule_that_counts_something_else():
    first = Controller([rule(name="a")])
    feed(first, [CALM, sessions([1, 0])])
    with pytest.raises(ConfigError, match="trigger `a`: n is 6, and 4 in the checkpoint"):
        Controller([rule(name="a", n=6)]).load_state_dict(first.state_dict())
    Controller([rule(name="new")]).load_state_dict(first.state_dict())


def test_what_a_trigger_remembers_does_not_grow_with_the_run():
    controller = Controller([rule(armed_window=10)])
    feed(controller, [CALM, sessions([1, 0]), *[CALM] * 50])
    early = len(json.dumps(controller.state_dict()))
    feed(controller, [CALM] * 400, first=100)
    assert len(json.dumps(controller.state_dict())) <= early + 5


@pytest.mark.parametrize(("p", "k", "n", "length"), [(0.1, 3, 6, 40), (0.2, 4, 8, 30)])
def test_a_trigger_reaches_k_at_the_rate_of_the_exact_law(p, k, n, length):
    runs, fired = 1500, 0
    rng = np.random.default_rng(7)
    hit, miss = sessions([1])[0], sessions([0])[0]
    for _ in range(runs):
        controller = Controller([rule(k=k, n=n)])
        for step, match in enumerate(rng.random(length) < p, 1):
            if controller.observe(step, [hit if match else miss], schedule())[0]:
                fired += 1
                break
    want = run_length_false_alarm(p, k, n, length)
    assert 0.05 < want < 0.95
    assert abs(fired / runs - want) < 3 * np.sqrt(want * (1 - want) / runs)
