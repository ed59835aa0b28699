"""The coefficient of online RL's KL penalty as a run has it: in force for a rollout, moved by its controller after."""

from __future__ import annotations

from typing import Any

from rlhf.config.kl import KLSettings
from rlhf.config.online import OnlineReferenceSection
from rlhf.reference.controller import Bounds, make_controller
from rlhf.stages.grpo_measures import CONTROLLED
from rlhf.train.record import SharedStop


class Coefficient:
    """beta and what moves it.

    `beta` is in force from one rollout to the next: all inner steps use one value, and a penalty in the reward is taken
    into the advantages with it. `penalised` says whether there is a penalty at all; a controller may take beta to 0,
    which leaves the penalty in its place, measured and without weight.
    """

    def __init__(self, section: OnlineReferenceSection) -> None:
        self.kl: KLSettings = section.kl.settings()
        self.section = section
        bounds = Bounds(section.beta_min, section.beta_max)
        self.controller = make_controller(section.controller, section.beta, section.kl_target, section.kl_gain, bounds)
        self.beta = self.controller.beta
        self.penalised = section.beta > 0

    @property
    def moves(self) -> bool:
        """Whether a controller moves beta."""
        return self.controller.kind != "fixed"

    @property
    def in_loss(self) -> bool:
        """Whether the penalty is a term of the loss."""
        return self.penalised and self.kl.place == "loss"

    @property
    def in_reward(self) -> bool:
        """Whether the penalty is subtracted from the advantage."""
        return self.penalised and self.kl.place == "reward"

    @property
    def full(self) -> bool:
        """Whether a divergence over the vocabulary is computed."""
        return self.in_loss and self.kl.estimator == "full"

    def lines(self) -> list[str]:
        """For people: the coefficient, its target and their units."""
        found = [f"beta = {self.section.beta:g} {self.kl.beta_unit}"] if self.penalised else []
        if self.moves:
            line = f"controller {self.controller.kind}: to {self.section.kl_target:g} nats per {self.kl.level}"
            when = "; advantages take the value of their rollout, and keep it" if self.in_reward else ""
            found.append(f"{line}, moved once a rollout{when}")
        return found

    def start_rollout(self) -> None:
        """Puts in force what the controller came to."""
        self.beta = self.controller.beta

    def moved(self, metrics: dict[str, float]) -> dict[str, float]:
        """Moves the controller by the on-policy pass, whose figures are those of all ranks; what goes on record of it.

        Raises: SharedStop where the divergence is not finite.
        """
        if not self.moves:
            return {}
        measured = metrics.get(CONTROLLED.format(level=self.kl.level))
        # Where no token of a rollout counts, nothing was measured and nothing moves.
        if measured is not None:
            try:
                self.controller.update(measured)
            except ValueError as error:
                raise SharedStop(f"reference.controller {self.controller.kind}: {error}") from error
        return {"beta_next": self.controller.beta}

    def state_dict(self) -> dict[str, Any]:
        """The controller, and the value in force in the middle of a rollout."""
        return {"controller": self.controller.state_dict(), "beta": self.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there; a fixed coefficient is the configuration's, which may have changed."""
        self.controller.load_state_dict(state["controller"])
        if self.moves:
            self.beta = float(state["beta"])
