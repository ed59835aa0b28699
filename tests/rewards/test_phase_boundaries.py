"""Intervals of the places of phases: against two segments fitted anew, and how often they hold the truth."""

import numpy as np
import pytest
from scipy.stats import norm

from rewards.analysis import phases
from rewards.analysis.boundaries import KNOT_CRITICAL, STEP_CRITICAL, boundary_spans, step_profile
from rewards.analysis.segmentation import (
    LEAST_BLOCKS,
    Shape,
    mixed_costs,
    phase_costs,
    ramp_costs,
    series_blocks,
    shape_of,
    spread_noise,
)
from tests.rewards.accepted import record
from tests.rewards.series_worlds import BREAKS, T, ar1, levels, run_of


def steps_of(rng, tails=None):
    return levels(0, 0.3, 0.5) + levels(1, 0.5, 0.1) * ar1(rng, 0.3, tails=tails)


def narrowing(rng):
    return np.exp(np.interp(T, BREAKS, [0, np.log(0.1)])) * ar1(rng, 0.3)


WORLDS = {
    "steps, Gaussian": ("steps", steps_of),
    "steps, t4": ("steps", lambda rng: steps_of(rng, 4)),
    "sd only 1, .8, .64": ("steps", lambda rng: levels(1, 0.8, 0.64) * ar1(rng, 0.3)),
    "sd only 1, .8, .64, t4": ("steps", lambda rng: levels(1, 0.8, 0.64) * ar1(rng, 0.3, tails=4)),
    "ramp": ("ramp", narrowing),
}


def coverage(world, seeds, stream=31):
    """Of both true places in the runs with the right kind and count: held by ours, by one block around; widths."""
    kind, make = WORLDS[world]
    ours, naive, widths = [], [], []
    for seed in range(seeds):
        blocks = series_blocks(T, make(np.random.default_rng([stream, seed])))
        shape, edges = shape_of(blocks), blocks.edges
        if shape.kind != kind or len(shape.cuts) != 2:
            continue
        for span, cut, true in zip(boundary_spans(blocks, shape), shape.cuts, BREAKS, strict=True):
            ours.append(edges[span.low] <= true <= edges[span.high])
            naive.append(edges[max(cut - 1, 0)] <= true <= edges[min(cut + 1, len(blocks))])
            widths.append(edges[span.high] - edges[span.low])
    return np.array(ours).reshape(-1, 2), np.array(naive).reshape(-1, 2), np.array(widths).reshape(-1, 2)


# the interval is what it says


def test_the_critical_values_are_those_of_the_two_laws():
    assert (1 - np.exp(-STEP_CRITICAL / 2)) ** 2 == pytest.approx(0.95)
    assert pytest.approx(7.352, abs=1e-3) == STEP_CRITICAL
    assert pytest.approx(norm.ppf(0.975) ** 2) == KNOT_CRITICAL


def test_the_profile_of_a_step_is_minus_twice_the_log_likelihood_of_two_segments_fitted_anew():
    x = np.where(np.arange(1200) < 640, 1.0, 0.6) * ar1(np.random.default_rng(1), 0.3, 1200)
    blocks = series_blocks(np.arange(1200), x, size=20)
    places, profile = step_profile(phase_costs(blocks), np.full(60, np.inf), 0, 60)
    noise = spread_noise(blocks.spread)
    expected = []
    for k in places:
        total = 0.0
        for part in (slice(0, k), slice(k, 60)):
            level, spread = blocks.level[part], blocks.spread[part]
            total -= 2 * norm.logpdf(level, *norm.fit(level)).sum()
            total -= 2 * norm.logpdf(spread, spread.mean(), noise).sum()
        expected.append(total)
    assert places[0] == LEAST_BLOCKS and places[-1] == 60 - LEAST_BLOCKS
    assert profile - profile.min() == pytest.approx(np.array(expected) - min(expected))


def test_a_steps_interval_is_the_hull_of_the_places_the_profile_keeps_and_a_block_on_either_side():
    for seed in range(5):
        blocks = series_blocks(T, WORLDS["sd only 1, .8, .64"][1](np.random.default_rng([2, seed])))
        shape = shape_of(blocks)
        edges = [0, *shape.cuts, len(blocks)]
        for i, span in enumerate(boundary_spans(blocks, shape)):
            before, cut, after = edges[i : i + 3]
            places, profile = step_profile(phase_costs(blocks), mixed_costs(blocks), before, after)
            held = places[profile <= profile.min() + STEP_CRITICAL * span.widening]
            assert places[profile.argmin()] == cut
            assert (span.low, span.high) == (held[0] - 1, held[-1] + 1)
            assert 1 <= span.widening < 2 and span.low < cut < span.high


def test_the_ends_of_a_ramp_are_within_the_ranges_of_all_pairs_of_ends_that_fit_about_as_well():
    n = 1600
    x = np.exp(np.interp(np.arange(n), (400, 1000), (0, np.log(0.1)))) * np.random.default_rng(3).standard_normal(n)
    blocks = series_blocks(np.arange(n), x, size=20)
    shape = shape_of(blocks)
    assert shape.kind == "ramp"
    spans = boundary_spans(blocks, shape)
    pairs = np.array([(a, b) for a in range(81) for b in range(a + LEAST_BLOCKS, 81)])
    cost = ramp_costs(blocks, pairs[:, 0], pairs[:, 1])
    held = pairs[cost < cost.min() + KNOT_CRITICAL * spans[0].widening]
    for span, ends in zip(spans, held.T, strict=True):
        assert (span.low, span.high) == (ends.min() - 1, ends.max() + 1)


# where there is too little


def test_a_boundary_between_phases_of_the_least_length_has_no_interval_and_says_why():
    x = np.where(np.arange(128) < 64, 1.0, 0.02) * np.random.default_rng(4).standard_normal(128)
    found = phases.section(run_of(x))
    (row,) = found["boundaries"]
    assert row["session"] == 65 and row["low"] is None and row["high"] is None
    assert "16 blocks" in row["why"] and "no interval" in found["verdict"]


def test_an_interval_that_reaches_the_shortest_phase_runs_on_to_the_neighbouring_boundary():
    x = np.where(np.arange(800) < 60, 3.0, 0.5) * np.random.default_rng(5).standard_normal(800)  # not eight blocks
    (row,) = phases.section(run_of(x))["boundaries"]
    assert (row["session"], row["low"], row["high"]) == (65, 1, 73)


def test_a_run_without_phases_has_no_intervals_and_equal_levels_make_no_trouble():
    rng = np.random.default_rng(6)
    assert boundary_spans(series_blocks(np.arange(2000), rng.standard_normal(2000)), Shape("none")) == []
    found = phases.section(run_of(np.repeat([0.0, 1.0, 3.0], [300, 500, 200])))
    assert [row["low"] < true <= row["high"] for row, true in zip(found["boundaries"], (301, 801), strict=True)]
    exact = np.interp(np.arange(2000), (400, 1200), (0, 5)) + np.tile([-1e-9, 1e-9], 1000)
    found = phases.section(run_of(exact))
    assert found["shape"] == "ramp"
    for row, true in zip(found["boundaries"], (401, 1201), strict=True):
        assert row["low"] <= true <= row["high"] and row["low"] <= row["session"] <= row["high"]
    freezing = phases.section(run_of(np.r_[rng.standard_normal(4000), np.full(4000, 0.5)]))
    assert freezing["boundaries"][0]["low"] <= 4001 <= freezing["boundaries"][0]["high"]


# the document


def test_every_boundary_of_the_document_carries_its_interval_in_sessions_of_the_run():
    rng = np.random.default_rng(7)
    easy = rng.random(len(T)) < 0.5
    x = np.r_[np.full(1000, np.nan), steps_of(rng)[:-1000]]  # places move by 1,000
    found = phases.section(run_of(x, np.where(easy, "easy", "hard").tolist()))
    rows = [*found["boundaries"], *found["reweighted"]["boundaries"]]
    assert len(rows) == 4
    for row, true in zip(rows, (3501, 9001) * 2, strict=True):
        assert row["low"] <= true <= row["high"]
    rows += [row for category in found["by_category"] for row in category["boundaries"]]
    assert len(rows) >= 8
    assert all(row["low"] < row["session"] < row["high"] and row["why"] is None for row in rows)
    row = found["boundaries"][0]
    assert f"{row['session']:,} ({row['low']:,} to {row['high']:,})" in found["verdict"]
    assert "95 % intervals" in found["verdict"]


# how often the truth is held


@pytest.mark.parametrize("world", WORLDS)
def test_a_few_runs_hold_their_true_places(world):
    ours, naive, widths = coverage(world, 8, stream=32)
    assert len(ours) >= 5 and ours.mean() >= 0.85 and ours.mean() >= naive.mean()
    assert np.median(widths) < 800


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_of_places_hold_the_truth_in_90_to_100_percent_and_one_block_around_does_not(world):
    ours, naive, widths = coverage(world, 200)
    n = len(ours)
    for place, name in enumerate(("first", "second")):
        item = f"phases: {world}, {name} place"
        record(f"{item}, coverage of 95 %", float(ours[:, place].mean()), ".90 to 1", n)
        record(f"{item}, coverage of one block around", float(naive[:, place].mean()), "reported", n)
        record(f"{item}, median width in sessions", float(np.median(widths[:, place])), "reported", n)
    assert n >= 150 and np.all(ours.mean(axis=0) >= 0.9)
    if not world.startswith("steps"):  # there a step is so large that its block is rarely in doubt
        assert naive.mean() < 0.7


def places_held(d, rho, seeds):
    """One step of the mean half-way through 500 blocks of eight: whether the true one is kept at 7.35, and widened."""
    n, size = 4000, 8
    truth, held = n // 2 // size, []
    for seed in range(seeds):
        x = d * (np.arange(n) >= n // 2) + ar1(np.random.default_rng([33, seed]), rho, n)
        blocks = series_blocks(np.arange(n), x, size=size)
        places, profile = step_profile(phase_costs(blocks), np.full(len(blocks), np.inf), 0, len(blocks))
        (span,) = boundary_spans(blocks, Shape("steps", (int(places[profile.argmin()]),)))
        excess = profile[places == truth][0] - profile.min()
        held.append((excess <= STEP_CRITICAL, excess <= STEP_CRITICAL * span.widening))
    return np.mean(held, axis=0)


@pytest.mark.slow
def test_the_costs_are_on_the_scale_of_the_law_of_a_change_points_likelihood_ratio():
    plain, widened = places_held(0.2, 0.0, 400)
    record("phases: true place kept at 7.35, independent blocks", float(plain), ".95 +- .03", 400)
    assert abs(plain - 0.95) <= 0.03 and widened - plain <= 0.03


@pytest.mark.slow
@pytest.mark.parametrize(("d", "rho"), [(0.3, 0.6), (0.6, 0.8), (1.0, 0.9)])
def test_blocks_that_resemble_their_neighbours_need_the_wider_interval(d, rho):
    plain, widened = places_held(d, rho, 200)
    record(f"phases: true place kept at 7.35, blocks of eight, AR(1) {rho}", float(plain), "reported", 200)
    record(f"phases: the same, widened for dependence, AR(1) {rho}", float(widened), ".90 to 1", 200)
    assert widened >= 0.9 and (rho < 0.8 or plain < 0.9)
