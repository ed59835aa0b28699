"""The functions that make one reward together, and what each weighs in it."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from rewards.errors import ConfigError
from rewards.recording.functions import Part, parts_of
from rewards.scorers import Role


class RewardSet:
    """Functions in the trainer's order. weights: known once the trainer was asked for its own."""

    def __init__(self, functions: Any, weights: Sequence[float] | None) -> None:
        """Raises: ConfigError for what is no function, for repeated names, for weights that do not fit."""
        self.parts: list[Part] = parts_of(functions)
        self._given = None if weights is None else self._checked(weights)
        self.weights: list[float] = self._given or [1.0] * len(self.parts)

    def _checked(self, weights: Sequence[float]) -> list[float]:
        if len(weights) != len(self.parts):
            raise ConfigError(f"{len(weights)} weights for {len(self.parts)} reward functions; give one each")
        for part, weight in zip(self.parts, weights, strict=True):
            if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
                raise ConfigError(f"the weight of reward function `{part.name}` is {weight!r}, not a finite number")
        return [float(weight) for weight in weights]

    def agree(self, trainer: Any, arguments: Any) -> None:
        """Takes the trainer's weights where none were given, and checks that the trainer scores with these functions.

        trainer: where it can be seen. arguments: its configuration, where that can.
        Raises: ConfigError where the trainer has other functions or other weights.
        """
        theirs = getattr(trainer, "reward_funcs", None)
        if isinstance(theirs, list) and len(theirs) != len(self.parts):
            names = ", ".join(f"`{name}`" for name in getattr(trainer, "reward_func_names", ())) or len(theirs)
            mine = ", ".join(f"`{part.name}`" for part in self.parts)
            raise ConfigError(
                f"the trainer scores with {names} and the recorder has {mine}: the baseline reward would not be the "
                "trainer's; wrap every reward as a function, an environment's get_reward too"
            )
        used = getattr(trainer, "reward_weights", None)
        used = None if used is None else [float(weight) for weight in used]
        configured = getattr(arguments, "reward_weights", None)
        if self._given is None:
            self.weights = [float(weight) for weight in configured or used or [1.0] * len(self.parts)]
        elif used is not None and not _close(self._given, used):
            raise ConfigError(
                f"the recorder was given the weights {self._given} and the trainer uses {used}; pass "
                f"reward_weights={self._given} to its configuration, or no weights to the recorder"
            )

    def registrations(self) -> list[dict[str, Any]]:
        """Payloads of the scorer_registered events, one a function."""
        return [
            {
                "name": part.name,
                "role": role_of(weight),
                "weight": weight,
                "scale": None,
                "scorer_id": part.scorer_id,
                "fn": part.name,
                "kwargs": part.kwargs,
                "phrases": part.phrases,
            }
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]


def role_of(weight: float) -> Role:
    """A function that the trainer weighs with 0 is only watched."""
    return "optimised" if weight != 0 else "observed"


def _close(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    # The trainer keeps them in float32.
    return len(mine) == len(theirs) and all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in zip(mine, theirs, strict=True)
    )
