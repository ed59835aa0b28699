"""Gradient credit: which share of the advantages' pull each component of the reward has.

With A = (b - mean b) / sigma, mean and sigma of the group, s_k = sum A w_k (r_k - mean r_k) / sigma / sum A^2 over the
sessions of groups with variance. Since the terms w_k r_k sum to b, the s_k sum to 1. A component that is constant
within every group has a credit of 0 however much of the reward it makes up; a negative credit pulls against the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rewards.advantages import ZERO_STD
from rewards.analysis.scored import FEW, Flags, Floats, Scored, bounds, clusters, resampled

RESAMPLES = 1000
EPSILON = 1e-4  # what trainers of this family add to sigma
ALIKE = 1e-6  # recorded advantages have single precision


def gradient_credit(
    scored: Scored, generator: np.random.Generator | None = None, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The credit of every component, with 95 % bootstrap intervals over groups.

    Keys: components (name, credit, low, high, mde), n (sessions used), groups (with variance), groups_without_variance,
    groups_cut (of which the window holds a part: left out, since the rest of their mean and sigma is elsewhere),
    sums_to, left_out (how the recorded advantages differ from A), why (the reason for whatever is null).
    sigma has n - 1 degrees of freedom. A session without a baseline reward has no part, and a component that does not
    apply to a session contributes 0 to it, as it does to its reward.
    Departures: none from the formula; epsilon, a KL penalty and clipping that the recorded advantages may contain are
    left out, and `left_out` says so.
    """
    generator = np.random.default_rng(0) if generator is None else generator
    nothing: dict[str, Any] = {"components": [], "n": 0, "groups": 0, "groups_without_variance": 0}
    nothing |= {"sums_to": None, "left_out": None}
    whole, nothing["groups_cut"] = _whole(scored)
    compared = scored.part((scored.group >= 0) & np.isfinite(scored.baseline) & whole)
    if not len(compared):
        why = "no session has both a group and a baseline reward: there is nothing to be compared with"
        return nothing | {"why": why}
    names, terms = compared.terms()
    group = np.unique(compared.group, return_inverse=True)[1]
    centred = _centred(terms, group)
    reward = centred.sum(axis=1)
    sizes = np.bincount(group)
    squares = np.bincount(group, reward**2)
    sigma = np.sqrt(squares / np.maximum(sizes - 1, 1))
    varied = (sizes > 1) & (sigma > ZERO_STD)
    nothing["groups_without_variance"] = int((~varied).sum())
    if not varied.any():
        return nothing | {"why": "no group has rewards that differ: every advantage is 0"}
    inside = varied[group]
    centred, advantage = centred[inside] / sigma[group][inside, None], reward[inside] / sigma[group][inside]
    taken = compared.part(inside)
    part = clusters(taken, len(names) + 1)
    products = np.column_stack([centred * advantage[:, None], advantage**2])
    sums: Floats = np.column_stack([np.bincount(part, column).astype(np.float64) for column in products.T])
    total = sums.sum(axis=0)
    shares = total[:-1] / total[-1]
    draws = np.full((1, len(names)), np.nan)
    if len(sums) > 1:
        drawn = resampled(sums, generator, resamples)
        draws = drawn[:, :-1] / drawn[:, -1:]
    listed = []
    for k, name in enumerate(names):
        low, high, mde = bounds(draws[:, k])
        listed.append({"name": name, "credit": float(shares[k]), "low": low, "high": high, "mde": mde})
    return nothing | {
        "components": listed,
        "n": int(inside.sum()),
        "groups": int(varied.sum()),
        "sums_to": float(shares.sum()),
        "left_out": _left_out(taken.unadjusted, advantage, sigma[group][inside]),
        "why": _few(len(sums)),
    }


def _whole(scored: Scored) -> tuple[Flags, int]:
    """Sessions of groups that are here as a whole, as far as sizes are on record; how many groups are not."""
    grouped = scored.group >= 0
    sizes = np.bincount(scored.group[grouped]) if grouped.any() else np.zeros(1, dtype=np.int64)
    cut = grouped & (sizes[scored.group] < np.nan_to_num(scored.group_size, nan=0.0))
    return ~cut, len(np.unique(scored.group[cut]))


def _few(groups: int) -> str | None:
    if groups < 2:
        return "one group with variance: no interval"
    return f"only {groups} groups with variance: the bootstrap intervals are too narrow" if groups < FEW else None


def _centred(terms: Floats, group: Any) -> Floats:
    """Less the mean of its group. Differences to one member first: what is equal in a group becomes exactly 0."""
    count = int(group.max()) + 1
    first = np.empty(count, dtype=np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]
    shifted = terms - terms[first[group]]
    sizes = np.bincount(group)[:, None]
    means = np.column_stack([np.bincount(group, shifted[:, k], count) for k in range(terms.shape[1])]) / sizes
    centred: Floats = shifted - means[group]
    return centred


def _left_out(recorded: Floats, advantage: Floats, sigma: Floats) -> str:
    """What the recorded advantages contain and the credit does not."""
    known = np.isfinite(recorded)
    if not known.any():
        return "no advantage is on record; all of them are recomputed from the baseline rewards"
    recorded, advantage, sigma = recorded[known], advantage[known], sigma[known]
    scale = max(float(np.abs(recorded).max()), 1e-30)

    def alike(values: Floats) -> bool:
        return bool(np.abs(recorded - values).max() <= ALIKE * scale)

    if alike(advantage):
        return "nothing: the recorded advantages are (reward - mean) / sigma"
    if alike(advantage * sigma / (sigma + EPSILON)):
        return f"the {EPSILON:g} that the trainer adds to sigma"
    if alike(advantage * sigma):
        return "the trainer does not divide by sigma: here every group is, so that all groups weigh alike"
    gap = float(np.abs(recorded - advantage).max())
    return (
        f"the recorded advantages differ from (reward - mean) / sigma by up to {gap:.3g}: another normalisation, a KL "
        f"penalty in the reward or clipping; none of them is part of the credit"
    )
