"""How two signals for the same sessions differ. A census of what is on record: its counts need no intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewards.advantages import ZERO_STD
from rewards.analysis.scored import Codes, Flags, Floats, Scored
from rewards.leverage import leverages
from rewards.replay.rescore import Signal

TIE = 1e-9  # rewards and advantages that differ by less are equal: rounding is no order


def rank_flips(scored: Scored, before: Floats, after: Floats) -> dict[str, Any]:
    """Pairs of sessions of one group that change their order.

    Keys: pairs, flipped, share (of all pairs), ties_broken (equal before, not after), ties_made.
    Shapes: before and after have one reward a session; a pair with a null has no part.
    """
    known = (scored.group >= 0) & np.isfinite(before) & np.isfinite(after)
    order = np.flatnonzero(known)[np.argsort(scored.group[known], kind="stable")]
    group = scored.group[order]
    one, other = before[order], after[order]
    pairs = flipped = broken = made = 0
    # Every session against the next one of its group, then against the one after that, until no group is that large.
    for ahead in range(1, len(order)):
        same = group[ahead:] == group[:-ahead]
        if not same.any():
            break
        then, now = (_sign(values[ahead:][same] - values[:-ahead][same]) for values in (one, other))
        pairs += len(then)
        flipped += int((then * now < 0).sum())
        broken += int(((then == 0) & (now != 0)).sum())
        made += int(((then != 0) & (now == 0)).sum())
    share = flipped / pairs if pairs else None
    return {"pairs": pairs, "flipped": flipped, "share": share, "ties_broken": broken, "ties_made": made}


def sign_changes(before: Floats, after: Floats) -> dict[str, Any]:
    """Sessions whose advantage changes its sign: what was pushed is pulled.

    Keys: n (with both), changed (+ to - or - to +), share, to_positive, to_negative, to_zero, from_zero.
    """
    known = np.isfinite(before) & np.isfinite(after)
    then, now = _sign(before[known]), _sign(after[known])
    n, positive, negative = int(known.sum()), int(((then < 0) & (now > 0)).sum()), int(((then > 0) & (now < 0)).sum())
    found = {"n": n, "changed": positive + negative, "share": (positive + negative) / n if n else None}
    found |= {"to_positive": positive, "to_negative": negative}
    return found | {
        "to_zero": int(((then != 0) & (now == 0)).sum()),
        "from_zero": int(((then == 0) & (now != 0)).sum()),
    }


def variance_of_groups(scored: Scored, before: Floats, after: Floats) -> dict[str, int]:
    """Groups whose rewards begin or cease to differ: only those with differences teach anything.

    Keys: groups, with_before, with_after, gained, lost. Shapes: one reward a session.
    """
    count = int(scored.group.max(initial=-1)) + 1
    then, now = (_varied(scored.group, values, count) for values in (before, after))
    there = np.bincount(scored.group[scored.group >= 0], minlength=count) > 0
    return {
        "groups": int(there.sum()),
        "with_before": int(then.sum()),
        "with_after": int(now.sum()),
        "gained": int((now & ~then).sum()),
        "lost": int((then & ~now).sum()),
    }


def leverage_and_spill(scored: Scored, signals: tuple[Signal, Signal], seed: int = 0) -> tuple[dict[str, Any], ...]:
    """By category, before and after: the leverage of the schedule, and its spill over the other categories.

    Each is that of `rewards.leverage` over all sessions: gamma(advantage) / gamma(advantage without the schedule).
    """
    columns: dict[str, Any] = {
        "category": scored.names(),
        "compliant": scored.compliant,
        "group_id": scored.group.tolist(),
        "step": scored.steps.tolist(),
    }
    found = []
    for signal in signals:
        own = {**columns, "advantage": signal.advantage, "advantage_unadjusted": signal.unadjusted}
        found.append({} if not len(scored) else leverages(own, np.random.default_rng(seed)))
    leverage, spill = {}, {}
    for category in found[0]:
        sides = {end: side[category] for end, side in zip(("before", "after"), found, strict=True)}
        leverage[category] = {
            end: {"estimate": s.leverage, "low": s.low, "high": s.high, "n_groups": s.n_groups}
            for end, s in sides.items()
        }
        spill[category] = {
            end: {"estimate": s.spill, "low": s.spill_low, "high": s.spill_high} for end, s in sides.items()
        }
    return leverage, spill


def shares(scored: Scored, before: Signal, after: Signal) -> dict[str, Any]:
    """Who has the absolute advantage, before and after: each category, and each component.

    A component's part of an advantage is what its term of the adjusted reward contributes after normalisation; parts
    may cancel, and the shares are of the sum of their absolute values. Keys: category, component; in each, name ->
    before, after.
    """
    sides = (before, after)
    by_category = {}
    for code, name in enumerate([*scored.categories, None]):
        mine = scored.category == (code if name is not None else -1)
        if mine.any():
            by_category[name or "(no category)"] = _ends(
                _ratio(np.nansum(np.abs(s.advantage[mine])), np.nansum(np.abs(s.advantage))) for s in sides
            )
    parts = [component_parts(scored, side) for side in sides]
    by_component = {
        name: _ends(_ratio(float(p[k]), float(p.sum())) for p in parts)
        for k, name in enumerate(scored.components)
        if any(p[k] > 0 for p in parts)
    }
    return {"category": by_category, "component": by_component}


def component_parts(scored: Scored, signal: Signal) -> Floats:
    """The sum of the absolute parts that each component has in the advantages. Shapes: (K).

    With the group's standardisation a group without variance has no part: its advantages are 0.
    """
    widened = 1.0 + signal.gains.whole[:, None] + signal.gains.part
    made = np.where(signal.weighted.taken, signal.weighted.weight * scored.value * widened, 0.0)
    used = (scored.group >= 0) & np.isfinite(signal.adjusted) & np.isfinite(signal.advantage)
    divisor = np.ones(len(scored))
    if signal.scale != "none":
        used &= np.isfinite(signal.std) & (signal.std > ZERO_STD)
        divisor = signal.std + 1e-4
    if not used.any():
        return np.zeros(made.shape[1])
    group = scored.group[used]
    sizes = np.maximum(np.bincount(group), 1)
    total = np.zeros(made.shape[1])
    for k in range(made.shape[1]):
        own = made[used, k]
        centred = own - (np.bincount(group, own) / sizes)[group]
        total[k] = np.abs(centred / divisor[used] * signal.gains.gain[used]).sum()
    return total


def _varied(group: Codes, values: Floats, count: int) -> Flags:
    known = (group >= 0) & np.isfinite(values)
    high, low = np.full(count, -np.inf), np.full(count, np.inf)
    np.maximum.at(high, group[known], values[known])
    np.minimum.at(low, group[known], values[known])
    varied: Flags = high - low > TIE
    return varied


def _sign(values: Floats) -> Floats:
    signs: Floats = np.where(np.abs(values) <= TIE, 0.0, np.sign(values))
    return signs


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _ends(values: Any) -> dict[str, float | None]:
    return dict(zip(("before", "after"), values, strict=True))
