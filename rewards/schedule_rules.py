"""The rules of a differential schedule, as a configuration lists them: what holds at the start, and what changes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.section import Problem, Section

Pivot = Literal["reference", "midpoint"] | float


class DifferentialRule(Section):
    """The differential of one category when the run starts."""

    category: str = Field(description="Category of prompts whose reward gaps are widened")
    component: str | None = Field(None, description="null: all optimised components together")
    differential: float = Field(0.0, gt=-1, description="d: the gain is 1 + d; 0.15 widens gaps by 15 %")
    pivot: Pivot | None = Field(None, description="null: reward.pivot")


class TriggerRule(Section):
    """Widens a differential when a phrase comes back: k of the last n sessions of the category contain it."""

    name: str | None = Field(None, description="null: the phrase")
    phrase: str = Field(min_length=1, description="What the sessions are searched for")
    category: str = Field(description="Category whose sessions are looked at and whose differential is widened")
    component: str | None = Field(None, description="Component that is widened; null: all together")
    k: int = Field(7, ge=1, description="Sessions with the phrase that are needed")
    n: int = Field(20, ge=1, description="Sessions of the category that are looked at, the newest ones")
    armed_below: float = Field(0.05, gt=0, le=1, description="Armed while the rate in the window is below this")
    armed_window: int = Field(200, ge=1, description="Sessions of the run, of all categories, before the last n")
    widen: float = Field(0.15, gt=0, description="d' = (1 + d)(1 + widen) - 1")
    cooldown_sessions: int = Field(
        400, ge=0, description="Sessions of the category after a recalibration in which none is applied"
    )
    cap: float = Field(1.0, gt=0, description="d never goes above; a step that would pass it is withheld")

    def rules(self) -> Iterator[Problem]:
        """K of n can be reached."""
        if self.k > self.n:
            yield "k", f"{self.k} of the last {self.n} sessions can never be reached: k is at most n"


class SetPointRule(Section):
    """Holds a rate at a target by dual ascent on a differential: every W sessions d <- d + step x error, never below 0.

    The rate: answers of the category that hold the phrase or, without one, that are not compliant. The category's
    loop needs two figures, from a fork or a first run: `gain` and `lag_sessions`.
    """

    name: str | None = Field(None, description="null: the phrase, or `non-compliance of CATEGORY`")
    category: str = Field(description="Category whose rate is held and whose differential is moved")
    component: str | None = Field(None, description="Component whose differential is moved; null: all together")
    phrase: str | None = Field(None, min_length=1, description="What counts; null: sessions that are not compliant")
    target: float = Field(gt=0, lt=0.5, description="The rate that is held")
    error: Literal["rate", "logit"] = Field(
        "logit", description="Of both logits, or rate: y - target, which takes five times as long and never overshoots"
    )
    every_sessions: int = Field(400, ge=1, description="W: sessions of the category that count for one adjustment")
    gain: float = Field(gt=0, description="By how much the logit of the rate falls per unit of d, once it has acted")
    lag_sessions: int = Field(ge=1, description="L: sessions of the category until 63 % of a change of d has acted")
    step: float | None = Field(
        None, gt=0, description="null: the largest without overshoot, W / (4 G L), G the rate's steepest slope in d"
    )
    least_change: float = Field(0.01, ge=0, description="Smaller changes of d are saved up: each is a recalibration")
    cap: float = Field(1.0, gt=0, description="d never goes above")

    def rules(self) -> Iterator[Problem]:
        """The step is stable; a change fits under the cap."""
        if self.step is not None and self.step > self.largest_step() * (1 + 1e-9):
            yield "step", f"overshoots: at most {self.largest_step():.4g}, that is every_sessions / (4 G lag_sessions)"
        if self.least_change > self.cap:
            yield "least_change", f"above `cap`, {self.cap:g}: nothing could ever change"

    def largest_step(self) -> float:
        """The step at which a first-order loop is critically damped; G is gain / 4 for a rate and gain for a logit."""
        steepest = self.gain / 4 if self.error == "rate" else self.gain
        return self.every_sessions / (4 * steepest * self.lag_sessions)

    def title(self) -> str:
        """What the rule is called."""
        return self.name or self.phrase or f"non-compliance of {self.category}"


def repeated_differentials(rules: list[DifferentialRule]) -> Iterator[Problem]:
    """One differential per category and component."""
    keys = [(rule.category, rule.component) for rule in rules]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            yield f"differentials.{i}", f"a second differential for category `{key[0]}` and the same component"
