"""Simulated runs around recalibrations: a rate that falls from 35 % to 1 %, drift shared and own, whole steps."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter
from scipy.special import expit, logit

from rewards.analysis.data import RunData
from rewards.analysis.event_bins import Design, Place, Sessions
from rewards.analysis.recalibration_outcomes import Moment

SESSIONS = 12847
CATEGORIES = 5
NAMES = [f"c{i}" for i in range(CATEGORIES)]
RHO = float(np.exp(-1 / 25))  # integrated autocorrelation time of about 50 sessions


def trend(time):
    """Logit of the rate at a time in sessions of a 12,847-session run: .35 until 1,000, .01 from 8,000."""
    u = np.clip((np.asarray(time, dtype=float) - 1000) / 7000, 0, 1)
    return logit(0.35) + (logit(0.01) - logit(0.35)) * (3 * u**2 - 2 * u**3)


def ar1(rng, n, sd):
    return lfilter([sd * np.sqrt(1 - RHO**2)], [1, -RHO], rng.standard_normal(n + 200))[200:]


def logits(rng, time, treated_factor=1.0):
    """Shapes: (times, categories). The treated category, 0, moves treated_factor times as far as the others."""
    base = trend(time)
    shared, own = ar1(rng, len(time), 0.3), np.stack([ar1(rng, len(time), 0.1) for _ in range(CATEGORIES)], axis=1)
    eta = base[:, None] + shared[:, None] + own
    eta[:, 0] += (treated_factor - 1) * (base - logit(0.35))
    return eta


def around(rng, event, density=1, effect=0.0, treated_factor=1.0, before=4500, after=1500):
    """(sessions, values, moment, design) around an event; density: sessions in the time of one, ten of them a step."""
    time = np.arange(max(0, event - before), event + after)
    eta = logits(rng, time, treated_factor)
    eta[time >= event, 0] += effect
    codes = rng.integers(0, CATEGORIES, len(time) * density).astype(np.int16)
    at_time = np.repeat(np.arange(len(time)), density)
    hits = (rng.random(len(codes)) < expit(eta[at_time, codes])).astype(float)
    at = int(np.searchsorted(time, event)) * density
    steps = (np.arange(len(codes)) - at) // 10
    sessions = Sessions.of(steps, codes, CATEGORIES)
    design = Design(1500 * density, 500 * density)
    place = Place(at, at - design.window, at + design.window)
    controls = list(range(1, CATEGORIES))
    moment = Moment(place, max(0, at - 3 * design.window), 0, controls, False, [at], [])
    return sessions, lambda start, stop: hits[start:stop], moment, design


def event(kind="recalibration", step=10, category="c0", **payload):
    shown = {"category": category, "op": "widen", "old_pct": 12.0, "new_pct": 15.0, "reason": "asked"} | payload
    return {"run_id": "r", "attempt": 1, "step": step, "time": "2026-01-05", "kind": kind, "payload": shown}


def run(compliant, codes, events, per_step=8, texts=None):
    """A run from outcomes and category codes."""
    steps = np.arange(len(codes)) // per_step + 1
    columns = {"compliant": np.asarray(compliant, dtype=float)}
    return RunData.of_columns("r", steps, [NAMES[code] for code in codes], columns, events, texts)


def null_run(rng, events_at):
    """A whole run with no effect of any of its recalibrations, which take turns among the categories."""
    time = np.arange(SESSIONS)
    codes = rng.integers(0, CATEGORIES, SESSIONS).astype(np.int16)
    hits = rng.random(SESSIONS) < expit(logits(rng, time)[time, codes])
    events = [event(step=at // 8, category=NAMES[i % CATEGORIES]) for i, at in enumerate(events_at)]
    return run(hits, codes, events)


def steady(rng, sessions=6000, rates=(0.3, 0.3, 0.3, 0.3, 0.3), after=None, at=3000):
    """Outcomes and codes of a run with a constant rate per category, another one after a session."""
    codes = rng.integers(0, len(rates), sessions)
    p = np.array(rates)[codes]
    if after is not None:
        p = np.where(np.arange(sessions) >= at, np.array(after)[codes], p)
    return (rng.random(sessions) < p).astype(float), codes
