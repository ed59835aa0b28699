"""An arm of a fork: the stage it was forked off, with other samples, held triggers and one event of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rewards.differential import Schedule
from rewards.errors import UserError
from rlhf.evaluation.answers import sample_seed
from rlhf.fork.plan import Forking, Recalibration
from rlhf.stages.grpo import GRPO
from rlhf.stages.work import Run

HELD = "held: arm `{arm}` of a fork, in which no trigger acts"
DONE = "done as on record: before the event, or beside it, and the same in every arm"
REASONS = {
    "with": "the recalibration as on record, in an arm that has it",
    "without": "withheld: arm `without` of a fork",
    "sham": "a sham: announced, and the differential stays as it is",
    "null": "on the whole reward under group standardisation without epsilon: known to have no effect",
    "control": "withheld: arm `control` of a fork",
}


@dataclass(frozen=True)
class Arm:
    """One arm of one pair. seed: what both arms of the pair sample prompts and completions with."""

    forking: Forking
    name: str
    seed: int

    @classmethod
    def of(cls, forking: Forking, number: int, name: str) -> Arm:
        """Number 0 keeps the run's own seed: its arm `with` repeats the run as long as no other trigger acts there."""
        return cls(forking, name, forking.seed if number == 0 else sample_seed(forking.seed, "fork", number))


class ForkedGRPO(GRPO):
    """GRPO as an arm."""

    def __init__(self, run: Run, arm: Arm) -> None:
        super().__init__(run)
        self.arm = arm
        self.sampler.reseed(arm.seed)
        signal = self.sampler.signal
        signal.zero_epsilon = arm.name in ("null", "control")
        signal.controller.held = HELD.format(arm=arm.name)

    def begin(self) -> None:
        """Registers the scorers and the pivots of the schedule that the arm goes on with."""
        step = self.arm.forking.checkpoint_step
        for payload in self.sampler.composer.registrations():
            self.run.recorder.event("scorer_registered", payload, step=step)
        for (category, component), value in self.sampler.signal.schedule.pivots.items():
            payload = {"category": category, "component": component, "value": value, "rule": "of the forked run"}
            self.run.recorder.event("pivot_set", payload, step=step)
        if self.arm.forking.event.step == step:
            self._treat(self.arm.forking.event)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what the checkpoint holds; the learning rate keeps the schedule of the whole run."""
        super().load_state_dict(state)
        # The optimiser's schedule was made of the whole run's steps before this: only where the arm ends changes.
        if self.arm.forking.last_step is not None:
            self.total_steps = min(self.total_steps, self.arm.forking.last_step)
        if self.arm.forking.event.step >= self.total_steps:
            raise UserError(
                f"the arms would end at step {self.total_steps}, and the event acts from step "
                f"{self.arm.forking.event.step + 1} on"
            )
        if not self.run.forked:  # the arm's own checkpoint, which holds what was done to it
            return
        event, signal = self.arm.forking.event, self.sampler.signal
        if event.step == self.arm.forking.checkpoint_step:
            # Saved after the event: every arm begins without it, and the treated ones get it anew.
            signal.schedule = signal.schedule.with_change(
                event.category, event.component, "set", event.old_pct / 100
            ).schedule
        if self.arm.name == "null":
            self._check_null()

    def _check_null(self) -> None:
        category = self.arm.forking.event.category
        acting = {key: d for key, d in self.sampler.signal.schedule.entries.items() if key[0] == category and d != 0}
        acting |= {(one.category, one.component): 1.0 for one in self.arm.forking.replayed if one.category == category}
        if acting:
            raise UserError(
                f"--null-arm: `{category}` has a differential already; one on the whole reward on top of it would have "
                "an effect: fork at the category's first recalibration"
            )

    def _roll_out(self, step: int, rollout: int) -> None:
        super()._roll_out(step, rollout)
        forking = self.arm.forking
        for change in forking.replayed:
            if change.step == step:
                self._apply(change, change.component, DONE)
        if forking.event.step == step:
            self._treat(forking.event)

    def _treat(self, event: Recalibration) -> None:
        reason = REASONS[self.arm.name]
        if self.arm.name == "with":
            self._apply(event, event.component, reason)
        elif self.arm.name == "null":
            self._apply(event, None, reason)
        else:
            old = _percent(self.sampler.signal.schedule, event)
            payload = self._payload(event, event.component, reason, old)
            if self.arm.name == "sham":
                self._record("recalibration", {**payload, "new_pct": old, "sham": True, "intended_pct": event.new_pct})
            else:
                self._record("trigger_evaluated", {**payload, "applied": False, "withheld_because": reason})

    def _apply(self, change: Recalibration, component: str | None, reason: str) -> None:
        signal = self.sampler.signal
        if component is None and signal.schedule.place == "reward":
            # Any pivot does: it moves a whole group, which is centred afterwards.
            key = (change.category, None)
            signal.schedule = replace(signal.schedule, pivots={key: 0.0, **signal.schedule.pivots})
        changed = signal.schedule.with_change(change.category, component, "set", change.new_pct / 100)
        signal.schedule = changed.schedule
        payload = self._payload(change, component, reason, changed.old_pct)
        self._record("recalibration", {**payload, "new_pct": changed.new_pct})

    def _payload(self, change: Recalibration, component: str | None, reason: str, old_pct: float) -> dict[str, Any]:
        return {
            "category": change.category,
            "component": component,
            "op": "set",
            "old_pct": old_pct,
            "new_pct": change.new_pct,
            "reason": f"step {change.step} of `{self.arm.forking.run_id}`: {reason}",
            "trigger": None,
            "evidence": None,
            "approval": "fork",
            "randomised_delay": None,
            "arm": self.arm.name,
        }

    def _record(self, kind: str, payload: dict[str, Any]) -> None:
        if self.rollout is None:  # at the very start, where the checkpoint is that of the event's step
            self.run.recorder.event(kind, payload, step=self.arm.forking.event.step)
        else:
            self.rollout.signal.events.append((kind, payload))


def _percent(schedule: Schedule, event: Recalibration) -> float:
    return round(100 * schedule.entries.get((event.category, event.component), 0.0), 10)
