"""The figures that phases must meet on simulated runs whose truth is known, and where the usual methods fail."""

import numpy as np
import pytest

from rewards.analysis import phases
from rewards.analysis.phase_series import Series, reweighted_blocks
from rewards.analysis.segmentation import series_blocks, shape_of
from tests.rewards.accepted import record
from tests.rewards.series_worlds import BREAKS, N, T, ar1, found_cuts, levels, near, run_of


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "tails"), [(0.0, None), (0.3, None), (0.6, None), (0.0, 4)])
def test_a_stationary_run_has_no_phases_in_at_least_95_percent(rho, tails):
    seeds = 200
    alarms = 0
    for seed in range(seeds):
        alarms += found_cuts(ar1(np.random.default_rng([1, seed]), rho, tails=tails))[0] != "none"
    record(f"phases: false alarm, AR(1) {rho}, {'t4' if tails else 'Gaussian'}", alarms / seeds, "<= .05", seeds)
    assert alarms / seeds <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [160, 240, 400, 800, 1600])
def test_a_short_stationary_run_has_no_phases_in_at_least_95_percent_either(n):
    seeds = 400
    for rho, tails in ((0.0, None), (0.3, None), (0.6, None), (0.0, 4)):
        runs = (ar1(np.random.default_rng([10, seed]), rho, n, tails) for seed in range(seeds))
        alarms = sum(found_cuts(x, np.arange(n))[0] != "none" for x in runs)
        name = f"phases: false alarm of {n} sessions, AR(1) {rho}, {'t4' if tails else 'Gaussian'}"
        record(name, alarms / seeds, "<= .05", seeds)
        assert alarms / seeds <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("tails", [None, 4])
def test_steps_of_mean_and_variance_are_found_within_50_sessions(tails):
    seeds, hits, counts = 200, 0, 0
    for seed in range(seeds):
        x = levels(0, 0.3, 0.5) + levels(1, 0.5, 0.1) * ar1(np.random.default_rng([2, seed]), 0.3, tails=tails)
        kind, cuts = found_cuts(x)
        hits += near(cuts, BREAKS, 50)
        counts += kind == "steps" and len(cuts) == 2
    name = f"phases: steps, {'t4' if tails else 'Gaussian'}"
    record(f"{name}, both within 50", hits / seeds, ">= .95", seeds)
    record(f"{name}, exact count", counts / seeds, ">= .90", seeds)
    assert hits / seeds >= 0.95 and counts / seeds >= 0.9


@pytest.mark.slow
def test_steps_of_the_spread_alone_are_found_within_250_sessions():
    seeds, hits, close = 200, 0, 0
    for seed in range(seeds):
        _, cuts = found_cuts(levels(1, 0.8, 0.64) * ar1(np.random.default_rng([3, seed]), 0.3))
        hits += near(cuts, BREAKS, 250)
        close += near(cuts, BREAKS, 100)
    record("phases: sd only 1, .8, .64, within 250", hits / seeds, ">= .95", seeds)
    record("phases: sd only 1, .8, .64, within 100", close / seeds, "reported", seeds)
    assert hits / seeds >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "least"), [(0.0, 0.95), (0.3, 0.8), (0.6, 0.5)])
def test_a_step_of_the_mean_alone_is_found_less_often_the_more_sessions_resemble_each_other(rho, least):
    seeds, hits = 200 if rho == 0 else 100, 0
    for seed in range(seeds):
        _, cuts = found_cuts(0.25 * (T >= 6000) + ar1(np.random.default_rng([4, seed]), rho))
        hits += len(cuts) == 1 and near(cuts, (6000,), 250)
    accepted = ">= .95" if rho == 0 else "reported (statistics: .89, .655)"
    record(f"phases: mean only +.25 sd, AR(1) {rho}, one cut within 250", hits / seeds, accepted, seeds)
    assert hits / seeds >= least


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.3, 0.6])
def test_a_ramp_is_told_from_steps_and_its_knots_lie_within_400_sessions(rho):
    seeds, hits, ramps, steps = 100, 0, 0, 0
    errors = []
    narrowing = np.exp(np.interp(T, BREAKS, [0, np.log(0.1)]))
    for seed in range(seeds):
        noise = ar1(np.random.default_rng([5, seed]), rho)
        kind, cuts = found_cuts(narrowing * noise)
        ramps += kind == "ramp"
        hits += kind == "ramp" and near(cuts, BREAKS, 400)
        errors += [abs(cut - true) for cut, true in zip(cuts, BREAKS, strict=True)] if kind == "ramp" else []
        steps += found_cuts(levels(0, 0.3, 0.5) + levels(1, 0.5, 0.1) * noise)[0] == "steps"
    record(f"phases: ramp, AR(1) {rho}, both knots within 400", hits / seeds, ">= .95", seeds)
    record(
        f"phases: ramp, AR(1) {rho}, 95th percentile of the knots' error",
        float(np.percentile(errors, 95)),
        "400",
        seeds,
    )
    record(f"phases: ramp called a ramp, AR(1) {rho}", ramps / seeds, "1", seeds)
    record(f"phases: steps called steps, AR(1) {rho}", steps / seeds, "1", seeds)
    assert hits / seeds >= 0.95 and ramps / seeds >= 0.97 and steps / seeds >= 0.97


@pytest.mark.slow
def test_two_valued_runs_without_a_change_have_no_phases():
    seeds, alarms = 200, 0
    for seed in range(seeds):
        rng = np.random.default_rng([6, seed])
        alarms += found_cuts((rng.random(N) < rng.choice([0.02, 0.1, 0.5])).astype(float))[0] != "none"
    record("phases: false alarm, two-valued", alarms / seeds, "<= .05", seeds)
    assert alarms / seeds <= 0.05


@pytest.mark.slow
def test_a_step_of_the_smallest_detectable_size_is_found_in_about_four_runs_of_five():
    seeds, hits = 60, np.zeros(2)
    for seed in range(seeds):
        x = ar1(np.random.default_rng([7, seed]), 0.3)
        blocks = series_blocks(T, x)
        mde = phases.smallest_shift(blocks, shape_of(blocks))
        later = T >= N // 2
        hits += [
            found_cuts(x + mde["mean_shift"] * later)[0] != "none",
            found_cuts(np.where(later, mde["sd_ratio"], 1.0) * x)[0] != "none",
        ]
    record("phases: power at the smallest detectable mean shift", float(hits[0] / seeds), ".8 +- .12", seeds)
    record("phases: power at the smallest detectable sd ratio", float(hits[1] / seeds), ".8 +- .12", seeds)
    assert np.all(np.abs(hits / seeds - 0.8) <= 0.12)


@pytest.mark.slow
def test_a_drifting_mixture_makes_phases_in_the_bare_series_and_none_in_the_reweighted_one():
    seeds, bare, steady = 60, 0, 0
    for seed in range(seeds):
        rng = np.random.default_rng([9, seed])
        easy = rng.random(N) < np.interp(T, BREAKS, (0.2, 0.8))
        data = run_of(easy + ar1(rng, 0.3), np.where(easy, "easy", "hard").tolist(), steps=T // 64 + 1)
        series = Series.of(data, "baseline_reward")
        blocks, _ = series.blocks()
        bare += shape_of(blocks).kind != "none"
        steady += shape_of(reweighted_blocks(data, series, blocks)[0]).kind != "none"
    record("phases: drifting mixture, phases in the bare series", bare / seeds, ">= .9", seeds)
    record("phases: drifting mixture, phases in the reweighted series", steady / seeds, "<= .05", seeds)
    assert bare / seeds >= 0.9 and steady / seeds <= 0.05


def least_squares_cuts(x, variance):
    """Optimal partition of a mean with squared error and a BIC penalty: what is used most."""
    n = len(x)
    sums, squares = np.r_[0.0, np.cumsum(x)], np.r_[0.0, np.cumsum(x * x)]
    best, before = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=int)
    best[0] = -2 * variance * np.log(n)
    for t in range(1, n + 1):
        s = np.arange(t)
        total = best[:t] + squares[t] - squares[:t] - (sums[t] - sums[:t]) ** 2 / (t - s) + 2 * variance * np.log(n)
        before[t] = int(np.argmin(total))
        best[t] = total[before[t]]
    cuts, t = [], n
    while before[t] > 0:
        t = before[t]
        cuts.append(t)
    return cuts[::-1]


def long_run_variance(x):
    centred, lags = x - x.mean(), int(2 * len(x) ** (1 / 3))
    weights = 1 - np.arange(1, lags + 1) / (lags + 1)
    found = [centred[lag:] @ centred[:-lag] for lag in range(1, lags + 1)]
    return (centred @ centred + 2 * weights @ np.array(found)) / len(x)


@pytest.mark.slow
def test_least_squares_with_a_bic_penalty_sees_phases_in_stationary_runs_and_ours_does_not():
    seeds, n = 40, 2000
    for rho, naive_least in ((0.0, 0.0), (0.3, 0.6), (0.6, 0.95)):
        naive = corrected = ours = 0
        for seed in range(seeds):
            x = ar1(np.random.default_rng([8, seed]), rho, n)
            differences = np.diff(x)
            sigma = np.median(np.abs(differences - np.median(differences))) / 0.6745 / np.sqrt(2)
            naive += len(least_squares_cuts(x, sigma**2)) > 0
            corrected += len(least_squares_cuts(x, long_run_variance(x))) > 0
            ours += found_cuts(x, np.arange(n))[0] != "none"
        record(
            f"phases: naive least squares, false alarm, AR(1) {rho}",
            naive / seeds,
            f">= {naive_least}" if rho else "<= .05",
            seeds,
        )
        record(f"phases: the same with the long-run variance, AR(1) {rho}", corrected / seeds, "<= .1", seeds)
        record(f"phases: ours on the same runs, AR(1) {rho}", ours / seeds, "<= .05", seeds)
        assert rho > 0 or naive / seeds <= 0.05
        assert naive / seeds >= naive_least and corrected / seeds <= 0.1 and ours / seeds <= 0.05
