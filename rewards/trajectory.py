"""The trajectory index: how compliant a category has been lately, as a session knew it before its own step."""

from collections.abc import Iterable, Mapping
from typing import Any


class TrajectoryIndex:
    """Per category, the weighted mean of compliance with weight 2^(-age in steps / half_life).

    Read `value` for the sessions of a step first, then `update` with them: a session carries what was known before.
    """

    def __init__(self, half_life: float = 20.0) -> None:
        """Units: half_life in steps. Raises: ValueError unless it is positive."""
        if not half_life > 0:
            raise ValueError(f"half_life {half_life} must be positive")
        self.half_life = half_life
        self._step: int | None = None
        # Category -> weighted compliant sessions, weighted sessions, and the step at which both weigh 1.
        self._sums: dict[str, tuple[float, float, int]] = {}

    def value(self, category: str | None) -> float | None:
        """The index of the category before the current step; None before its first session with a verdict."""
        if category is None or category not in self._sums:
            return None
        compliant, total, _ = self._sums[category]
        return compliant / total

    def update(self, step: int, sessions: Iterable[tuple[str | None, bool | None]]) -> None:
        """Takes in a step's sessions: (category, compliant); one without a category or a verdict has no part.

        Raises: ValueError when the step does not come after the last one.
        """
        if self._step is not None and step <= self._step:
            raise ValueError(f"trajectory index: step {step} comes after step {self._step}; steps only go forward")
        self._step = step
        counts: dict[str, tuple[int, int]] = {}
        for category, compliant in sessions:
            if category is not None and compliant is not None:
                right, total = counts.get(category, (0, 0))
                counts[category] = (right + compliant, total + 1)
        for category, (right, total) in counts.items():
            old_right, old_total, last = self._sums.get(category, (0.0, 0.0, step))
            # Numerator and denominator age alike, so ageing them at the next update is early enough.
            fade = 2.0 ** (-(step - last) / self.half_life)
            self._sums[category] = (old_right * fade + right, old_total * fade + total, step)

    def state_dict(self) -> dict[str, Any]:
        """The index in JSON's types."""
        return {
            "half_life": self.half_life,
            "step": self._step,
            "sums": {category: list(sums) for category, sums in self._sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`."""
        self.half_life = state["half_life"]
        self._step = state["step"]
        self._sums = {category: (right, total, step) for category, (right, total, step) in state["sums"].items()}
