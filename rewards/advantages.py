"""Rewards to advantages: centred within the group of one prompt, and scaled; float64, without torch."""

from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Scale = Literal["group", "batch", "none"]
Floats = NDArray[np.float64]

ZERO_STD = 1e-8  # torch.isclose's absolute tolerance, which decides "no variance" in TRL


class Normalised(NamedTuple):
    """Advantages and what made them. Shapes: one entry a session each. NaN stands for null."""

    advantage: Floats
    mean: Floats
    std: Floats


def advantages(
    rewards: Sequence[float | None] | Floats, group_ids: Sequence[Hashable], scale: Scale, eps: float = 1e-4
) -> Normalised:
    """(reward - mean of its group) / (std + eps); with `none` not divided.

    Shapes: rewards and group_ids have one entry a session; a group may have any size. A reward that is None or NaN
    takes no part, and its advantage, mean and std are null.
    `std` is that of the group, or of all rewards of the call with `batch`; with `none` it is the group's, for the
    record only. It has n - 1 degrees of freedom: a group of one has no std (null), and its advantage is 0. A group of
    equal rewards has advantages of exactly 0.
    Raises: ValueError for empty input, an infinite reward, unequal lengths, a group_id of None, another scale.
    Source: TRL 1.16 `trainer/grpo_trainer.py` (`sum_then_normalize`: `nanmean`, `nanstd` with Bessel's correction from
    `trainer/utils.py`, and 1e-4 added to the std).
    Departures: float64; null where TRL writes an advantage of 0 for a session that nothing could score.
    """
    values = _floats(rewards)
    group_index, group_count = _groups(group_ids, len(values))
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale_rewards `{scale}` is none of group, batch, none")
    scored = ~np.isnan(values)
    group_of, known = group_index[scored], values[scored]
    first = np.zeros(group_count)
    first[group_of[::-1]] = known[::-1]
    # Differences to one member of the group: equal rewards then have a mean without rounding and a deviation of 0.
    shifted = known - first[group_of]
    sizes = np.bincount(group_of, minlength=group_count)[group_of]
    centre = np.bincount(group_of, shifted, minlength=group_count)[group_of] / sizes
    deviation = shifted - centre
    if scale == "batch":
        std = np.full(len(known), known.std(ddof=1) if len(known) > 1 else np.nan)
    else:
        squares = np.bincount(group_of, deviation**2, minlength=group_count)[group_of]
        std = np.sqrt(np.divide(squares, sizes - 1, out=np.full(len(known), np.nan), where=sizes > 1))
    advantage = deviation
    if scale != "none":
        advantage = np.divide(deviation, std + eps, out=np.zeros_like(deviation), where=~np.isnan(std))
    return Normalised(_spread(advantage, scored), _spread(first[group_of] + centre, scored), _spread(std, scored))


def zero_variance_fraction(std: Floats) -> float | None:
    """Share of the sessions whose rewards have no spread, so that they teach nothing; None when no std is known.

    Shapes: std as `advantages` returns it.
    Source: TRL 1.16's metric `frac_reward_zero_std`.
    Departures: sessions without a std (null reward, group of one) are left out; TRL counts them as having spread.
    """
    known = std[~np.isnan(std)]
    return float(np.mean(known <= ZERO_STD)) if len(known) else None


def _floats(rewards: Sequence[float | None] | Floats) -> Floats:
    values = np.array([np.nan if reward is None else reward for reward in rewards], dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no rewards: advantages of an empty batch do not exist")
    if np.isinf(values).any():
        raise ValueError(f"reward {int(np.flatnonzero(np.isinf(values))[0])} is infinite")
    return values


def _groups(group_ids: Sequence[Any], rows: int) -> tuple[NDArray[np.intp], int]:
    if len(group_ids) != rows:
        raise ValueError(f"{len(group_ids)} group ids for {rows} rewards")
    numbers: dict[Hashable, int] = {}
    for group in group_ids:
        if group is None:
            raise ValueError("a session without group_id has no group to be compared with")
        numbers.setdefault(group, len(numbers))
    return np.array([numbers[group] for group in group_ids], dtype=np.intp), len(numbers)


def _spread(values: Floats, where: NDArray[np.bool_]) -> Floats:
    full = np.full(len(where), np.nan)
    full[where] = values
    return full
