"""Where things happen in the simulated record: sessions, steps and groups, and curves over the sessions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SESSIONS = 12_847
FEWEST, MOST = 640, 200_000
GROUP, PER_STEP = 8, 64
CATEGORIES = tuple(f"category-{number}" for number in range(1, 7))

# Last sessions before each recalibration acts, and the phases' ends.
RECALIBRATED = (2500, 4200, 4891)
TRIGGERED = 4891
PHASES = (2500, 8000)
TRANSITION = (10_000, 11_000)
LOW_SESSION, HIGH_SESSION = 4803, 4812
WINDOW = 500  # sessions that the record's counts of tokens and distinct answers were made over

Anchors = Sequence[tuple[float, float]]

# (session, value) of the means; straight lines between them.
COMPLIANT: Anchors = ((2500, 0.62), (3550, 0.75), (4950, 5 / 6), (8000, 0.945), (11_800, 0.97))  # on the logit
UNSOLICITED: Anchors = ((2500, 0.34), (8000, 0.03), (10_000, 0.02), (10_800, 0.0))
REWARD_MEAN: Anchors = ((2500, 0.56), (8000, 0.86))
REWARD_SD: Anchors = ((2500, 0.4), (8000, 0.082))  # on the logarithm
STYLE: Anchors = ((1, 0.3), (10_100, 0.36), (10_600, 0.93), (12_847, 0.95))
ROOT_KL: Anchors = ((1, 0.2), (2500, 1.4), (8000, 3.0), (10_000, 4.0), (10_800, 5.2), (12_847, 6.2))
ENTROPY: Anchors = ((1, 2.6), (2500, 2.5), (8000, 1.3), (10_000, 1.1), (10_700, 0.5), (12_847, 0.42))
LENGTH: Anchors = ((2500, 46), (8000, 28), (10_000, 26), (10_700, 20))
DISTINCT: Anchors = ((2500, 0.73), (8000, 0.38), (10_000, 0.34), (10_700, 0.19))


@dataclass(frozen=True)
class Plan:
    """The layout of a record.

    Shapes: at, step, group, position: one entry a session. at: the session's number on the audit's scale of 12,847
    sessions. group: from 0; position: place in the group, from 0. sizes: of each group. changed_steps: the steps after
    which the recalibrations act.
    """

    sessions: int
    at: Floats
    step: Ints
    group: Ints
    position: Ints
    sizes: Ints
    changed_steps: tuple[int, ...]

    def number(self, session: int) -> int:
        """The session of this record that stands where the audit's stood."""
        return min(self.sessions, max(1, round(session * self.sessions / SESSIONS)))

    def window(self, first: float, last: float) -> NDArray[np.bool_]:
        """Sessions first..last of the audit's scale."""
        return (self.at >= first) & (self.at <= last)

    def curve(self, anchors: Anchors) -> Floats:
        """Straight lines between the anchors, flat outside them."""
        places, values = zip(*anchors, strict=True)
        return np.asarray(np.interp(self.at, places, values), dtype=np.float64)


def make_plan(sessions: int) -> Plan:
    """Steps of 64 sessions in groups of 8; a step in which the schedule changes ends with the change."""
    cuts = [round(session * sessions / SESSIONS) for session in RECALIBRATED]
    steps: list[Ints] = []
    groups: list[Ints] = []
    sizes: list[Ints] = []
    changed: list[int] = []
    last_step = group_count = 0
    for start, stop in itertools.pairwise([0, *cuts, sessions]):
        inside = np.arange(stop - start)
        count = max(1, round(len(inside) / PER_STEP))
        steps.append(last_step + 1 + np.minimum(inside // PER_STEP, count - 1))
        groups.append(group_count + inside // GROUP)
        sizes.append(np.bincount(inside // GROUP))
        last_step += count
        group_count += len(sizes[-1])
        changed.append(last_step)
    group, size = np.concatenate(groups), np.concatenate(sizes)
    position = np.arange(sessions) - np.repeat(np.cumsum(size) - size, size)
    at = np.arange(1, sessions + 1, dtype=np.float64) * (SESSIONS / sessions)
    return Plan(sessions, at, np.concatenate(steps), group, position, size, tuple(changed[:-1]))
