"""Triggers in a closed loop with a policy that answers late: what the cooldown prevents, and what chance alone does.

The policy: the logit of the phrase's rate falls by GAIN times d_eff, and d_eff follows the differential d with a lag of
L sessions. Without a differential the rate is 35 %; the setpoint, 5 %, needs d = 0.30.

The controller refuses to widen unless it can measure gamma, so that a group must hold answers with and without the
phrase. Here every session has a twin in its group which never holds the phrase: a window of 2 n sessions of the
category then holds the last n that may, is looked at after each of these, and cooldowns count double. Arming is set so
that it never objects: the law of k of n and the loop are the subject, and a base rate of 35 % is never armed.
"""

import functools
import math

import numpy as np
import pytest

from rewards.analysis.trigger_design import alarm_curve
from rewards.config import TriggerRule
from rewards.differential import Schedule
from rewards.recalibration import Controller
from tests.rewards.accepted import record

PHRASE = "leave me be"
LAG = 400
NEEDED = 0.30
RUN = 12_847
SHORT = 10 * LAG
TWO_STEPS = math.sqrt(1 + NEEDED) - 1  # two widenings make exactly what is needed, as two additions of 0.15 do


def logit(p):
    return math.log(p / (1 - p))


GAIN = (logit(0.35) - logit(0.05)) / NEEDED


class Loop:
    """One run under the real controller, and what it did so far."""

    def __init__(self, cooldown, widen=0.15, k=7):
        rule = TriggerRule(
            phrase=PHRASE,
            category="self",
            k=k,
            n=40,
            armed_below=1.0,
            armed_window=20,
            widen=widen,
            cooldown_sessions=2 * cooldown,
            cap=1.0,
        )
        self.controller = Controller([rule])
        self.schedule = Schedule({("self", None): 0.0}, {("self", None): 0.5})
        self.step = self.adjustments = self.last = 0

    @property
    def d(self):
        return self.schedule.entries[("self", None)]

    @property
    def at_cap(self):
        """Whether the next widening would be withheld."""
        rule = self.controller.triggers[0].rule
        return (1 + self.d) * (1 + rule.widen) - 1 > rule.cap

    def session(self, match):
        """One session and its twin; an answer with the phrase has the lower advantage."""
        self.step += 1
        twin = {"category": "self", "text": "fine", "group_id": "g", "advantage": 0.5 * match}
        own = {"category": "self", "text": PHRASE if match else "fine", "group_id": "g", "advantage": -0.5 * match}
        events, self.schedule = self.controller.observe(self.step, [twin, own], self.schedule)
        if any(kind == "recalibration" for kind, _ in events):
            self.adjustments += 1
            self.last = self.step


def closed(seed, cooldown, sessions, widen=0.15):
    """A run whose policy answers to the differential."""
    loop, d_eff = Loop(cooldown, widen), 0.0
    for u in np.random.default_rng([61, seed]).random(sessions).tolist():
        d_eff += (loop.d - d_eff) / LAG
        loop.session(int(u < 1 / (1 + math.exp(GAIN * d_eff - logit(0.35)))))
    return loop


def unmoved(hits, cooldown, k=7):
    """A run in which the differential changes nothing."""
    loop = Loop(cooldown, k=k)
    for match in hits.tolist():
        loop.session(match)
    return loop


@functools.cache
def law(p, k, sessions):
    """The exact probability that k of 20 is reached."""
    return float(alarm_curve(p, k, 20, sessions)[-1])


def adjustments_by_chance(seed, worlds, sessions, cooldown, k=7, p=0.05):
    """Adjustments of each of many runs in which nothing has an effect.

    Where no 20 sessions in a row hold k hits the controller has nothing to evaluate: it is shown all other runs, and
    the first ten of these, in which it must be still.
    """
    rng = np.random.default_rng([62, seed])
    found, quiet = [], 0
    for _ in range(worlds):
        hits = (rng.random(sessions) < p).astype(np.int64)
        total = np.cumsum(np.pad(hits, (20, 0)))
        reaches = bool((total[20:] - total[:-20] >= k).any())
        if not reaches and quiet >= 10:
            found.append(0)
            continue
        quiet += not reaches
        found.append(unmoved(hits, cooldown, k).adjustments)
        assert (found[-1] > 0) == reaches
    return np.array(found)


@pytest.mark.slow
def test_with_a_cooldown_of_two_lags_the_differential_ends_within_one_step_of_what_is_needed_and_never_at_the_cap():
    seeds = 100
    runs = [closed(seed, 2 * LAG, RUN, TWO_STEPS) for seed in range(seeds)]
    final = np.array([run.d for run in runs])
    step = (1 + NEEDED) * (1 + TWO_STEPS) - 1 - NEEDED
    name = "trigger loop, cooldown 2 L, widen 0.140"
    record(f"{name}: largest final d", float(final.max()), f"<= {NEEDED + step:.3f} (needed .30 + one step)", seeds)
    record(f"{name}: mean final d", float(final.mean()), "about .31", seeds)
    record(f"{name}: mean adjustments", float(np.mean([run.adjustments for run in runs])), "about 2.1", seeds)
    record(f"{name}: share at the cap", float(np.mean([run.at_cap for run in runs])), "0", seeds)
    assert final.max() <= NEEDED + step + 1e-9
    assert final.min() >= NEEDED - 1e-9
    assert not any(run.at_cap for run in runs)


@pytest.mark.slow
def test_widenings_of_15_per_cent_end_within_one_step_of_the_first_that_is_enough_and_never_at_the_cap():
    # They multiply: two make 0.3225, not 0.30, and a third, by chance after the rate is below its setpoint, 0.5209.
    # That is 0.026 more than 0.30 and one step from there (0.495), so that the plain bound holds for nearly all runs.
    seeds = 100
    runs = [closed(seed, 2 * LAG, RUN) for seed in range(seeds)]
    final = np.array([run.d for run in runs])
    plain = float(np.mean(final <= 1.3 * 1.15 - 1))
    name = "trigger loop, cooldown 2 L, widen 0.15"
    record(f"{name}: share that ends at most one step above the needed d", plain, ">= .9; 1 with steps that fit", seeds)
    record(f"{name}: share at the cap", float(np.mean([run.at_cap for run in runs])), "0", seeds)
    assert plain >= 0.9
    assert set(np.round(final, 4)) <= {0.3225, 0.5209}
    assert not any(run.at_cap for run in runs)


@pytest.mark.slow
def test_without_a_cooldown_the_same_trigger_winds_up_to_the_cap_although_its_window_is_emptied():
    seeds = 100
    runs = [closed(seed, 0, SHORT) for seed in range(seeds)]
    final = float(np.mean([run.d for run in runs]))
    capped = float(np.mean([run.at_cap for run in runs]))
    record("trigger loop, no cooldown: share at the cap", capped, "naive failure, about .88", seeds)
    record("trigger loop, no cooldown: mean final d (the last step below the cap is .749)", final, "naive", seeds)
    assert capped >= 0.8
    assert final >= 2 * NEEDED
    # All of that is done before the policy, whose lag it is, could have answered.
    assert np.median([run.last for run in runs]) < LAG


@pytest.mark.slow
def test_chance_alone_adjusts_at_most_one_run_of_20_with_a_cooldown_over_ten_lags():
    # Seven of 20 at a rate of 5 %, nothing has an effect. Ten lags, because the stated mean (0.05, 0.03 measured) is
    # that of about 4,000 sessions: the law gives 0.037 there, and 0.113 over 12,847.
    worlds = 4000
    found = adjustments_by_chance(1, worlds, SHORT, 4 * LAG)
    want = law(0.05, 7, SHORT)
    record(f"trigger by chance, p .05, {SHORT} sessions: mean adjustments", float(found.mean()), "<= .05", worlds)
    assert want < 0.05
    assert found.mean() <= 0.05
    assert abs((found > 0).mean() - want) < 3 * math.sqrt(want * (1 - want) / worlds)


@pytest.mark.slow
def test_over_a_long_run_seven_of_twenty_adjusts_by_chance_as_often_as_the_exact_law_and_not_at_most_one_in_20():
    # No cooldown makes the mean at most 0.05 here: the first adjustment alone has a probability of 11 %.
    worlds = 1500
    found = adjustments_by_chance(2, worlds, RUN, 4 * LAG)
    share, want = float((found > 0).mean()), law(0.05, 7, RUN)
    within = f"{want:.4f} within 3 SE; .05 does not hold"
    record(f"trigger by chance, p .05, {RUN} sessions: share of runs adjusted", share, within, worlds)
    record(f"trigger by chance, p .05, {RUN} sessions: mean adjustments", float(found.mean()), "reported", worlds)
    assert abs(share - want) < 3 * math.sqrt(want * (1 - want) / worlds)
    assert want > 0.05


@pytest.mark.slow
def test_with_k_chosen_for_the_length_of_the_run_chance_adjusts_at_most_one_run_of_20():
    worlds = 4000
    k = next(k for k in range(1, 21) if law(0.05, k, RUN) <= 0.05)
    assert k == 8
    found = adjustments_by_chance(3, worlds, RUN, 4 * LAG, k)
    want = law(0.05, k, RUN)
    name = f"trigger by chance, p .05, {RUN} sessions, k = {k} by the design rule: mean adjustments"
    record(name, float(found.mean()), "<= .05", worlds)
    assert found.mean() <= 0.05
    assert abs((found > 0).mean() - want) < 3 * math.sqrt(want * (1 - want) / worlds)


@pytest.mark.slow
def test_by_chance_too_a_trigger_without_a_cooldown_adjusts_again_for_the_same_burst():
    # At a rate of 10 % adjustments are common enough to be compared run by run.
    runs = 60
    drawn = [np.random.default_rng([63, seed]).random(SHORT) < 0.10 for seed in range(runs)]
    free = np.array([unmoved(hits.astype(np.int64), 0).adjustments for hits in drawn])
    cooled = np.array([unmoved(hits.astype(np.int64), 4 * LAG).adjustments for hits in drawn])
    record("trigger by chance, p .10, no cooldown: mean adjustments", float(free.mean()), "naive", runs)
    record("trigger by chance, p .10, cooldown 4 L: mean adjustments", float(cooled.mean()), "about 1.1", runs)
    assert (cooled <= free).all()
    assert 0.8 <= cooled.mean() <= 1.4 < free.mean()
