"""The section on behaviour: what answers became, whether groups still teach anything, whether diversity collapsed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from rewards.analysis import behaviour_texts
from rewards.analysis.convergence import step_bins
from rewards.analysis.data import RunData
from rewards.analysis.diversity import pass_at_k
from rewards.analysis.gao import effective_points
from rewards.analysis.intervals import CONFIDENCE, Estimate, first_last, mean_estimate, share_estimate
from rewards.analysis.summary import end_windows
from rewards.counted import counted

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

TEXT_MEASURES = ("vocabulary", "diversity", "distinct_2", "self_bleu", "vendi", "within_prompt")
# Collapse: richness at the end below this share of that at the start, with intervals that do not meet.
COLLAPSED = 0.75
MOST_K = 16
CURVE = 12
CURVE_WINDOW = 2000
POWER = 0.8
FEWEST_POINTS = 8
# Rule of three: with none in n, 95 % of the time the rate is below 3 / n.
NONE_SEEN = 3.0


def section(data: RunData, rng: np.random.Generator | None = None) -> dict[str, Any]:
    """The whole section; each part says `why` where the record does not hold what it needs.

    Texts are read for the first and the last thousand sessions and for twelve windows of two hundred. rng chooses the
    samples for self-BLEU and Vendi score, with seed 0 by default.
    """
    generator = np.random.default_rng(0) if rng is None else rng
    groups = data.codes_of("group_id")
    found = behaviour_texts.ends(data, groups)
    if isinstance(found, str):
        nothing = first_last(*(Estimate(None, None, None, 0, why=found) for _ in range(2)))
        measured: dict[str, Any] = {name: dict(nothing) for name in TEXT_MEASURES} | {"by_category": {}}
    else:
        measured = behaviour_texts.compared(*found, generator)
        measured["by_category"] = behaviour_texts.by_category(*found, data.names)
    return measured | {
        "task_part": behaviour_texts.task_part(data),
        "repetition": behaviour_texts.repetition(data),
        "unsolicited": unsolicited(data),
        "entropy": entropy(data),
        "zero_variance": zero_variance(data, groups),
        "pass_at_k": passing(data, groups),
        "collapse": collapse(measured["vocabulary"], measured["diversity"]),
        "why": found if isinstance(found, str) else None,
    }


def collapse(vocabulary: Mapping[str, Any], diversity: Mapping[str, Any]) -> dict[str, Any]:
    """An alarm when rarefied vocabulary or distinct answers fell by more than a quarter, with intervals apart.

    alarm is null where neither could be measured with intervals.
    """
    fallen, told, missing = [], [], []
    for name, row in (("the vocabulary", vocabulary), ("the share of distinct answers", diversity)):
        first, last = row["first"], row["last"]
        low, high = row["first_interval"][0], row["last_interval"][1]
        if first is None or last is None or low is None or high is None:
            missing.append(f"{name}: {row['why']}")
            continue
        shown = (
            f"{name} went from {first:.3g} {_shown(row['first_interval'])} to {last:.3g} "
            f"{_shown(row['last_interval'])} ({100 * (last / first - 1):+.0f} %; {row['sample']} {row['drawn']}, "
            f"n {row['first_n']:,} and {row['last_n']:,} answers)"
        )
        told.append(shown)
        if high < low and last < COLLAPSED * first:
            fallen.append(shown)
    if not told:
        return {"alarm": None, "verdict": f"Nothing can be said about a collapse: {'; '.join(missing)}."}
    unknown = f" Not measured: {'; '.join(missing)}." if missing else ""
    if fallen:
        return {"alarm": True, "verdict": f"Diversity collapsed: {'; '.join(fallen)}.{unknown}"}
    limit = f"a fall of more than {100 * (1 - COLLAPSED):.0f} % with intervals apart"
    return {"alarm": False, "verdict": f"No collapse ({limit}) between the ends: {'; '.join(told)}.{unknown}"}


def _shown(interval: list[float]) -> str:
    return f"[{interval[0]:.3g}, {interval[1]:.3g}]"


def unsolicited(data: RunData) -> dict[str, Any]:
    """Share of sessions in which the component `unsolicited` found something, at both ends; `gold` beside it.

    upper_bound_if_zero: where none of the last n sessions has any, the rate may still be 3 / n.
    """
    found = _present(data, "unsolicited")
    return found | {"gold": _present(data, "unsolicited_gold")}


def _present(data: RunData, name: str) -> dict[str, Any]:
    windows = end_windows(data.sessions)
    why = None
    if name not in data.component_roles:
        why = f"no component is named `{name}`"
    elif windows is None:
        why = "fewer than two sessions"
    if why or windows is None:
        nothing = Estimate(None, None, None, 0, why=why)
        return first_last(nothing, nothing) | {"upper_bound_if_zero": None}
    raw = data.component(name)
    first, last = (_share_of_any(raw[window]) for window in windows)
    bound = min(1.0, NONE_SEEN / last.n) if last.n and last.value == 0 else None
    return first_last(first, last) | {"upper_bound_if_zero": bound}


def _share_of_any(raw: Floats) -> Estimate:
    return share_estimate(np.where(np.isfinite(raw), raw > 0, np.nan))


def entropy(data: RunData) -> dict[str, Any]:
    """Entropy per token along the run, and its slope per nat of KL over bins of whole steps.

    The slope's standard error is widened for residuals that depend on each other.
    Units: nats; slope in nats of entropy per nat of KL.
    """
    values, kl = data.column("entropy_nats"), data.column("kl_nats")
    row: dict[str, Any] = {"curve": [], "first": None, "last": None, "slope_per_nat": None}
    windows = end_windows(data.sessions)
    if windows is None or not np.isfinite(values).any():
        return row | {"why": "no entropies are on record"}
    bins = step_bins(data.steps)
    starts = np.array([found.start for found in bins])
    (entropies, counts), (distances, _) = (_bin_means(part, starts) for part in (values, kl))
    row["curve"] = [
        found.place() | {"entropy": float(mean), "kl_nats": float(at) if np.isfinite(at) else None, "n": int(n)}
        for found, mean, at, n in zip(bins, entropies, distances, counts, strict=True)
        if n
    ]
    row |= first_last(*(mean_estimate(values[window]) for window in windows))
    used = np.isfinite(entropies) & np.isfinite(distances)
    row["slope_per_nat"] = _slope(distances[used], entropies[used], counts[used])
    return row


def _bin_means(values: Floats, starts: Index) -> tuple[Floats, Floats]:
    finite = np.isfinite(values)
    counts = np.add.reduceat(finite.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts


def _slope(x: Floats, y: Floats, weights: Floats) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("estimate", "low", "high", "p", "mde")) | {"n": len(x)}
    if len(x) < FEWEST_POINTS:
        return row | {"why": f"{counted(len(x), 'bin')} of steps with entropy and KL: fewer than {FEWEST_POINTS}"}
    share = weights / weights.sum()
    centred = x - share @ x
    spread = float(weights @ centred**2)
    if spread <= 1e-12 * float(weights.sum()):
        return row | {"why": "the KL does not change"}
    slope = float((weights * centred) @ y / spread)
    residual = np.sqrt(weights) * (y - share @ y - slope * centred)
    df = len(x) - 2.0 if np.ptp(residual) == 0 else max(1.0, effective_points(residual, 2) - 2)
    error = float(np.sqrt(residual @ residual / df / spread))
    quantile = float(stdtrit(df, 0.5 + CONFIDENCE / 2))
    return row | {
        "estimate": slope,
        "low": slope - quantile * error,
        "high": slope + quantile * error,
        "p": float(2 * stdtr(df, -abs(slope) / error)) if error > 0 else None,
        "mde": (quantile + float(stdtrit(df, POWER))) * error,
        "why": None,
    }


def zero_variance(data: RunData, groups: Index) -> dict[str, Any]:
    """Share of groups whose rewards are all equal, at both ends and along the run: they give no gradient.

    The reward is the adjusted one, or the baseline where that is all there is. zero_advantage: share of all sessions,
    and of all response tokens, whose advantage is 0: compute that taught nothing.
    """
    row: dict[str, Any] = {"first": None, "last": None, "curve": [], "zero_advantage": _zero_advantage(data)}
    windows = end_windows(data.sessions)
    if windows is None:
        return row | {"why": "fewer than two sessions"}
    if not (groups >= 0).any():
        return row | {"why": "no groups are on record (`group_id`)"}
    adjusted = data.column("adjusted_reward")
    rewards = adjusted if np.isfinite(adjusted).any() else data.column("baseline_reward")
    size = max(1, min(CURVE_WINDOW, data.sessions // CURVE))
    for start in np.unique(np.linspace(0, data.sessions - size, CURVE).astype(np.int64)).tolist():
        flat = share_estimate(_flat_groups(rewards, groups, slice(start, start + size)))
        if flat.n:
            row["curve"].append({"first_session": start + 1, "last_session": start + size, **flat.as_dict()})
    row |= first_last(*(share_estimate(_flat_groups(rewards, groups, window)) for window in windows))
    return row | {"counts": "groups of at least two scored answers"}


def _zero_advantage(data: RunData) -> dict[str, Any]:
    advantage, tokens = data.column("advantage"), data.column("response_tokens")
    known = np.isfinite(advantage)
    n = int(known.sum())
    if n == 0:
        return {"share": None, "share_of_tokens": None, "n": 0, "why": "no advantages are on record"}
    idle = known & (advantage == 0)
    counted = known & np.isfinite(tokens)
    total = float(tokens[counted].sum())
    of_tokens = float(tokens[idle & counted].sum()) / total if total > 0 else None
    return {"share": float(idle.sum()) / n, "share_of_tokens": of_tokens, "n": n, "why": None}


def _flat_groups(rewards: Floats, groups: Index, window: slice) -> Floats:
    """1 for each group of the window whose rewards are all equal, else 0, in the order of first sessions."""
    values, codes = _numbered(rewards[window], groups[window])
    if len(values) == 0:
        return np.zeros(0)
    high, low = np.full(codes.max() + 1, -np.inf), np.full(codes.max() + 1, np.inf)
    np.maximum.at(high, codes, values)
    np.minimum.at(low, codes, values)
    flat: Floats = (high == low)[np.bincount(codes) >= 2].astype(np.float64)
    return flat


def _numbered(values: Floats, groups: Index) -> tuple[Floats, Index]:
    """Values of sessions with a group, and the group's number in the order of first sessions."""
    kept = np.isfinite(values) & (groups >= 0)
    _, first, codes = np.unique(groups[kept], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return values[kept], rank[codes.reshape(-1)]


def passing(data: RunData, groups: Index) -> dict[str, Any]:
    """Chance that one of k answers to a prompt is compliant, at both ends: mean over groups with at least k answers.

    Where pass@1 rises and pass@k does not, answers became surer rather than better.
    """
    windows = end_windows(data.sessions)
    compliant = data.column("compliant")
    if windows is None or not np.isfinite(compliant).any():
        return {"k": [], "why": "no compliance is on record"}
    if not (groups >= 0).any():
        return {"k": [], "why": "no groups are on record (`group_id`)"}
    counted = []
    for window in windows:
        values, codes = _numbered(compliant[window], groups[window])
        counted.append((np.bincount(codes), np.bincount(codes, weights=values).astype(np.int64)))
    largest = min((int(n.max()) if len(n) else 0) for n, _ in counted)
    rows = []
    k = 1
    while k <= min(largest, MOST_K):
        ends = [mean_estimate(pass_at_k(n, right, k), (0.0, 1.0)) for n, right in counted]
        rows.append({"k": k, **first_last(*ends), "counts": "groups"})
        k *= 2
    return {"k": rows, "why": None if rows else "no group with judged answers at one of the ends"}
