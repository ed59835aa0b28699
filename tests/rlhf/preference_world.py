"""The losses on pairs in numpy, written from the papers' formulas, and a batch to try them on.

Everything is a function of log-probabilities that may be complex: a step of 1e-30 along the imaginary axis gives a
derivative to the last digit, without torch and without a formula for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf.batch import PairBatch, TokenBatch
from rlhf.config import DPOTrainSection
from rlhf.ops.logprobs import PolicyOutput
from rlhf.stages.pair_objective import Judged, PairObjective

Array = NDArray[Any]
N, T = 4, 7
STEP = 1e-30


def log_logistic(x: Array) -> Array:
    return -np.log1p(np.exp(-x))


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class World:
    """N pairs of texts: log-probabilities of policy and reference, ragged masks, offsets, gains, soft labels."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shape = (2 * N, T)
        self.logps = -rng.gamma(1.0, size=shape) - 0.1
        self.ref_logps = self.logps + rng.normal(size=shape) * 0.5
        self.collision = -rng.gamma(1.0, size=shape)
        starts, stops = rng.integers(1, 3, size=2 * N), rng.integers(4, T + 1, size=2 * N)
        self.mask = (np.arange(T) >= starts[:, None]) & (np.arange(T) < stops[:, None])
        self.margin = rng.normal(size=N) * 0.3
        self.gain = 1 + rng.uniform(-0.4, 0.8, size=N)
        self.preference = rng.uniform(0.55, 0.95, size=N)

    def batch(self, *, margin: bool = True, gain: bool = True, soft: bool = False) -> PairBatch:
        """The same as the stage collates it; what is not asked for has its default."""
        ids = torch.zeros(2 * N, T, dtype=torch.int64)
        tokens = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.from_numpy(self.mask))
        return PairBatch(
            tokens,
            torch.from_numpy(self.gain if gain else np.ones(N)),
            torch.from_numpy(self.margin if margin else np.zeros(N)),
            preference_N=torch.from_numpy(self.preference) if soft else None,
        )

    def judge(self, train: DPOTrainSection, batch: PairBatch, shift: float = 0.0) -> tuple[Judged, torch.Tensor]:
        """What the stage's own code says, and the log-probabilities it was given."""
        objective = PairObjective(train)
        objective.shift.mean = shift
        logps_BT = torch.tensor(self.logps, requires_grad=True)
        output = PolicyOutput(logps_BT=logps_BT, collision_BT=torch.from_numpy(self.collision))
        reference = None if train.reference_free else torch.from_numpy(self.ref_logps)
        return objective(output, reference, batch), logps_BT

    def ratios(self, logps: Array, ld_alpha: float | None = None) -> Array:
        """Log-ratios of the texts."""
        return self.sums(logps, ld_alpha) - self.sums(self.ref_logps, ld_alpha)

    def sums(self, logps: Array, ld_alpha: float | None = None) -> Array:
        """Log-probabilities of the texts, text by text and token by token."""
        found = []
        for b in range(2 * N):
            shared = min(self.mask[b].sum(), self.mask[(b + N) % (2 * N)].sum())
            total, seen = 0.0, 0
            for t in range(T):
                if self.mask[b, t]:
                    seen += 1
                    total = total + logps[b, t] * (1.0 if ld_alpha is None or seen <= shared else ld_alpha)
            found.append(total)
        return np.array(found)

    def pair_weights(self) -> Array:
        """WPO's, of the log-probabilities as they are."""
        found = []
        for b in range(2 * N):
            aligned = [self.logps[b, t] - self.collision[b, t] for t in range(T) if self.mask[b, t]]
            found.append(np.exp(np.mean(aligned)))
        return np.array(found[:N]) * np.array(found[N:])


def scores(ratios: Array, f_divergence_type: str, a: float) -> Array:
    """f'(t) at t = exp(log-ratio)."""
    t = np.exp(ratios)
    return {
        "reverse_kl": np.log(t),
        "forward_kl": 1 - 1 / t,
        "js_divergence": np.log(2 * t / (1 + t)),
        "alpha_divergence": (t ** (a - 1) - 1) / (a - 1),
    }[f_divergence_type]


def margin_losses(beta: float, e: Array | float, tau: float) -> dict[str, Callable[[Array], Array]]:
    """Losses of the margin u = (z - m) / (1 + d)."""

    def exo(u: Array) -> Array:
        p, q = logistic(u), logistic(-u)
        return p * np.log(p / (1 - e)) + q * np.log(q / e)

    def ipo(u: Array) -> Array:
        h, target = u / beta, 1 / (2 * beta)
        return (1 - e) * (h - target) ** 2 + e * (h + target) ** 2

    def discopop(u: Array) -> Array:
        w = logistic(u / tau)
        return (1 - w) * -log_logistic(u) + w * np.exp(-u)

    def cross_entropy(u: Array) -> Array:
        return -(1 - e) * log_logistic(u) - e * log_logistic(-u)

    return {
        "sigmoid": cross_entropy,
        "sigmoid_norm": cross_entropy,
        "hinge": lambda u: np.where(u.real < 1, 1 - u, 0 * u),
        "ipo_sum": ipo,
        "ipo_mean": ipo,
        "exo_pair": exo,
        "robust": lambda u: (-(1 - e) * log_logistic(u) + e * log_logistic(-u)) / (1 - 2 * e),
        "discopop": discopop,
        "cpo": cross_entropy,
        "simpo": cross_entropy,
        "alphapo": cross_entropy,
        "orpo": cross_entropy,
    }


def reward_losses(beta: float) -> dict[str, Callable[[Array, Array], Array]]:
    """Losses of two rewards, each divided by 1 + d; of bco_pair what is left of them after delta."""
    return {
        "nca_pair": lambda w, v: -log_logistic(w) - 0.5 * log_logistic(-w) - 0.5 * log_logistic(-v),
        "bco_pair": lambda w, v: -log_logistic(w) - log_logistic(-v),
        "sppo_hard": lambda w, v: (w / beta - 1 / (2 * beta)) ** 2 + (v / beta + 1 / (2 * beta)) ** 2,
        "apo_zero": lambda w, v: 1 - logistic(w) + logistic(v),
        "apo_down": lambda w, v: logistic(w) + 1 - logistic(w - v),
    }


def free_rewards(world: World, name: str, train: DPOTrainSection, logps: Array) -> Array:
    """Rewards of the losses without a reference."""
    sums, lengths = world.sums(logps), world.mask.sum(1)
    p = np.exp(sums / lengths)
    return {
        "cpo": lambda: train.cpo_beta * sums,
        "simpo": lambda: train.simpo_beta * np.log(p),
        "alphapo": lambda: train.simpo_beta * (1 - p**-train.alphapo_alpha) / train.alphapo_alpha,
        "orpo": lambda: np.log(p / (1 - p)),
    }[name]()


def expected(
    world: World, name: str, train: DPOTrainSection, batch: PairBatch, logps: Array, shift: float = 0.0
) -> Array:
    """The loss of each pair; of the losses that sort, of each quantile."""
    margin, gain = batch.margin_N.numpy(), batch.gain_N.numpy()
    beta = train.beta or 0.1
    e: Array | float = train.label_smoothing if batch.preference_N is None else 1 - world.preference
    weight = world.pair_weights() if train.use_weighting else np.ones(N)
    if name in ("aot", "aot_unpaired"):
        own, ref = beta * world.sums(logps, train.ld_alpha), beta * world.sums(world.ref_logps, train.ld_alpha)
        if name == "aot":
            z = by_size(own[:N] - own[N:]) - by_size(ref[:N] - ref[N:])
        else:
            z = by_size((own - ref)[:N]) - by_size((own - ref)[N:])
        return margin_losses(beta, e, 1.0)["sigmoid"](z)
    losses = margin_losses(beta, e, train.discopop_tau)
    if name in losses:
        if name in ("cpo", "simpo", "alphapo", "orpo"):
            rewards = free_rewards(world, name, train, logps)
            margin = margin + (train.simpo_gamma if name in ("simpo", "alphapo") else 0.0)
        else:
            ratios = world.ratios(logps, train.ld_alpha)
            rewards = beta * scores(ratios, train.f_divergence_type, train.f_alpha_divergence_coef)
            if name in ("sigmoid_norm", "ipo_mean"):
                rewards = rewards / world.mask.sum(1)
        return weight * gain * losses[name]((rewards[:N] - rewards[N:] - margin) / gain)
    rewards = beta * world.ratios(logps, train.ld_alpha) - (shift if name == "bco_pair" else 0.0)
    return weight * gain * reward_losses(beta)[name](rewards[:N] / gain, rewards[N:] / gain)


def by_size(x: Array) -> Array:
    return x[np.argsort(x.real)]


def slopes(function: Callable[[Array], Array], logps: Array) -> Array:
    """Derivative of the summed loss by each log-probability."""
    found = np.zeros(logps.shape)
    for b, t in np.ndindex(*logps.shape):
        moved = logps.astype(complex)
        moved[b, t] += 1j * STEP
        found[b, t] = function(moved).sum().imag / STEP
    return found
