"""Whether a recalibration spilled over to its controls: measured on their sessions, on runs whose schedule is known."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from rewards import Ledger
from rewards.advantages import advantages
from rewards.analysis.analyze import plain
from rewards.analysis.data import RunData
from rewards.analysis.recalibration_effect import section
from rewards.analysis.recalibration_spill import spill
from rewards.leverage import leverages
from tests.rewards.recalibration_worlds import NAMES, event
from tests.rewards.test_leverage import slow_gamma

SESSIONS, AT, GROUP, PER_STEP = 6000, 3000, 8, 40
STEP = AT // PER_STEP


def world(before, after, scale="none", place="reward", seed=0, steps_said=True, **events):
    """A run in which nobody complies more or less for any of it; each of five categories has a group in every step.

    before, after: differentials per category, the schedule before and after the recalibration of c0.
    """
    rng = np.random.default_rng(seed)
    number = np.arange(SESSIONS)
    group, codes, steps = number // GROUP, number // GROUP % 5, number // PER_STEP + 1
    compliant = (rng.random(SESSIONS) < 0.5).astype(float)
    reward = 0.2 + 0.6 * compliant + 0.1 * rng.standard_normal(SESSIONS)
    d = np.where(number < AT, np.array(before)[codes], np.array(after)[codes])
    adjusted = reward if place == "advantage" else 0.5 + (1 + d) * (reward - 0.5)
    said, unsaid = (_normalised(rewards, group, scale) for rewards in (adjusted, reward))
    if place == "advantage":
        said = (1 + d) * said
    columns = {"compliant": compliant, "advantage": said, "advantage_unadjusted": unsaid}
    columns["group_id"] = [f"g{found}" for found in group]
    names = [NAMES[code] for code in codes]
    happened = [event(step=STEP, **events)]
    if steps_said:
        happened += recorded(steps, names, columns, d)
    return RunData.of_columns("r", steps, names, columns, happened)


def _normalised(rewards, group, scale):
    """Advantages, step by step."""
    parts = [slice(at, at + PER_STEP) for at in range(0, SESSIONS, PER_STEP)]
    return np.concatenate([advantages(rewards[part], group[part].tolist(), scale).advantage for part in parts])


def recorded(steps, names, columns, d):
    """What a trainer says after each step: the leverage of the categories whose differential acts."""
    found = []
    for step in range(STEP - 9, STEP + 11):
        mine = np.flatnonzero(steps == step)
        rows = {name: [values[i] for i in mine] for name, values in columns.items()}
        acting = sorted({names[i] for i in mine if d[i]})
        rows["category"] = [names[i] for i in mine]
        said = leverages(rows, np.random.default_rng(step), categories=acting)
        found.append(event("step_stats", step=step, leverage={k: v.payload() for k, v in said.items()}))
    return found


def changed(data, **columns):
    """The same run with other columns; None takes one out."""
    table = data.source._table
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.remove_column(place) if values is None else table.set_column(place, name, [values])
    return RunData.of_table(table, data.events, "r")


STANDING = (0.0, 0.0, 0.0, 0.3, 0.0)
FIRST = (0.15, 0.0, 0.0, 0.3, 0.0)


@pytest.mark.parametrize(("scale", "place"), [("none", "reward"), ("group", "advantage")])
def test_a_standing_differential_elsewhere_is_no_spill_of_a_first_one_under_normalisation_by_group(scale, place):
    (found,) = section(world(STANDING, FIRST, scale, place))
    assert found["leverage"]["before"]["spill"]["n"] == 0, "a first differential has no leverage on record before it"
    assert found["leverage"]["after"]["spill"]["median"] > 1.05, "which the recorded figure alone would refuse"
    assert found["spill_refused"] is False and found["excess"]["estimate"] is not None
    shown = found["spill"]
    assert shown["source"] == "sessions" and shown["why"] is None
    assert 1.04 < shown["before"] < 1.12 and 1.04 < shown["after"] < 1.12
    assert 0.95 < shown["low"] < 1 < shown["high"] < 1.05 and abs(shown["ratio"] - 1) < 0.03
    assert all(count > 100 for count in shown["n_groups"].values())
    assert "spill" not in found["verdict"], "nothing is to be said where the interval excludes more than .05"
    json.dumps(plain(found), allow_nan=False)


def test_a_differential_that_widens_the_spread_of_a_batch_moves_the_controls_and_is_refused_with_its_numbers():
    (found,) = section(world((0.0,) * 5, (1.5, 0.0, 0.0, 0.0, 0.0), "batch"))
    shown = found["spill"]
    assert found["spill_refused"] is True and shown["source"] == "sessions"
    assert shown["before"] == pytest.approx(1.0) and shown["ratio"] < 0.9 and shown["high"] < 0.95
    assert found["excess"]["estimate"] is None and found["mde_points"] is None and found["comparisons"] == 0
    assert found["naive"]["difference"] is not None
    numbers = f"went from 1.00 before the event to {shown['after']:.2f} after it, {shown['ratio']:.2f} times"
    assert numbers in found["verdict"] and f"{shown['n_groups']['after']:,} mixed groups" in found["verdict"]
    assert re.search(r"95 % interval 0\.\d\d to 0\.\d\d", found["verdict"])


def test_a_small_change_under_batch_normalisation_moves_the_controls_by_less_than_the_limit():
    (found,) = section(world((0.12, 0, 0, 0, 0), (0.15, 0, 0, 0, 0), "batch"))
    assert found["spill_refused"] is False and 0.98 < found["spill"]["ratio"] < 1


def test_the_ratio_is_that_of_the_slopes_group_by_group_of_the_controls_in_both_windows():
    data = world(STANDING, FIRST)
    (found,) = section(data)
    x, advantage, unadjusted = (data.column(name) for name in ("compliant", "advantage", "advantage_unadjusted"))
    number = np.arange(SESSIONS)
    for side, part in (("before", slice(1520, 3000)), ("after", slice(3000, 4480))):  # whole steps of 1,500 sessions
        mine = number[part][data.codes[part] != 0]
        groups = (mine // GROUP).tolist()
        slopes = [slow_gamma(x[mine].tolist(), of[mine].tolist(), groups) for of in (advantage, unadjusted)]
        assert found["spill"][side] == pytest.approx(slopes[0] / slopes[1], rel=1e-12)
        mixed = [g for g in set(groups) if 0 < x[g * GROUP : (g + 1) * GROUP].mean() < 1]
        assert found["spill"]["n_groups"][side] == len(mixed)
    assert found["spill"]["ratio"] == pytest.approx(found["spill"]["after"] / found["spill"]["before"])


def test_the_treated_category_and_what_is_left_out_beside_a_trigger_have_no_part_in_it():
    trigger, evidence = {"name": "t", "k": 7, "n": 20}, {"first_session_step": STEP - 4, "n": 20}
    clean = world(STANDING, FIRST, trigger=trigger, evidence=evidence)
    (found,) = section(clean)
    donut = found["outcomes"][0]["donut"]
    assert donut == {"before": 400, "after": 200}
    number, advantage = np.arange(SESSIONS), clean.column("advantage")
    unused = (number >= AT - 400) & (number < AT + 200) | (clean.codes == 0)
    (other,) = section(changed(clean, advantage=np.where(unused, 7 * advantage, advantage)))
    assert other["spill"] == found["spill"] and found["spill"]["source"] == "sessions"


def test_a_spill_that_its_interval_does_not_settle_is_said_beside_the_estimate():
    data = world(STANDING, FIRST, seed=3)
    loud = data.column("advantage") + 0.4 * np.random.default_rng(1).standard_normal(SESSIONS)
    (found,) = section(changed(data, advantage=loud))
    shown = found["spill"]
    assert shown["low"] < 0.95 or shown["high"] > 1.05
    if not found["spill_refused"]:
        said = f"{shown['ratio']:.2f} times (95 % interval {shown['low']:.2f} to {shown['high']:.2f}"
        assert "by more than .05 (spill) is not excluded" in found["verdict"] and said in found["verdict"]
    assert found["spill_refused"] == (abs(shown["ratio"] - 1) > 0.05), "the point estimate decides"


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("advantage", "has `advantage`"),
        ("advantage_unadjusted", "has `advantage_unadjusted`"),
        ("group_id", "has a group (`group_id`)"),
    ],
)
def test_where_the_sessions_cannot_say_it_the_recorded_spill_stands_in_and_that_is_said(missing, why):
    whole = world((0.1, 0, 0, 0.3, 0), (0.15, 0, 0, 0.3, 0))
    (found,) = section(changed(whole, **{missing: None}))
    shown = found["spill"]
    assert shown["source"] == "recorded" and why in shown["why"] and shown["low"] is None
    assert shown["before"] == found["leverage"]["before"]["spill"]["median"]
    assert shown["ratio"] == pytest.approx(shown["after"] / shown["before"])
    assert found["spill_refused"] is False and "what the steps recorded stands in" in found["verdict"]


def test_a_recorded_spill_without_one_before_the_event_is_held_against_1():
    whole = world(STANDING, FIRST)
    (found,) = section(changed(whole, advantage=None))
    assert found["spill"]["before"] is None and found["spill"]["ratio"] == found["spill"]["after"] > 1.05
    assert found["spill_refused"] is True and "before it none, more than .05 from 1" in found["verdict"]


def test_without_any_figure_nothing_is_refused_and_the_verdict_says_that_it_is_not_known():
    whole = world(STANDING, FIRST, steps_said=False)
    (found,) = section(changed(whole, advantage=None))
    assert found["spill"]["source"] is None and found["spill"]["ratio"] is None
    assert found["spill_refused"] is False and found["excess"]["estimate"] is not None
    assert "Whether it also moved the others (spill) is not known" in found["verdict"]


def test_groups_in_which_compliance_does_not_differ_or_does_not_move_the_advantage_measure_nothing():
    whole = world(STANDING, FIRST, steps_said=False)
    for name, values, why in (
        ("compliant", np.ones(SESSIONS), "answers that comply and answers that do not"),
        ("advantage_unadjusted", np.random.default_rng(0).standard_normal(SESSIONS), "may not depend on compliance"),
    ):
        (found,) = section(changed(whole, **{name: values}))
        assert found["spill"]["source"] is None and why in found["spill"]["why"]


def test_an_event_without_a_place_or_a_control_has_a_spill_that_says_so():
    whole = world(STANDING, FIRST, steps_said=False)
    nothing = {"before": None, "after": None, "why": "no step recorded a leverage"}
    assert "the event names no step" in spill(whole, "the event names no step", nothing)["why"]
    all_changed = [event(step=STEP, category=name) for name in NAMES]
    found = section(replace(whole, events=all_changed))
    assert all("no other category was left alone" in one["spill"]["why"] for one in found)


@pytest.mark.parametrize("at", [1, 3, SESSIONS // PER_STEP - 2, SESSIONS // PER_STEP - 1])
def test_a_trigger_at_the_edge_of_a_run_leaves_no_sessions_to_measure_on_and_that_is_no_crash(at):
    whole = world(STANDING, FIRST, steps_said=False)
    change = event(step=at, trigger={"name": "t", "k": 7, "n": 20}, evidence={"first_session_step": 1, "n": 20})
    (found,) = section(replace(whole, events=[change]))
    assert found["spill"]["source"] is None and "group_id" in found["spill"]["why"]
    recorded_zero = event("step_stats", step=at, leverage={"c0": {"leverage": 1.0, "spill": 0.0}})
    after = event("step_stats", step=at + 1, leverage={"c0": {"leverage": 1.0, "spill": 1.0}})
    (found,) = section(replace(whole, events=[change, recorded_zero, after]))
    assert found["spill"]["ratio"] is None and "before it is 0" in found["spill"]["why"]


def test_a_ledger_gives_the_same_spill_as_the_table_it_was_written_from(tmp_path):
    data = world(STANDING, FIRST)
    table = data.source._table.append_column("prompt_id", [data.labels("group_id")])
    with Ledger.open(tmp_path / "ledger", create=True) as ledger:
        with ledger.writer("r") as writer:
            writer.event("attempt_started", {"pipeline": "grpo"})
            for step in range(1, int(data.steps[-1]) + 1):
                rows = table.slice((step - 1) * PER_STEP, PER_STEP).drop_columns(["step"]).to_pylist()
                fixed = {"pipeline": "grpo", "split": "train", "baseline_reward": 0.0}
                judged = [fixed | row | {"compliant": bool(row["compliant"])} for row in rows]
                writer.append(step=step, rows=judged)
                for happened in data.events:
                    if happened["step"] == step:
                        writer.event(happened["kind"], happened["payload"], step=step)
        with RunData.read(ledger, "r") as read:
            (found,) = section(read)
            numbers, codes = read.part(1001, 1040, ("compliant", "advantage"), "group_id")
    (want,) = section(data)
    for name in ("before", "after", "ratio"):
        assert found["spill"][name] == pytest.approx(want["spill"][name], rel=1e-6)  # advantages are stored in 32 bits
    assert found["spill"]["n_groups"] == want["spill"]["n_groups"]
    assert np.array_equal(numbers[0], data.column("compliant")[1000:1040])
    assert np.array_equal(np.unique(codes, return_inverse=True)[1], np.arange(40) // GROUP)
