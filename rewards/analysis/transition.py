"""Whether an outcome changed too fast: the largest change between neighbouring windows as part of the whole one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from rewards.analysis.data import RunData
from rewards.analysis.intervals import CONFIDENCE, effective_sample_size
from rewards.counted import counted

Floats = NDArray[np.float64]
Data = dict[str, Any]

WINDOW = 500
# A window is at most this part of the run: half of the change within it must be fast for a run that changes evenly.
LEAST_WINDOWS = 10
LEAST_WINDOW = 40
ALARM = 0.5
# What noise cannot account for must exceed this: a change spread evenly over four windows has a true fraction of .25.
CERTAIN = 0.3
POWER = 0.8
# Places at which the windows meet, per window.
PLACES = 50


def section(data: RunData) -> list[Data]:
    """The test for the baseline reward, compliance and every component, each with its verdict or why there is none."""
    outcomes = [("baseline_reward", "baseline_reward"), ("compliant", "compliance")]
    rows = [transition(data.column(column)) | {"outcome": name} for column, name in outcomes]
    rows += [transition(data.component(name)) | {"outcome": f"component {name}"} for name in data.component_roles]
    return [{"outcome": row["outcome"], **row, "verdict": _verdict(row)} for row in rows]


def transition(values: Floats, window: int = WINDOW) -> Data:
    """F = max |m(t + W) - m(t)| / |whole change|, m(t) being the mean of the W values before t.

    The whole change is that from the first W values to the last W. With one below its smallest detectable value F is
    null: it would divide noise by noise. fraction_interval allows for the noise of the largest of many differences.
    alarm: F above a half and the interval above .3 (true), F at most a half (false), or a large F that noise may have
    made (null).
    at_session: the first session of the later of the two windows, numbered from 1.
    Shapes: values: one a session, in order; NaN is left out, and W counts what is left.
    """
    found: Data = {"window": None, "fraction": None, "fraction_interval": [None, None], "at_session": None}
    found |= {"total_change": None, "total_change_interval": [None, None], "mde": None, "alarm": None}
    places = np.flatnonzero(np.isfinite(values))
    n = len(places)
    width = min(window, n // LEAST_WINDOWS)
    found |= {"n": n, "why": None}
    if width < LEAST_WINDOW:
        return found | {"why": f"{counted(n, 'session')} with a value: {LEAST_WINDOWS * LEAST_WINDOW} are needed"}
    kept = values[places]
    first, last = kept[:width], kept[-width:]
    spread = float(np.ptp(kept))
    errors = [_error(part, spread) for part in (first, last)]
    se, total = float(np.hypot(errors[0], errors[1])), float(last.mean() - first.mean())
    z = float(ndtri(0.5 + CONFIDENCE / 2))
    mde = (z + float(ndtri(POWER))) * se
    found |= {"window": width, "total_change": total, "mde": mde}
    found["total_change_interval"] = [total - z * se, total + z * se]
    if spread == 0:
        return found | {"why": f"all {n:,} values are equal"}
    if abs(total) < mde:
        return found | {"why": "the whole change is below the smallest that could be found"}
    largest, at = _largest(kept, width)
    noise = float(ndtri(1 - (1 - CONFIDENCE) * width / (2 * n))) * float(np.sqrt(2)) * max(errors)
    fraction, low = largest / abs(total), (largest - noise) / abs(total)
    found |= {"fraction": fraction, "fraction_interval": [max(low, 0.0), (largest + noise) / abs(total)]}
    return found | {
        "at_session": int(places[at]) + 1,
        "alarm": None if fraction > ALARM and low <= CERTAIN else fraction > ALARM,
    }


def _error(part: Floats, spread: float) -> float:
    """Standard error of a window's mean; a window without spread may still hide one differing value."""
    return max(float(part.std(ddof=1)) / float(np.sqrt(effective_sample_size(part))), spread / len(part))


def _largest(x: Floats, width: int) -> tuple[float, int]:
    """The largest change between the windows before and after a place, and that place."""
    sums = np.r_[0.0, x]
    sums[1:] -= x.mean()
    np.cumsum(sums, out=sums)
    places = np.arange(width, len(x) - width + 1, max(1, width // PLACES))
    change = np.abs(sums[places + width] - 2 * sums[places] + sums[places - width]) / width
    best = int(np.argmax(change))
    return float(change[best]), int(places[best])


def _verdict(row: Data) -> str:
    name, n = row["outcome"], row["n"]
    if row["total_change"] is None:
        return f"No statement about the speed of {name}: {row['why']}."
    whole = (
        f"whole change {row['total_change']:+.3g} [{row['total_change_interval'][0]:+.3g}, "
        f"{row['total_change_interval'][1]:+.3g}], smallest detectable {row['mde']:.2g}, n {n:,}"
    )
    if row["fraction"] is None:
        return f"No statement about the speed of {name}: {row['why']} ({whole})."
    low, high = row["fraction_interval"]
    part = (
        f"between the {row['window']} sessions before and after session {row['at_session']:,} {name} changed by "
        f"{row['fraction']:.2f} [{low:.2f}, {high:.2f}] times its whole change"
    )
    if row["alarm"]:
        return f"Too fast a transition: {part} ({whole})."
    if row["alarm"] is None:
        return f"Whether {name} changed too fast cannot be told: {part} ({whole})."
    return f"No transition that is too fast: at most, {part} ({whole})."
