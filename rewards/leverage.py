"""Leverage: by how much the schedule changed the pull of the advantages towards compliance; and its spill-over.

With x centred within its group, gamma(A) = sum x A / sum x^2 is the slope of the advantage on x. The leverage of a
category is gamma(advantage) / gamma(advantage_unadjusted) over its sessions, spill the same over all other sessions:
a differential that acted on its category alone has a spill of 1. Intervals are 95 % percentile bootstraps over groups.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
RESAMPLES = 200
LEVEL = (0.025, 0.975)
MOST_DRAWN = 2000  # groups that a bootstrap draws one by one; of more, neighbours are drawn together


@dataclass(frozen=True)
class Gamma:
    """A slope of the advantage on x. low and high are None with fewer than two mixed groups; n_groups counts those."""

    estimate: float
    low: float | None
    high: float | None
    n_groups: int

    def payload(self) -> dict[str, Any]:
        """As events store it."""
        return asdict(self)


@dataclass(frozen=True)
class Leverage:
    """What the schedule did to one category, and to the others.

    leverage: None without a mixed group in the category, or when the interval of its denominator covers 0; spill: the
    same of the other categories together; relative: leverage / spill. low and high belong to leverage; intervals are
    None with fewer than two mixed groups. n_groups counts the category's mixed groups.
    """

    leverage: float | None
    low: float | None
    high: float | None
    spill: float | None
    spill_low: float | None
    spill_high: float | None
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    n_groups: int

    def payload(self) -> dict[str, Any]:
        """As step_stats stores it."""
        return asdict(self)


class Pulled(NamedTuple):
    """Sessions. Shapes: one entry a session each. group: its number from 0, below 0 for none; NaN is null."""

    x: Floats
    advantage: Floats
    unadjusted: Floats
    group: NDArray[np.intp]


@dataclass(frozen=True)
class Change:
    """By how much gamma(advantage) / gamma(advantage_unadjusted) differs between two sets of sessions.

    before, after: that ratio of either set, None without a mixed group or when the interval of its denominator covers
    0; ratio: after / before; low, high: its interval, None with fewer than two mixed groups on a side. n_groups: mixed
    groups before and after.
    """

    before: float | None
    after: float | None
    ratio: float | None
    low: float | None
    high: float | None
    n_groups: tuple[int, int]


def gamma(
    x: Sequence[float | None] | Floats, advantage: Sequence[float | None] | Floats, groups: Sequence[Hashable]
) -> float | None:
    """The slope sum x A / sum x^2, x centred within its group; None without a mixed group, that is one where x differs.

    Shapes: one entry a session each; a session whose x, advantage or group is null has no part, nor in the centring.
    """
    sums = _group_sums(_floats(x), [_floats(advantage)], groups)[0]
    return float(sums[0].sum() / sums[-1].sum()) if sums.size else None


def gamma_interval(
    x: Sequence[float | None] | Floats,
    advantage: Sequence[float | None] | Floats,
    groups: Sequence[Hashable],
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Gamma | None:
    """The slope `gamma` with its bootstrap interval; None without a mixed group. Shapes as in `gamma`."""
    sums = _group_sums(_floats(x), [_floats(advantage)], groups)[0]
    if not sums.size:
        return None
    estimate, n_groups = float(sums[0].sum() / sums[-1].sum()), sums.shape[1]
    if n_groups < 2:
        return Gamma(estimate, None, None, n_groups)
    drawn = _resample(sums, generator, resamples)
    return Gamma(estimate, *_interval(drawn[0] / drawn[-1]), n_groups)


def leverage(rows: Rows, category: str, generator: np.random.Generator, resamples: int = RESAMPLES) -> Leverage:
    """Leverage, spill and relative leverage of one category.

    rows: sessions as dicts, or columns, with category, compliant, group_id, advantage, advantage_unadjusted, and with
    step where they span several. A session with a null among them has no part.
    Raises: ValueError for empty input.
    """
    return leverages(rows, generator, resamples, categories=[category])[category]


def leverages(
    rows: Rows, generator: np.random.Generator, resamples: int = RESAMPLES, categories: Sequence[str] | None = None
) -> dict[str, Leverage]:
    """`leverage` of every category of the rows, in alphabetical order, or of those asked for."""
    names = _column(rows, "category")
    if not names:
        raise ValueError("no sessions: the leverage of an empty batch does not exist")
    steps = _column(rows, "step") if _has(rows, "step") else [0] * len(names)
    keys = [
        None if group is None or name is None else (step, name, group)
        for step, name, group in zip(steps, names, _column(rows, "group_id"), strict=True)
    ]
    measures = [_floats(_column(rows, "advantage")), _floats(_column(rows, "advantage_unadjusted"))]
    sums, mixed = _group_sums(_floats(_column(rows, "compliant")), measures, keys)
    of_group = np.array([key[1] for key in mixed], dtype=object)
    wanted = sorted({name for name in names if name is not None}) if categories is None else categories
    result = {}
    for category in wanted:
        inside = of_group == category
        own = _ratio(sums[:, inside], generator, resamples)
        others = _ratio(sums[:, ~inside], generator, resamples)
        result[category] = _combine(own, others, int(inside.sum()))
    return result


def change(before: Pulled, after: Pulled, generator: np.random.Generator, resamples: int = RESAMPLES) -> Change:
    """How the ratio of slopes changed from some sessions to others; the two sets are drawn apart from each other."""
    found, n_groups = [], []
    for side in (before, after):
        sums = _sums_of(side.x, [side.advantage, side.unadjusted], side.group, int(side.group.max(initial=-1)) + 1)
        sums = sums[:, sums[-1] > 0]
        n_groups.append(sums.shape[1])
        found.append(_ratio(_together(sums), generator, resamples))
    first, last = found
    counts = n_groups[0], n_groups[1]
    if not first.estimate or last.estimate is None:
        return Change(first.estimate, last.estimate, None, None, None, counts)
    bounds: tuple[float | None, float | None] = (None, None)
    if first.draws is not None and last.draws is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = _interval(last.draws / first.draws)
    return Change(first.estimate, last.estimate, last.estimate / first.estimate, *bounds, counts)


def _together(sums: Floats) -> Floats:
    """At most MOST_DRAWN columns: sums over neighbours where there are more."""
    many = sums.shape[1]
    if many <= MOST_DRAWN:
        return sums
    summed: Floats = np.add.reduceat(sums, np.arange(MOST_DRAWN) * many // MOST_DRAWN, axis=1)
    return summed


@dataclass(frozen=True)
class _Ratio:
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    draws: Floats | None = None


def _ratio(sums: Floats, generator: np.random.Generator, resamples: int) -> _Ratio:
    """Sum x A / sum x A0 over groups; unknown where the slope on A0 may be 0."""
    groups = sums.shape[1]
    above, below, _ = sums.sum(axis=1)
    if groups == 0 or below == 0:
        return _Ratio()
    if groups == 1:  # nothing to resample: the ratio stands without an interval
        return _Ratio(float(above / below))
    drawn = _resample(sums, generator, resamples)
    low, high = _interval(drawn[1] / drawn[2])
    if low <= 0 <= high:
        return _Ratio()
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = drawn[0] / drawn[1]
    return _Ratio(float(above / below), *_interval(draws), draws)


def _combine(own: _Ratio, others: _Ratio, n_groups: int) -> Leverage:
    relative = None if own.estimate is None or not others.estimate else own.estimate / others.estimate
    bounds: tuple[float | None, float | None] = (None, None)
    if relative is not None and own.draws is not None and others.draws is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = _interval(own.draws / others.draws)
    return Leverage(
        own.estimate, own.low, own.high, others.estimate, others.low, others.high, relative, *bounds, n_groups
    )


def _group_sums(x: Floats, measures: Sequence[Floats], groups: Sequence[Hashable | None]) -> tuple[Floats, list[Any]]:
    """`_sums_of` the mixed groups, and their keys. Shapes: (len(measures) + 1, groups)."""
    numbers: dict[Hashable, int] = {}
    group_of = np.array([-1 if key is None else numbers.setdefault(key, len(numbers)) for key in groups], dtype=np.intp)
    sums = _sums_of(x, measures, group_of, len(numbers))
    mixed = sums[-1] > 0
    return sums[:, mixed], [key for key, take in zip(numbers, mixed, strict=True) if take]


def _sums_of(x: Floats, measures: Sequence[Floats], group_of: NDArray[np.intp], count: int) -> Floats:
    """Per group: sum of x times each measure, then sum of x^2, x being centred; 0 where x does not differ.

    Shapes: group_of: numbers below count, negative for none; (len(measures) + 1, count).
    """
    known = (group_of >= 0) & ~np.isnan(x)
    for measure in measures:
        known &= ~np.isnan(measure)
    group_of, x = group_of[known], x[known]
    if not len(x):
        return np.zeros((len(measures) + 1, count))
    # Differences to one member of the group: where x does not differ they are exactly 0.
    first = np.zeros(count)
    first[group_of[::-1]] = x[::-1]
    shifted = x - first[group_of]
    sizes = np.bincount(group_of, minlength=count)
    centred = shifted - (np.bincount(group_of, shifted, minlength=count) / np.maximum(sizes, 1))[group_of]
    factors = [*(measure[known] for measure in measures), centred]
    return np.array([np.bincount(group_of, centred * factor, minlength=count) for factor in factors], dtype=np.float64)


def _resample(sums: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    """The totals of `resamples` draws of as many groups with replacement. Shapes: (rows of sums, resamples)."""
    groups = sums.shape[1]
    counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return sums @ counts.T.astype(np.float64)


def _interval(draws: Floats) -> tuple[float, float]:
    """The central 95 %, interpolated as numpy.quantile does (which costs twenty times as much at this size)."""
    ordered = np.sort(draws[~np.isnan(draws)])  # 0 / 0: such a draw says nothing about the ratio
    low, high = (_at(ordered, level * (len(ordered) - 1)) for level in LEVEL)
    return low, high


def _at(ordered: Floats, position: float) -> float:
    left = int(position)
    below = float(ordered[left])
    if position == left or not np.isfinite(below):
        return below
    return below + (position - left) * (float(ordered[left + 1]) - below)


def _floats(values: Sequence[float | None] | Floats) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _has(rows: Rows, name: str) -> bool:
    return name in (rows if isinstance(rows, Mapping) else rows[0])


def _column(rows: Rows, name: str) -> list[Any]:
    return list(rows[name]) if isinstance(rows, Mapping) else [row[name] for row in rows]
