"""Preferences of which a fifth are flipped: the scale that a plain fit finds, and the one with the noise in the model.

P(first is preferred) = (1 - e) s(D) + e s(-D), e = 0.2, s logistic, D the difference of two scores drawn from a
standard normal distribution.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from rlhf.objectives.reward_model import bradley_terry
from tests.rewards.accepted import record

NOISE, PAIRS, ITEMS = 0.2, 40_000, 200


def world(seed):
    """Scores, and pairs of items (better, worse) as a rater with that noise gave them."""
    rng = np.random.default_rng([9, seed])
    scores = rng.normal(size=ITEMS)
    first = rng.integers(0, ITEMS, PAIRS)
    second = (first + rng.integers(1, ITEMS, PAIRS)) % ITEMS
    p = 1 / (1 + np.exp(scores[second] - scores[first]))
    chosen = rng.random(PAIRS) < (1 - NOISE) * p + NOISE * (1 - p)
    return scores, np.where(chosen, first, second), np.where(chosen, second, first)


def fitted(make, parameters, noise):
    """The likeliest parameters under the reward model's own loss."""
    found = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=200, line_search_fn="strong_wolfe")
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def loss():
        optimizer.zero_grad()
        value = bradley_terry(make(found), zero, one, noise).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return found.detach().numpy()


def scale(seed, noise):
    scores, better, worse = world(seed)
    gap = torch.from_numpy(scores[better] - scores[worse])
    return float(fitted(lambda b: b * gap, 1.0, noise))


def limit():
    """The scale that the plain loss tends to as pairs are added, by quadrature over D of variance 2."""
    node, weight = np.polynomial.hermite_e.hermegauss(101)
    gap, weight = np.sqrt(2) * node, weight / weight.sum()
    s = 1 / (1 + np.exp(-gap))
    p = (1 - NOISE) * s + NOISE * (1 - s)

    def loss(b):
        return weight @ (p * np.logaddexp(0, -b * gap) + (1 - p) * np.logaddexp(0, b * gap))

    return minimize_scalar(loss, bounds=(0.05, 2), method="bounded").x


@pytest.mark.slow
def test_the_plain_scale_is_about_half_and_the_one_with_known_noise_is_right():
    seeds = 20
    plain = np.array([scale(seed, 0.0) for seed in range(seeds)])
    corrected = np.array([scale(seed, NOISE) for seed in range(seeds)])
    record("noisy Bradley-Terry, e .2: mean plain slope", float(plain.mean()), "naive failure, about .49", seeds)
    record("noisy Bradley-Terry, e .2: mean slope with known noise", float(corrected.mean()), "in [.95, 1.05]", seeds)
    record("noisy Bradley-Terry, e .2: largest error", float(np.abs(corrected - 1).max()), "reported", seeds)
    assert plain.mean() == pytest.approx(0.49, abs=0.02)
    assert plain.mean() == pytest.approx(limit(), abs=0.01)
    assert 0.95 <= corrected.mean() <= 1.05
    assert np.abs(plain - 1).min() > 0.45, "no draw comes near without the noise in the model"
    assert np.mean((corrected >= 0.95) & (corrected <= 1.05)) >= 0.8


def test_scores_that_are_fitted_freely_are_shrunk_by_the_noise_and_ranked_as_well():
    slopes, ranks = [], []
    for seed in range(5):
        scores, better, worse = world(seed)
        b, w = torch.from_numpy(better), torch.from_numpy(worse)
        found = [fitted(lambda r, b=b, w=w: r[b] - r[w], np.zeros(ITEMS), noise) for noise in (0.0, NOISE)]
        slopes.append([np.polyfit(scores, f, 1)[0] for f in found])
        ranks.append([spearmanr(scores, f).statistic for f in found])
    (plain, corrected), (plain_rank, rank) = np.mean(slopes, axis=0), np.mean(ranks, axis=0)
    record("noisy Bradley-Terry, free scores: plain slope", float(plain), "naive failure, about .49", 5)
    record("noisy Bradley-Terry, free scores: slope with known noise", float(corrected), "in [.95, 1.05]", 5)
    record("noisy Bradley-Terry, free scores: plain Spearman", float(plain_rank), "about .977", 5)
    assert plain == pytest.approx(0.49, abs=0.04)
    assert 0.95 <= corrected <= 1.05
    assert plain_rank == pytest.approx(rank, abs=0.005) and plain_rank > 0.95
