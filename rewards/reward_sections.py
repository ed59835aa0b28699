"""The reward side of a configuration: reward functions, differentials, triggers. What is wrong is told by key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from rewards.schedule_rules import DifferentialRule, Pivot, SetPointRule, TriggerRule, repeated_differentials
from rewards.section import Problem, Section


class RewardFunction(Section):
    """One named component of the reward."""

    name: str | None = Field(None, description="Name of the component; null: what follows the last `:` or `.` of fn")
    fn: str = Field(
        min_length=1, description="Registered name, package.module:function, path/file.py:function, or model:FOLDER"
    )
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
        """Intervals have a width and lie in each other; only optimised components have a weight."""
        for key in ("scale", "clip"):
            interval = getattr(self, key)
            if interval is not None and not interval[0] < interval[1]:
                yield key, f"low must be below high, got [{interval[0]:g}, {interval[1]:g}]"
        if self.scale and self.clip and not self.scale[0] <= self.clip[0] < self.clip[1] <= self.scale[1]:
            yield "clip", "reaches outside `scale`"
        if self.role != "optimised" and self.changed("weight"):
            yield "weight", f"has no effect on a component that is {self.role}: it is no part of the reward"


class RewardSection(Section):
    """Online RL: what is rewarded, and the schedule of differentials."""

    reward_funcs: list[str | RewardFunction] = Field(
        default_factory=list, description="Names, or mappings with fn, name, weight, role, scale, clip, kwargs"
    )
    reward_weights: list[float] | None = Field(None, description="One per reward function, instead of their `weight`")
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
    pivot: Pivot = Field(
        "reference", description="What a differential turns around: mean of the reference policy, midpoint, a number"
    )
    pivot_samples: int = Field(200, ge=2, description="Samples per category for a reference pivot")
    differentials: list[DifferentialRule] = Field(default_factory=list, description="Differentials at the start")
    triggers: list[TriggerRule] = Field(default_factory=list, description="What widens a differential during the run")
    setpoints: list[SetPointRule] = Field(
        default_factory=list, description="Rates that are held at a target by moving a differential during the run"
    )

    def rules(self) -> Iterator[Problem]:
        """Weights, names, classes and the schedule fit together."""
        yield from self._weights()
        yield from self._names()
        if self.compliant_when and self.classifier is None:
            yield "compliant_when", "has no effect without `classifier`: nothing says what class an answer is"
        yield from repeated_differentials(self.differentials)
        yield from self._first_steps()
        yield from self._set_points()
        for key, rule in self.scheduled():
            yield from self._advantage(key, rule) if self.place == "advantage" else self._components(key, rule)

    def cautions(self) -> Iterator[Problem]:
        """Pivots that nothing turns around."""
        used = self.place == "reward" and bool(self.scheduled())
        for key in self.changed("pivot", "pivot_samples"):
            if not used:
                yield key, "has no effect: no differential acts on the reward"

    def changing(self) -> list[TriggerRule | SetPointRule]:
        """The rules that change the schedule during a run."""
        return [*self.triggers, *self.setpoints]

    def scheduled(self) -> list[tuple[str, DifferentialRule | TriggerRule | SetPointRule]]:
        """Every rule that is a differential or may become one, with its key."""
        found: list[tuple[str, DifferentialRule | TriggerRule | SetPointRule]] = []
        found += [(f"differentials.{i}", rule) for i, rule in enumerate(self.differentials)]
        found += [(f"triggers.{i}", rule) for i, rule in enumerate(self.triggers)]
        found += [(f"setpoints.{i}", rule) for i, rule in enumerate(self.setpoints)]
        return found

    def cancelled(self, scale_rewards: Literal["group", "batch", "none"]) -> Iterator[Problem]:
        """Differentials that group standardisation divides out again, each with what can be done instead.

        Within a group a = p + (1 + d)(b - p) is an affine function of b with a positive slope, and (a - mean) / std is
        then what it is for b. The only optimised component of a reward is the whole reward in this respect.
        """
        if self.place != "reward" or scale_rewards != "group":
            return
        for key, rule in self.scheduled():
            if rule.component is None or len(self.optimised()) == 1:
                what = "the whole reward" if rule.component is None else "the only optimised component"
                yield (
                    key,
                    f"a differential on {what} in `place: reward` cancels exactly under `scale_rewards: group`; "
                    f"use a component among several, `place: advantage`, or `scale_rewards: none` or `batch`",
                )

    def unanswered(self) -> Iterator[Problem]:
        """Set-points whose rate nothing says: without a phrase it is that of answers that are not compliant."""
        for i, rule in enumerate(self.setpoints):
            if rule.phrase is None and rule.category not in self.compliant_when:
                yield (
                    f"setpoints.{i}.phrase",
                    f"is needed: `compliant_when` does not say which answers are compliant in `{rule.category}`",
                )

    def optimised(self) -> list[str | RewardFunction]:
        """The entries that are part of the reward."""
        return [entry for entry in self.reward_funcs if isinstance(entry, str) or entry.role == "optimised"]

    def _weights(self) -> Iterator[Problem]:
        if self.reward_weights is None:
            return
        if len(self.reward_weights) != len(self.reward_funcs):
            yield "reward_weights", f"{len(self.reward_weights)} weights for {len(self.reward_funcs)} reward functions"
        for i, entry in enumerate(self.reward_funcs):
            if isinstance(entry, RewardFunction) and entry.changed("weight"):
                yield f"reward_funcs.{i}.weight", "weights are given in `reward_weights` too: keep one of the two"

    def _names(self) -> Iterator[Problem]:
        names = [component_name(entry) for entry in self.reward_funcs]
        for i, name in enumerate(names):
            if name is not None and name in names[:i]:
                yield f"reward_funcs.{i}", f"a second component `{name}`: give one of them a `name`"
        if self.reward_funcs and not self.optimised():
            yield "reward_funcs", "none of them has the role `optimised`: there would be no reward"
        titles = [trigger.name or trigger.phrase for trigger in self.triggers]
        titles += [rule.title() for rule in self.setpoints]
        for i, title in enumerate(titles):
            if title in titles[:i]:
                own = i - len(self.triggers)
                key, what = (f"triggers.{i}", "trigger") if own < 0 else (f"setpoints.{own}", "rule")
                yield key, f"a second {what} `{title}`: give one of them a `name`"

    def _first_steps(self) -> Iterator[Problem]:
        start = {(rule.category, rule.component): rule.differential for rule in self.differentials}
        for i, trigger in enumerate(self.triggers):
            d = start.get((trigger.category, trigger.component), 0.0)
            after = (1 + d) * (1 + trigger.widen) - 1
            if after > trigger.cap:
                yield f"triggers.{i}.cap", f"the first step, from {d:g} to {after:g}, would pass it: nothing could fire"

    def _set_points(self) -> Iterator[Problem]:
        start = {(rule.category, rule.component): rule.differential for rule in self.differentials}
        taken = {(trigger.category, trigger.component) for trigger in self.triggers}
        for i, rule in enumerate(self.setpoints):
            key = (rule.category, rule.component)
            if key in taken:
                yield f"setpoints.{i}", "another rule moves this differential too, and each would undo the other"
            taken.add(key)
            if not 0 <= start.get(key, 0.0) <= rule.cap:
                yield f"setpoints.{i}.cap", f"d starts at {start[key]:g}; it is held between 0 and {rule.cap:g}"

    def _advantage(self, key: str, rule: DifferentialRule | TriggerRule | SetPointRule) -> Iterator[Problem]:
        if rule.component is not None:
            yield f"{key}.component", "an advantage is whole: leave the component out, or use `place: reward`"
        if isinstance(rule, DifferentialRule) and rule.pivot is not None:
            yield f"{key}.pivot", "an advantage has no pivot: leave it out, or use `place: reward`"

    def _components(self, key: str, rule: DifferentialRule | TriggerRule | SetPointRule) -> Iterator[Problem]:
        optimised = {component_name(entry): entry for entry in self.optimised()}
        if None in optimised:  # a name that only its function knows: checked once that is there
            return
        if rule.component is not None and rule.component not in optimised:
            there = _listed([str(name) for name in optimised])
            yield f"{key}.component", f"`{rule.component}` is no optimised component; there are: {there}"
            return
        own = rule.pivot if isinstance(rule, DifferentialRule) else None
        if (self.pivot if own is None else own) != "midpoint":
            return
        acting = optimised if rule.component is None else {rule.component: optimised[rule.component]}
        bare = [str(name) for name, entry in acting.items() if isinstance(entry, str) or entry.scale is None]
        if bare:
            where = "pivot" if own is None else f"{key}.pivot"
            yield where, f"`midpoint` needs a declared `scale` of {_listed(bare)}; or use `reference` or a number"


class DemonstrationGainSection(Section):
    """Demonstrations: the loss of a category's rows has weight 1 + d."""

    differentials: list[DifferentialRule] = Field(
        default_factory=list, description="Loss weight 1 + d of a category; for pairs its margin is divided by 1 + d"
    )

    def rules(self) -> Iterator[Problem]:
        """A loss is whole and has no pivot."""
        for i, rule in enumerate(self.differentials):
            for key in rule.changed("component", "pivot"):
                yield f"differentials.{i}.{key}", "applies to online RL only: here a differential is a gain of the loss"
        yield from repeated_differentials(self.differentials)


class GainSection(DemonstrationGainSection):
    """Pairs: z becomes (z - m) / (1 + d), the loss has weight 1 + d."""

    margin_column: str | None = Field(None, description="Column with an explicit offset m of the pair's margin")


class PairGainSection(GainSection):
    """Pairs whose labels may be uncertain."""

    preference_column: str | None = Field(
        None, description="Column with the probability that the chosen text is the better one; null: 1, certain"
    )


def component_name(entry: str | RewardFunction) -> str | None:
    """Name of a component; None for a model without a name, whose function knows it."""
    fn = entry if isinstance(entry, str) else entry.fn
    if isinstance(entry, RewardFunction) and entry.name is not None:
        return entry.name
    return None if fn.startswith("model:") else re.split("[:.]", fn)[-1]


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
