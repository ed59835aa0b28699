"""The differential schedule: by how much each category's reward gaps are widened, and around which pivots.

Place `reward`: a = b + sum_k d_ck w_k (r_k - p_ck) over the components that apply, and d_c (b - p_c) for a differential
on the whole reward; both together add up. Place `advantage`: a = b, and the normalised advantage is multiplied by
1 + d_c. Place `loss` (offline pipelines): the same factor divides the margin and weights the loss.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rewards.compose import Component, baseline
from rewards.errors import ConfigError
from rewards.pivots import Key, Pivot, check_component, describe, midpoint
from rewards.scorers import Scorer

if TYPE_CHECKING:
    from rewards.reward_sections import DemonstrationGainSection, RewardSection

Place = Literal["reward", "advantage", "loss"]
Op = Literal["add", "widen", "set"]


class Share(NamedTuple):
    """What the schedule did to one component of one session. Units: per cent. None: not an optimised component."""

    differential_pct: float | None
    pivot: float | None


@dataclass(frozen=True)
class Adjusted:
    """The adjusted reward and how it came about.

    Units: differential_pct is 100 d of the whole reward; `components` has one share per component, in their order.
    """

    adjusted: float | None
    differential_pct: float
    pivot: float | None
    components: tuple[Share, ...]

    def rows(self, components: Sequence[Component]) -> list[dict[str, Any]]:
        """The components as the ledger stores them, each with its differential and pivot."""
        return [
            {
                "name": part.name,
                "raw": part.raw,
                "value": part.value,
                "weight": part.weight,
                "differential_pct": share.differential_pct,
                "pivot": share.pivot,
                "role": part.role,
                "status": part.status,
                "scorer_id": part.scorer_id,
                "latency_ms": part.latency_ms,
                "cost": part.cost,
            }
            for part, share in zip(components, self.components, strict=True)
        ]


class Change(NamedTuple):
    """A changed schedule. Units: per cent."""

    schedule: "Schedule"
    old_pct: float
    new_pct: float


@dataclass(frozen=True)
class Schedule:
    """Differentials d (> -1; 0.15 widens gaps by 15 %), pivots, place. Immutable: every change is a new version.

    `awaiting` lists the pivots that are to be measured on the reference policy and are not known yet.
    """

    entries: Mapping[Key, float] = field(default_factory=dict)
    pivots: Mapping[Key, float] = field(default_factory=dict)
    place: Place = "reward"
    version: int = 0
    awaiting: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        for key, d in self.entries.items():
            if not (math.isfinite(d) and d > -1):
                raise ConfigError(f"differential of {describe(key)} is {d:g}; it must be above -1")
            if self.place != "reward" and key[1] is not None:
                raise ConfigError(
                    f"differential of {describe(key)}: a single component has no {self.place} of its own; "
                    f"leave the component out, or use place `reward`"
                )
        for key, value in self.pivots.items():
            if not math.isfinite(value):
                raise ConfigError(f"pivot of {describe(key)} is {value}; it must be a finite number")
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))
        object.__setattr__(self, "pivots", MappingProxyType(dict(self.pivots)))

    @classmethod
    def from_config(cls, section: "RewardSection", scorers: Sequence[Scorer]) -> "Schedule":
        """The schedule at the start of an online run, with a pivot for every differential that is set or may be.

        Raises: ConfigError naming the entry: an unknown component, one that is not optimised, a midpoint without a
        declared scale. (What can be said without the functions, the section itself has checked.)
        """
        entries: dict[Key, float] = {}
        rules: dict[Key, Any] = {}
        for rule in section.differentials:
            key = (rule.category, rule.component)
            entries[key], rules[key] = rule.differential, rule.pivot
        for trigger in section.changing():
            key = (trigger.category, trigger.component)
            entries.setdefault(key, 0.0)
            rules.setdefault(key, None)
        pivots: dict[Key, float] = {}
        awaiting: list[Key] = []
        for key, rule in rules.items():
            check_component(key, scorers)
            if section.place != "reward":
                continue
            wanted = section.pivot if rule is None else rule
            if wanted == "reference":
                awaiting.append(key)
            else:
                pivots[key] = midpoint(key, scorers) if wanted == "midpoint" else float(wanted)
        return cls(entries, pivots, section.place, 0, tuple(awaiting))

    @classmethod
    def from_gains(cls, section: "DemonstrationGainSection") -> "Schedule":
        """The schedule of an offline pipeline, which has gains only."""
        return cls({(rule.category, None): rule.differential for rule in section.differentials}, {}, "loss")

    def gain(self, category: str | None) -> float:
        """1 + d_c, by which the normalised advantage or the loss of a session is multiplied; 1 at place `reward`."""
        return 1.0 if self.place == "reward" else 1.0 + self._d(category, None)

    def adjusted(self, components: Sequence[Component], category: str | None) -> Adjusted:
        """The adjusted reward of a session. Without a differential it is the baseline reward exactly.

        Raises: ConfigError when a pivot that is needed is missing; names category and component.
        """
        whole, pivot = self._acting(category, None)
        b = a = baseline(components)
        if b is not None and a is not None and pivot is not None:
            a += whole * (b - pivot)
        shares = []
        for part in components:
            if part.role != "optimised":
                shares.append(Share(None, None))
                continue
            d, p = self._acting(category, part.name)
            if a is not None and p is not None and part.value is not None:
                a += d * part.weight * (part.value - p)
            shares.append(Share(_percent(d), p))
        return Adjusted(a, _percent(whole), pivot, tuple(shares))

    def with_change(self, category: str, component: str | None, op: Op, amount: float) -> Change:
        """A new version with one differential changed: `add` d + x, `widen` (1 + d)(1 + x) - 1, `set` x.

        Raises: ConfigError when the result is not above -1, the place has no such differential, or a pivot is missing.
        """
        key = (category, component)
        old = self.entries.get(key, 0.0)
        if op == "add":
            new = old + amount
        elif op == "widen":
            new = (1 + old) * (1 + amount) - 1
        elif op == "set":
            new = amount
        else:
            raise ConfigError(f"recalibration of {describe(key)}: op `{op}` is none of add, widen, set")
        # 1.15 - 1 is 0.1499...: people asked for 15 %, and no reward is measured to twelve digits.
        new = round(new, 12)
        changed = replace(self, entries={**self.entries, key: new}, version=self.version + 1)
        if self.place == "reward" and new != 0:
            self._pivot(key)
        return Change(changed, _percent(old), _percent(new))

    def with_pivots(self, pivots: Iterable[Pivot]) -> "Schedule":
        """A new version with measured pivots set."""
        values = {(pivot.category, pivot.component): pivot.value for pivot in pivots}
        left = tuple(key for key in self.awaiting if key not in values)
        return replace(self, pivots={**self.pivots, **values}, awaiting=left, version=self.version + 1)

    def state_dict(self) -> dict[str, Any]:
        """The schedule in JSON's types."""
        return {
            "entries": [[*key, d] for key, d in self.entries.items()],
            "pivots": [[*key, value] for key, value in self.pivots.items()],
            "place": self.place,
            "version": self.version,
            "awaiting": [list(key) for key in self.awaiting],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Schedule":
        """The schedule that `state_dict` described."""
        return cls(
            entries={(category, component): d for category, component, d in state["entries"]},
            pivots={(category, component): value for category, component, value in state["pivots"]},
            place=state["place"],
            version=state["version"],
            awaiting=tuple((category, component) for category, component in state["awaiting"]),
        )

    def _d(self, category: str | None, component: str | None) -> float:
        return 0.0 if category is None else self.entries.get((category, component), 0.0)

    def _acting(self, category: str | None, component: str | None) -> tuple[float, float | None]:
        """The differential, and its pivot where it changes the adjusted reward."""
        d = self._d(category, component)
        if category is None or d == 0 or self.place != "reward":
            return d, None
        return d, self._pivot((category, component))

    def _pivot(self, key: Key) -> float:
        if key not in self.pivots:
            raise ConfigError(f"the differential of {describe(key)} needs a pivot and none is set: measure or give it")
        return self.pivots[key]


def _percent(d: float) -> float:
    return round(100 * d, 10)
