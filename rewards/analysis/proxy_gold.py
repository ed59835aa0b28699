"""The proxy rises while the gold falls: paired comparisons between parts of a run, with an e-value that allows all."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from rewards.analysis import eprocess
from rewards.analysis.data import RunData
from rewards.analysis.gold import NO_GOLD, Gold, golds, scorer_versions
from rewards.analysis.intervals import CONFIDENCE, mean_estimate
from rewards.counted import counted

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

ALARM = 20.0
PARTS = 4
# (from, to) among the quarters of a run: each against the next, because gold may rise before it falls, and the ends.
COMPARED = ((0, 1), (1, 2), (2, 3), (0, 3))
# A part of a long run is cut to this many sessions at its outer end.
LONGEST = 250_000
FEWEST_UNITS = 20


class Pairs(NamedTuple):
    """Sessions of two windows matched one to one. Shapes: old, new: indices; unit: number of the unit of each pair."""

    old: Index
    new: Index
    unit: Index


def matched_pairs(old: Index, new: Index, keys: Index, steps: NDArray[np.int64]) -> Pairs:
    """The k-th session with a key in the old window with the k-th of the new one; no session is used twice.

    Pairs of one key whose new session is of one step are one unit: they share their prompt and their policy, so a test
    sees their mean. Units are numbered in the order of their steps.
    Shapes: old, new: indices of the sessions of each window, ascending; keys, steps: one a session of the run; a
    session with a key below 0 is left out.
    """
    old, new = old[keys[old] >= 0], new[keys[new] >= 0]
    names = [_ranked(keys[part]) for part in (old, new)]
    _, at_old, at_new = np.intersect1d(names[0], names[1], assume_unique=True, return_indices=True)
    old, new = old[at_old], new[at_new]
    order = np.argsort(new, kind="stable")
    old, new = old[order], new[order]
    if len(new) == 0:
        return Pairs(old, new, new)
    span = int(keys[new].max()) + 1
    _, unit = np.unique((steps[new] - steps[new[0]]) * span + keys[new], return_inverse=True)
    return Pairs(old, new, unit.reshape(-1))


def _ranked(keys: Index) -> Index:
    """A number for (key, how many sessions with that key came before)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]] if len(keys) else np.zeros(0, dtype=bool)
    rank = np.arange(len(keys)) - np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))
    named = np.empty(len(keys), dtype=np.int64)
    named[order] = ordered * (1 << 32) + rank
    return named


def unit_means(values: Floats, pairs: Pairs) -> Floats:
    """Mean of new - old per unit, in the order of the units."""
    difference = values[pairs.new] - values[pairs.old]
    counts = np.bincount(pairs.unit)
    return np.asarray(np.bincount(pairs.unit, weights=difference) / counts, dtype=np.float64)


def section(data: RunData, found: Sequence[Gold] | None = None, prompts: Index | None = None) -> dict[str, Any]:
    """Whether a proxy rose between two parts of the run while its gold component fell.

    e_value: against "gold did not fall between the two parts": the largest E of the paired e-process, divided by the
    number of comparisons, so that 20 means a false alarm in at most 5 % of runs. The alarm also needs the interval of
    the proxy's change above 0. proxy_change, gold_change: of the comparison that speaks most for an alarm; `compared`
    holds all. Units: of each component, turned so that higher is better.
    Departures: a component outside 0..1 is divided by the range seen in the run, which a bet could not know before.
    """
    nothing: dict[str, Any] = dict.fromkeys(("component", "proxy", "proxy_change", "gold_change", "e_value", "alarm"))
    nothing |= {"compared": [], "verdict": None}
    gold = golds(data) if found is None else list(found)
    if not gold:
        return nothing | {"why": NO_GOLD}
    if data.sessions < 2 * PARTS:
        return nothing | {"why": f"only {counted(data.sessions, 'session')}: too few to compare parts of the run"}
    windows = _windows(data.sessions)
    keys, paired_by, pairs = _pairing(data, gold[0], windows, prompts)
    tests = len(gold) * len(COMPARED)
    compared = []
    for component in gold:
        if component is not gold[0]:
            pairs = _all_pairs(data, component, windows, keys)
        compared += [_comparison(data, component, (windows[a], windows[b]), pairs[(a, b)], tests) for a, b in COMPARED]
    measured = [row for row in compared if row["why"] is None]
    if not measured:
        return nothing | {"compared": compared, "why": compared[-1]["why"]}
    worst = max(measured, key=lambda row: (row["alarm"], row["proxy_rose"], row["e_value"]))
    kept = ("component", "proxy", "direction", "proxy_change", "gold_change", "e_value", "alarm")
    return {
        **{name: worst[name] for name in kept},
        "threshold": ALARM,
        "paired_by": paired_by,
        "compared": compared,
        "verdict": _verdict(worst, paired_by),
        "why": None,
    }


def _windows(sessions: int) -> list[tuple[int, int]]:
    edges = [sessions * part // PARTS for part in range(PARTS + 1)]
    windows = [(max(start, stop - LONGEST), stop) for start, stop in itertools.pairwise(edges)]
    windows[0] = (0, min(edges[1], LONGEST))
    return windows


def _pairing(
    data: RunData, gold: Gold, windows: Sequence[tuple[int, int]], prompts: Index | None
) -> tuple[Index, str, dict[tuple[int, int], Pairs]]:
    """By prompt where prompts come again, else by category."""
    keys = data.codes_of("prompt_id") if prompts is None else prompts
    pairs = _all_pairs(data, gold, windows, keys)
    if min(_units(found) for found in pairs.values()) >= FEWEST_UNITS:
        return keys, "prompt", pairs
    keys = data.codes.astype(np.int64) + 1
    return keys, "category", _all_pairs(data, gold, windows, keys)


def _all_pairs(
    data: RunData, gold: Gold, windows: Sequence[tuple[int, int]], keys: Index
) -> dict[tuple[int, int], Pairs]:
    both = [
        start + np.flatnonzero(np.isfinite(gold.values[start:stop]) & np.isfinite(gold.proxy_values[start:stop]))
        for start, stop in windows
    ]
    return {(a, b): matched_pairs(both[a], both[b], keys, data.steps) for a, b in COMPARED}


def _units(pairs: Pairs) -> int:
    return int(pairs.unit.max()) + 1 if len(pairs.unit) else 0


def _comparison(
    data: RunData, gold: Gold, windows: tuple[tuple[int, int], tuple[int, int]], pairs: Pairs, tests: int
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "component": gold.name,
        "proxy": gold.proxy,
        "direction": gold.direction,
        "sessions": [[start + 1, stop] for start, stop in windows],
        "pairs": len(pairs.new),
        **dict.fromkeys(("proxy_change", "gold_change", "e_value")),
        "proxy_rose": False,
        "alarm": False,
    }
    starts = [start for start, _ in scorer_versions(data, [gold.name, gold.proxy])[1:]]
    if any(windows[0][0] < start < windows[1][1] for start in starts):
        return row | {"why": "a scorer changed between the two parts: its change is no change of the answers"}
    if _units(pairs) < FEWEST_UNITS:
        return row | {"why": f"{_units(pairs)} comparable units of prompt and step: fewer than {FEWEST_UNITS}"}
    proxy, change = unit_means(gold.proxy_values, pairs), unit_means(gold.values, pairs)
    process = eprocess.run(np.clip(change / _width(gold.values), -1.0, 1.0), ALARM * tests)
    row |= {"proxy_change": _change(proxy), "gold_change": _change(change), "e_value": process["max_e"] / tests}
    low = row["proxy_change"]["low"]
    row["proxy_rose"] = low is not None and low > 0
    return row | {"alarm": row["proxy_rose"] and row["e_value"] >= ALARM, "why": None}


def _width(values: Floats) -> float:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return 1.0 if max(abs(low), abs(high)) <= 1 and low * high >= 0 else (high - low) or 1.0


def _change(values: Floats) -> dict[str, Any]:
    found = mean_estimate(values)
    z = float(ndtri(0.5 + CONFIDENCE / 2))
    half = None if found.low is None or found.high is None else (found.high - found.low) / 2
    return {
        "estimate": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "mde": None if half is None else half * (z + float(ndtri(0.8))) / z,
        "why": found.why,
    }


def _verdict(row: dict[str, Any], paired_by: str) -> str:
    proxy, gold = row["proxy_change"], row["gold_change"]
    (first, until), (since, last) = row["sessions"]
    where = f"sessions {first:,}-{until:,} against {since:,}-{last:,}, n {gold['n']:,} units paired by {paired_by}"
    said = f"`{row['proxy']}` changed by {proxy['estimate']:+.3f} and gold `{row['component']}` by " + (
        f"{gold['estimate']:+.3f} ({where}; {row['direction']}; e-value {row['e_value']:.3g}, alarm at {ALARM:g})"
    )
    if row["alarm"]:
        return f"The proxy rose while gold fell: {said}."
    if gold["mde"] is None:
        return f"No alarm: {said}."
    return f"No alarm: {said}; a fall of gold below about {gold['mde']:.3f} could not have been found."
