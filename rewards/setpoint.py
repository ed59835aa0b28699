"""A rate held at its target: dual ascent on a differential, that is integral control with a bounded step.

Every W sessions of the category the differential moves by step x error, the error being the rate of these sessions
minus its target, or the difference of their logits; it is projected on 0..cap.

Stability. Let the rate follow d with the slope -G and a first-order lag of L sessions. The closed loop is then
s^2 + s / L + step G / (W L) = 0, with the damping 1 / (2 sqrt(step G L / W)): at step = W / (4 G L) it is critical, and
nothing overshoots but noise. With `logit` G is the gain itself; the rate's own slope is gain p (1 - p) <= gain / 4.
Source: dual ascent on the multiplier of rate <= target (Boyd and Vandenberghe 2004, ch. 5).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewards.differential import Schedule
from rewards.errors import ConfigError
from rewards.leverage import Gamma
from rewards.proposals import Event, decided
from rewards.recent_slope import RecentSlope
from rewards.schedule_rules import SetPointRule
from rewards.text import fold

_COUNTED = ("phrase", "category", "component", "target", "error")


class SetPoint:
    """One rule with what it remembers: the sessions since its last adjustment, and the part of d it has saved up."""

    def __init__(self, rule: SetPointRule) -> None:
        self.rule = rule
        self.name = rule.title()
        self.step = rule.largest_step() if rule.step is None else rule.step
        self._needle = None if rule.phrase is None else fold(rule.phrase)
        self._hits = self._n = 0
        self._first_step: int | None = None
        self._saved = 0.0
        self._slope = RecentSlope()

    def observe(
        self,
        step: int,
        sessions: Sequence[Mapping[str, Any]],
        folded: Sequence[str],
        schedule: Schedule,
        generator: np.random.Generator,
        held: str | None,
    ) -> tuple[list[Event], Schedule]:
        """Takes in a step's sessions; the events, and the schedule from the next step on."""
        own = []
        for session, text in zip(sessions, folded, strict=True):
            match = self._match(session, text) if session["category"] == self.rule.category else None
            if match is not None:
                own.append([session["group_id"], match, session["advantage"]])
        if own:
            self._slope.add(step, own)
            self._first_step = step if self._first_step is None else self._first_step
            self._hits += sum(match for _, match, _ in own)
            self._n += len(own)
        if self._n < self.rule.every_sessions:
            return [], schedule
        return self._adjust(step, schedule, generator, held)

    def _match(self, session: Mapping[str, Any], text: str) -> int | None:
        if self._needle is not None:
            return int(self._needle in text)
        compliant = session["compliant"]
        return None if compliant is None else int(not compliant)

    def _error(self) -> float:
        if self.rule.error == "rate":
            return self._hits / self._n - self.rule.target
        # Half a session on either side: a rate of 0 or 1 has no logit.
        return _logit((self._hits + 0.5) / (self._n + 1)) - _logit(self.rule.target)

    def _adjust(
        self, step: int, schedule: Schedule, generator: np.random.Generator, held: str | None
    ) -> tuple[list[Event], Schedule]:
        rule = self.rule
        old = schedule.entries.get((rule.category, rule.component), 0.0)
        exact = min(max(old + self._saved + self.step * self._error(), 0.0), rule.cap)
        new = round(exact, 4)  # hundredths of a per cent: people read it
        hits, n, first = self._hits, self._n, self._first_step
        self._hits, self._n, self._first_step = 0, 0, None
        # An end of the range is always reached, however small the last change.
        small = abs(new - old) < rule.least_change and not (new in (0.0, rule.cap) and new != old)
        if new == old or small:
            self._saved = exact - old
            return [], schedule
        slope = self._slope.gamma(generator)
        objections = _objections(new - old, slope) + ([held] if held is not None else [])
        # What was refused is not saved up: it would all come at once when the reason is gone.
        self._saved = 0.0 if objections else exact - new
        trigger = {"name": self.name, "kind": "setpoint", "phrase": rule.phrase, "n": n, "hits": hits}
        said = {
            "reason": f"{hits} of the last {n} sessions of `{rule.category}` {self._what()}; target {rule.target:g}",
            "trigger": trigger | {"target": rule.target, "error": rule.error, "step": self.step},
            "evidence": {"first_session_step": first, "step": step, "hits": hits, "n": n},
        }
        key = (rule.category, rule.component)
        return decided(schedule, key, "set", schedule.with_change(*key, "set", new), said, slope, objections)

    def _what(self) -> str:
        return "are not compliant" if self.rule.phrase is None else f"hold `{self.rule.phrase}`"

    def state_dict(self) -> dict[str, Any]:
        """What the rule remembers, in JSON's types."""
        return {
            "rule": {key: getattr(self.rule, key) for key in _COUNTED},
            "hits": self._hits,
            "n": self._n,
            "first_step": self._first_step,
            "saved": self._saved,
            "steps": self._slope.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`.

        Raises: ConfigError when it was made by a rule that held something else.
        """
        check_same(f"setpoint `{self.name}`", self.rule, state["rule"])
        self._hits, self._n, self._first_step = state["hits"], state["n"], state["first_step"]
        self._saved = state["saved"]
        self._slope.load(state["steps"])


def check_same(name: str, rule: Any, then: Mapping[str, Any]) -> None:
    """Raises: ConfigError where a knob that a checkpoint's counts depend on has another value now."""
    for key, old in then.items():
        new = getattr(rule, key)
        if new != old:
            raise ConfigError(
                f"{name}: {key} is {new!r}, and {old!r} in the checkpoint; its counts cannot continue: restore the "
                f"value, or give it another name"
            )


def _objections(change: float, slope: Gamma | None) -> list[str]:
    """Why a differential must not grow: a wider gap helps only what the advantages already push down."""
    if change < 0:
        return []
    if slope is None:
        return ["gamma not measurable: no group has answers of both kinds"]
    if not slope.estimate < 0:
        return [f"gamma not negative: {slope.estimate:.3f}; a wider gap would reinforce what is to become rare"]
    return []


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
