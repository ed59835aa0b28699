"""Does the reward pay for length: partial correlation given gold, and a win rate at equal length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri, stdtr, stdtrit

from rewards.analysis.convergence import step_bins
from rewards.analysis.data import RunData
from rewards.analysis.gold import NO_GOLD, Gold, golds
from rewards.analysis.intervals import CONFIDENCE
from rewards.analysis.proxy_gold import FEWEST_UNITS, Pairs, matched_pairs
from rewards.counted import counted

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

# A longer run is read at evenly spaced steps, whole ones.
MOST_SESSIONS = 400_000
MOST_PAIRS = 50_000
FEWEST_STEPS = 10
POWER = 0.8
# Coefficients beyond this say that lengths separate wins from losses, so nothing is left to estimate.
SEPARATED = 15.0


def partial_correlation(
    x: Floats, y: Floats, cells: Index, clusters: Index, given: Sequence[Floats] = ()
) -> dict[str, Any]:
    """Correlation of x and y inside cells, with further variables held fixed, and its interval.

    All variables lose the mean of their cell, then x and y their least-squares part in `given`. The interval is that of
    Fisher's z with a standard error from the sums of influence per cluster, as answers of one step resemble each other.
    Shapes: one value an observation; cells: number of the cell (category and bin of steps); clusters: number of the
    step, ascending. Returns estimate, low, high, n, clusters, p, mde and why.
    """
    used = np.isfinite(x) & np.isfinite(y)
    for values in given:
        used &= np.isfinite(values)
    n, groups = int(used.sum()), len(np.unique(clusters[used]))
    row: dict[str, Any] = dict.fromkeys(("estimate", "low", "high", "p", "mde")) | {"n": n, "clusters": groups}
    if groups < FEWEST_STEPS:
        return row | {
            "why": f"sessions with all of the values come from {counted(groups, 'step')}: fewer than {FEWEST_STEPS}"
        }
    cells, clusters = cells[used], clusters[used]
    a, b, *held = (_centred(values[used], cells) for values in (x, y, *given))
    held = [values for values in held if float(values @ values) > 1e-12 * n]
    if held:
        basis = np.linalg.svd(np.stack(held, axis=1), full_matrices=False)[0]
        a, b = (values - basis @ (basis.T @ values) for values in (a, b))
    scales = [float(np.sqrt(values @ values / n)) for values in (a, b)]
    if min(scales) < 1e-9:
        return row | {"why": "the reward or the length does not vary inside categories and bins of steps"}
    a, b = a / scales[0], b / scales[1]
    r = float(a @ b / n)
    if abs(r) > 1 - 1e-9:
        return row | {"estimate": r, "why": "reward and length are one and the same: no interval"}
    influence = a * b - r * (a * a + b * b) / 2
    starts = np.flatnonzero(np.r_[True, clusters[1:] != clusters[:-1]])
    sums = np.add.reduceat(influence, starts)
    error = float(np.sqrt((sums**2).sum() * groups / (groups - 1))) / n / (1 - r * r)
    z, df = float(np.arctanh(r)), groups - 1
    quantile = float(stdtrit(df, 0.5 + CONFIDENCE / 2))
    return row | {
        "estimate": r,
        "low": float(np.tanh(z - quantile * error)),
        "high": float(np.tanh(z + quantile * error)),
        "p": float(2 * stdtr(df, -abs(z) / error)),
        "mde": float(np.tanh((quantile + float(stdtrit(df, POWER))) * error)),
        "why": None,
    }


def controlled_win_rate(wins: Floats, extra_length: Floats, unit: Index) -> dict[str, Any]:
    """Share of pairs that the later answer wins, as counted and at equal length.

    logit P(win) = a + b tanh(extra length / its sd); the controlled rate is sigma(a), its interval from a sandwich over
    units of pairs that share a prompt and a step.
    Shapes: one value a pair; wins: 1, 0, or .5 for a tie. Source: Dubois et al. 2024, section 3, with the identity of
    the model and the length only. Departures: ties count as half a win.
    """
    n, units = len(wins), len(np.unique(unit))
    row: dict[str, Any] = dict.fromkeys(("raw", "estimate", "low", "high", "p", "mde")) | {"n": n, "units": units}
    if units < FEWEST_UNITS:
        return row | {"why": f"{units} comparable units of prompt and step: fewer than {FEWEST_UNITS}"}
    row["raw"] = float(wins.mean())
    if row["raw"] in (0.0, 1.0):
        return row | {"why": "one side wins every pair: no model of the length"}
    spread = float(extra_length.std())
    design = np.stack([np.ones(n), np.tanh(extra_length / spread) if spread > 0 else np.zeros(n)], axis=1)
    design = design if spread > 0 else design[:, :1]
    values = np.zeros(design.shape[1])
    for _ in range(50):
        p = expit(design @ values)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * n * np.eye(design.shape[1])
        step = np.linalg.solve(hessian, design.T @ (wins - p))
        values = values + np.clip(step, -2.0, 2.0)
        if np.abs(values).max() > SEPARATED:
            return row | {"why": "the length alone decides every pair: no rate at equal length"}
        if np.abs(step).max() < 1e-10:
            break
    scores = design * (wins - expit(design @ values))[:, None]
    sums = np.stack([np.bincount(unit, weights=column) for column in scores.T], axis=1)
    inverse = np.linalg.inv(hessian)
    error = float(np.sqrt((inverse @ (sums.T @ sums) @ inverse)[0, 0] * units / (units - 1)))
    quantile = float(ndtri(0.5 + CONFIDENCE / 2))
    a = float(values[0])
    return row | {
        "estimate": float(expit(a)),
        "low": float(expit(a - quantile * error)),
        "high": float(expit(a + quantile * error)),
        "p": float(2 * stdtr(units - 1, -abs(a) / error)) if error > 0 else None,
        "mde": float(expit((quantile + float(ndtri(POWER))) * error) - 0.5),
        "why": None,
    }


def section(data: RunData, found: Sequence[Gold] | None = None, prompts: Index | None = None) -> dict[str, Any]:
    """Correlation of the baseline reward with the response's length, given gold, and the win rate at equal length.

    correlation: inside categories and bins of steps, so that a common trend is none; partial_correlation: with the gold
    components held fixed too: what of it better answers do not explain. win_rate: answers of the last quarter against
    those of the first, by the first gold component or, without one, by the baseline reward.
    """
    gold = golds(data) if found is None else list(found)
    reward, length = data.column("baseline_reward"), data.column("response_tokens")
    nothing = {"partial_correlation": None, "correlation": None, "win_rate": None, "verdict": None}
    if not np.isfinite(length).any():
        return nothing | {"why": "no response lengths are on record"}
    if not np.isfinite(reward).any():
        return nothing | {"why": "no baseline rewards are on record"}
    taken, cells = _taken(data)
    part = reward[taken], length[taken], cells, data.steps[taken]
    plain = partial_correlation(*part)
    partial = partial_correlation(*part, [component.values[taken] for component in gold]) if gold else None
    judge, values = (gold[0].name, gold[0].values) if gold else ("baseline_reward", reward)
    win = _win_rate(data, judge, values, length, data.codes_of("prompt_id") if prompts is None else prompts)
    return {
        "partial_correlation": partial,
        "correlation": plain,
        "given": [component.name for component in gold],
        "win_rate": win,
        "verdict": _verdict(plain, partial),
        "why": None if gold else f"{NO_GOLD}; the correlation is not controlled for quality",
    }


def _taken(data: RunData) -> tuple[Index, Index]:
    """Indices of the sessions that are read, whole steps, and the cell (category and bin) of each."""
    bins = np.zeros(data.sessions, dtype=np.int64)
    for number, found in enumerate(step_bins(data.steps)):
        bins[found.start : found.stop] = number
    every = -(-data.sessions // MOST_SESSIONS)
    rank = np.cumsum(np.r_[0, np.diff(data.steps) > 0])
    taken = np.flatnonzero(rank % every == 0)
    return taken, bins[taken] * (len(data.names) + 1) + data.codes[taken] + 1


def _centred(values: Floats, cells: Index) -> Floats:
    # Against the largest value first: sums of many equal numbers would leave rounding where there is no spread.
    shifted = values - values.mean()
    counts = np.maximum(np.bincount(cells), 1)
    centred: Floats = shifted - (np.bincount(cells, weights=shifted) / counts)[cells]
    return centred


def _win_rate(data: RunData, judge: str, judged: Floats, length: Floats, prompts: Index) -> dict[str, Any]:
    quarter = data.sessions // 4
    both = np.isfinite(judged) & np.isfinite(length)
    old, new = np.flatnonzero(both[:quarter])[:MOST_PAIRS], np.flatnonzero(both)
    new = new[new >= data.sessions - quarter][-MOST_PAIRS:]
    pairs, paired_by = matched_pairs(old, new, prompts, data.steps), "prompt"
    if len(np.unique(pairs.unit)) < FEWEST_UNITS:
        pairs, paired_by = matched_pairs(old, new, data.codes.astype(np.int64) + 1, data.steps), "category"
    found = _judge(judged, length, pairs) | {"paired_by": paired_by, "judge": judge}
    return found | {"verdict": _win_verdict(found)}


def _judge(judged: Floats, length: Floats, pairs: Pairs) -> dict[str, Any]:
    wins = (np.sign(judged[pairs.new] - judged[pairs.old]) + 1) / 2
    return controlled_win_rate(wins, length[pairs.new] - length[pairs.old], pairs.unit)


def _verdict(plain: dict[str, Any], partial: dict[str, Any] | None) -> str:
    name = "Given gold, the" if partial is not None else "The"
    found = plain if partial is None else partial
    if found["low"] is None:
        return f"Nothing can be said about length: {found['why']}."
    said = f"correlation of reward and length is {found['estimate']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
    where = f"n {found['n']:,}, smallest detectable {found['mde']:.2f}"
    if found["low"] <= 0 <= found["high"]:
        return f"{name} {said}: none is shown ({where})."
    pays = "longer" if found["estimate"] > 0 else "shorter"
    return f"{name} {said}: the reward pays for {pays} answers ({where})."


def _win_verdict(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return f"No win rate at equal length: {found['why']}."
    return (
        f"By `{found['judge']}` late answers win {100 * found['estimate']:.0f} % "
        f"[{100 * found['low']:.0f}, {100 * found['high']:.0f}] of pairs with early ones at equal length, "
        f"{100 * found['raw']:.0f} % as counted ({counted(found['n'], 'pair')} by {found['paired_by']}, ties half)."
    )
