"""Why the mean baseline reward changed between two windows: an exact decomposition.

In a window the mean baseline reward is sum_c p_c sum_k q_ck (W_ck V_ck + C_ck) over categories c and components k: p_c
is the share of the scored sessions that are of category c, q_ck the share of those that component k applies to, W_ck
and V_ck the mean weight and the mean value there, and C_ck the covariance of weight and value, which is 0 unless the
weight changes inside the window. The change from A to B is split among the factors by Shapley's value (`shapley.py`):

    p -> the mixture of categories      V -> the component, within categories
    q -> missing values                 W and C -> the weight

A category that only one window has counts as mixture, a component that applies in one window only as missing: what the
other window lacks is taken from the window that has it. Where a component's scorer is another version in B, its V and
its q form one term of kind `scorer`: how much of it is the scorer and how much the answers, no record can tell.
The parts sum to the change up to rounding. Intervals: 95 % percentile bootstrap, groups drawn within each window, the
windows independent of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.analysis.gradient_credit import gradient_credit
from rewards.analysis.scored import FEW, OUTSIDE, WHOLE, Codes, Floats, Scored, bounds, clusters, resampled
from rewards.analysis.shapley import product_change
from rewards.counted import counted

RESAMPLES = 1000
NO_CATEGORY = "(no category)"


@dataclass(frozen=True)
class Window:
    """One side of the comparison. label: as it was asked for; first, last: numbers of its sessions."""

    run: str
    label: str
    first: int
    last: int
    scored: Scored

    def place(self) -> dict[str, Any]:
        """What it is, for JSON."""
        known = np.isfinite(self.scored.baseline)
        return {
            "run": self.run,
            "label": self.label,
            "first": self.first,
            "last": self.last,
            "sessions": len(self.scored),
            "scored": int(known.sum()),
            "groups": len(np.unique(self.scored.group[known & (self.scored.group >= 0)])),
        }


@dataclass(frozen=True)
class _Sums:
    """Totals. Shapes: sessions (..., C); applies, weight, value, product (..., C, K)."""

    sessions: Floats
    applies: Floats
    weight: Floats
    value: Floats
    product: Floats


@dataclass(frozen=True)
class _Names:
    """What both windows have. fixed: the weight of a component that has only one, else NaN; changed: another scorer."""

    categories: list[str]
    components: list[str]
    fixed: Floats
    changed: list[bool]
    versions: list[str]


def why(
    a: Window, b: Window, generator: np.random.Generator | None = None, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The decomposition of the change from window a to window b, and the gradient credits in both.

    Keys: run, a, b, mean_a, mean_b, change, change_interval, parts (name, kind, value, low, high, mde, note),
    by_category (category, n_a, n_b, share_a, share_b, mean_a, mean_b, within, within_low, within_high, mixture),
    credit_a, credit_b, sums_to, verdict, why. kind: component, weight, mixture, scorer, missing, or outside: what no
    component on record accounts for (a sum that was clipped, rewards without components). `within` is all that
    happened inside the category, at its mean share; `mixture` is measured from the middle of both means, so that a
    category that grows counts as a gain only when its reward is above it.
    """
    generator = np.random.default_rng(0) if generator is None else generator
    run = a.run if a.run == b.run else [a.run, b.run]
    document: dict[str, Any] = {"run": run, "a": a.place(), "b": b.place(), "mean_a": None, "mean_b": None}
    document |= {"change": None, "change_interval": [None, None], "parts": [], "by_category": []}
    document |= {"credit_a": gradient_credit(a.scored, generator), "credit_b": gradient_credit(b.scored, generator)}
    sides = [side.scored.part(np.isfinite(side.scored.baseline)) for side in (a, b)]
    for end, found in zip("ab", sides, strict=True):
        document[f"mean_{end}"] = float(found.baseline.mean()) if len(found) else None
    empty = [f"window {name} ({side.label})" for name, side, s in zip("AB", (a, b), sides, strict=True) if not len(s)]
    if empty:
        why_not = f"{' and '.join(empty)}: no session has a baseline reward"
        return document | {"sums_to": None, "verdict": f"Nothing can be compared: {why_not}.", "why": why_not}
    document["change"] = document["mean_b"] - document["mean_a"]
    names = _names(*sides)
    per_cluster = [_cluster_sums(side, names) for side in sides]
    totals = [_total(sums) for sums in per_cluster]
    shared = _bounds_of(per_cluster, generator, resamples)
    value = _split(totals[0], totals[1], names)
    drawn = None if shared is None else _split(*shared, names)
    document["parts"] = _parts(value, drawn, names)
    document["by_category"] = _by_category(value, drawn, totals, names)
    document["sums_to"] = float(sum(part["value"] for part in document["parts"]))
    if drawn is not None:
        whole = np.sum(list(drawn.values()), axis=0).sum(axis=(-2, -1))
        document["change_interval"] = list(bounds(whole)[:2])
    document["why"] = _reasons(a, b, min(len(sums.sessions) for sums in per_cluster))
    document["verdict"] = sentence(document)
    return document


def _names(a: Scored, b: Scored) -> _Names:
    categories = sorted({*a.categories, *b.categories})
    if (a.category < 0).any() or (b.category < 0).any():
        categories.append(NO_CATEGORY)
    (names_a, _), (names_b, _) = a.terms(), b.terms()
    components = list(dict.fromkeys([*names_a, *names_b]))
    fixed, changed, versions = [], [], []
    for name in components:
        weights: list[Floats] = []
        ids: list[set[str] | None] = []
        for side in (a, b):
            if name not in side.components:
                ids.append(None)
                continue
            k = side.components.index(name)
            used = side.optimised[:, k]
            weights.append(np.unique(side.weight[used, k]))
            ids.append({side.scorer_ids[code] if code >= 0 else "" for code in np.unique(side.scorer[used, k])} or None)
        distinct = np.unique(np.concatenate(weights)) if weights else np.ones(1)  # outside the components: 1 r
        fixed.append(float(distinct[0]) if len(distinct) == 1 else np.nan)
        other = None not in ids and ids[0] != ids[1]
        changed.append(other)
        versions.append(" to ".join("/".join(sorted(s or {"?"})) for s in ids) if other else "")
    return _Names(categories, components, np.array(fixed), changed, versions)


def _cluster_sums(side: Scored, names: _Names) -> _Sums:
    """The totals of every cluster. Shapes: (clusters, ...)."""
    many_c, many_k = len(names.categories), len(names.components)
    cluster = clusters(side, many_c * (1 + 4 * many_k))
    count = int(cluster.max()) + 1
    own = np.array([names.categories.index(name) for name in side.categories] + [many_c - 1], dtype=np.int64)
    cell: Codes = cluster * many_c + own[side.category]

    def total(values: Floats | None) -> Floats:
        return np.bincount(cell, values, count * many_c).astype(np.float64).reshape(count, many_c)

    shape = (count, many_c, many_k)
    found = {name: np.zeros(shape) for name in ("applies", "weight", "value", "product")}
    outside, terms = side.terms()
    for k, name in enumerate(names.components):
        if name in side.components:
            at = side.components.index(name)
            used = side.optimised[:, at]
            value, weight = (np.where(used, array[:, at], 0.0) for array in (side.value, side.weight))
        elif name in (OUTSIDE, WHOLE):  # it applies to every session, with weight 1
            used, weight = np.ones(len(side), dtype=bool), np.ones(len(side))
            value = terms[:, outside.index(name)] if name in outside else np.zeros(len(side))
        else:
            continue
        columns = {"applies": used.astype(np.float64), "weight": weight, "value": value, "product": weight * value}
        for key, values in columns.items():
            found[key][:, :, k] = total(values)
    return _Sums(total(None), **found)


def _total(sums: _Sums) -> _Sums:
    return _Sums(*(array.sum(axis=0) for array in vars(sums).values()))


def _bounds_of(per_cluster: list[_Sums], generator: np.random.Generator, resamples: int) -> tuple[_Sums, _Sums] | None:
    """Bootstrap totals of both windows; None where one of them has a single cluster."""
    if any(len(sums.sessions) < 2 for sums in per_cluster):
        return None
    drawn = []
    for sums in per_cluster:
        flat = [array.reshape(len(array), -1) for array in vars(sums).values()]
        totals = resampled(np.column_stack(flat), generator, resamples)
        cuts = np.cumsum([part.shape[1] for part in flat])[:-1]
        shapes = [array.shape[1:] for array in vars(sums).values()]
        split = np.split(totals, cuts, axis=1)
        drawn.append(_Sums(*(part.reshape(-1, *shape) for part, shape in zip(split, shapes, strict=True))))
    return drawn[0], drawn[1]


def _factors(sums: _Sums, fixed: Floats) -> list[Floats]:
    """p, q, W, V, C. Shapes: (..., C, K); NaN where the window cannot tell."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = sums.sessions / sums.sessions.sum(axis=-1, keepdims=True)
        applies = sums.applies / sums.sessions[..., None]
        some = sums.applies > 0
        weight = np.where(some, np.where(np.isfinite(fixed), fixed, sums.weight / sums.applies), np.nan)
        value = np.where(some, sums.value / sums.applies, np.nan)
        both = np.where(some, sums.product / sums.applies - weight * value, np.nan)
    both = np.where(np.isfinite(fixed) & some, 0.0, both)
    return [np.broadcast_to(share[..., None], applies.shape), applies, weight, value, both]


def _split(a: _Sums, b: _Sums, names: _Names) -> dict[str, Floats]:
    """What the four kinds of factors contribute. Shapes: (..., C, K)."""
    before, after = _factors(a, names.fixed), _factors(b, names.fixed)
    for i in range(1, 5):  # p is known everywhere; the others are taken from the window that has them
        one, other = before[i], after[i]
        before[i] = np.nan_to_num(np.where(np.isnan(one), other, one))
        after[i] = np.nan_to_num(np.where(np.isnan(other), one, other))
    mixture, missing, weight, component = product_change(before[:4], after[:4])
    spread = product_change([before[0], before[1], before[4]], [after[0], after[1], after[4]])
    return {
        "component": component,
        "weight": weight + spread[2],
        "missing": missing + spread[1],
        "mixture": mixture + spread[0],
    }


def _parts(value: dict[str, Floats], drawn: dict[str, Floats] | None, names: _Names) -> list[dict[str, Any]]:
    """The terms that sum to the change; what is 0 because nothing of its kind changed is left out."""

    def part(name: str, kind: str, keys: list[str], k: int | None, note: str | None = None) -> dict[str, Any]:
        def total(table: dict[str, Floats]) -> Floats:
            arrays = [table[key] if k is None else table[key][..., k : k + 1] for key in keys]
            summed: Floats = np.sum(arrays, axis=0).sum(axis=(-2, -1))
            return summed

        low, high, mde = (None, None, None) if drawn is None else bounds(total(drawn))
        found = {"name": name, "kind": kind, "value": float(total(value)), "low": low, "high": high, "mde": mde}
        return found | {"note": note}

    found = []
    for k, name in enumerate(names.components):
        if names.changed[k]:
            note = (
                f"the scorer of `{name}` is another version ({names.versions[k]}): how much of this is the scorer and "
                f"how much the answers cannot be told"
            )
            found.append(part(name, "scorer", ["component", "missing"], k, note))
        else:
            kind = "outside" if name in (OUTSIDE, WHOLE) else "component"
            found.append(part(name, kind, ["component"], k))
    for k, name in enumerate(names.components):
        if not np.isfinite(names.fixed[k]):
            found.append(part(name, "weight", ["weight"], k))
    if len(names.categories) > 1:
        found.append(part("categories", "mixture", ["mixture"], None))
    for k, name in enumerate(names.components):
        if not names.changed[k] and np.any(value["missing"][:, k] != 0):
            found.append(part(name, "missing", ["missing"], k))
    return found


def _by_category(
    value: dict[str, Floats], drawn: dict[str, Floats] | None, totals: list[_Sums], names: _Names
) -> list[dict[str, Any]]:
    inside = ("component", "weight", "missing")
    within = np.sum([value[key] for key in inside], axis=0).sum(axis=-1)
    draws = None if drawn is None else np.sum([drawn[key] for key in inside], axis=0).sum(axis=-1)
    counts = [sums.sessions for sums in totals]
    rewards = [sums.product.sum(axis=-1) for sums in totals]
    middle = sum(float(r.sum() / n.sum()) for r, n in zip(rewards, counts, strict=True)) / 2
    shares = [n / n.sum() for n in counts]
    mixture = value["mixture"].sum(axis=-1) - (shares[1] - shares[0]) * middle
    found = []
    for c, name in enumerate(names.categories):
        low, high, _ = (None, None, None) if draws is None else bounds(draws[:, c])
        row: dict[str, Any] = {"category": None if name == NO_CATEGORY else name}
        for side in (0, 1):
            n, end = int(counts[side][c]), "ab"[side]
            mean = float(rewards[side][c] / n) if n else None
            row |= {f"n_{end}": n, f"share_{end}": float(shares[side][c]), f"mean_{end}": mean}
        row |= {"within": float(within[c]), "within_low": low, "within_high": high, "mixture": float(mixture[c])}
        found.append(row)
    return [row for row in found if row["n_a"] or row["n_b"]]


def _reasons(a: Window, b: Window, fewest: int) -> str | None:
    said = []
    if fewest < 2:
        said.append("a window of one group gives no interval")
    elif fewest < FEW:
        said.append(f"a window has only {fewest} groups: its bootstrap intervals are too narrow")
    if a.run == b.run and max(a.first, b.first) <= min(a.last, b.last):
        said.append("the windows share sessions, and the intervals take them as independent")
    for name, side in (("A", a), ("B", b)):
        without = len(side.scored) - int(np.isfinite(side.scored.baseline).sum())
        if without:
            said.append(f"{counted(without, 'session')} of {name} without a baseline reward took no part")
        if (side.scored.group < 0).any():
            said.append(f"{name} has sessions without a group: the intervals take them as independent of each other")
    return "; ".join(said) or None


def sentence(document: dict[str, Any]) -> str:
    """The decomposition in one sentence."""
    change, parts = document["change"], sorted(document["parts"], key=lambda part: -abs(part["value"]))
    low, high = document["change_interval"]
    interval = "" if low is None else f" (95 % interval {low:+.3g} to {high:+.3g})"
    moved = f"The mean baseline reward went from {document['mean_a']:.4g} to {document['mean_b']:.4g}: {change:+.4g}"
    named = [f"{described(part)} {part['value']:+.3g}" for part in parts[:3] if part["value"]]
    rest = sum(part["value"] for part in parts[3:])
    if len(parts) > 3 and rest:
        named.append(f"the rest {rest:+.3g}")
    scorers = (
        "; what changed with a scorer cannot be split further" if any(p["kind"] == "scorer" for p in parts) else ""
    )
    made = f"It is made of {', '.join(named)}" if named else "No part of it changed"
    return f"{moved}{interval}. {made}{scorers}."


def described(part: dict[str, Any]) -> str:
    """A part as a sentence names it."""
    if part["kind"] == "mixture":
        return "the mixture of categories"
    if part["kind"] == "outside":
        return "the whole reward" if part["name"] == WHOLE else "what is outside the components"
    prefix = {"component": "", "weight": "the weight of ", "scorer": "the scorer of ", "missing": "missing values of "}
    return f"{prefix[part['kind']]}`{part['name']}`"
