"""Scores over seeds and tasks: the interquartile mean, with intervals that resample the seeds of each task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from rewards.analysis.intervals import CONFIDENCE
from rewards.analysis.paired import POWER_Z

Floats = NDArray[np.float64]

TRIM = 0.25
REPLICATES = 2000
FEWEST_SEEDS = 5
_CHUNK = 2_000_000


def iqm(scores: Floats) -> float:
    """Mean of the middle half of all scores, over runs and tasks together.

    Raises: ValueError without scores. Source: Agarwal et al. 2021.
    """
    kept = scores[np.isfinite(scores)]
    if not len(kept):
        raise ValueError("an interquartile mean needs at least one score")
    return float(trim_mean(kept, TRIM))


def iqm_estimate(
    scores: Mapping[str, Floats], rng: np.random.Generator, replicates: int = REPLICATES
) -> dict[str, Any]:
    """Interquartile mean over runs and tasks with a percentile interval.

    Shapes: scores: task -> one score a run (seed); NaN is missing. Runs are resampled within each task.
    Keys: estimate, low, high, n (scores), seeds (runs of the task that has fewest), tasks, warning, why. With few
    seeds the interval is too narrow: of nominal 95 % it covers about 88 % with 3 seeds, 91 % with 5, 93 % with 10.
    Source: Agarwal et al. 2021.
    """
    tasks = _tasks(scores)
    seeds = min((len(task) for task in tasks), default=0)
    about = {"n": sum(map(len, tasks)), "seeds": seeds, "tasks": len(tasks), "warning": _warning(seeds)}
    if not tasks:
        return {"estimate": None, "low": None, "high": None, **about, "why": "no scores"}
    value = iqm(np.concatenate(tasks))
    if seeds < 2:
        return {"estimate": value, "low": None, "high": None, **about, "why": "a task has one run: no interval"}
    low, high = _limits(_draws(tasks, rng, replicates))
    return {"estimate": value, "low": low, "high": high, **about, "why": None}


def iqm_difference(
    old: Mapping[str, Floats], new: Mapping[str, Floats], rng: np.random.Generator, replicates: int = REPLICATES
) -> dict[str, Any]:
    """Difference of two interquartile means (new - old) over the tasks that both have; the runs are independent.

    Keys: those of `iqm_estimate`, and mde: the smallest difference found in 4 of 5 cases, 2.80 standard errors.
    """
    common = [name for name in old if name in new]
    sides = [_tasks({name: side[name] for name in common}) for side in (old, new)]
    counts = [len(task) for side in sides for task in side]
    seeds = min(counts, default=0)
    about = {"n": sum(counts), "seeds": seeds, "tasks": len(common), "warning": _warning(seeds)}
    nothing = {"estimate": None, "low": None, "high": None, "mde": None, **about}
    if not sides[0] or not sides[1]:
        return nothing | {"why": "no task has scores on both sides"}
    value = iqm(np.concatenate(sides[1])) - iqm(np.concatenate(sides[0]))
    if seeds < 2:
        return nothing | {"estimate": value, "why": "a task has one run: no interval"}
    draws = _draws(sides[1], rng, replicates) - _draws(sides[0], rng, replicates)
    low, high = _limits(draws)
    mde = POWER_Z * float(draws.std(ddof=1))
    return {"estimate": value, "low": low, "high": high, "mde": mde, **about, "why": None}


def _tasks(scores: Mapping[str, Floats]) -> list[Floats]:
    kept = [np.asarray(values, dtype=np.float64) for values in scores.values()]
    return [values[np.isfinite(values)] for values in kept if np.isfinite(values).any()]


def _warning(seeds: int) -> str | None:
    if not 0 < seeds < FEWEST_SEEDS:
        return None
    count = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return f"{count}: fewer than {FEWEST_SEEDS}, so the interval covers the truth in clearly less than 95 % of cases"


def _draws(tasks: list[Floats], rng: np.random.Generator, replicates: int) -> Floats:
    size = sum(map(len, tasks))
    found = []
    rows = max(1, _CHUNK // size)
    for done in range(0, replicates, rows):
        count = min(rows, replicates - done)
        drawn = [task[rng.integers(0, len(task), size=(count, len(task)))] for task in tasks]
        found.append(trim_mean(np.concatenate(drawn, axis=1), TRIM, axis=1))
    return np.asarray(np.concatenate(found), dtype=np.float64)


def _limits(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
