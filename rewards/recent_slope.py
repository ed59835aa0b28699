"""Which way the advantages of a category's last steps push what a rule watches."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.leverage import Gamma, gamma_interval

GAMMA_STEPS = 20


class RecentSlope:
    """Group ids, matches and advantages of the last GAMMA_STEPS steps that had sessions of the category."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, list[list[Any]]]] = deque(maxlen=GAMMA_STEPS)

    def add(self, step: int, own: Sequence[Sequence[Any]]) -> None:
        """Takes in a step's sessions, each with group id, match (1, 0) and advantage."""
        self._steps.append((step, [list(row) for row in own]))

    def gamma(self, generator: np.random.Generator) -> Gamma | None:
        """The slope of the advantage on the match; None where no group is mixed."""
        rows = [(step, *row) for step, own in self._steps for row in own]
        return gamma_interval(
            [match for _, _, match, _ in rows],
            [advantage for _, _, _, advantage in rows],
            [None if group is None else (step, group) for step, group, _, _ in rows],
            generator,
        )

    def state(self) -> list[list[Any]]:
        """What is remembered, in JSON's types."""
        return [[step, [list(row) for row in own]] for step, own in self._steps]

    def load(self, state: Sequence[Sequence[Any]]) -> None:
        """Continues from a `state`."""
        self._steps = deque(((step, [list(row) for row in own]) for step, own in state), maxlen=GAMMA_STEPS)
