"""Pivots of the differential schedule: the values around which gaps are widened."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rewards.compose import Component, baseline
from rewards.errors import ConfigError
from rewards.scorers import Scorer

Key = tuple[str, str | None]
"""Category and component; without a component, the whole reward."""


class Pivot(NamedTuple):
    """A measured pivot: the mean over samples of the reference policy. standard_error is None for a single sample."""

    category: str
    component: str | None
    value: float
    standard_error: float | None
    n: int

    def payload(self) -> dict[str, Any]:
        """Payload of the pivot_set event."""
        return self._asdict()


def describe(key: Key) -> str:
    """A key as error lines name it."""
    category, component = key
    return f"category `{category}`, {'the whole reward' if component is None else f'component `{component}`'}"


def measure_pivots(
    keys: Iterable[Key], categories: Sequence[str | None], scored: Sequence[Sequence[Component]]
) -> list[Pivot]:
    """The pivot of every key: the mean of the component's value (or of the baseline reward) in its category.

    Shapes: categories and scored have one entry per sample of the reference policy. The standard error takes the
    samples as independent: draw one response a prompt.
    Raises: ConfigError naming the key that no sample has a value for.
    """
    pivots = []
    for category, component in keys:
        rows = [row for of, row in zip(categories, scored, strict=True) if of == category]
        found = [value for value in (_value(row, component) for row in rows) if value is not None]
        if not found:
            raise ConfigError(
                f"pivot of {describe((category, component))}: none of {len(rows)} reference samples of the category "
                f"has a value; add prompts of the category or set `pivot` to a number"
            )
        n, mean = len(found), math.fsum(found) / len(found)
        variance = math.fsum((value - mean) ** 2 for value in found) / (n - 1) if n > 1 else None
        pivots.append(Pivot(category, component, mean, None if variance is None else math.sqrt(variance / n), n))
    return pivots


def midpoint(key: Key, scorers: Sequence[Scorer]) -> float:
    """The pivot in the middle of the declared scale, or of the sum of the weighted scales for the whole reward.

    Raises: ConfigError naming a component without a declared scale.
    """
    acting = [part for part in scorers if part.role == "optimised" and key[1] in (None, part.name)]
    for part in acting:
        if part.scale is None:
            raise ConfigError(
                f"pivot `midpoint` of {describe(key)}: component `{part.name}` declares no scale; set its `scale`, "
                f"or use `reference` or a number"
            )
    # A declared scale maps to 0..1, so the middle of a component is 1/2 whatever its bounds.
    return 0.5 if key[1] is not None else 0.5 * math.fsum(part.weight for part in acting)


def check_component(key: Key, scorers: Sequence[Scorer]) -> None:
    """Raises: ConfigError unless the key's component is an optimised one (or the whole reward)."""
    component = key[1]
    if component is None:
        return
    roles = {part.name: part.role for part in scorers}
    if component not in roles:
        raise ConfigError(f"differential of {describe(key)}: no such component; there are {', '.join(roles)}")
    if roles[component] != "optimised":
        raise ConfigError(
            f"differential of {describe(key)}: its role is `{roles[component]}`, so it is no part of the reward and "
            f"the differential would change nothing"
        )


def _value(components: Sequence[Component], component: str | None) -> float | None:
    if component is None:
        return baseline(components)
    return next((part.value for part in components if part.name == component), None)
