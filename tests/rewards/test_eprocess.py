import numpy as np
import pytest
from scipy.stats import norm

from rewards.analysis import eprocess
from tests.rewards.accepted import record

N, LOOKS = 5000, 50


def brute(d):
    """The definition, product by product."""
    return [
        np.mean([np.prod([1 - stake * x for x in d[:t]]) for stake in eprocess.STAKES]) for t in range(1, len(d) + 1)
    ]


def differences(rng, worlds, drop, discordant=0.15):
    """Paired right-or-wrong answers: new - old is -1, 0 or 1, with mean -drop."""
    u = rng.random((worlds, N))
    worse, better = (discordant + drop) / 2, (discordant - drop) / 2
    return np.where(u < worse, -1.0, np.where(u < worse + better, 1.0, 0.0))


def test_the_path_is_the_mean_over_stakes_of_the_products():
    d = np.array([-0.5, 0.25, -1.0, 1.0, 0.0, -0.125])
    assert eprocess.path(d) == pytest.approx(brute(d))
    assert eprocess.path(np.array([-1.0])) == pytest.approx([1 + np.mean(eprocess.STAKES)])


def test_expected_wealth_is_one_over_every_sequence_when_new_and_old_are_equal():
    sequences = np.array(np.meshgrid(*[[-1.0, 1.0]] * 6)).reshape(6, -1).T
    finals = [eprocess.path(d)[-1] for d in sequences]
    assert np.mean(finals) == pytest.approx(1.0)


def test_a_run_says_where_the_threshold_was_first_reached():
    d = np.full(100, -0.3)
    found, wealth = eprocess.run(d), eprocess.path(d)
    assert found["alarm_at"] == int(np.flatnonzero(wealth >= 20)[0])
    assert found["e"] == pytest.approx(wealth[-1]) and found["n"] == 100
    quiet = eprocess.run(-d)
    assert quiet["alarm_at"] is None and quiet["max_e"] == 1.0 and quiet["e"] < 0.2


def test_feeding_one_by_one_or_in_batches_equals_the_whole_run():
    rng = np.random.default_rng(1)
    d = np.clip(rng.normal(-0.1, 0.4, 300), -1, 1)
    whole = eprocess.run(d)
    single, batched = eprocess.EProcess(), eprocess.EProcess()
    for value in d:
        single.update(float(value))
    for start in range(0, 300, 70):
        batched.update(d[start : start + 70])
    for found in (single, batched):
        assert found.e == pytest.approx(whole["e"]) and found.max_e == pytest.approx(whole["max_e"])
        assert (found.alarm_at, found.n) == (whole["alarm_at"], whole["n"])
    assert single.update(np.array([])) == single.e


def test_no_difference_at_all_leaves_wealth_at_one():
    assert eprocess.run(np.array([])) == {"e": 1.0, "max_e": 1.0, "alarm_at": None, "n": 0}
    assert len(eprocess.path(np.array([]))) == 0


def test_a_long_fall_stays_a_number():
    found = eprocess.run(np.full(100_000, -1.0))
    assert np.isfinite(found["e"]) and found["e"] > 1e299


@pytest.mark.parametrize("bad", [[1.5], [0.0, -1.01], [np.nan], [[0.1]]])
def test_differences_outside_the_range_are_refused(bad):
    for call in (eprocess.run, eprocess.path):
        with pytest.raises(ValueError, match="difference"):
            call(np.array(bad))
    if np.ndim(bad) == 1:
        with pytest.raises(ValueError, match="difference"):
            eprocess.EProcess().update(np.array(bad))


def test_a_threshold_that_every_run_starts_at_is_refused():
    for make in (lambda: eprocess.run(np.zeros(3), 1.0), lambda: eprocess.EProcess(0.5)):
        with pytest.raises(ValueError, match="above 1"):
            make()


@pytest.mark.slow
def test_fifty_looks_raise_a_false_alarm_in_at_most_5_percent_where_a_z_test_does_in_a_fifth():
    rng, worlds = np.random.default_rng(50), 1000
    d = differences(rng, worlds, 0.0)
    looks = np.arange(1, LOOKS + 1) * (N // LOOKS) - 1
    ours = np.mean([(eprocess.path(row)[looks] >= eprocess.THRESHOLD).any() for row in d])
    always = np.mean([eprocess.run(row)["alarm_at"] is not None for row in d])
    counts = looks + 1
    means = np.cumsum(d, axis=1)[:, looks] / counts
    spreads = np.sqrt((np.cumsum(d**2, axis=1)[:, looks] / counts - means**2) / counts)
    naive = (means / spreads < norm.ppf(0.05)).any(axis=1).mean()
    record("e-process: false alarms at 50 looks", float(ours), "<= 0.05", worlds)
    record("e-process: false alarms, looking after every pair", float(always), "<= 0.05", worlds)
    record("one-sided z at the same 50 looks: false alarms", float(naive), "about 0.24 (naive)", worlds)
    assert always <= 0.05 and ours <= always
    assert naive >= 0.18


@pytest.mark.slow
def test_false_alarms_stay_rare_when_differences_depend_on_the_past():
    rng, worlds = np.random.default_rng(51), 500
    alarms = 0
    for _ in range(worlds):
        # The spread follows what came before; the expectation given the past stays 0.
        noise, d, scale = rng.choice([-1.0, 1.0], 2000), np.empty(2000), 0.2
        for i in range(2000):
            d[i] = scale * noise[i]
            scale = 0.9 * scale + 0.1 * (0.8 if d[i] < 0 else 0.1)
        alarms += eprocess.run(d)["alarm_at"] is not None
    record("e-process: false alarms with a spread that follows the past", alarms / worlds, "<= 0.05", worlds)
    assert alarms / worlds <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("drop", "power", "stop"), [(0.02, 0.75, 3500), (0.04, 0.98, 1000), (0.08, 0.99, 300)])
def test_a_drop_is_found_and_a_larger_one_sooner(drop, power, stop):
    rng, worlds = np.random.default_rng(int(1000 * drop)), 400
    stops = [eprocess.run(row)["alarm_at"] for row in differences(rng, worlds, drop)]
    found = [at + 1 for at in stops if at is not None]
    median = float(np.median(found))
    record(f"e-process: power at a drop of {drop:g}", len(found) / worlds, f">= {power:g}", worlds)
    record(f"e-process: median stop at a drop of {drop:g}", median, f"<= {stop}", len(found))
    assert len(found) / worlds >= power and median <= stop
