"""Objectives of the reward model against arithmetic by hand, and against the truth of worlds made for it."""

import itertools
import math

import numpy as np
import pytest
import torch

from rlhf.objectives.reward_model import bradley_terry, ordinal, process, regression
from rlhf.ops.scores import aggregate_steps, conservative, disagreement, expected_level, ordered, unordered


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def logistic(x):
    return 1 / (1 + math.exp(-x))


ONE, ZERO = tensor(1.0), tensor(0.0)


# --- noisy and soft labels ---


@pytest.mark.parametrize("z", [-30.0, -1.3, 0.0, 0.7, 40.0])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.49])
def test_bradley_terry_with_label_noise_is_the_mixture_of_both_labels(z, noise):
    p = (1 - noise) * logistic(z) + noise * logistic(-z)
    assert bradley_terry(tensor(z), ZERO, ONE, noise).item() == pytest.approx(-math.log(p), rel=1e-12)


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0])
def test_a_soft_label_weights_both_outcomes(q):
    z, gain, margin, noise = 0.8, 1.5, 0.2, 0.1
    u = (z - margin) / gain
    p = (1 - noise) * logistic(u) + noise * logistic(-u)
    expected = -gain * (q * math.log(p) + (1 - q) * math.log(1 - p))
    found = bradley_terry(tensor(z), tensor(margin), tensor(gain), noise, tensor(q)).item()
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_noisy_bradley_terry_is_its_derivative():
    z = tensor(-2.0, 0.1, 3.0).requires_grad_()
    loss = bradley_terry(z, torch.zeros(3), torch.ones(3), 0.2, tensor(1.0, 0.4, 0.9))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    for i, q in enumerate((1.0, 0.4, 0.9)):
        s = logistic(z[i].item())
        p, slope = 0.8 * s + 0.2 * (1 - s), 0.6 * s * (1 - s)
        assert gradient[i].item() == pytest.approx(-(q / p - (1 - q) / (1 - p)) * slope, rel=1e-10)


def test_a_label_noise_of_a_half_or_more_is_refused():
    with pytest.raises(ValueError, match="outside"):
        bradley_terry(ONE, ZERO, ONE, 0.5)


def test_known_label_noise_gives_the_slope_back_that_a_plain_fit_halves():
    # A world of statistics.md item 9: gaps x, labels of slope 1, a fifth of them flipped; averaged over five draws.
    plain, corrected = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = rng.normal(0.0, 2.0, 40_000)
        better = rng.random(len(x)) < 1 / (1 + np.exp(-x))
        label = better ^ (rng.random(len(x)) < 0.2)
        gap = torch.from_numpy(np.where(label, x, -x))
        plain.append(slope(gap, 0.0))
        corrected.append(slope(gap, 0.2))
    assert np.mean(plain) < 0.6
    assert 0.95 <= np.mean(corrected) <= 1.05
    assert all(0.9 <= value <= 1.1 for value in corrected)


def slope(gap_N, noise):
    b = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([b], max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = bradley_terry(b * gap_N, torch.zeros(1), torch.ones(1, dtype=torch.float64), noise).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return float(b.detach())


# --- scores ---


def test_regression_is_the_squared_error_and_its_tangent_beyond_delta():
    value, target = tensor(0.0, 0.5, 3.0, -3.0).requires_grad_(), tensor(0.0, 0.0, 0.0, 0.0)
    assert regression(value, target).tolist() == [0.0, 0.25, 9.0, 9.0]
    bent = regression(value, target, huber_delta=1.0)
    assert bent.tolist() == [0.0, 0.25, 5.0, 5.0]
    (gradient,) = torch.autograd.grad(bent.sum(), value)
    assert gradient.tolist() == [0.0, 1.0, 2.0, -2.0]
    theirs = torch.nn.functional.huber_loss(value, target, reduction="none", delta=1.0)
    assert torch.equal(bent, 2 * theirs)
    with pytest.raises(ValueError, match="not positive"):
        regression(value, target, huber_delta=0.0)


def test_ordinal_probabilities_are_differences_of_cumulative_ones_and_sum_to_one():
    thresholds = tensor(-1.0, 0.5, 2.0)
    for s in (-3.0, 0.2, 5.0):
        cumulative = [0.0, *(logistic(t - s) for t in thresholds.tolist()), 1.0]
        levels = torch.arange(4)
        loss = ordinal(torch.full((4,), s, dtype=torch.float64), thresholds, levels)
        expected = [-math.log(b - a) for a, b in itertools.pairwise(cumulative)]
        assert loss.tolist() == pytest.approx(expected, rel=1e-9)
        assert float((-loss).exp().sum()) == pytest.approx(1.0)
        mean = sum(c * math.exp(-value) for c, value in enumerate(loss.tolist()))
        assert expected_level(tensor(s), thresholds.view(1, 3)).item() == pytest.approx(mean, rel=1e-9)


def test_ordinal_is_finite_in_the_tails_and_its_gradient_is_right():
    latent = tensor(-200.0, 200.0, 0.3, 0.3).requires_grad_()
    thresholds = tensor(-1.0, 1.0).requires_grad_()
    levels = torch.tensor([2, 0, 1, 0])
    loss = ordinal(latent, thresholds, levels)
    assert torch.isfinite(loss).all()
    assert loss[0].item() == pytest.approx(201.0) and loss[1].item() == pytest.approx(201.0)
    assert torch.autograd.gradcheck(lambda s, t: ordinal(s, t, levels[2:]), (latent[2:], thresholds))
    with pytest.raises(ValueError, match=r"levels are 0\.\.2, found 0\.\.3"):
        ordinal(latent, thresholds, torch.tensor([0, 3, 1, 1]))


def test_thresholds_ascend_whatever_stands_behind_them_and_come_back():
    raw = tensor(0.3, -4.0, 2.0, 0.0)
    found = ordered(raw)
    assert bool((found.diff() > 0).all())
    assert torch.allclose(unordered(found), raw)
    with pytest.raises(ValueError, match="ascend"):
        unordered(tensor(1.0, 1.0))


def test_ordinal_thresholds_and_slope_of_a_known_world_are_found():
    rng = np.random.default_rng(0)
    truth, n = np.array([-2.0, -0.5, 0.4, 2.5]), 60_000
    x = rng.normal(0.0, 1.0, n)
    latent = 1.5 * x + rng.logistic(0.0, 1.0, n)
    level = torch.from_numpy((latent[:, None] > truth).sum(axis=1))
    x_B = torch.from_numpy(x)
    b = torch.ones((), dtype=torch.float64, requires_grad=True)
    raw = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([b, raw], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = ordinal(b * x_B, ordered(raw), level).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert float(b.detach()) == pytest.approx(1.5, rel=0.03)
    assert ordered(raw.detach()).numpy() == pytest.approx(truth, abs=0.06)


# --- steps and ensembles ---


def test_process_is_the_cross_entropy_of_each_step():
    logits, right = tensor(2.0, -1.0, 0.0), torch.tensor([True, True, False])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, right.double(), reduction="none")
    assert torch.allclose(process(logits, right), expected, rtol=1e-12)


def test_a_stepwise_text_scores_its_least_step_the_product_or_its_last():
    mask = torch.tensor([[False, True, False, True, True], [False, False, True, False, False]])
    logits = tensor(1.0, -2.0, 0.5, 3.0).view(4, 1)
    p = [logistic(v) for v in (1.0, -2.0, 0.5, 3.0)]
    found = {how: aggregate_steps(logits, mask, how)[:, 0].tolist() for how in ("min", "product", "last")}
    assert found["min"] == pytest.approx([p[1], p[3]])
    assert found["product"] == pytest.approx([p[0] * p[1] * p[2], p[3]])
    assert found["last"] == pytest.approx([p[2], p[3]])
    with pytest.raises(ValueError, match="without a step"):
        aggregate_steps(logits, torch.zeros(2, 5, dtype=torch.bool), "min")


def test_an_ensembles_score_is_its_mean_less_what_its_heads_disagree_by():
    scores = tensor(1.0, 2.0, 6.0).view(1, 3)
    std = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3)
    assert disagreement(scores).item() == pytest.approx(std)
    assert conservative(scores, 0.5).item() == pytest.approx(3.0 - 0.5 * std)
    assert conservative(scores, 0.0).item() == pytest.approx(3.0)
