import numpy as np
import pytest

from rewards.analysis import transition
from rewards.analysis.intervals import effective_sample_size
from tests.rewards.accepted import record
from tests.rewards.series_worlds import N, T, ar1, run_of


def flags(rng, ends, rates=(0.35, 0.01), rho=0.3):
    """0/1 flags whose rate goes from one to the other between two sessions; autocorrelated like the latent series."""
    rate = np.interp(T, ends, rates)
    uniform = np.argsort(np.argsort(ar1(rng, rho))) / N
    return (uniform < rate).astype(float)


def test_the_largest_change_between_neighbouring_windows_is_that_of_a_loop():
    x = np.interp(np.arange(1000), (400, 430), (0, 1)) + 0.1 * np.random.default_rng(0).standard_normal(1000)
    found = transition.transition(x, window=100)
    changes = {at: abs(x[at : at + 100].mean() - x[at - 100 : at].mean()) for at in range(100, 901, 2)}
    best = max(changes, key=changes.get)
    total = x[-100:].mean() - x[:100].mean()
    assert found["at_session"] == best + 1
    assert found["fraction"] == pytest.approx(changes[best] / abs(total))
    assert found["total_change"] == pytest.approx(total) and found["window"] == 100


def test_the_smallest_detectable_change_is_2_80_standard_errors_of_the_two_end_windows():
    x = np.r_[np.zeros(6000), np.ones(6847)] + ar1(np.random.default_rng(1), 0.3)
    found = transition.transition(x)
    parts = [x[:500], x[-500:]]
    se = np.sqrt(sum(part.var(ddof=1) / effective_sample_size(part) for part in parts))
    assert found["mde"] == pytest.approx(2.8016 * se, rel=1e-4)
    assert found["total_change_interval"][1] == pytest.approx(found["total_change"] + 1.95996 * se, rel=1e-4)


def test_a_jump_is_an_alarm_and_a_slow_ramp_of_the_same_size_is_none():
    rng = np.random.default_rng(2)
    jump = np.interp(T, (10_000, 10_200), (0, 2)) + ar1(rng, 0.3)
    data = run_of(jump, compliant=flags(rng, (2500, 8000)) > 0)
    baseline, compliance = transition.section(data)
    assert baseline["alarm"] is True and abs(baseline["at_session"] - 10_100) < 150
    assert baseline["verdict"].startswith("Too fast a transition") and "n 12,847" in baseline["verdict"]
    assert compliance["outcome"] == "compliance" and compliance["alarm"] is False
    assert compliance["verdict"].startswith("No transition that is too fast")


def test_every_component_is_looked_at_and_missing_values_do_not_move_the_session_numbers():
    rng = np.random.default_rng(3)
    x = np.interp(T, (10_000, 10_200), (0, 2)) + ar1(rng, 0.3)
    x[:5000:2] = np.nan
    part = {"name": "task", "value": None, "weight": 1.0, "role": "optimised"}
    parts = [[{**part, "raw": None if np.isnan(found) else float(found)}] for found in x]
    rows = transition.section(run_of(np.full(N, np.nan), components=parts))
    assert [row["outcome"] for row in rows] == ["baseline_reward", "compliance", "component task"]
    assert rows[0]["why"].startswith("0 sessions") and rows[0]["alarm"] is None
    assert rows[2]["alarm"] is True and abs(rows[2]["at_session"] - 10_100) < 150
    assert rows[2]["n"] == N - 2500


def test_no_fraction_is_made_of_a_change_that_could_not_have_been_found():
    found = transition.transition(ar1(np.random.default_rng(4), 0.3))
    assert found["fraction"] is None and found["alarm"] is None
    assert abs(found["total_change"]) < found["mde"] and "smallest" in found["why"]


def test_a_flag_that_goes_from_never_to_always_has_a_finite_error():
    found = transition.transition(np.r_[np.zeros(3000), np.ones(3000)])
    assert found["alarm"] is True and found["mde"] == pytest.approx(2.8016 * np.sqrt(2) / 500, rel=1e-3)


@pytest.mark.parametrize(
    ("x", "why"), [(np.zeros(0), "0 sessions"), (np.arange(10.0), "10 sessions"), (np.full(900, 0.5), "equal")]
)
def test_what_cannot_be_judged_says_why(x, why):
    found = transition.transition(x)
    assert why in found["why"] and found["alarm"] is None and found["fraction"] is None
    row = transition.section(run_of(x))[0]
    assert why in row["verdict"]


def test_a_short_run_that_rises_evenly_is_no_alarm():
    x = np.linspace(0, 10, 1000) + ar1(np.random.default_rng(5), 0.3, 1000)
    found = transition.transition(x)
    assert found["window"] == 100 and found["fraction"] < 0.3 and found["alarm"] is False


@pytest.mark.slow
def test_the_alarm_sounds_at_a_step_and_never_at_a_ramp():
    seeds = 200
    for name, ends, expected in (
        ("ramp over 5,500", (2500, 8000), 0.0),
        ("ramp over 2,000", (4000, 6000), 0.0),
        ("step over 200", (6000, 6200), 1.0),
    ):
        found = [transition.transition(flags(np.random.default_rng([6, seed]), ends)) for seed in range(seeds)]
        alarms = float(np.mean([row["alarm"] is True for row in found]))
        fraction = float(np.mean([row["fraction"] for row in found]))
        record(f"transition: alarm, {name}", alarms, f"{expected:g}", seeds)
        record(f"transition: mean fraction, {name}", fraction, "statistics: .24, .43, 1.05", seeds)
        assert alarms == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_slow_changes_close_to_what_can_be_found_raise_no_alarm_where_the_bare_fraction_would():
    seeds, alarms, bare, seen = 400, 0, 0, 0
    for seed in range(seeds):
        x = np.interp(T, (1000, 12_000), (0, 0.3)) + ar1(np.random.default_rng([7, seed]), 0.3)
        found = transition.transition(x)
        if found["fraction"] is not None:
            seen += 1
            alarms += found["alarm"] is True
            bare += found["fraction"] > 0.5
    record("transition: slow small change, alarm", alarms / seen, "<= .05", seen)
    record("transition: the same by the bare fraction above .5", bare / seen, ">= .5", seen)
    assert seen > 100 and alarms / seen <= 0.05 and bare / seen >= 0.5
