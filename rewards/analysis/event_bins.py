"""Counts around an event: bins of whole steps laid outward from it, as wide as the run's drift asks for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.intervals import effective_sample_size

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Values = Callable[[int, int], Floats]
"""An outcome of sessions start..stop-1, counted from 0: 0 to 1, NaN is null."""

FINE = 4  # parts of a bin in which the correlation time is read
RARE = 5.0  # expected cases of the rarer outcome a bin: sparser ones would bias delta away from 0
PER = 1000.0  # sessions a unit of time


@dataclass(frozen=True)
class Design:
    """How far an event is looked at, in sessions: on either side of it, by the naive comparison, and in bins a side."""

    window: int = 1500
    naive_window: int = 500
    most_bins: int = 12


@dataclass(frozen=True)
class Place:
    """Where an event lies. Units: sessions, counted from 0.

    at: sessions before it acts. start, stop: what may be used. gap_before, gap_after: what is left out beside it.
    """

    at: int
    start: int
    stop: int
    gap_before: int = 0
    gap_after: int = 0


@dataclass(frozen=True)
class Sessions:
    """The order of a run. Shapes: codes, one a session, -1 is null; edges, the first session of each step and the end.

    categories: how many codes there are.
    """

    edges: Ints
    codes: NDArray[np.int16]
    categories: int

    @classmethod
    def of(cls, steps: Ints, codes: NDArray[np.int16], categories: int) -> "Sessions":
        """From the step of each session, ascending."""
        return cls(np.r_[0, np.flatnonzero(np.diff(steps)) + 1, len(steps)], codes, categories)


@dataclass(frozen=True)
class Tally:
    """Counts. Shapes: successes, trials (bins, categories); middle (bins,) in PER sessions from the event; post."""

    successes: Floats
    trials: Floats
    middle: Floats
    post: NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """The treated category and its pooled controls. Shapes: successes, trials (2, bins), treated first."""

    successes: Floats
    trials: Floats
    middle: Floats
    post: NDArray[np.bool_]

    def informative(self) -> "Pair":
        """Without the bins that say nothing of a difference: one side empty, or all outcomes alike."""
        k, n = self.successes.sum(axis=0), self.trials.sum(axis=0)
        kept = np.all(self.trials > 0, axis=0) & (k > 0) & (k < n)
        return Pair(self.successes[:, kept], self.trials[:, kept], self.middle[kept], self.post[kept])


def tally(sessions: Sessions, values: Floats, start: int, bins: list[tuple[int, int]], at: int) -> Tally:
    """Counts per bin and category. Shapes: values, one a session from `start` on, 0 to 1, NaN is null."""
    many = sessions.categories
    successes, trials = np.zeros((len(bins), many)), np.zeros((len(bins), many))
    for i, (low, high) in enumerate(bins):
        part, codes = values[low - start : high - start], sessions.codes[low:high]
        kept = np.isfinite(part) & (codes >= 0)
        trials[i] = np.bincount(codes[kept], minlength=many)
        successes[i] = np.bincount(codes[kept], weights=part[kept], minlength=many)
    limits = np.array(bins, dtype=np.float64).reshape(-1, 2)
    return Tally(successes, trials, (limits.mean(axis=1) - at) / PER, limits[:, 0] >= at)


def pair(counts: Tally, treated: int, controls: list[int]) -> Pair:
    """One category against others together."""
    successes, trials = counts.successes, counts.trials
    return Pair(
        np.stack([successes[:, treated], successes[:, controls].sum(axis=1)]),
        np.stack([trials[:, treated], trials[:, controls].sum(axis=1)]),
        counts.middle,
        counts.post,
    )


def bins_around(edges: Ints, place: Place, width: int) -> list[tuple[int, int]]:
    """Bins of whole steps and at least `width` sessions, laid outward from the event; what is left over is not used."""
    before: list[tuple[int, int]] = []
    stop = _floor(edges, place.at - place.gap_before)
    while (start := _floor(edges, stop - width)) >= max(place.start, 0):
        before.append((start, stop))
        stop = start
    after: list[tuple[int, int]] = []
    start = _ceil(edges, place.at + place.gap_after)
    while start < place.stop and (stop := _ceil(edges, start + width)) <= place.stop:
        after.append((start, stop))
        start = stop
    return before[::-1] + after


def _floor(edges: Ints, session: int) -> int:
    """The last edge at or before a session; -1 before all of them."""
    return -1 if session < 0 else int(edges[np.searchsorted(edges, session, side="right") - 1])


def _ceil(edges: Ints, session: int) -> int:
    """The first edge at or after a session; far away beyond all of them."""
    index = int(np.searchsorted(edges, session, side="left"))
    return int(edges[index]) if index < len(edges) else int(np.iinfo(np.int64).max)


def bin_width(fine: Pair, width: int, reach: int, design: Design) -> tuple[int, float | None]:
    """Width of a bin, and the integrated autocorrelation time it was made for. Units: sessions.

    At least five times that time, a `most_bins`-th of the window, and wide enough for RARE cases of the rarer outcome.
    fine: counts in fine bins of `width` sessions; reach: what may be used on both sides together.
    """
    least = -(-design.window // design.most_bins)
    k, n = float(fine.successes.sum()), float(fine.trials.sum())
    rarer = min(k, n - k)
    spread = int(np.ceil(reach * RARE / rarer)) if rarer > 0 else reach
    time = correlation_time(fine, width)
    return max(least, spread, 0 if time is None else int(np.ceil(5 * time))), time


def correlation_time(fine: Pair, width: int) -> float | None:
    """Integrated autocorrelation time of the treated category less its controls; None from fewer than 8 fine bins.

    What all categories share is no part of it: the bins absorb that. Trend and step are taken out first, and so is the
    binomial noise, which hides a drift, where more than that is seen.
    Units: sessions.
    """
    kept = np.all(fine.trials > 0, axis=0)
    many = int(kept.sum())
    if many < 8:
        return None
    rates = fine.successes[:, kept] / fine.trials[:, kept]
    middle = fine.middle[kept]
    basis = np.column_stack([np.ones(many), middle, fine.post[kept]])
    gap = rates[0] - rates[1]
    rest = gap - basis @ np.linalg.lstsq(basis, gap, rcond=None)[0]
    # White noise between fine bins is worth one session: whatever is correlated lies inside them, and bins hold FINE.
    between = many / effective_sample_size(rest) - 1.0
    return 1.0 + between * width / _drifting(fine, kept, float(rest @ rest) / many)


def _drifting(fine: Pair, kept: NDArray[np.bool_], variance: float) -> float:
    """The share of a variance between fine bins that counting does not explain; 1 where it may be chance."""
    held = (fine.successes[:, kept].sum(axis=0) + 0.5) / (fine.trials[:, kept].sum(axis=0) + 1)
    counting = float((held * (1 - held) * (1 / fine.trials[:, kept]).sum(axis=0)).mean())
    share = 1 - counting / variance if variance > 0 else 0.0
    return share if share > 2 * np.sqrt(2 / kept.sum()) else 1.0
