"""How often a k-of-n trigger fires by chance: the exact law, for choosing k before a run."""

import numpy as np
from numpy.typing import NDArray

MAX_N = 24


def run_length_false_alarm(p: float, k: int, n: int, sessions: int) -> float:
    """Probability that some window of the last n sessions holds k hits within a run, every hit having probability p.

    Windows at the start of the run are shorter. The sessions are taken as independent, and the window as looked at
    after each of them; a trigger that looks once a step fires at most as often.
    Raises: ValueError unless 0 <= p <= 1, 1 <= k <= n <= 24 and sessions >= 1.
    """
    return float(alarm_curve(p, k, n, sessions)[-1])


def alarm_curve(p: float, k: int, n: int, sessions: int) -> NDArray[np.float64]:
    """The same for every run length. Shapes: (sessions,); entry t - 1 is the probability of an alarm by session t.

    Exact: a Markov chain over the outcomes of the last n - 1 sessions, restricted to those with fewer than k hits.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; a probability lies in 0..1")
    if not 1 <= k <= n <= MAX_N:
        raise ValueError(f"k = {k}, n = {n}: needs 1 <= k <= n <= {MAX_N}")
    if sessions < 1:
        raise ValueError(f"sessions is {sessions}; a run has at least one")
    if n == 1:
        return np.asarray(1.0 - (1.0 - p) ** np.arange(1, sessions + 1), dtype=np.float64)
    states = np.arange(1 << (n - 1))
    hits = np.bitwise_count(states).astype(np.int64)
    states, hits = states[hits < k], hits[hits < k]
    source_low, source_high = _sources(states, hits, k, n)
    step_probability = np.where(states & 1, p, 1.0 - p)
    ready = hits == k - 1  # one more hit sounds the alarm
    mass = np.zeros(len(states) + 1)  # the last entry stays 0: it stands for sources that are no states
    mass[0] = 1.0
    increments = np.empty(sessions)
    for t in range(sessions):
        increments[t] = p * mass[:-1][ready].sum()
        mass[:-1] = step_probability * (mass[source_low] + mass[source_high])
    return np.cumsum(increments)


def _sources(
    states: NDArray[np.int64], hits: NDArray[np.int64], k: int, n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every state, the positions of the two states before it: its oldest outcome was a miss, or a hit."""
    position = np.full(1 << (n - 1), len(states), dtype=np.int64)
    position[states] = np.arange(len(states))
    low = states >> 1
    high = low | (1 << (n - 2))
    found = []
    for source in (low, high):
        where = position[source]
        # A newest hit on top of k - 1 others would have been an alarm.
        alarmed = (states & 1).astype(bool) & (np.bitwise_count(source) >= k - 1)
        found.append(np.where(alarmed, len(states), where))
    return found[0], found[1]
