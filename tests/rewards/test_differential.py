"""The differential schedule against hand arithmetic."""

import json
import math

import pytest

from rewards.compose import Component, Composer, baseline
from rewards.config import GainSection, RewardSection
from rewards.differential import Schedule
from rewards.errors import ConfigError
from rewards.pivots import Pivot, measure_pivots


def part(name, value, weight=1.0, role="optimised"):
    status = "na" if value is None else "ok"
    return Component(name, value, value, weight, role, status, "id", 1.0)


ROW = [part("task", 0.75, 2.0), part("style", 0.5, -0.5), part("seen", 9.0, role="gold")]  # b = 1.5 - 0.25 = 1.25


def scorers(*entries):
    functions = {"a": lambda prompts, completions, **_: [1.0], "b": lambda prompts, completions, **_: [1.0]}
    section = RewardSection(reward_funcs=list(entries))
    return Composer.from_config(section, special={"it": lambda name: functions[name]}).scorers


TWO = (
    {"fn": "it:a", "name": "task", "scale": (0, 2), "weight": 2.0},
    {"fn": "it:b", "name": "style", "weight": -0.5},
    {"fn": "it:b", "name": "seen", "role": "gold"},
)


def test_without_a_differential_the_adjusted_reward_is_the_baseline_bit_for_bit():
    row = [part(str(i), 0.1 * i, 1 / 3) for i in range(7)]
    schedule = Schedule({("c", None): 0.0, ("c", "3"): 0.0, ("other", None): 0.5}, {("other", None): 1.0})
    for category in ("c", "unlisted", None):
        result = schedule.adjusted(row, category)
        assert result.adjusted == baseline(row)
        assert (result.differential_pct, result.pivot) == (0.0, None)
        assert {(share.differential_pct, share.pivot) for share in result.components} == {(0.0, None)}


def test_a_component_differential_widens_the_gap_to_its_pivot():
    schedule = Schedule({("c", "task"): 0.5, ("c", "style"): 0.2}, {("c", "task"): 0.25, ("c", "style"): 1.0})
    result = schedule.adjusted(ROW, "c")
    # 1.25 + 0.5 * 2 * (0.75 - 0.25) + 0.2 * -0.5 * (0.5 - 1.0)
    assert result.adjusted == pytest.approx(1.25 + 0.5 + 0.05)
    assert [tuple(share) for share in result.components] == [(50.0, 0.25), (20.0, 1.0), (None, None)]
    assert (result.differential_pct, result.pivot) == (0.0, None)
    assert result.rows(ROW)[0] == {
        "name": "task",
        "raw": 0.75,
        "value": 0.75,
        "weight": 2.0,
        "differential_pct": 50.0,
        "pivot": 0.25,
        "role": "optimised",
        "status": "ok",
        "scorer_id": "id",
        "latency_ms": 1.0,
        "cost": None,
    }


def test_a_whole_reward_differential_turns_around_the_baselines_pivot():
    schedule = Schedule({("c", None): 0.15}, {("c", None): 0.25})
    result = schedule.adjusted(ROW, "c")
    assert result.adjusted == pytest.approx(0.25 + 1.15 * (1.25 - 0.25))
    assert (result.differential_pct, result.pivot) == (15.0, 0.25)


def test_whole_and_component_differentials_add_up():
    both = Schedule({("c", None): 0.1, ("c", "task"): 0.5}, {("c", None): 0.25, ("c", "task"): 0.25})
    assert both.adjusted(ROW, "c").adjusted == pytest.approx(1.25 + 0.1 * 1.0 + 0.5)


def test_one_differential_on_every_component_is_the_whole_reward_differential():
    pivots = {("c", "task"): 0.4, ("c", "style"): 0.1}
    each = Schedule({("c", "task"): 0.3, ("c", "style"): 0.3}, pivots)
    whole = Schedule({("c", None): 0.3}, {("c", None): 2.0 * 0.4 - 0.5 * 0.1})
    assert each.adjusted(ROW, "c").adjusted == pytest.approx(whole.adjusted(ROW, "c").adjusted, abs=1e-15)


def test_a_component_that_does_not_apply_moves_nothing_and_a_null_baseline_stays_null():
    schedule = Schedule({("c", "task"): 0.5, ("c", None): 0.5}, {("c", "task"): 0.25, ("c", None): 0.0})
    assert schedule.adjusted([part("task", None), part("style", 1.0)], "c").adjusted == pytest.approx(1.5)
    nothing = schedule.adjusted([part("task", None), part("seen", 1.0, role="gold")], "c")
    assert nothing.adjusted is None
    assert nothing.differential_pct == 50.0


def test_place_advantage_leaves_the_reward_and_gives_a_gain():
    schedule = Schedule({("c", None): 0.15}, place="advantage")
    result = schedule.adjusted(ROW, "c")
    assert result.adjusted == baseline(ROW)
    assert (result.differential_pct, result.pivot) == (15.0, None)
    assert schedule.gain("c") == 1.15
    assert schedule.gain("other") == schedule.gain(None) == 1.0
    assert Schedule({("c", None): 0.15}, {("c", None): 0.0}).gain("c") == 1.0
    with pytest.raises(ConfigError, match="component `task`: a single component has no advantage"):
        Schedule({("c", "task"): 0.15}, place="advantage")


def test_a_needed_pivot_that_is_missing_is_an_error_naming_category_and_component():
    with pytest.raises(ConfigError, match="category `c`, component `task` needs a pivot"):
        Schedule({("c", "task"): 0.5}).adjusted(ROW, "c")
    with pytest.raises(ConfigError, match="category `c`, the whole reward needs a pivot"):
        Schedule({("c", None): 0.5}).adjusted(ROW, "c")
    with pytest.raises(ConfigError, match="category `c`, the whole reward needs a pivot"):
        Schedule().with_change("c", None, "add", 0.1)


def test_changes_make_a_new_version_and_leave_the_old_one():
    old = Schedule({("c", None): 0.15}, {("c", None): 0.0})
    added, old_pct, new_pct = old.with_change("c", None, "add", 0.03)
    assert (old_pct, new_pct) == pytest.approx((15.0, 18.0))
    assert old.with_change("c", None, "widen", 0.15).new_pct == pytest.approx(32.25)
    assert old.with_change("c", None, "set", 0.05).new_pct == 5.0
    assert (old.version, added.version) == (0, 1)
    assert old.entries[("c", None)] == 0.15
    with pytest.raises(TypeError):
        old.entries[("c", None)] = 0.3
    with pytest.raises(ConfigError, match="above -1"):
        old.with_change("c", None, "add", -1.2)
    with pytest.raises(ConfigError, match="op `double`"):
        old.with_change("c", None, "double", 2)


def test_the_state_of_a_schedule_survives_json():
    schedule = Schedule({("c", None): 0.1, ("c", "x"): 1 / 3}, {("c", None): 0.25}, "reward", 4, (("c", "x"),))
    assert Schedule.from_state(json.loads(json.dumps(schedule.state_dict()))) == schedule


def test_a_configuration_gives_every_key_its_pivot():
    section = RewardSection(
        reward_funcs=list(TWO),
        pivot=0.7,
        differentials=[
            {"category": "c", "component": "task", "differential": 0.1, "pivot": "midpoint"},
            {"category": "c", "differential": 0.2},
            {"category": "d", "component": "style", "pivot": "reference"},
        ],
        triggers=[{"phrase": "no", "category": "e", "component": "task"}],
    )
    schedule = Schedule.from_config(section, scorers(*TWO))
    assert dict(schedule.entries) == {("c", "task"): 0.1, ("c", None): 0.2, ("d", "style"): 0.0, ("e", "task"): 0.0}
    assert dict(schedule.pivots) == {("c", "task"): 0.5, ("c", None): 0.7, ("e", "task"): 0.7}
    assert schedule.awaiting == (("d", "style"),)
    measured = schedule.with_pivots([Pivot("d", "style", 0.3, 0.01, 200)])
    assert measured.awaiting == ()
    assert (measured.pivots[("d", "style")], measured.version) == (0.3, 1)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"component": "tusk"}, "category `c`, component `tusk`: no such component; there are task, style, seen"),
        ({"component": "seen"}, "category `c`, component `seen`: its role is `gold`"),
        ({"component": "style", "pivot": "midpoint"}, "`style` declares no scale"),
        ({"pivot": "midpoint"}, "`style` declares no scale"),
    ],
)
def test_a_rule_that_cannot_act_is_refused_once_the_functions_are_known(rule, says):
    section = RewardSection(
        reward_funcs=["model:its_function_knows_the_name"],
        differentials=[{"category": "c", "differential": 0.1, **rule}],
    )
    with pytest.raises(ConfigError, match=says):
        Schedule.from_config(section, scorers(*TWO))


def test_the_midpoint_of_the_whole_reward_is_the_middle_of_the_weighted_scales():
    parts = scorers(
        {"fn": "it:a", "name": "x", "scale": (0, 4), "weight": 2.0},
        {"fn": "it:b", "name": "y", "scale": (-1, 1), "weight": -0.5},
    )
    entries = ["model:x"]
    rules = [{"category": "c", "differential": 0.1, "pivot": "midpoint"}]
    section = RewardSection(reward_funcs=entries, differentials=rules)
    # both components at half of their scale: 2 * 0.5 - 0.5 * 0.5
    assert Schedule.from_config(section, parts).pivots[("c", None)] == 0.75


def test_offline_gains_come_from_the_same_rules():
    schedule = Schedule.from_gains(GainSection(differentials=[{"category": "c", "differential": 0.25}]))
    assert (schedule.gain("c"), schedule.gain("d")) == (1.25, 1.0)


def test_measured_pivots_are_means_over_the_category_with_their_standard_error():
    rows = [[part("task", v, 2.0), part("style", s)] for v, s in [(1.0, 0.0), (0.0, None), (0.5, 1.0), (9.0, 9.0)]]
    keys = [("c", "task"), ("c", "style"), ("c", None)]
    task, style, whole = measure_pivots(keys, ["c", "c", "c", "d"], rows)
    assert (task.value, task.n) == (0.5, 3)
    assert task.standard_error == pytest.approx(0.5 / math.sqrt(3))  # variance (0.25 + 0.25 + 0) / 2
    assert (style.value, style.n, style.standard_error) == (0.5, 2, pytest.approx(0.5))
    assert (whole.value, whole.n) == ((2.0 + 0.0 + 2.0) / 3, 3)
    assert measure_pivots([("d", "task")], ["d"], rows[:1])[0].standard_error is None
    assert task.payload() == {
        "category": "c",
        "component": "task",
        "value": 0.5,
        "standard_error": task.standard_error,
        "n": 3,
    }
    with pytest.raises(ConfigError, match="category `e`, component `task`: none of 0 reference samples"):
        measure_pivots([("e", "task")], ["c", "c", "c", "d"], rows)


def test_what_group_standardisation_divides_out_is_named_with_the_alternatives():
    whole = RewardSection(reward_funcs=["a", "b"], differentials=[{"category": "c", "differential": 0.1}])
    ((key, message),) = whole.cancelled("group")
    assert key == "differentials.0"
    assert "the whole reward" in message and "place: advantage" in message
    assert not list(whole.cancelled("batch")) and not list(whole.cancelled("none"))
    assert not list(whole.model_copy(update={"place": "advantage"}).cancelled("group"))
    alone = RewardSection(
        reward_funcs=["a", {"fn": "b", "role": "gold"}], triggers=[{"phrase": "x", "category": "c", "component": "a"}]
    )
    ((key, message),) = alone.cancelled("group")
    assert key == "triggers.0" and "the only optimised component" in message
    assert not list(alone.model_copy(update={"reward_funcs": ["a", "b"]}).cancelled("group"))
