"""Controllers of the coefficient: arithmetic by hand, bounds, state, and simulations of what they control."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from rlhf.reference.controller import Adaptive, Bounds, Dual, Fixed, Moved, make_controller

TARGET = 6.0


def test_adaptive_is_zieglers_rule_by_hand() -> None:
    controller = Adaptive(0.2, TARGET)
    # e = 9 / 6 - 1 = 0.5, clipped to 0.2; then e = 6.3 / 6 - 1 = 0.05; then e = -1, clipped to -0.2.
    assert controller.update(9.0) == pytest.approx(0.2 * 1.02)
    assert controller.update(6.3) == pytest.approx(0.2 * 1.02 * 1.005)
    assert controller.update(0.0) == pytest.approx(0.2 * 1.02 * 1.005 * 0.98)
    assert Adaptive(0.2, TARGET, gain=0.5).update(9.0) == pytest.approx(0.2 * 1.1)


def test_dual_is_ascent_on_the_multiplier_by_hand() -> None:
    controller = Dual(0.2, TARGET)
    # Step per nat: 0.1 * 0.2 / 6.
    assert controller.update(9.0) == pytest.approx(0.2 + 0.1 * 0.2 / 6 * 3)
    assert controller.update(0.0) == pytest.approx(0.2 + 0.1 * 0.2 / 6 * (3 - 6))
    assert Dual(0.2, TARGET, gain=0.4).update(9.0) == pytest.approx(0.24)


def test_at_the_target_nothing_moves_and_the_sign_of_the_error_is_the_direction() -> None:
    for make in (Adaptive, Dual):
        assert make(0.2, TARGET).update(TARGET) == 0.2
        assert make(0.2, TARGET).update(TARGET + 1) > 0.2 > make(0.2, TARGET).update(TARGET - 1)
        # A batch's mean of signed estimates may be below 0.
        assert make(0.2, TARGET).update(-1.0) < 0.2


def test_adaptive_moves_by_at_most_a_fifth_of_the_gain_while_dual_moves_in_proportion() -> None:
    assert Adaptive(0.2, TARGET).update(1e6) == pytest.approx(0.204)
    assert Dual(0.2, TARGET).update(1e3) == pytest.approx(0.2 + 0.02 * (1e3 / 6 - 1))


def test_dual_reaches_zero_and_leaves_it_and_adaptive_does_neither() -> None:
    dual, adaptive = Dual(0.2, TARGET, gain=0.6), Adaptive(0.2, TARGET, gain=4.9)
    for _ in range(5):
        dual.update(0.0)
        adaptive.update(0.0)
    assert dual.beta == 0.0 < adaptive.beta
    assert dual.update(12.0) == pytest.approx(0.12)


@pytest.mark.parametrize("make", [Adaptive, Dual])
def test_bounds_hold_at_every_update(make: type[Moved]) -> None:
    controller = make(0.2, TARGET, gain=1.0, bounds=Bounds(0.15, 0.25))
    assert [controller.update(100.0) for _ in range(9)][-1] == 0.25
    assert [controller.update(0.0) for _ in range(9)][-1] == 0.15


def test_fixed_never_moves_and_keeps_to_the_configuration() -> None:
    controller = Fixed(0.2)
    assert controller.update(1e9) == 0.2
    controller.load_state_dict(Fixed(0.9).state_dict())
    assert controller.beta == 0.2


@pytest.mark.parametrize("make", [Adaptive, Dual])
def test_a_restored_controller_goes_on_as_if_nothing_had_happened_and_a_new_one_does_not(make: type[Moved]) -> None:
    measured = np.random.default_rng(0).gamma(4.0, 2.0, size=20)
    whole = make(0.2, TARGET)
    expected = [whole.update(kl) for kl in measured]
    first = make(0.2, TARGET)
    for kl in measured[:11]:
        first.update(kl)
    restored, reset = make(0.2, TARGET), make(0.2, TARGET)
    restored.load_state_dict(first.state_dict())
    assert [restored.update(kl) for kl in measured[11:]] == expected[11:]
    # What a framework does that forgets it in its checkpoint.
    assert all(reset.update(kl) != wanted for kl, wanted in zip(measured[11:], expected[11:], strict=True))


def test_a_restored_coefficient_respects_bounds_that_have_changed_since() -> None:
    controller = Dual(0.2, TARGET, bounds=Bounds(0.1, 0.3))
    controller.load_state_dict({"kind": "dual", "beta": 0.9})
    assert controller.beta == 0.3


def test_settings_that_cannot_work_are_refused() -> None:
    for numbers in ((0.0, TARGET, 0.1), (0.2, 0.0, 0.1), (0.2, TARGET, 0.0)):
        with pytest.raises(ValueError, match="have to be positive"):
            Adaptive(*numbers)
    with pytest.raises(ValueError, match="below 5"):
        Adaptive(0.2, TARGET, gain=5.0)
    with pytest.raises(ValueError, match="outside its bounds"):
        Dual(0.2, TARGET, bounds=Bounds(0.3, None))
    with pytest.raises(ValueError, match="needs a target"):
        make_controller("dual", 0.2)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="no coefficient follows"):
            Dual(0.2, TARGET).update(value)
    assert isinstance(make_controller("fixed", 0.2), Fixed)


# --- what is controlled ----------------------------------------------------------------------------------------------


def lagging(controller: Fixed, lag: float, steps: int, noise: float = 0.0) -> np.ndarray:
    """A divergence that follows its equilibrium TARGET / beta^2 with a lag in batches; (beta, KL) of each batch."""
    rng, kl, found = np.random.default_rng(1), 0.0, []
    for _ in range(steps):
        found.append((controller.beta, kl))
        controller.update(kl * (1 + noise * rng.standard_normal()))
        kl += (min(TARGET / max(controller.beta, 1e-3) ** 2, 50 * TARGET) - kl) / lag
    return np.array(found)


@pytest.mark.parametrize("lag", [1.0, 5.0])
@pytest.mark.parametrize("start", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["adaptive", "dual"])
def test_adaptive_and_dual_hold_the_target_on_a_noisy_lagging_plant(kind: str, start: float, lag: float) -> None:
    gain = 0.1 if kind == "adaptive" else 1 / (8 * start * lag)
    controller = make_controller(kind, start, TARGET, gain)  # type: ignore[arg-type]
    tail = lagging(controller, lag, 2000, noise=0.3)[-500:]
    assert tail[:, 1].mean() == pytest.approx(TARGET, rel=0.03)
    assert tail[:, 0].mean() == pytest.approx(1.0, rel=0.05)


def test_without_a_controller_the_divergence_is_wherever_beta_puts_it() -> None:
    assert lagging(Fixed(0.5), 5.0, 500)[-1, 1] == pytest.approx(4 * TARGET, rel=1e-6)


@pytest.mark.parametrize("lag", [5.0, 20.0])
def test_dual_does_not_overshoot_at_its_bound_and_oscillates_far_above_it(lag: float) -> None:
    # The bound: K <= beta / (8 beta_0 L), with beta 1 at the target.
    start = 0.9
    bound = 1 / (8 * start * lag)

    def highest(gain: float) -> float:
        # Around the target, from the equilibrium of the start: the divergence falls by 2 TARGET per unit of beta.
        controller, kl, beta = Dual(start, TARGET, gain), TARGET * (1 + 2 * (1 - start)), []
        for _ in range(int(200 * lag)):
            beta.append(controller.update(kl))
            kl += (TARGET * (1 + 2 * (1 - controller.beta)) - kl) / lag
        assert controller.beta == pytest.approx(1.0, abs=1e-3)
        return max(beta)

    assert highest(bound) < 1.005
    assert highest(16 * bound) > 1.04


def test_dual_without_a_lag_converges_below_two_over_the_slope_and_not_above() -> None:
    def last_error(eta_times_slope: float) -> float:
        # Step eta = gain * beta_0 / target; slope G: KL = target + G (1 - beta).
        slope = 3.0
        controller = Dual(0.9, TARGET, eta_times_slope / slope * TARGET / 0.9)
        for _ in range(60):
            controller.update(TARGET + slope * (1 - controller.beta))
        return abs(controller.beta - 1)

    assert last_error(1.8) < 1e-5
    assert last_error(2.2) > 0.1


def bandit(controller: Fixed, steps: int, reward: Callable[[int], float] = lambda t: 1.0) -> np.ndarray:
    """Exact policy gradient on 32 arms with reward - beta KL to the uniform distribution; (beta, KL) of each step."""
    values = np.random.default_rng(3).standard_normal(32)
    logits, found = np.zeros(32), []
    for t in range(steps):
        logp = logits - np.log(np.exp(logits).sum())
        p = np.exp(logp)
        kl = float((p * (logp + np.log(32))).sum())
        found.append((controller.beta, kl))
        beta = controller.beta
        advantage = reward(t) * values - beta * (logp + np.log(32))
        logits = logits + 4.0 * p * (advantage - p @ advantage)
        controller.update(kl)
    return np.array(found)


@pytest.mark.parametrize("kind", ["adaptive", "dual"])
def test_a_trained_policy_is_held_at_its_target_and_held_again_when_the_reward_doubles(kind: str) -> None:
    gain = 0.1 if kind == "adaptive" else 0.01
    controller = make_controller(kind, 0.5, 1.0, gain)  # type: ignore[arg-type]
    found = bandit(controller, 6000, lambda t: 1.0 if t < 3000 else 2.0)
    before, after = found[2500:3000], found[5500:]
    assert before[:, 1].mean() == pytest.approx(1.0, abs=0.05) and after[:, 1].mean() == pytest.approx(1.0, abs=0.05)
    # The optimum is proportional to exp(reward / beta): twice the reward needs twice the coefficient.
    assert after[:, 0].mean() / before[:, 0].mean() == pytest.approx(2.0, rel=0.1)


def test_a_target_that_is_never_reached_ends_without_a_penalty_under_dual() -> None:
    # 32 arms: no policy is more than log 32 = 3.5 nats from uniform.
    assert bandit(Dual(0.5, 10.0, 0.1), 400)[-1, 0] == 0.0
