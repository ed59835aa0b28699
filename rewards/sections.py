"""The base of every configuration section, and the sections of the reward side. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Problem = tuple[str, str]
"""The key that a rule speaks of, relative to its section, and what is wrong."""


class Section(BaseModel):
    """A frozen group of knobs that knows no other keys.

    A subclass says what must hold between its knobs in `rules`, and what is allowed but probably not meant in
    `cautions`; the loader turns both into lines that name the file and the line of the key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def rules(self) -> Iterator[Problem]:
        """What does not hold between the knobs of this section."""
        yield from ()

    def cautions(self) -> Iterator[Problem]:
        """What is allowed, but probably not meant."""
        yield from ()

    def changed(self, *names: str) -> list[str]:
        """Those of `names` whose value differs from the default."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].get_default(call_default_factory=True)]

    @model_validator(mode="after")
    def _rules_hold(self) -> Section:
        problems = list(self.rules())
        if problems:
            text = "; ".join(f"{key}: {message}" for key, message in problems)
            raise PydanticCustomError("rule", "{text}", {"text": text, "problems": problems})
        return self


class RewardFunction(Section):
    """One named component of the reward."""

    name: str | None = Field(None, description="Name of the component; null: what follows the last `:` or `.` of fn")
    fn: str = Field(description="Registered name, package.module:function, path/file.py:function, or model:FOLDER")
    weight: float = Field(1.0, description="w_k; only optimised components have one")
    role: Literal["optimised", "observed", "gold"] = Field(
        "optimised", description="observed: recorded only; gold: recorded as what the optimised ones stand for"
    )
    scale: tuple[float, float] | None = Field(
        None, description="Declared scale [low, high]: value = (raw - low) / (high - low); null: value = raw"
    )
    clip: tuple[float, float] | None = Field(None, description="Clips raw values to [low, high]; clipped ones count")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the function")

    def rules(self) -> Iterator[Problem]:
        """Intervals have a width; only optimised components have a weight."""
        for key in ("scale", "clip"):
            interval = getattr(self, key)
            if interval is not None and not interval[0] < interval[1]:
                yield key, f"low must be below high, got [{interval[0]:g}, {interval[1]:g}]"
        if self.role != "optimised" and self.changed("weight"):
            yield "weight", f"has no effect on a component that is only {self.role}"


class DifferentialRule(Section):
    """The differential of one category at the start."""

    category: str
    component: str | None = Field(None, description="null: all optimised components together")
    differential: float = Field(0.0, gt=-1, description="d: the gain is 1 + d; 0.15 widens gaps by 15 %")
    pivot: Literal["reference", "midpoint"] | float | None = Field(None, description="null: reward.pivot")


class TriggerRule(Section):
    """Widens a differential when a phrase comes back: k of the last n sessions of the category contain it."""

    name: str | None = Field(None, description="null: the phrase")
    phrase: str = Field(min_length=1)
    category: str
    component: str | None = Field(None, description="Component that is widened; null: all together")
    k: int = Field(7, ge=1, description="Sessions with the phrase that are needed")
    n: int = Field(20, ge=1, description="Sessions of the category that are looked at, the newest ones")
    armed_below: float = Field(0.05, gt=0, le=1, description="Armed while the rate in the window is below this")
    armed_window: int = Field(200, ge=1, description="Sessions of the category before the last n")
    widen: float = Field(0.15, gt=0, description="d' = (1 + d)(1 + widen) - 1")
    cooldown_sessions: int = Field(
        400, ge=0, description="Sessions of the category after a recalibration in which none is applied"
    )
    cap: float = Field(1.0, gt=0, description="d never goes above; a step that would pass it is withheld")

    def rules(self) -> Iterator[Problem]:
        """K of n."""
        if self.k > self.n:
            yield "k", f"k of n: {self.k} of {self.n} sessions can never be reached"


class RewardSection(Section):
    """Online RL: what is rewarded, and the schedule of differentials."""

    reward_funcs: list[str | RewardFunction] = Field(default_factory=list)
    reward_weights: list[float] | None = Field(None, description="One per reward function; instead of their `weight`")
    on_error: Literal["stop", "null"] = Field(
        "stop", description="A reward function that raises: stop the run, or record null with the status"
    )
    classifier: str | None = Field(None, description="fn(prompts, completions, **columns) -> list of classes or null")
    compliant_when: dict[str, list[str]] = Field(
        default_factory=dict, description="{category: [classes that are right there]}; others: compliance is null"
    )
    place: Literal["reward", "advantage"] = Field(
        "reward", description="Where differentials act: on the baseline reward, or on the normalised advantage"
    )
    pivot: Literal["reference", "midpoint"] | float = Field(
        "reference", description="What a differential turns around: mean of the reference policy, midpoint, a number"
    )
    pivot_samples: int = Field(200, ge=2, description="Samples per category for a reference pivot")
    differentials: list[DifferentialRule] = Field(default_factory=list)
    triggers: list[TriggerRule] = Field(default_factory=list)


class GainSection(Section):
    """Offline stages: the differentials act as gains of the loss (and of the margin)."""

    differentials: list[DifferentialRule] = Field(default_factory=list)
    margin_column: str | None = Field(None, description="Pairs: column with an explicit offset m of the margin")
