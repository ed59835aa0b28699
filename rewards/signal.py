"""From scored sessions to advantages: the schedule, its place, the trajectory index and the triggers, in one order.

It runs on the gathered sessions of a step, identically on every rank, and needs no torch: any trainer that hands over
groups of scored sessions can use it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.advantages import ZERO_STD, Normalised, Scale, advantages, zero_variance_fraction
from rewards.compose import Component, baseline
from rewards.differential import Schedule
from rewards.leverage import leverages
from rewards.pivots import Pivot
from rewards.recalibration import Controller
from rewards.scorers import Scorer
from rewards.trajectory import TrajectoryIndex

if TYPE_CHECKING:
    from rewards.config import RewardSection

Event = tuple[str, dict[str, Any]]


@dataclass
class Session:
    """One scored completion on its way to the ledger.

    Units: rewards on the scale of the components; penalty is what enters the advantage beside the reward (a KL penalty
    in the reward, already multiplied by its coefficient), never the adjusted reward.
    """

    group_id: str
    category: str | None
    components: list[Component]
    text: str
    classification: str | None = None
    compliant: bool | None = None
    penalty: float = 0.0


@dataclass(frozen=True)
class StepSignal:
    """What a step's sessions became.

    Shapes: advantage, one entry a session, NaN for null; rows, the ledger's columns of the reward and training groups,
    one dict a session; events in order; leverage by category, empty while no differential acts.
    """

    advantage: np.ndarray[Any, np.dtype[np.float64]]
    rows: list[dict[str, Any]]
    events: list[Event]
    leverage: dict[str, dict[str, Any]]
    zero_std: float | None


class RewardSignal:
    """The state that turns rewards into advantages over a run: schedule, triggers, trajectory index."""

    def __init__(self, section: "RewardSection", scorers: Sequence[Scorer], scale: Scale, seed: int) -> None:
        self.schedule = Schedule.from_config(section, scorers)
        self.controller = Controller(section.changing(), seed)
        self.trajectory = TrajectoryIndex()
        self.scale: Scale = scale
        self.seed = seed
        self.zero_epsilon = False
        """Whether nothing is added to the standard deviation: then a differential on the whole reward has no effect."""

    def set_pivots(self, pivots: Iterable[Pivot]) -> None:
        """Pivots measured on the reference policy take effect."""
        self.schedule = self.schedule.with_pivots(pivots)

    def apply(self, step: int, sessions: Sequence[Session]) -> StepSignal:
        """Applies the schedule as it stands to a step's sessions, then lets the triggers look at them.

        Raises: ValueError for no sessions.
        """
        schedule = self.schedule
        adjusted = [schedule.adjusted(s.components, s.category) for s in sessions]
        plain = [baseline(s.components) for s in sessions]
        groups = [s.group_id for s in sessions]
        penalty = [s.penalty for s in sessions]
        unadjusted = self._advantages(_less(plain, penalty), groups)
        final = self._advantages(_less([a.adjusted for a in adjusted], penalty), groups)
        gain = np.array([schedule.gain(s.category) for s in sessions])
        advantage = final.advantage * gain
        rows = self._rows(sessions, adjusted, plain, advantage, unadjusted, final)
        leverage = self._leverage(step, rows)
        self.trajectory.update(step, [(s.category, s.compliant) for s in sessions])
        observed = [
            {
                "category": s.category,
                "text": s.text,
                "compliant": s.compliant,
                "group_id": s.group_id,
                "advantage": None if np.isnan(a) else float(a),
            }
            for s, a in zip(sessions, advantage, strict=True)
        ]
        events, self.schedule = self.controller.observe(step, observed, schedule)
        return StepSignal(advantage, rows, events, leverage, zero_variance_fraction(final.std))

    def _advantages(self, values: Sequence[float | None], groups: Sequence[str]) -> Normalised:
        if not self.zero_epsilon:
            return advantages(values, groups, self.scale)
        # The smallest number there is changes no standard deviation, and 0 over it is 0.
        found = advantages(values, groups, self.scale, float(np.finfo(np.float64).tiny))
        # Where all that differs is rounding, there is nothing to standardise.
        found.advantage[found.std <= ZERO_STD] = 0.0
        return found

    def _rows(
        self,
        sessions: Sequence[Session],
        adjusted: Sequence[Any],
        plain: Sequence[float | None],
        advantage: Any,
        unadjusted: Normalised,
        final: Normalised,
    ) -> list[dict[str, Any]]:
        sizes: dict[str, int] = {}
        for s in sessions:
            sizes[s.group_id] = sizes.get(s.group_id, 0) + 1
        return [
            {
                "group_id": s.group_id,
                "group_size": sizes[s.group_id],
                "category": s.category,
                "classification": s.classification,
                "compliant": s.compliant,
                "trajectory_index": self.trajectory.value(s.category),
                "schedule_version": self.schedule.version,
                "baseline_reward": plain[i],
                "adjusted_reward": adjusted[i].adjusted,
                "differential_pct": adjusted[i].differential_pct,
                "pivot": adjusted[i].pivot,
                "components": adjusted[i].rows(s.components),
                "advantage": _null(advantage[i]),
                "advantage_unadjusted": _null(unadjusted.advantage[i]),
                "norm_mean": _null(final.mean[i]),
                "norm_std": _null(final.std[i]),
            }
            for i, s in enumerate(sessions)
        ]

    def _leverage(self, step: int, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        present = {row["category"] for row in rows}
        acting = sorted({key[0] for key, d in self.schedule.entries.items() if d != 0 and key[0] in present})
        if not acting:
            return {}
        # Keyed on the step: the bootstrap is the same after a resume.
        found = leverages(rows, np.random.default_rng([self.seed, step]), categories=acting)
        return {category: value.payload() for category, value in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state in JSON's types."""
        return {
            "schedule": self.schedule.state_dict(),
            "controller": self.controller.state_dict(),
            "trajectory": self.trajectory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`."""
        self.schedule = Schedule.from_state(state["schedule"])
        self.controller.load_state_dict(state["controller"])
        self.trajectory.load_state_dict(state["trajectory"])


def _less(values: Sequence[float | None], penalty: Sequence[float]) -> list[float | None]:
    return [None if value is None else value - p for value, p in zip(values, penalty, strict=True)]


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
