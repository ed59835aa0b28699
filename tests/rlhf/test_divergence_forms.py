"""Value and gradient of every form of KL penalty, on-policy and on an older policy's texts, against sums by hand.

The oracle knows neither torch nor automatic differentiation: it goes through the 64 texts of `kl_world`, and uses the
derivative of each estimator by log pi, the score of a softmax, and complex steps for sums over the vocabulary.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.rlhf.kl_world import ALPHA, EXACT, ROWS, TEXTS, Form, T, World, forms

FULL = [
    Form("full", "loss", level, ratio, divergence)
    for divergence in ("forward", "js", "alpha")
    for level in ("token", "sequence")
    for ratio in ("none", "live", "detached")
]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.real.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def from_definition(name: str, p: np.ndarray, q: np.ndarray) -> complex:
    if name == "js":
        m = (p + q) / 2
        return (np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2
    if name == "alpha":
        return (1 - np.sum(p**ALPHA * q ** (1 - ALPHA))) / (ALPHA * (1 - ALPHA))
    return np.sum(p * np.log(p / q)) if name == "reverse" else np.sum(q * np.log(q / p))


def slope(name: str, logits: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Derivative by each of the policy's logits, by a complex step: exact to rounding."""
    steps = 1e-30j * np.eye(len(logits))
    return np.array([from_definition(name, softmax(logits + step), q).imag * 1e30 for step in steps])


class ByHand:
    """The expected penalty and its gradient by the policy's logits."""

    def __init__(self, world: World, form: Form, *, off_policy: bool) -> None:
        self.form = form
        self.logits = world.logits.detach().numpy()
        self.p, self.q = softmax(self.logits), softmax(world.reference.numpy())
        self.sampler = softmax(world.old.numpy()) if off_policy else self.p
        self.value, self.gradient = 0.0, np.zeros_like(self.p)
        for rows, text in zip(ROWS.numpy(), TEXTS.numpy(), strict=True):
            probability = np.prod(self.sampler[rows, text])
            for value, gradient in self._terms(rows, text):
                self.value += probability * value
                self.gradient += probability * gradient

    def _terms(self, rows: np.ndarray, text: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Value and gradient of each unit: of the text, or of its tokens."""
        units = [range(T)] if self.form.level == "sequence" else [[t] for t in range(T)]
        for unit in units:
            where, what = rows[list(unit)], text[list(unit)]
            ratio = np.prod(self.p[where, what] / self.sampler[where, what])
            score = np.zeros_like(self.p)
            np.add.at(score, where, -self.p[where])
            np.add.at(score, (where, what), 1.0)
            value, gradient = self._estimate(where, what, score)
            if self.form.place == "reward":
                # Minus the penalty is a reward: no gradient of its own, that of the ratio times it.
                yield ratio * value, ratio * value * score
            elif self.form.ratio == "none":
                yield value, gradient
            else:
                yield ratio * value, ratio * (gradient + (value * score if self.form.ratio == "live" else 0))

    def _estimate(self, where: np.ndarray, what: np.ndarray, score: np.ndarray) -> tuple[float, np.ndarray]:
        if self.form.estimator == "full":
            gradient = np.zeros_like(self.p)
            for row in where:
                gradient[row] += slope(self.form.divergence, self.logits[row], self.q[row])
            return sum(from_definition(self.form.divergence, self.p[r], self.q[r]).real for r in where), gradient
        # In the reward the penalty was measured on the policy that sampled.
        measured = self.sampler if self.form.place == "reward" else self.p
        r = np.sum(np.log(self.q[where, what]) - np.log(measured[where, what]))
        value, by_logp = {"k1": (-r, 1.0), "k2": (r**2 / 2, -r), "k3": (np.exp(r) - 1 - r, 1 - np.exp(r))}[
            self.form.estimator
        ]
        return value, by_logp * score


@pytest.mark.parametrize("off_policy", [False, True], ids=["own texts", "older policy's texts"])
@pytest.mark.parametrize("form", [*forms(), *FULL], ids=str)
def test_a_form_has_value_and_gradient_of_the_sum_over_all_texts(form: Form, off_policy: bool) -> None:
    world = World()
    by_hand = ByHand(world, form, off_policy=off_policy)
    expected = world.expected(form, off_policy=off_policy)
    assert expected.item() == pytest.approx(by_hand.value, abs=EXACT)
    assert np.abs(world.gradient(expected).numpy() - by_hand.gradient).max() < EXACT


def test_the_forms_are_all_of_them() -> None:
    assert len(set(map(str, [*forms(), *FULL]))) == 4 * 2 * 3 + 3 * 2 + 3 * 2 * 3
