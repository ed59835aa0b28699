"""`rewards trigger`: exact laws against enumeration of windows, simulation and the published table."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from rewards.analysis.trigger_design import alarm_curve
from rewards.analysis.trigger_report import Design, Law, report, smallest_k, upper_limit
from rewards.cli import Parser
from rewards.commands import trigger
from rewards.errors import UserError
from tests.rewards.accepted import record


def call(*argv):
    parser = Parser(prog="rewards")
    trigger.register(parser.add_subparsers(required=True, parser_class=Parser))
    args = parser.parse_args(["trigger", *map(str, argv)])
    return args.command(args)


SEVEN = ("--k", 7, "--n", 20, "--sessions", 12847)


def document(capsys, *argv):
    assert call(*argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_design_of_the_audit_is_sound_at_2_percent(capsys):
    found = document(capsys, "--base-rate", 0.02, *SEVEN)
    assert found["pointwise"] == pytest.approx(8e-8, rel=0.1) and found["run_false_alarm"] < 5e-4
    assert found["sound"] is True and found["smallest_k"]["k"] <= 7 and "Sound" in found["verdict"]
    assert any("chosen after they were seen to recur" in line for line in found["caveats"])


def test_at_5_percent_a_run_fires_by_chance_in_11_percent_and_the_smallest_sound_k_is_named(capsys):
    found = document(capsys, "--base-rate", 0.05, *SEVEN)
    assert found["pointwise"] == pytest.approx(3.4e-5, rel=0.02)
    assert found["run_false_alarm"] == pytest.approx(0.112814, abs=1e-6) and found["sound"] is False
    assert found["smallest_k"]["k"] == 8 and "smallest sound k of n = 20 is 8" in found["verdict"]


def test_delays_at_a_rate_of_35_percent_are_19_and_49_sessions_as_the_exact_law_and_a_simulation_say(capsys):
    delays = {row["rate"]: row for row in document(capsys, "--base-rate", 0.02, *SEVEN)["delays"]}
    assert (delays[0.35]["median"], delays[0.35]["p95"]) == (19, 49)
    hits = np.cumsum(np.pad(np.random.default_rng(0).random((8000, 250)) < 0.35, ((0, 0), (20, 0))), axis=1)
    first = ((hits[:, 20:] - hits[:, :-20]) >= 7).argmax(axis=1) + 1
    assert np.quantile(first, [0.5, 0.95]) == pytest.approx([19, 49], abs=1.1)
    assert delays[0.35]["mean"] == pytest.approx(first.mean(), abs=0.7)
    assert delays[0.1]["median"] > 1000 and delays[0.5]["mean"] < delays[0.35]["mean"]


def test_watched_phrases_multiply_false_alarms_and_raise_the_smallest_k(capsys):
    small = ("--base-rate", 0.01, "--k", 5, "--n", 12, "--sessions", 12847)
    one, many = (document(capsys, *small, "--phrases", m) for m in (1, 50))
    assert many["run_false_alarm_phrases"] == pytest.approx(50 * one["run_false_alarm"])
    assert many["smallest_k"]["k"] > one["smallest_k"]["k"] and many["smallest_k"]["allowed"] == 0.001


def test_none_in_300_allows_a_rate_of_1_percent(capsys):
    found = document(capsys, "--observed", "0/300", *SEVEN)
    assert found["base_rate"] == pytest.approx(1 - 0.05 ** (1 / 300)) == pytest.approx(0.00994, abs=1e-5)
    assert "0 in 300" in found["base_rate_source"]
    assert binom.cdf(3, 200, upper_limit(3, 200)) == pytest.approx(0.05) and upper_limit(4, 4) == 1.0


@pytest.mark.parametrize("alpha", [0.05, 1e-3])
def test_the_smallest_k_is_the_first_that_the_exact_law_allows(alpha):
    design = Design(0.15, 3, 8, 400, alpha=alpha)
    exact = [float(alarm_curve(0.15, k, 8, 400)[-1]) for k in range(1, 9)]
    wanted = next((k for k, alarm in enumerate(exact, start=1) if alarm <= alpha), None)
    found = smallest_k(design)
    assert found["k"] == wanted
    if wanted:
        assert found["run_false_alarm"] == pytest.approx(exact[wanted - 1], rel=1e-9)


def test_no_k_will_do_for_a_phrase_that_is_in_nearly_every_answer():
    found = report(Design(0.9, 7, 8, 10_000))
    assert found["smallest_k"]["k"] is None and "No k up to n = 8" in found["verdict"]


@pytest.mark.parametrize(
    ("p", "k", "n"), [(0.05, 4, 10), (0.2, 3, 8), (0.01, 1, 1), (0.4, 5, 6), (0.0, 2, 4), (1.0, 3, 5)]
)
def test_the_law_continued_at_a_settled_hazard_is_the_exact_one(p, k, n):
    curve, law = alarm_curve(p, k, n, 4000), Law.of(p, k, n, 4000)
    for session in (1, n, 50, 333, 4000):
        assert law.by(session) == pytest.approx(curve[session - 1], rel=1e-6, abs=1e-13)
    reached = np.flatnonzero(curve >= 0.5)
    if len(reached):
        assert law.quantile(0.5) == reached[0] + 1
    if curve[-1] > 1 - 1e-9:
        assert law.mean() == pytest.approx(1 + (1 - curve).sum(), rel=1e-6)


def test_an_alarm_that_never_comes_has_no_delay():
    law = Law.of(0.0, 2, 4, 100)
    assert law.quantile(0.5) is None and law.mean() is None and law.by(10**9) == 0.0
    assert Law.of(0.001, 12, 12, 1 << 20).mean() is None


@pytest.mark.slow
def test_simulated_runs_alarm_within_3_standard_errors_of_the_exact_law():
    rng = np.random.default_rng(0)
    runs, sessions = 3000, 12_847
    fired = 0
    for _ in range(30):
        hits = np.cumsum(np.pad(rng.random((runs // 30, sessions), dtype=np.float32) < 0.05, ((0, 0), (20, 0))), axis=1)
        fired += int(((hits[:, 20:] - hits[:, :-20]) >= 7).any(axis=1).sum())
    exact = Law.of(0.05, 7, 20, sessions).by(sessions)
    error = (fired / runs - exact) / np.sqrt(exact * (1 - exact) / runs)
    record("7 of 20 at 5 %, simulated against exact, standard errors", float(error), "within 3", runs)
    assert abs(error) < 3 and exact == pytest.approx(alarm_curve(0.05, 7, 20, sessions)[-1], rel=1e-7)


def test_people_read_the_chances_the_verdict_and_the_caveats(capsys):
    assert call("--base-rate", 0.05, *SEVEN, "--phrases", 3) == 0
    said = capsys.readouterr()
    assert "any of 3 phrases" in said.out and "Not sound" in said.out and "median" in said.out
    assert "no such guarantee" in said.out and said.err == ""


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--base-rate", 1.5, *SEVEN), "base rate"),
        (("--base-rate", 0.1, "--k", 9, "--n", 8, "--sessions", 10), "1 <= k <= n"),
        (("--base-rate", 0.1, "--k", 9, "--n", 30, "--sessions", 10), "24"),
        (("--base-rate", 0.1, "--k", 1, "--n", 2, "--sessions", 0), "one session"),
        (("--base-rate", 0.1, *SEVEN, "--alpha", 0), "alpha"),
        (("--observed", "5", *SEVEN), "HITS/SESSIONS"),
        (("--observed", "5/3", *SEVEN), "HITS <= SESSIONS"),
    ],
)
def test_what_is_no_design_is_refused_in_one_line(argv, says):
    with pytest.raises(UserError, match=says) as refusal:
        call(*argv)
    assert "\n" not in str(refusal.value)


def test_one_of_base_rate_and_observed_is_needed(capsys):
    with pytest.raises(SystemExit) as stop:
        call(*SEVEN)
    assert stop.value.code == 2 and "--base-rate" in capsys.readouterr().err
