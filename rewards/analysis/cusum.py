"""Change detection while a run goes on: a two-sided CUSUM of what an AR(1) fitted to the first sessions leaves over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.data import RunData

Floats = NDArray[np.float64]

OUTCOME = "baseline_reward"
BURN_IN = 1000
LEAST_BURN_IN = 200
K = 0.25
H = 22.0


@dataclass(frozen=True)
class BurnIn:
    """What the sessions before the watch taught: x_t - mean = phi (x_(t-1) - mean) + sd e_t, from n values."""

    mean: float
    phi: float
    sd: float
    n: int

    def whitened(self, values: Floats, before: float) -> Floats:
        """Innovations in units of their sd. before: the value that came ahead of the first."""
        centred = np.r_[before, values] - self.mean
        return np.asarray((centred[1:] - self.phi * centred[:-1]) / self.sd, dtype=np.float64)


@dataclass(frozen=True)
class Alarm:
    """The first time that a sum exceeded h. Places count from 0 in the watched values; onset: where that sum left 0."""

    place: int
    onset: int
    direction: Literal["up", "down"]


def fit_burn_in(values: Floats) -> BurnIn:
    """AR(1) by least squares. Raises: ValueError for fewer than 200 values, and for values that do not vary."""
    if len(values) < LEAST_BURN_IN:
        raise ValueError(f"a burn-in needs {LEAST_BURN_IN} values, got {len(values)}")
    mean = float(values.mean())
    centred = values - mean
    total = float(centred @ centred)
    if total <= 1e-24 * max(1.0, mean * mean) * len(values):
        raise ValueError("the values of the burn-in are all equal: there is no spread to measure a change by")
    phi = float(centred[1:] @ centred[:-1]) / total
    left = centred[1:] - phi * centred[:-1]
    return BurnIn(mean, phi, float(left.std(ddof=2)), len(values))


class Cusum:
    """The detector one value at a time, for a run that is still going.

    S+ <- max(0, S+ + z - k), S- <- max(0, S- - z - k) with z the innovation in sd; an alarm where either exceeds h.
    Source: Page 1954. k = .25 is best for a lasting shift of half an sd of the innovations.
    """

    def __init__(self, burn_in: BurnIn, before: float, k: float = K, h: float = H) -> None:
        """before: the last value of the burn-in."""
        self.burn_in, self.k, self.h = burn_in, k, h
        self.before, self.up, self.down = before, 0.0, 0.0

    def update(self, value: float) -> Literal["up", "down"] | None:
        """Takes the next value; says in which direction the level moved once the evidence exceeds h."""
        found = self.burn_in
        z = (value - found.mean - found.phi * (self.before - found.mean)) / found.sd
        self.before = value
        self.up, self.down = max(0.0, self.up + z - self.k), max(0.0, self.down - z - self.k)
        if max(self.up, self.down) <= self.h:
            return None
        return "up" if self.up > self.down else "down"


def first_alarm(innovations: Floats, k: float = K, h: float = H) -> Alarm | None:
    """The first alarm of the same detector over values that are all there. Shapes: innovations (n,), in sd."""
    alarms: list[Alarm] = []
    directions: tuple[tuple[float, Literal["up", "down"]], ...] = ((1.0, "up"), (-1.0, "down"))
    for sign, direction in directions:
        walk = np.cumsum(sign * innovations - k)
        lowest = np.minimum(np.minimum.accumulate(walk), 0.0)
        over = np.flatnonzero(walk - lowest > h)
        if len(over):
            place = int(over[0])
            at_zero = np.flatnonzero(walk[: place + 1] <= lowest[: place + 1])
            alarms.append(Alarm(place, int(at_zero[-1]) + 1 if len(at_zero) else 0, direction))
    return min(alarms, key=lambda alarm: alarm.place, default=None)


def false_alarm(sessions: int, k: float = K, h: float = H) -> float:
    """About how likely a false alarm is within so many independent sessions with a known level and sd.

    1 - exp(-sessions / ARL), with Siegmund's run length for each side. An estimated level and sd make it likelier.
    Source: Siegmund 1985, section 2.6.
    """
    barrier = h + 1.166
    one_side = (np.expm1(2 * k * barrier) - 2 * k * barrier) / (2 * k * k)
    return float(-np.expm1(-sessions / (one_side / 2)))


def section(data: RunData) -> dict[str, Any]:
    """When the detector would have spoken up about the baseline reward, had it watched the run from its burn-in on."""
    values = data.column(OUTCOME)
    places = np.flatnonzero(np.isfinite(values))
    found: dict[str, Any] = {"outcome": OUTCOME, "burn_in": None, "watched": 0, "k": K, "h": H, "false_alarm": None}
    found |= {"session": None, "onset_session": None, "direction": None, "alarm": None, "verdict": None}
    burn = min(BURN_IN, len(places) // 2)
    try:
        fitted = fit_burn_in(values[places[:burn]])
    except ValueError as problem:
        return found | {"why": str(problem)}
    watched = values[places[burn:]]
    alarm = first_alarm(fitted.whitened(watched, float(values[places[burn - 1]])))
    found["burn_in"] = {"sessions": fitted.n, "mean": fitted.mean, "ar1": fitted.phi, "innovation_sd": fitted.sd}
    found |= {"watched": len(watched), "false_alarm": false_alarm(len(watched)), "alarm": alarm is not None}
    chance = f"a false alarm in so many sessions has a chance of at least {100 * found['false_alarm']:.2g} %"
    if alarm is None:
        text = f"The level of the first {burn:,} sessions held in the {len(watched):,} after them, as far as seen"
        return found | {"verdict": f"{text} ({chance}).", "why": None}
    session, onset = (int(places[burn + place]) + 1 for place in (alarm.place, alarm.onset))
    found |= {"session": session, "onset_session": onset, "direction": alarm.direction}
    text = f"The reward moved {alarm.direction} from its level in the first {burn:,} sessions: known at {session:,}"
    return found | {"verdict": f"{text}, from about session {onset:,} on ({chance}).", "why": None}
