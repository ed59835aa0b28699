"""Bins aligned to optimizer steps, reward per bin, and what the change of the adjusted reward is made of."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import ndtri

from rewards.analysis.columns import floats, strings
from rewards.analysis.intervals import CONFIDENCE, Estimate, effective_sample_size, mean_estimate, share_estimate

Floats = NDArray[np.float64]

MOST_BINS = 60
FEWEST_SESSIONS = 32


@dataclass(frozen=True)
class Bin:
    """Sessions start..stop-1 of the table (0-based), which are all sessions of steps first_step..last_step."""

    start: int
    stop: int
    first_step: int
    last_step: int

    def place(self) -> dict[str, Any]:
        """Where the bin is, in sessions and steps numbered from 1."""
        return {
            "first_session": self.start + 1,
            "last_session": self.stop,
            "first_step": self.first_step,
            "last_step": self.last_step,
        }


def step_bins(steps: NDArray[np.int64]) -> list[Bin]:
    """Bins of whole steps: at most 60 of them, of at least 32 sessions where a run has so many.

    Sessions of one step were answered by one policy, so a bin never cuts a step. A remainder of less than half a bin
    joins the last one.
    Shapes: steps, one per session, ascending. Raises: ValueError when they are not.
    """
    if len(steps) == 0:
        return []
    if np.any(np.diff(steps) < 0):
        raise ValueError("sessions must come in the order of their steps")
    starts = np.flatnonzero(np.r_[True, np.diff(steps) > 0])
    per_step = float(np.median(np.diff(np.r_[starts, len(steps)])))
    width = max(-(-len(starts) // MOST_BINS), int(np.ceil(FEWEST_SESSIONS / per_step)))
    edges = [*starts[::width].tolist(), len(steps)]
    if len(edges) > 2 and edges[-1] - edges[-2] < width * per_step / 2:
        del edges[-2]
    return [Bin(start, stop, int(steps[start]), int(steps[stop - 1])) for start, stop in itertools.pairwise(edges)]


def reward_curve(table: pa.Table, bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """Mean of the baseline with its interval and sd, and mean of the adjusted reward, per bin."""
    baseline, adjusted = floats(table, "baseline_reward"), floats(table, "adjusted_reward")
    curve = []
    for found in bins:
        part = baseline[found.start : found.stop]
        kept = part[np.isfinite(part)]
        curve.append(
            found.place()
            | {
                "sessions": found.stop - found.start,
                "baseline": mean_estimate(part).as_dict(),
                "baseline_sd": float(kept.std(ddof=1)) if len(kept) > 1 else None,
                "adjusted": mean_estimate(adjusted[found.start : found.stop]).as_dict(),
            }
        )
    return curve


def mean_series(values: Floats, bins: Sequence[Bin], share: bool = False) -> list[Estimate]:
    """The mean (or the share of ones) per bin, each with its interval."""
    estimate = share_estimate if share else mean_estimate
    return [estimate(values[found.start : found.stop]) for found in bins]


def reward_change(table: pa.Table, bins: Sequence[Bin]) -> dict[str, Any]:
    """What the adjusted mean changed by from the first bin to the last, as a sum of three parts.

    policy: the change of the baseline inside the categories, at the mean of the two bins' shares; mixture: the change
    of those shares, and categories present in one of the two bins only; schedule: the change of adjusted - baseline.
    policy + mixture is the change of the baseline. Only sessions with both rewards count. `why` says what is missing.
    """
    if len(bins) < 2:
        return {"why": "fewer than two bins of whole steps: no change to speak of"}
    baseline, adjusted = floats(table, "baseline_reward"), floats(table, "adjusted_reward")
    category = np.array([name or "" for name in strings(table, "category")], dtype=object)
    ends = []
    for found in (bins[0], bins[-1]):
        part = slice(found.start, found.stop)
        kept = np.isfinite(baseline[part]) & np.isfinite(adjusted[part])
        if kept.sum() < 4:
            return {"why": "the first or the last bin has fewer than 4 sessions with both rewards"}
        ends.append((baseline[part][kept], adjusted[part][kept], category[part][kept]))
    first, last = ends
    policy, mixture = _split_baseline((first[0], first[2]), (last[0], last[2]))
    parts = {
        "adjusted": _difference(first[1], last[1]),
        "baseline": _difference(first[0], last[0]),
        "schedule": _difference(first[1] - first[0], last[1] - last[0]),
    }
    return {
        **{name: estimate.as_dict() for name, estimate in parts.items()},
        "policy": policy,
        "mixture": mixture,
        "first_n": len(first[0]),
        "last_n": len(last[0]),
        "why": None,
    }


def _difference(first: Floats, last: Floats) -> Estimate:
    value, n = float(last.mean() - first.mean()), len(first) + len(last)
    sizes = effective_sample_size(first), effective_sample_size(last)
    if min(sizes) < 2:
        return Estimate(value, None, None, n, why="too few independent sessions: no interval")
    half = float(ndtri(0.5 + CONFIDENCE / 2)) * float(
        np.sqrt(first.var(ddof=1) / sizes[0] + last.var(ddof=1) / sizes[1])
    )
    return Estimate(value, value - half, value + half, n)


def _split_baseline(
    first: tuple[Floats, NDArray[np.object_]], last: tuple[Floats, NDArray[np.object_]]
) -> tuple[float, float]:
    policy = mixture = 0.0
    for name in sorted(set(first[1]) | set(last[1])):
        before, after = first[0][first[1] == name], last[0][last[1] == name]
        weights = len(before) / len(first[0]), len(after) / len(last[0])
        if len(before) and len(after):
            policy += sum(weights) / 2 * float(after.mean() - before.mean())
            mixture += (weights[1] - weights[0]) * float(after.mean() + before.mean()) / 2
        elif len(after):
            mixture += weights[1] * float(after.mean())
        else:
            mixture -= weights[0] * float(before.mean())
    return policy, mixture
