"""Rewards and advantages of recorded sessions under a schedule, weights and a normalisation, as arrays.

The operations and their order are those of `Schedule.adjusted` and `RewardSignal.apply`, so that the schedule which was
in force gives the recorded numbers again, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewards.advantages import Normalised, Scale, advantages
from rewards.analysis.scored import Flags, Floats, Scored
from rewards.differential import Schedule
from rewards.errors import LedgerError
from rewards.recalibration import Controller
from rewards.schedule_rules import SetPointRule, TriggerRule

Event = tuple[str, dict[str, Any]]
LACKING = 1e-9  # of the reward, beyond rounding, before other weights are refused


@dataclass(frozen=True)
class Weighted:
    """The baseline rewards. Shapes: baseline (N); taken, weight (N, K). taken: the component is part of the reward."""

    baseline: Floats
    taken: Flags
    weight: Floats

    def part(self, where: slice) -> Weighted:
        """Some of the sessions."""
        return Weighted(self.baseline[where], self.taken[where], self.weight[where])


@dataclass(frozen=True)
class Gains:
    """The differentials of every session.

    Shapes: whole, whole_pivot, gain (N); part, part_pivot (N, K). whole, part: d, 0 where none acts; gain: what the
    normalised advantage is multiplied by.
    """

    whole: Floats
    whole_pivot: Floats
    part: Floats
    part_pivot: Floats
    gain: Floats

    @classmethod
    def none(cls, n: int, k: int) -> Gains:
        """No differential."""
        pivots = np.full((n, k), np.nan)
        return cls(np.zeros(n), np.full(n, np.nan), np.zeros((n, k)), pivots, np.ones(n))


@dataclass(frozen=True)
class Signal:
    """What the sessions became. unadjusted: the advantage without the schedule. events: of replayed triggers."""

    weighted: Weighted
    gains: Gains
    scale: Scale
    adjusted: Floats
    unadjusted: Floats
    advantage: Floats
    std: Floats
    events: list[Event] = field(default_factory=list)


def weighted(scored: Scored, wanted: Mapping[str, float | None]) -> Weighted:
    """The baseline rewards under other weights: by component, None takes it out; others stay as recorded.

    Weights that change nothing give the recorded baseline rewards.
    Raises: LedgerError when the components on record do not make up the recorded reward, so that others cannot either.
    """
    taken, weight = scored.optimised.copy(), scored.weight.copy()
    for name, value in wanted.items():
        k = scored.components.index(name)
        taken[:, k] = scored.answered[:, k] if value is not None else False
        if value is not None:
            weight[:, k] = value
    same = taken == scored.optimised
    if same.all() and bool(np.all((weight == scored.weight) | ~taken)):
        return Weighted(scored.baseline, taken, weight)
    _check_complete(scored)
    products = np.where(taken, weight * np.where(taken, scored.value, 0.0), 0.0)
    made = sums(products)
    # A session that was recorded without a reward although its functions answered has none afterwards either.
    counts = np.isfinite(scored.baseline) | ~scored.optimised.any(axis=1)
    return Weighted(np.where(taken.any(axis=1) & counts, made, np.nan), taken, weight)


def sums(products: Floats) -> Floats:
    """The sum of each row, correctly rounded, as `baseline` has it. Shapes: (N, K) to (N)."""
    return np.array([math.fsum(row) for row in products.tolist()], dtype=np.float64)


def recorded_gains(scored: Scored) -> Gains:
    """The differentials as the sessions carry them. A whole one without a pivot acts on the advantage."""
    whole, part = _d(scored.differential_pct), _d(scored.pct)
    on_advantage = (whole != 0) & np.isnan(scored.pivot)
    gain = np.where(on_advantage, 1.0 + whole, 1.0)
    return Gains(np.where(on_advantage, 0.0, whole), scored.pivot, part, scored.pivots, gain)


def scheduled_gains(schedule: Schedule, scored: Scored) -> Gains:
    """The differentials of one version of a schedule. Every one that acts on the reward has its pivot."""
    gains = Gains.none(len(scored), len(scored.components))
    for (category, component), d in schedule.entries.items():
        if d == 0 or category not in scored.categories:
            continue
        mine = scored.category == scored.categories.index(category)
        if schedule.place != "reward":
            gains.gain[mine] = schedule.gain(category)
            continue
        pivot = schedule.pivots[category, component]
        if component is None:
            gains.whole[mine], gains.whole_pivot[mine] = d, pivot
        elif component in scored.components:
            k = scored.components.index(component)
            gains.part[mine, k], gains.part_pivot[mine, k] = d, pivot
    return gains


def adjusted(scored: Scored, plain: Weighted, gains: Gains) -> Floats:
    """The adjusted rewards: a = b + d (b - p) + sum_k d_k w_k (r_k - p_k)."""
    a = plain.baseline.copy()
    acting = (gains.whole != 0) & np.isfinite(gains.whole_pivot)
    a[acting] += gains.whole[acting] * (plain.baseline[acting] - gains.whole_pivot[acting])
    for k in range(len(scored.components)):
        on = (gains.part[:, k] != 0) & plain.taken[:, k] & np.isfinite(gains.part_pivot[:, k])
        if on.any():
            a[on] += gains.part[on, k] * plain.weight[on, k] * (scored.value[on, k] - gains.part_pivot[on, k])
    return a


def normalised(values: Floats, scored: Scored, scale: Scale) -> Normalised:
    """Advantages of all sessions; null without a group. With `batch` each step is a batch, as it was then."""
    full = [np.full(len(values), np.nan) for _ in range(3)]
    known = scored.group >= 0
    cuts = np.flatnonzero(np.diff(scored.steps)) + 1 if scale == "batch" else np.empty(0, dtype=np.int64)
    for rows in np.split(np.arange(len(values)), cuts):
        mine = rows[known[rows]]
        if len(mine):
            for whole, own in zip(full, advantages(values[mine], scored.group[mine].tolist(), scale), strict=True):
                whole[mine] = own
    return Normalised(*full)


def finished(scored: Scored, plain: Weighted, gains: Gains, scale: Scale) -> Signal:
    """Rewards to advantages."""
    a = adjusted(scored, plain, gains)
    unadjusted = final = normalised(plain.baseline, scored, scale)
    if not np.array_equal(a, plain.baseline, equal_nan=True):
        final = normalised(a, scored, scale)
    return Signal(plain, gains, scale, a, unadjusted.advantage, final.advantage * gains.gain, final.std)


@dataclass(frozen=True)
class Triggered:
    """A schedule that changes on the way, and what its triggers look at."""

    schedule: Schedule
    rules: Sequence[TriggerRule | SetPointRule]
    answers: Sequence[str | None]
    seed: int = 0


def triggered(scored: Scored, plain: Weighted, asked: Triggered, scale: Scale) -> Signal:
    """Lets triggers act on the recorded responses: each step has the schedule that the steps before left.

    Raises: LedgerError when a response is not on record.
    """
    missing = sum(answer is None for answer in asked.answers)
    if missing and any(rule.phrase is not None for rule in asked.rules):
        raise LedgerError(
            f"rules of the schedule look at responses, and {missing:,} of {len(scored):,} sessions have none on "
            f"record: leave out `triggers` and `setpoints` with a phrase, and give `differentials` as they would have "
            f"been"
        )
    controller, schedule = Controller(asked.rules, asked.seed), asked.schedule
    gains, events = Gains.none(len(scored), len(scored.components)), []
    names = scored.names()
    for rows in np.split(np.arange(len(scored)), np.flatnonzero(np.diff(scored.steps)) + 1):
        where = slice(int(rows[0]), int(rows[-1]) + 1)
        part, step = scored.part(where), int(scored.steps[where.start])
        own = scheduled_gains(schedule, part)
        for name, values in vars(own).items():
            getattr(gains, name)[where] = values
        advantage = finished(part, plain.part(where), own, scale).advantage
        observed = [
            {
                "category": names[i],
                "text": asked.answers[i] or "",  # null only where no rule looks at it
                "compliant": None if np.isnan(scored.compliant[i]) else bool(scored.compliant[i]),
                "group_id": int(scored.group[i]) if scored.group[i] >= 0 else None,
                "advantage": None if np.isnan(a) else float(a),
            }
            for i, a in zip(rows.tolist(), advantage, strict=True)
        ]
        found, schedule = controller.observe(step, observed, schedule)
        events += found
    whole = finished(scored, plain, gains, scale)
    return Signal(**{**vars(whole), "events": events})


def _check_complete(scored: Scored) -> None:
    known = np.isfinite(scored.baseline)
    made = np.where(scored.optimised, scored.weight * scored.value, 0.0).sum(axis=1)
    gap = np.abs(np.where(known, scored.baseline - made, 0.0)).max(initial=0.0)
    if gap > LACKING * max(1.0, float(np.abs(scored.baseline[known]).max(initial=0.0))):
        raise LedgerError(
            f"the components on record do not make up the recorded baseline reward (up to {gap:.3g} is missing: it was "
            f"clipped, or they were not recorded): other weights cannot be replayed"
        )


def _d(percent: Floats) -> Floats:
    """Differentials from per cent. A recorded percentage is 100 d rounded: twelve digits give d back."""
    d: Floats = np.round(np.nan_to_num(percent) / 100, 12)
    return d
