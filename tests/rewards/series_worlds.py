"""Seeded series of a run's length whose truth is known: autocorrelated noise on levels, steps and ramps."""

import numpy as np
from scipy.signal import lfilter

from rewards.analysis.data import RunData
from rewards.analysis.segmentation import series_blocks, shape_of

N = 12847
T = np.arange(N)
BREAKS = (2500, 8000)


def ar1(rng, rho, n=N, tails=None):
    """Stationary, mean 0, sd 1. tails: degrees of freedom of t innovations."""
    noise = rng.standard_normal(n + 200)
    if tails is not None:
        noise = rng.standard_t(tails, n + 200) / np.sqrt(tails / (tails - 2))
    return lfilter([np.sqrt(1 - rho**2)], [1, -rho], noise)[200:]


def levels(first, middle, last):
    """Three values over the run, changing at sessions 2,500 and 8,000."""
    return np.select([BREAKS[0] > T, BREAKS[1] > T], [first, middle], last)


def run_of(baseline, categories=None, steps=None, events=(), **columns):
    """A run with these baseline rewards, one session a step unless steps are given."""
    n = len(baseline)
    steps = np.arange(n) + 1 if steps is None else steps
    return RunData.of_columns("r", steps, categories or ["a"] * n, {"baseline_reward": baseline, **columns}, events)


def found_cuts(x, steps=T):
    """The kind of the phases that are found and the places at which they begin."""
    blocks = series_blocks(steps, x)
    shape = shape_of(blocks)
    return shape.kind, [int(blocks.edges[cut]) for cut in shape.cuts]


def near(cuts, truth, tolerance):
    """Whether every true place has a found one close to it."""
    return all(any(abs(cut - true) <= tolerance for cut in cuts) for true in truth)
