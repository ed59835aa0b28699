"""Set-points in a closed loop with a policy that answers late: no overshoot at the bound, whatever the gain is.

The policy is that of `test_trigger_loop`: the logit of the rate falls by gain times GAIN times d_eff, which follows d
with a lag of L sessions; without a differential the rate is 35 %, and 5 % need d = 0.30 / gain. Twenty sessions of one
group a step.
"""

import functools
import math

import numpy as np
import pytest

from rewards.config import SetPointRule
from rewards.differential import Schedule
from rewards.recalibration import Controller
from tests.rewards.accepted import record

PHRASE = "leave me be"
LAG, NEEDED, RUN, BATCH = 400, 0.30, 12_847, 20
TARGET = 0.05
SEEDS = 20


def logit(p):
    return math.log(p / (1 - p))


GAIN = (logit(0.35) - logit(TARGET)) / NEEDED


def closed(seed, plant, **settings):
    """The differential after every step of one run under the real controller, and its recalibrations."""
    rule = SetPointRule(phrase=PHRASE, category="self", target=TARGET, lag_sessions=LAG, **settings)
    controller, schedule = Controller([rule]), Schedule({("self", None): 0.0}, {("self", None): 0.5})
    rng, d_eff, path, changes = np.random.default_rng([64, seed]), 0.0, [], 0
    for step in range(1, RUN // BATCH + 1):
        d, batch = schedule.entries[("self", None)], []
        for u in rng.random(BATCH).tolist():
            d_eff += (d - d_eff) / LAG
            match = u < 1 / (1 + math.exp(plant * GAIN * d_eff - logit(0.35)))
            text, advantage = (PHRASE, -0.5) if match else ("fine", 0.5)
            batch.append({"category": "self", "text": text, "group_id": "g", "advantage": advantage})
        events, schedule = controller.observe(step, batch, schedule)
        changes += sum(kind == "recalibration" for kind, _ in events)
        path.append(schedule.entries[("self", None)])
    return np.array(path), changes


@functools.cache
def runs(gain, error, every, believed=None):
    """d over all steps in units of what is needed, for every seed; and the mean number of recalibrations."""
    told = GAIN * (gain if believed is None else believed)
    found = [closed(seed, gain, error=error, every_sessions=every, gain=told) for seed in range(SEEDS)]
    return np.array([path for path, _ in found]) / (NEEDED / gain), float(np.mean([n for _, n in found]))


def settled(paths):
    """Median session from which d is at least nine tenths of what is needed; the run's length where it never is."""
    reached = np.where((paths >= 0.9).any(axis=1), (paths >= 0.9).argmax(axis=1) * BATCH, RUN)
    return float(np.median(reached))


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.5, 1, 2, 3])
def test_at_the_largest_step_the_differential_never_passes_what_is_needed_by_more_than_a_twentieth(gain):
    paths, changes = runs(gain, "rate", 100)
    name = f"set-point on the rate, gain {gain}"
    record(f"{name}: largest d / needed, of all runs", float(paths.max()), "<= 1.05 (about .95)", SEEDS)
    record(f"{name}: session at .9 of what is needed, median", settled(paths), "about 7,150", SEEDS)
    record(f"{name}: recalibrations, mean", changes, "reported", SEEDS)
    assert paths.max() <= 1.05
    assert paths[:, -1].min() >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.5, 1, 2, 3])
def test_the_error_in_logits_arrives_several_times_sooner_and_overshoots_by_noise(gain):
    paths, changes = runs(gain, "logit", 400)
    name = f"set-point on the logit, gain {gain}"
    record(f"{name}: largest d / needed, mean of runs", float(paths.max(axis=1).mean()), "about 1.15", SEEDS)
    record(f"{name}: session at .9 of what is needed, median", settled(paths), "about 2,400", SEEDS)
    record(f"{name}: final d / needed, mean", float(paths[:, -100:].mean()), "1", SEEDS)
    record(f"{name}: recalibrations, mean", changes, "reported", SEEDS)
    assert paths.max(axis=1).mean() <= 1.3
    assert settled(paths) <= 0.6 * settled(runs(gain, "rate", 100)[0])
    assert abs(paths[:, -100:].mean() - 1) <= 0.1


@pytest.mark.slow
def test_a_step_made_for_a_fourteenth_of_the_gain_overshoots_by_half_and_swings():
    # 14 times the bound: the step 0.5 of the source, at which the loop's damping is about a quarter.
    paths, _ = runs(1, "rate", 100, believed=1 / 14)
    swing = float(np.ptp(paths[:, 3 * len(paths[0]) // 4 :], axis=1).mean() * NEEDED)
    record(
        "set-point, step 14 times too large: largest d, mean", float(paths.max(axis=1).mean() * NEEDED), "naive", SEEDS
    )
    record("set-point, step 14 times too large: swing of d in the last quarter", swing, "naive, about .15", SEEDS)
    assert paths.max(axis=1).mean() >= 1.4
    assert swing >= 0.05
