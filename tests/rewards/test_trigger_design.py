"""The run-length law of k of n against enumeration and the binomial tail."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from rewards.analysis.trigger_design import alarm_curve, run_length_false_alarm


def enumerated(p, k, n, sessions):
    total = 0.0
    for outcomes in itertools.product((0, 1), repeat=sessions):
        if any(sum(outcomes[max(0, t - n) : t]) >= k for t in range(1, sessions + 1)):
            hits = sum(outcomes)
            total += p**hits * (1 - p) ** (sessions - hits)
    return total


@pytest.mark.parametrize(("k", "n"), [(2, 4), (1, 1), (1, 3), (3, 3), (2, 2), (3, 5), (4, 12)])
@pytest.mark.parametrize("p", [0.0, 0.07, 0.5, 1.0])
def test_the_law_equals_the_enumeration_of_all_runs(k, n, p):
    sessions = 12
    assert run_length_false_alarm(p, k, n, sessions) == pytest.approx(enumerated(p, k, n, sessions), abs=1e-12)


def test_the_curve_is_the_law_at_every_length():
    curve = alarm_curve(0.2, 2, 4, 9)
    assert curve.tolist() == pytest.approx([run_length_false_alarm(0.2, 2, 4, t) for t in range(1, 10)], abs=1e-15)


@pytest.mark.parametrize(("p", "tail"), [(0.02, 8e-8), (0.05, 3.4e-5), (0.10, 2.4e-3), (0.15, 2.2e-2)])
def test_within_the_first_window_the_law_is_the_binomial_tail(p, tail):
    # A run no longer than the window alarms when it holds k hits in all.
    first = run_length_false_alarm(p, 7, 20, 20)
    assert first == pytest.approx(binom.sf(6, 20, p), rel=1e-9)
    assert first == pytest.approx(tail, rel=0.05)


def test_seven_of_twenty_over_a_thousand_sessions_equals_a_simulation():
    rng = np.random.default_rng(0)
    hits = np.cumsum(np.pad(rng.random((2000, 1000)) < 0.10, ((0, 0), (20, 0))), axis=1)
    fired = ((hits[:, 20:] - hits[:, :-20]) >= 7).any(axis=1).mean()
    want = run_length_false_alarm(0.10, 7, 20, 1000)
    assert 0.35 < want < 0.42
    assert abs(fired - want) < 3 * np.sqrt(want * (1 - want) / 2000)


def test_seven_of_twenty_finds_a_rate_of_35_percent_in_about_20_sessions():
    curve = alarm_curve(0.35, 7, 20, 200)
    assert np.searchsorted(curve, 0.5) + 1 in range(18, 23)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((1.2, 2, 4, 9), "probability"), ((0.1, 5, 4, 9), "k = 5"), ((0.1, 2, 30, 9), "24"), ((0.1, 2, 4, 0), "sessions")],
)
def test_what_is_no_design_is_an_error(arguments, says):
    with pytest.raises(ValueError, match=says):
        run_length_false_alarm(*arguments)
