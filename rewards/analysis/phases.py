"""Phases of a run's baseline reward in mean and variance, with what could have manufactured or hidden them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from rewards.analysis.boundaries import Span, boundary_spans
from rewards.analysis.data import RunData
from rewards.analysis.intervals import CONFIDENCE
from rewards.analysis.phase_series import Series, long_mean, midpoint, ratio_reached, reweighted_blocks
from rewards.analysis.recalibrations import last_session_before, of_kind
from rewards.analysis.segmentation import LEAST_BLOCKS, Blocks, Shape, phase_penalty, shape_of, spread_noise

Floats = NDArray[np.float64]
Data = dict[str, Any]

OUTCOME = "baseline_reward"
POWER = 0.8
# Boundaries this many blocks apart may be the same one.
SAME_BLOCKS = 8
# A value that this share of a phase's sessions sit on exactly is taken for a possible cap.
CAPPED = 0.05
# With no more values than this, a share on the outermost one is a property of the scale.
FEW_VALUES = 10
# Times the variance of a block mean may exceed that of independent sessions before it is worth a warning.
INFLATED = 1.5


def section(data: RunData) -> Data:
    """Phases of the baseline reward of a run; `why` says what is missing where there are none.

    Boundaries: session is the first of the new phase, low and high the 95 % interval of it, null where the boundary's
    own `why` says so.
    """
    found: Data = {"outcome": OUTCOME, "block_sessions": None, "blocks": 0, "shape": None, "phases": []}
    found |= {"boundaries": [], "known_breaks": known_breaks(data), "by_category": [], "reweighted": None}
    found |= {"high_to_low": None, "mde": None, "warnings": [], "verdict": None}
    series = Series.of(data, OUTCOME)
    blocks, why = series.blocks()
    if blocks is None:
        return found | {"why": why}
    shape = shape_of(blocks)
    found |= {"block_sessions": round(len(series.values) / len(blocks)), "blocks": len(blocks), "shape": shape.kind}
    found["boundaries"] = _boundaries(series, blocks, shape, found["known_breaks"])
    found["phases"] = _phases(data.sessions, series, blocks, shape)
    found["by_category"] = [_category(data, code) for code in range(len(data.names))]
    found["reweighted"] = _reweighted(data, series, blocks, shape, found["boundaries"])
    found["high_to_low"] = _high_to_low(series)
    found["mde"] = smallest_shift(blocks, shape)
    found["warnings"] = list(_warnings(data, series, blocks, found))
    return found | {"verdict": _verdict(found), "why": None}


def known_breaks(data: RunData) -> list[Data]:
    """Recalibrations and changes of mixture: listed, never used to place a boundary.

    session: the last one that the change could not yet touch; null where its event names no step.
    """
    rows = []
    for event in of_kind(data.events, "recalibration", "mixture_changed"):
        payload = event["payload"]
        what = "recalibration" if event["kind"] == "recalibration" else "change of mixture"
        what += f" of {payload['category']}" if payload.get("category") else ""
        if payload.get("old_pct") is not None and payload.get("new_pct") is not None:
            what += f" from {payload['old_pct']:g} to {payload['new_pct']:g} %"
        rows.append({"session": last_session_before(event, data.steps), "step": event.get("step"), "what": what})
    return sorted(rows, key=lambda row: -1 if row["session"] is None else row["session"])


def smallest_shift(blocks: Blocks, shape: Shape) -> Data:
    """The smallest steps, half-way through the longest phase, that are found in four runs of five.

    A step in the mean of d standard deviations of a block gains L log(1 + d^2 / 4) on average, one in the log variance
    L d^2 / 4; either must exceed what a phase costs less 6, which noise in the other track and the search for the place
    add.
    inflation: the variance of a block's level over that of independent sessions.
    Units: mean_shift: those of the outcome (log-odds for two values); sd_ratio: later over earlier, of a narrowing.
    """
    edges = np.unique([0, *shape.cuts, len(blocks)])
    longest = int(np.argmax(np.diff(edges)))
    part, length = slice(edges[longest], edges[longest + 1]), int(np.diff(edges)[longest])
    found: Data = {"mean_shift": None, "sd_ratio": None, "n": int(blocks.n[part].sum()), "blocks": length}
    found |= {"power": POWER, "inflation": None, "log_odds": blocks.spread is None, "why": None}
    if length < 2 * LEAST_BLOCKS:
        return found | {"why": f"the longest phase has {length} blocks and cannot be divided"}
    # Differences of neighbours: a ramp inside the phase is no noise, nor is a first block that the step runs through.
    noise = float(np.sqrt((np.diff(blocks.level[part][1:]) ** 2).mean() / 2))
    found["inflation"] = noise**2 / float(blocks.noise[part].mean())
    gain = (float(np.sqrt(phase_penalty(len(blocks)) - 6)) + float(ndtri(POWER))) ** 2 / length
    found["mean_shift"] = 2 * float(np.sqrt(np.expm1(gain))) * noise
    if blocks.spread is not None:
        found["sd_ratio"] = float(np.exp(-np.sqrt(gain) * spread_noise(blocks.spread)))
    return found


def _boundaries(series: Series, blocks: Blocks, shape: Shape, breaks: Sequence[Data]) -> list[Data]:
    kinds = ("ramp_start", "ramp_end") if shape.kind == "ramp" else ("step",) * len(shape.cuts)
    rows, last = [], len(blocks)
    for cut, kind, span in zip(shape.cuts, kinds, boundary_spans(blocks, shape), strict=True):
        at = min(int(blocks.edges[cut]), len(series.values) - 1)
        low = series.sessions[blocks.edges[max(cut - 1, 0)]] - 1
        high = series.sessions[blocks.edges[min(cut + 1, last)] - 1]
        near = [row["what"] for row in breaks if row["session"] is not None and low <= row["session"] <= high]
        rows.append({"session": int(series.sessions[at]), "step": int(series.steps[at]), "kind": kind})
        rows[-1] |= {"near_event": "; ".join(near) or None, **_sessions(series, blocks, span)}
    return rows


def _sessions(series: Series, blocks: Blocks, span: Span) -> Data:
    """An interval of block edges as sessions."""
    if span.low is None or span.high is None:
        return {"low": None, "high": None, "why": span.why}
    low, high = (min(int(blocks.edges[edge]), len(series.values) - 1) for edge in (span.low, span.high))
    return {"low": int(series.sessions[low]), "high": int(series.sessions[high]), "why": None}


def _phases(sessions: int, series: Series, blocks: Blocks, shape: Shape) -> list[Data]:
    cuts = [0, *(cut for cut in shape.cuts if 0 < cut < len(blocks)), len(blocks)]
    spreads = [_log_sd(blocks, slice(start, stop)) for start, stop in itertools.pairwise(cuts)]
    rows: list[Data] = []
    for i, (start, stop) in enumerate(itertools.pairwise(cuts)):
        values = series.values[blocks.edges[start] : blocks.edges[stop]]
        first = 1 if i == 0 else int(series.sessions[blocks.edges[start]])
        last = sessions if stop == len(blocks) else int(series.sessions[blocks.edges[stop]]) - 1
        ramp = shape.kind == "ramp" and (start, stop) == shape.cuts
        row: Data = {"first_session": first, "last_session": last, "kind": "ramp" if ramp else "level"}
        row |= {"mean": long_mean(values).as_dict(), "sd": float(values.std(ddof=1)), "n": len(values)}
        row |= _ratio(spreads[i], spreads[0]) if i else {"sd_ratio_to_first": 1.0, "sd_ratio_interval": [None, None]}
        rows.append(row)
    return rows


def _log_sd(blocks: Blocks, part: slice) -> tuple[float | None, float | None]:
    """Log of the sd of a phase, None where there is no spread, and its variance by leaving out one block at a time."""
    n, mean = blocks.n[part], blocks.mean[part] - blocks.mean[part].mean()
    sums = np.array([n, n * mean, (n - 1) * blocks.variance[part] + n * mean**2])
    whole, count = sums.sum(axis=1, keepdims=True), len(n)
    left = np.c_[whole, whole - sums] if count > 1 else whole
    variance = (left[2] - left[1] ** 2 / left[0]) / (left[0] - 1)
    none = 1e-12 * float(blocks.variance.max())
    if variance[0] <= none:
        return None, None
    log = float(np.log(variance[0])) / 2
    if count < 2 or np.any(variance <= none):
        return log, None
    logs = np.log(variance[1:]) / 2
    return log, float((count - 1) / count * ((logs - logs.mean()) ** 2).sum())


def _ratio(later: tuple[float | None, float | None], first: tuple[float | None, float | None]) -> Data:
    none: Data = {"sd_ratio_to_first": None, "sd_ratio_interval": [None, None]}
    if first[0] is None:
        return none
    if later[0] is None:
        return none | {"sd_ratio_to_first": 0.0}
    difference = later[0] - first[0]
    none["sd_ratio_to_first"] = float(np.exp(difference))
    if later[1] is None or first[1] is None:
        return none
    half = float(ndtri(0.5 + CONFIDENCE / 2)) * float(np.sqrt(later[1] + first[1]))
    return none | {"sd_ratio_interval": [float(np.exp(difference + sign * half)) for sign in (-1, 1)]}


def _category(data: RunData, code: int) -> Data:
    series = Series.of(data, OUTCOME, code)
    row: Data = {"category": data.names[code], "n": len(series.values), "shape": None, "boundaries": []}
    blocks, why = series.blocks()
    if blocks is None:
        return row | {"why": why}
    shape = shape_of(blocks)
    return row | {"shape": shape.kind, "boundaries": _boundaries(series, blocks, shape, []), "why": None}


def _reweighted(data: RunData, series: Series, blocks: Blocks, shape: Shape, was: Sequence[Data]) -> Data:
    found: Data = {"shape": None, "boundaries": [], "mixture_only": [], "left_out": [], "verdict": None}
    if len(data.names) < 2:
        return found | {"why": "fewer than two categories: there is no mixture that could have changed"}
    steady, found["left_out"] = reweighted_blocks(data, series, blocks)
    if steady is None:
        return found | {"why": "no category takes part in the whole run"}
    held = shape_of(steady)
    found |= {"shape": held.kind, "boundaries": _boundaries(series, steady, held, []), "why": None}
    gone = [cut for cut in shape.cuts if all(abs(cut - other) > SAME_BLOCKS for other in held.cuts)]
    if held.kind in ("none", shape.kind):
        found["mixture_only"] = [row["session"] for cut, row in zip(shape.cuts, was, strict=True) if cut in gone]
    return found | {"verdict": _mixture_verdict(shape, held, found)}


def _mixture_verdict(shape: Shape, held: Shape, found: Data) -> str:
    if not shape.cuts:
        if not held.cuts:
            return "No phases, with or without the mixture of categories held at its share of the run."
        return "Phases show only once the mixture of categories is held steady."
    if found["mixture_only"]:
        places = ", ".join(f"{session:,}" for session in found["mixture_only"])
        return (
            f"With every category at its share of the run no change is found near session {places}: "
            "the mixture of categories is a sufficient account of it."
        )
    if held.kind != shape.kind:
        places = " and ".join(f"{row['session']:,}" for row in found["boundaries"])
        kind = "a gradual change, its ends at" if held.kind == "ramp" else "steps at"
        whole = "With every category at its share of the run there is a change too"
        return f"{whole}, but it reads as {kind} session {places}."
    return "The boundaries stay where they are with every category at its share of the run."


def _high_to_low(series: Series) -> Data:
    found = ratio_reached(series.values, midpoint(series.values))
    for row in found["reached"]:
        if row["session"] is not None:
            row["session"] = int(series.sessions[row["session"] - 1])
    return found


def _warnings(data: RunData, series: Series, blocks: Blocks, found: Data) -> Iterator[str]:
    if blocks.spread is None:
        yield (
            "The rewards take two values: the log-odds of blocks are divided, and their variance is no "
            "finding of its own, for the mean fixes it."
        )
    if blocks.flat:
        yield (
            f"{blocks.flat} of {len(blocks)} blocks have no spread at all; each counts as having the smallest "
            "spread seen in another block."
        )
    yield from _caps(data, series, found["phases"])
    inflation = found["mde"]["inflation"]
    if inflation is not None and inflation > INFLATED:
        unit = " in log-odds" if found["mde"]["log_odds"] else ""
        yield (
            f"Block means vary {inflation:.1f} times as much as means of independent sessions would: steps of the mean "
            f"alone below {found['mde']['mean_shift']:.3g}{unit} in the longest phase are likely to be missed "
            f"(n {found['mde']['n']:,})."
        )


def _caps(data: RunData, series: Series, phases: Sequence[Data]) -> Iterator[str]:
    if len(np.unique(series.values[:: max(1, len(series.values) // 10_000)])) > FEW_VALUES:
        for name, cap in (("highest", series.values.max()), ("lowest", series.values.min())):
            for phase in phases:
                low, high = np.searchsorted(series.sessions, [phase["first_session"], phase["last_session"] + 1])
                share = float((series.values[low:high] == cap).mean())
                if share >= CAPPED:
                    yield (
                        f"{100 * share:.0f} % of sessions {phase['first_session']:,} to {phase['last_session']:,} "
                        f"sit exactly on the {name} reward, {cap:.4g}: a cap narrows the spread by itself "
                        f"(n {high - low:,})."
                    )
    for name, role in data.component_roles.items():
        if role != "optimised":
            continue
        raw, value = data.component(name, "raw"), data.component(name, "value")
        both = np.isfinite(raw) & np.isfinite(value)
        share = float((raw[both] != value[both]).mean()) if both.any() else 0.0
        if share >= CAPPED:
            yield (
                f"{100 * share:.0f} % of the values of component {name} were clipped to its scale: a cap narrows the "
                f"spread by itself (n {int(both.sum()):,})."
            )


def _verdict(found: Data) -> str:
    size = f"blocks of about {found['block_sessions']} sessions, n {sum(row['n'] for row in found['phases']):,}"
    if found["shape"] == "none":
        return f"No change of mean or spread was found ({size})."
    size += "; places with 95 % intervals"
    places = [_place(row) for row in found["boundaries"]]
    last = found["phases"][-1]
    end = (
        f"the last phase has {last['sd_ratio_to_first']:.2f} times the spread of the first"
        if (last["sd_ratio_to_first"] is not None)
        else "the first phase has no spread"
    )
    if found["shape"] == "ramp":
        return f"One gradual change from session {places[0]} to {places[1]}; {end} ({size})."
    steps = f"a step at session {places[0]}" if len(places) == 1 else f"steps at sessions {', '.join(places)}"
    return f"{len(found['phases'])} phases, {steps}; {end} ({size})."


def _place(boundary: Data) -> str:
    """The session of a boundary and its interval, or that it has none."""
    if boundary["low"] is None:
        return f"{boundary['session']:,} (no interval: {boundary['why']})"
    return f"{boundary['session']:,} ({boundary['low']:,} to {boundary['high']:,})"
