"""The coefficient of the constraint: fixed, or moved once a batch of rollouts so that the divergence meets a target.

    fixed      beta
    adaptive   beta <- beta (1 + K e), e = clip(KL / target - 1, -0.2, 0.2)
    dual       beta <- beta + K beta_0 (KL / target - 1), projected on [beta_min, beta_max], beta_min >= 0

`adaptive` moves by at most 0.2 K a batch whatever is measured: slow, and robust against a wild estimate. It can neither
reach 0 nor leave it. `dual` is gradient ascent on the multiplier of the constraint KL <= target, with the step
eta = K beta_0 / target per nat: a constraint that does not bind ends at beta = 0.

Stability of `dual`. Let the divergence follow beta with the slope -G nats per unit of beta and a lag of L batches. The
loop is then a second-order one with damping 1 / (2 sqrt(eta G L)): no overshoot for eta <= 1 / (4 G L), and without a
lag convergence for eta < 2 / G. A policy near exp(reward / beta) has KL = c / beta^2, hence G = 2 target / beta at the
target, and the bound reads K <= beta / (8 beta_0 L): 0.1 is inside it as long as beta at the target is not much below
its start and the policy follows within a batch. Where it takes L batches to follow, K has to be L times smaller.

Both act on the divergence of the on-policy pass, over all ranks: per sequence or per token, as `kl.level` says.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from rlhf.config.kl import ControllerKind

ERROR_LIMIT = 0.2
GAIN = 0.1


@dataclass(frozen=True)
class Bounds:
    """What the coefficient stays between; high None: no bound."""

    low: float = 0.0
    high: float | None = None

    def project(self, value: float) -> float:
        """The nearest value inside."""
        return max(self.low, value if self.high is None else min(value, self.high))


class Fixed:
    """A coefficient that nothing moves."""

    kind: ControllerKind = "fixed"

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def update(self, measured_nats: float) -> float:
        """The coefficient, whatever was measured."""
        return self.beta

    def state_dict(self) -> dict[str, Any]:
        """Kind and coefficient."""
        return {"kind": self.kind, "beta": self.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores nothing: a fixed coefficient is the configuration's, which may have changed."""


class Moved(Fixed, ABC):
    """A coefficient that is moved towards a target.

    Units: target and what is measured in nats, per sequence or per token alike.
    Raises: ValueError for a coefficient that is not positive or outside its bounds, a target or a gain that is not
    positive.
    """

    def __init__(self, beta: float, target_nats: float, gain: float = GAIN, bounds: Bounds | None = None) -> None:
        bounds = bounds if bounds is not None else Bounds()
        if not (beta > 0 and target_nats > 0 and gain > 0):
            raise ValueError(f"beta {beta}, target {target_nats} and gain {gain} have to be positive")
        if bounds.low < 0 or bounds.project(beta) != beta:
            raise ValueError(f"beta {beta} is outside its bounds {bounds.low} to {bounds.high}")
        super().__init__(beta)
        self.start, self.target_nats, self.gain, self.bounds = beta, target_nats, gain, bounds

    def update(self, measured_nats: float) -> float:
        """Moves the coefficient by what one batch measured, and returns it.

        Raises: ValueError for a divergence that is not finite.
        """
        if not math.isfinite(measured_nats):
            raise ValueError(f"the measured divergence is {measured_nats}: no coefficient follows from it")
        self.beta = self.bounds.project(self._moved(measured_nats / self.target_nats - 1))
        return self.beta

    @abstractmethod
    def _moved(self, error: float) -> float:
        """Where the coefficient goes before it is projected; error: (measured - target) / target."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The coefficient that was reached, inside the bounds as they are configured now."""
        self.beta = self.bounds.project(float(state["beta"]))


class Adaptive(Moved):
    """A coefficient in proportion to the clipped relative error.

    Source: Ziegler et al. 2019 (1909.08593), section 2.2; K_beta = 0.1, one update a batch.
    Departures: bounds, none by default.
    Raises: ValueError for a gain of 5 or more, with which one update could reach 0.
    """

    kind: ControllerKind = "adaptive"

    def __init__(self, beta: float, target_nats: float, gain: float = GAIN, bounds: Bounds | None = None) -> None:
        super().__init__(beta, target_nats, gain, bounds)
        if gain * ERROR_LIMIT >= 1:
            raise ValueError(f"gain {gain}: one update could take beta to 0 or below; it has to be below 5")

    def _moved(self, error: float) -> float:
        return self.beta * (1 + self.gain * min(max(error, -ERROR_LIMIT), ERROR_LIMIT))


class Dual(Moved):
    """The multiplier of KL <= target by projected gradient ascent.

    Source: dual ascent, Boyd et al. 2011, "Distributed Optimization and Statistical Learning via the Alternating
    Direction Method of Multipliers", eq. 2.3.
    Departures: the constraint is an inequality, hence the projection; it is estimated on one batch, and the policy
    takes an optimizer step where the method minimises; the step is K beta_0 / target, so that the gain has no unit.
    """

    kind: ControllerKind = "dual"

    def _moved(self, error: float) -> float:
        return self.beta + self.gain * self.start * error


def make_controller(
    kind: ControllerKind,
    beta: float,
    target_nats: float | None = None,
    gain: float = GAIN,
    bounds: Bounds | None = None,
) -> Fixed:
    """The controller of that kind.

    Raises: ValueError where it lacks a target, or a number is out of its range.
    """
    if kind == "fixed":
        return Fixed(beta)
    if target_nats is None:
        raise ValueError(f"controller `{kind}` needs a target")
    return {"adaptive": Adaptive, "dual": Dual}[kind](beta, target_nats, gain, bounds)
