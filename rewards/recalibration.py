"""Triggers that widen a differential when a phrase comes back, and the controller that lets them act.

A trigger looks at the last n sessions of its category, once a step, after the step's sessions are known. When k of
them hold the phrase it asks for a wider differential from the next step on. Every such moment is an event, also when
the request is withheld: those are the placebos of a later analysis. A rule that holds a rate at a target (`setpoint`)
is the same to the controller.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rewards.differential import Schedule
from rewards.errors import ConfigError
from rewards.leverage import Gamma
from rewards.pivots import describe
from rewards.proposals import Event, decided
from rewards.recent_slope import RecentSlope
from rewards.schedule_rules import SetPointRule, TriggerRule
from rewards.setpoint import SetPoint, check_same
from rewards.text import fold

_SHAPES_STATE = ("phrase", "category", "n", "armed_window")


class _Hit(NamedTuple):
    """One session of the category, and how common the phrase was in the run just before it."""

    match: int
    hits_before: int
    sessions_before: int
    step: int


class Trigger:
    """One rule with what it remembers: the window, the run's latest sessions, the cooldown, the latest advantages."""

    def __init__(self, rule: TriggerRule) -> None:
        self.rule = rule
        self.name = rule.name or rule.phrase
        self._needle = fold(rule.phrase)
        self._window: deque[_Hit] = deque(maxlen=rule.n)
        self._recent: deque[int] = deque(maxlen=rule.armed_window)
        self._hits_recent = 0
        self._since_applied: int | None = None
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
        if self.watch(step, sessions, folded) and self.hits >= self.rule.k:
            return _evaluate(self, step, schedule, self._slope.gamma(generator), held)
        return [], schedule

    def watch(self, step: int, sessions: Sequence[Mapping[str, Any]], folded: Sequence[str]) -> bool:
        """Takes in a step's sessions and their folded texts; whether the category was among them."""
        own: list[list[Any]] = []
        for session, text in zip(sessions, folded, strict=True):
            match = int(self._needle in text)
            if session["category"] == self.rule.category:
                self._window.append(_Hit(match, self._hits_recent, len(self._recent), step))
                own.append([session["group_id"], match, session["advantage"]])
            if len(self._recent) == self._recent.maxlen:
                self._hits_recent -= self._recent[0]
            self._recent.append(match)
            self._hits_recent += match
        if own:
            self._slope.add(step, own)
            if self._since_applied is not None:
                self._since_applied += len(own)
        return bool(own)

    @property
    def hits(self) -> int:
        """Sessions of the window that hold the phrase."""
        return sum(hit.match for hit in self._window)

    def evidence(self, step: int) -> dict[str, Any]:
        """What the window and the sessions before it hold."""
        first = self._window[0]
        return {
            "first_session_step": first.step,
            "step": step,
            "hits": self.hits,
            "n": len(self._window),
            "rate_before": first.hits_before / first.sessions_before if first.sessions_before else None,
            "window_before": first.sessions_before,
        }

    def objections(self, new_d: float, slope: Gamma | None) -> list[str]:
        """Why the differential must not be widened to new_d now; empty when it may."""
        rule, first = self.rule, self._window[0]
        found = []
        if first.sessions_before < rule.armed_window:
            found.append(f"not armed: {first.sessions_before} of {rule.armed_window} sessions came before the window")
        elif not first.hits_before / first.sessions_before < rule.armed_below:
            rate = first.hits_before / first.sessions_before
            found.append(f"not armed: the rate before the window, {rate:.3f}, is not below {rule.armed_below:g}")
        if self._since_applied is not None and self._since_applied < rule.cooldown_sessions:
            found.append(f"cooldown: {self._since_applied} of {rule.cooldown_sessions} sessions since the last one")
        if new_d > rule.cap:
            found.append(f"cap: {100 * new_d:.1f} % would pass {100 * rule.cap:.1f} %")
        if slope is None:
            found.append("gamma not measurable: no group has answers with and without the phrase")
        elif not slope.estimate < 0:
            found.append(f"gamma not negative: {slope.estimate:.3f}; a wider gap would reinforce the phrase")
        return found

    def applied(self) -> None:
        """The request was granted: an empty window, and the cooldown begins."""
        self._window.clear()
        self._since_applied = 0

    def state_dict(self) -> dict[str, Any]:
        """What the trigger remembers, in JSON's types."""
        return {
            "rule": {key: getattr(self.rule, key) for key in _SHAPES_STATE},
            "window": [list(hit) for hit in self._window],
            "recent": "".join(map(str, self._recent)),
            "since_applied": self._since_applied,
            "steps": self._slope.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`.

        Raises: ConfigError when it was made by a rule that counted something else.
        """
        check_same(f"trigger `{self.name}`", self.rule, state["rule"])
        self._window = deque((_Hit(*hit) for hit in state["window"]), maxlen=self.rule.n)
        self._recent = deque(map(int, state["recent"]), maxlen=self.rule.armed_window)
        self._hits_recent = sum(self._recent)
        self._since_applied = state["since_applied"]
        self._slope.load(state["steps"])


class Controller:
    """All rules of a run that change its schedule."""

    def __init__(self, rules: Sequence[TriggerRule | SetPointRule], seed: int = 0) -> None:
        """`seed` is for the bootstrap intervals of gamma. Raises: ConfigError when two triggers have one name."""
        self.triggers: list[Trigger | SetPoint] = [
            SetPoint(rule) if isinstance(rule, SetPointRule) else Trigger(rule) for rule in rules
        ]
        self.seed = seed
        self.held: str | None = None
        """Why no trigger may act now, for an experiment that decides itself what is changed; None where they may."""
        self._step: int | None = None
        names = [trigger.name for trigger in self.triggers]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"reward.triggers: two triggers are called `{name}`; give one another `name`")

    def observe(
        self, step: int, sessions: Sequence[Mapping[str, Any]], schedule: Schedule
    ) -> tuple[list[Event], Schedule]:
        """Shows a step's sessions to the triggers; the events, and the schedule that holds from the next step on.

        sessions: dicts with category, text, compliant, group_id and advantage (None for null), in (step, writer, seq)
        order.
        Raises: ValueError when the step does not come after the last one; ConfigError for a trigger whose pivot has
        not been measured.
        """
        if self._step is not None and step <= self._step:
            raise ValueError(f"triggers: step {step} comes after step {self._step}; steps only go forward")
        self._step = step
        folded = [fold(session["text"]) for session in sessions] if self.triggers else []
        events: list[Event] = []
        for index, trigger in enumerate(self.triggers):
            key = (trigger.rule.category, trigger.rule.component)
            if key in schedule.awaiting:  # before it fires, not in the middle of a run
                raise ConfigError(f"trigger `{trigger.name}`: the pivot of {describe(key)} has not been measured")
            generator = np.random.default_rng([self.seed, step, index])
            found, schedule = trigger.observe(step, sessions, folded, schedule, generator, self.held)
            events += found
        return events, schedule

    def state_dict(self) -> dict[str, Any]:
        """What all triggers remember, in JSON's types."""
        return {"step": self._step, "triggers": {trigger.name: trigger.state_dict() for trigger in self.triggers}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`; a trigger that it does not know starts without memory.

        Raises: ConfigError naming a trigger whose counts cannot continue.
        """
        self._step = state["step"]
        for trigger in self.triggers:
            if trigger.name in state["triggers"]:
                trigger.load_state_dict(state["triggers"][trigger.name])


def _evaluate(
    trigger: Trigger, step: int, schedule: Schedule, slope: Gamma | None, held: str | None
) -> tuple[list[Event], Schedule]:
    """The events of a window that reached k, and the schedule with the change if nothing objects."""
    rule, hits = trigger.rule, trigger.hits
    key, evidence = (rule.category, rule.component), trigger.evidence(step)
    change = schedule.with_change(*key, "widen", rule.widen)
    objections = trigger.objections(change.schedule.entries[key], slope)
    objections += [held] if held is not None else []
    said = {
        "reason": f"{hits} of the last {evidence['n']} sessions of `{rule.category}` hold `{rule.phrase}`",
        "trigger": {"name": trigger.name, "phrase": rule.phrase, "k": rule.k, "n": rule.n, "hits": hits},
        "evidence": evidence,
    }
    if not objections:
        trigger.applied()
    return decided(schedule, key, "widen", change, said, slope, objections)
