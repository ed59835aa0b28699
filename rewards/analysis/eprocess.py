"""Monitoring that may be looked at after every session: a betting e-process against "it did not get worse"."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STAKES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
THRESHOLD = 20.0
# Beyond this a number would leave the range of floats; it is far past any threshold.
LARGEST_LOG = 690.0


def path(d: Floats) -> Floats:
    """E_t after each difference: the mean over stakes of prod_i (1 - stake D_i).

    Under the hypothesis E[D_t | past] >= 0 the chance that E_t ever reaches c is at most 1 / c, whenever and however
    often one looks, and differences may depend on each other. A prompt mix that changes breaks the hypothesis.
    Shapes: d, one difference new - old per pair, in the order observed; as many values of E. Units: values are cut at
    exp(690).
    Raises: ValueError for a value outside [-1, 1] or missing.
    Source: Waudby-Smith and Ramdas 2024, section 4; Ville 1939 for the bound.
    """
    return np.asarray(np.exp(np.minimum(_log_path(d), LARGEST_LOG)), dtype=np.float64)


def run(d: Floats, threshold: float = THRESHOLD) -> dict[str, Any]:
    """Final and largest E of a series of differences, and the index (from 0) of the first alarm, if any.

    alarm_at is the first i with E_i >= threshold: at 20 a false alarm at any time has a chance of at most 5 %. No
    difference at all leaves E at 1.
    Raises: ValueError for a value outside [-1, 1] or missing, or a threshold that is not above 1.
    """
    if not threshold > 1:
        raise ValueError(f"a threshold must be above 1, where every process starts, got {threshold}")
    logs = _log_path(d)
    if len(logs) == 0:
        return {"e": 1.0, "max_e": 1.0, "alarm_at": None, "n": 0}
    over = logs >= np.log(threshold)
    return {
        "e": _number(float(logs[-1])),
        "max_e": max(1.0, _number(float(logs.max()))),
        "alarm_at": int(over.argmax()) if over.any() else None,
        "n": len(logs),
    }


class EProcess:
    """The same process fed one difference, or a batch of them, at a time.

    e, max_e: now and at most so far; alarm_at: index (from 0) of the difference that reached the threshold first; n.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        """Raises: ValueError for a threshold that is not above 1."""
        if not threshold > 1:
            raise ValueError(f"a threshold must be above 1, where every process starts, got {threshold}")
        self.threshold = threshold
        self.e = self.max_e = 1.0
        self.alarm_at: int | None = None
        self.n = 0
        self._logs = np.zeros(len(STAKES))

    def update(self, d: float | Floats) -> float:
        """Takes further differences and returns E after them. Raises: ValueError as `path` does."""
        values = _checked(np.atleast_1d(np.asarray(d, dtype=np.float64)))
        if len(values) == 0:
            return self.e
        logs = self._logs[:, None] + np.cumsum(np.log1p(-np.outer(STAKES, values)), axis=1)
        mixed = np.logaddexp.reduce(logs, axis=0) - np.log(len(STAKES))
        over = mixed >= np.log(self.threshold)
        if self.alarm_at is None and over.any():
            self.alarm_at = self.n + int(over.argmax())
        self._logs = logs[:, -1]
        self.n += len(values)
        self.e = _number(float(mixed[-1]))
        self.max_e = max(self.max_e, _number(float(mixed.max())))
        return self.e


def _log_path(d: Floats) -> Floats:
    values = _checked(np.asarray(d, dtype=np.float64))
    # One stake after the other: a table of all of them would be six times the series.
    mixed = np.full(len(values), -np.inf)
    for stake in STAKES:
        mixed = np.logaddexp(mixed, np.cumsum(np.log1p(-stake * values)))
    return np.asarray(mixed - np.log(len(STAKES)), dtype=np.float64)


def _checked(values: Floats) -> Floats:
    if values.ndim != 1:
        raise ValueError("differences come as one series")
    wrong = ~((values >= -1) & (values <= 1))
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(f"a difference must lie in [-1, 1], got {values[place]} at index {place}")
    return values


def _number(log: float) -> float:
    return float(np.exp(min(log, LARGEST_LOG)))
