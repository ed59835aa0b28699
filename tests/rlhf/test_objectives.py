"""Losses and their gradients against numpy in float64, written from the papers' formulas without torch."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf.objectives import OBJECTIVES
from rlhf.objectives.policy_gradient import clipped_surrogate, denominator, token_weights
from rlhf.objectives.preference import implicit_rewards, pair_margin, sigmoid
from rlhf.objectives.reward_model import adjusted_margin, bradley_terry, centering
from rlhf.objectives.sft import nll
from rlhf.ops.logprobs import aligned, token_logprobs
from rlhf.ops.masked import sequence_sum
from rlhf.reference.divergence import forward_kl

Array = NDArray[np.float64]
N, T, V, BETA = 4, 6, 9, 0.3
EXACT = 1e-10


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    odds = np.exp(x - x.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


class Case:
    """A batch of N pairs with raw logits of policy and reference, a ragged mask, offsets and gains."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.logits = rng.normal(size=(2 * N, T, V)) * 2
        self.reference = rng.normal(size=(2 * N, T, V)) * 2
        self.ids = rng.integers(V, size=(2 * N, T))
        starts, stops = rng.integers(1, 3, size=2 * N), rng.integers(4, T + 1, size=2 * N)
        self.mask = (np.arange(T) >= starts[:, None]) & (np.arange(T) < stops[:, None])
        self.offset = rng.normal(size=N)
        self.gain = 1 + rng.uniform(-0.5, 0.9, size=N)

    def numpy_logps(self, logits: Array) -> tuple[Array, Array]:
        """Log-probability of each counted token, and its derivative by the raw logits at the position before."""
        logps, slopes = np.zeros(self.mask.shape), np.zeros(logits.shape)
        for b, t in np.argwhere(self.mask):
            p = softmax(logits[b, t - 1])
            logps[b, t] = np.log(p[self.ids[b, t]])
            slopes[b, t - 1] = np.eye(V)[self.ids[b, t]] - p
        return logps, slopes

    def torch_logps(self, logits: Tensor) -> Tensor:
        return token_logprobs(aligned(logits), torch.from_numpy(self.ids))


@pytest.fixture(params=[0, 1])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def assert_equal(ours: Tensor, expected: Array) -> None:
    assert np.abs(ours.detach().numpy() - expected).max() < EXACT


def test_sft_loss_and_gradient_equal_numpy(case: Case) -> None:
    logits = torch.tensor(case.logits, requires_grad=True)
    nll_BT = nll(case.torch_logps(logits), torch.from_numpy(case.mask))
    nll_BT.sum().backward()
    logps, slopes = case.numpy_logps(case.logits)
    assert_equal(nll_BT, -logps)
    assert_equal(logits.grad, -slopes)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_loss_and_gradient_equal_numpy(case: Case, smoothing: float) -> None:
    logits, mask = torch.tensor(case.logits, requires_grad=True), torch.from_numpy(case.mask)
    sums = [sequence_sum(case.torch_logps(x), mask) for x in (logits, torch.from_numpy(case.reference))]
    z_N = pair_margin(implicit_rewards(*sums, BETA))
    loss_N = sigmoid(z_N, torch.from_numpy(case.offset), torch.from_numpy(case.gain), smoothing)
    loss_N.sum().backward()

    (policy, slopes), (reference, _) = case.numpy_logps(case.logits), case.numpy_logps(case.reference)
    rewards = BETA * (policy - reference).sum(1)
    u = (rewards[:N] - rewards[N:] - case.offset) / case.gain
    expected = -case.gain * ((1 - smoothing) * np.log(logistic(u)) + smoothing * np.log(logistic(-u)))
    # Each gain enters once as a weight and once below z, so that the slope by z has none.
    by_z = -(1 - smoothing) * logistic(-u) + smoothing * logistic(u)
    signs = np.concatenate([by_z, -by_z])
    assert_equal(loss_N, expected)
    assert_equal(logits.grad, BETA * signs[:, None, None] * slopes)


def test_bradley_terry_loss_and_gradient_equal_numpy(case: Case) -> None:
    z = torch.tensor(np.linspace(-30, 30, N), requires_grad=True)
    loss_N = bradley_terry(z, torch.from_numpy(case.offset), torch.from_numpy(case.gain))
    loss_N.sum().backward()
    u = (np.linspace(-30, 30, N) - case.offset) / case.gain
    assert_equal(loss_N, case.gain * np.logaddexp(0, -u))
    assert_equal(z.grad, -logistic(-u))


def test_dpo_loss_is_log2_when_policy_equals_reference(case: Case) -> None:
    logps_B = sequence_sum(case.torch_logps(torch.from_numpy(case.logits)), torch.from_numpy(case.mask))
    z_N = pair_margin(implicit_rewards(logps_B, logps_B.clone(), BETA))
    loss_N = sigmoid(z_N, torch.zeros(N), torch.ones(N))
    assert loss_N.tolist() == pytest.approx([math.log(2)] * N, abs=1e-15)


@pytest.mark.parametrize("name", ["bradley_terry", "sigmoid"])
@pytest.mark.parametrize("agreement", [0.6, 0.9])
def test_gain_widens_the_best_gap_by_exactly_one_plus_d(name: str, agreement: float) -> None:
    def best_gap(gain: float, offset: float) -> float:
        """Where the loss is smallest when a share `agreement` of the labels says chosen: its slope is 0."""
        low, high = torch.tensor([-50.0], dtype=torch.float64), torch.tensor([50.0], dtype=torch.float64)
        for _ in range(200):
            z = ((low + high) / 2).requires_grad_()
            kept = OBJECTIVES[name](z, torch.tensor([offset]), torch.tensor([gain], dtype=torch.float64))
            flipped = OBJECTIVES[name](-z, torch.tensor([-offset]), torch.tensor([gain], dtype=torch.float64))
            (slope,) = torch.autograd.grad((agreement * kept + (1 - agreement) * flipped).sum(), z)
            low, high = (z.detach(), high) if slope < 0 else (low, z.detach())
        return low.item()

    natural = math.log(agreement / (1 - agreement))
    assert best_gap(1.0, 0.0) == pytest.approx(natural, abs=EXACT)
    for d in (-0.3, 0.15, 0.5):
        assert best_gap(1 + d, 0.0) == pytest.approx((1 + d) * natural, abs=EXACT)
        assert best_gap(1 + d, 0.25) == pytest.approx((1 + d) * natural + 0.25, abs=EXACT)


@pytest.mark.parametrize("name", ["bradley_terry", "sigmoid"])
def test_gain_does_not_change_the_gradient_where_the_margin_equals_the_offset(name: str) -> None:
    z = torch.full((3,), 0.7, dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([0.5, 1.0, 1.8], dtype=torch.float64)
    OBJECTIVES[name](z, torch.full((3,), 0.7, dtype=torch.float64), gains).sum().backward()
    assert z.grad is not None and z.grad.tolist() == [-0.5] * 3


def test_adjusted_margin_without_gain_and_offset_is_the_margin_itself() -> None:
    z = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adjusted_margin(z, torch.zeros(5), torch.ones(5)), z)
    with pytest.raises(ValueError, match=r"gain 1 \+ d must be positive"):
        adjusted_margin(z, torch.zeros(5), torch.zeros(5))


def test_gains_in_float64_do_not_change_the_precision_of_the_loss() -> None:
    z = torch.zeros(2)
    assert bradley_terry(z, torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)).dtype == z.dtype


def test_centering_is_the_square_of_the_pairs_sum() -> None:
    assert centering(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])).tolist() == [2.25, 0.0]


def test_odd_batch_of_pairs_and_label_smoothing_of_one_half_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows are no batch of pairs"):
        pair_margin(torch.zeros(3))
    with pytest.raises(ValueError, match="0 rows"):
        pair_margin(torch.zeros(0))
    with pytest.raises(ValueError, match=r"label_smoothing 0\.5"):
        sigmoid(torch.zeros(1), torch.zeros(1), torch.ones(1), 0.5)


@pytest.mark.parametrize("weight", [0.25, 1.0, 4.0])
def test_sft_with_forward_kl_ends_at_the_mixture_of_data_and_reference(weight: float) -> None:
    rng = np.random.default_rng(3)
    data, reference = softmax(rng.normal(size=V) * 2), softmax(rng.normal(size=V) * 2)
    # One context before each of V demonstrations, one of each token, weighted by how often it occurs in the data.
    ids, mask = torch.tensor([[0, v] for v in range(V)]), torch.tensor([[False, True]] * V)
    logits = torch.zeros(V, dtype=torch.float64, requires_grad=True)
    reference_BTV = torch.from_numpy(np.log(reference)).expand(V, 2, V)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        aligned_BTV = logits.expand(V, 2, V)
        kl_BT = forward_kl(aligned_BTV[mask], reference_BTV[mask], mask)
        terms_BT = nll(token_logprobs(aligned_BTV, ids), mask) + weight * kl_BT
        total = (torch.from_numpy(data) * terms_BT.sum(1)).sum()
        total.backward()
        return total

    optimiser.step(loss)
    mixture = (data + weight * reference) / (1 + weight)
    assert np.abs(logits.detach().softmax(0).numpy() - mixture).max() < 1e-7
    logits.data = torch.from_numpy(np.log(mixture))
    loss()
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-15 * V


def surrogate_by_hand(ratio: float, advantage: float, low: float, high: float) -> tuple[float, float]:
    """The clipped loss of one token and its slope by the log-probability, case by case."""
    if advantage > 0 and ratio > 1 + high:
        return -(1 + high) * advantage, 0.0
    if advantage < 0 and ratio < 1 - low:
        return -(1 - low) * advantage, 0.0
    return -ratio * advantage, -ratio * advantage


@pytest.mark.parametrize(("low", "high"), [(0.2, None), (0.2, 0.28)])
def test_clipped_surrogate_and_its_gradient_equal_a_case_distinction(low: float, high: float | None) -> None:
    rng = np.random.default_rng(5)
    logps, old, advantages = rng.normal(size=(6, T)) * 0.3 - 2, np.full((6, T), -2.0), rng.normal(size=6)
    mask = rng.random((6, T)) < 0.8
    logps[~mask] = 1e6  # what stands outside the mask must not overflow into anything
    leaf = torch.tensor(logps, requires_grad=True)
    result = clipped_surrogate(
        leaf,
        torch.from_numpy(advantages),
        torch.from_numpy(mask),
        torch.from_numpy(old),
        epsilon=low,
        epsilon_high=high,
    )
    result.loss_BT.sum().backward()
    loss, slope, clipped = np.zeros((6, T)), np.zeros((6, T)), [0, 0]
    for b, t in np.argwhere(mask):
        ratio = math.exp(logps[b, t] - old[b, t])
        loss[b, t], slope[b, t] = surrogate_by_hand(ratio, advantages[b], low, low if high is None else high)
        clipped[int(advantages[b] > 0)] += slope[b, t] == 0
    assert_equal(result.loss_BT, loss)
    assert_equal(leaf.grad, slope)
    assert [int(result.low_BT.sum()), int(result.high_BT.sum())] == clipped
    assert min(clipped) > 0


def test_on_policy_surrogate_has_the_policy_gradient_and_a_ratio_of_one() -> None:
    logps = torch.full((2, 3), -1.5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False, True, True], [False, True, False]])
    result = clipped_surrogate(logps, torch.tensor([2.0, -1.0]), mask)
    result.loss_BT.sum().backward()
    assert result.loss_BT.tolist() == [[0, -2, -2], [0, 1, 0]]
    assert result.ratio_BT.tolist() == [[1.0] * 3] * 2
    assert logps.grad is not None and logps.grad.tolist() == [[0, -2, -2], [0, 1, 0]]


def test_advantages_may_differ_between_the_tokens_of_a_completion() -> None:
    logps, mask = torch.zeros(1, 3), torch.tensor([[False, True, True]])
    loss_BT = clipped_surrogate(logps, torch.tensor([[9.0, 1.0, -3.0]]), mask).loss_BT
    assert loss_BT.tolist() == [[0.0, -1.0, 3.0]]


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [("grpo", ((1 + 2) / 2 + 3 + 0) / 3), ("dapo", (1 + 2 + 3) / 3), ("dr_grpo", (1 + 2 + 3) / (3 * 8))],
)
def test_loss_types_differ_in_weights_and_denominator_only(loss_type: str, expected: float) -> None:
    loss_BT = torch.tensor([[0.0, 1, 2], [0, 3, 0], [0, 0, 0]], dtype=torch.float64)
    mask_BT = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    weights_BT = token_weights(loss_type, mask_BT, torch.float64)
    total = (weights_BT * loss_BT).sum() / denominator(loss_type, mask_BT, max_completion_length=8)
    assert float(total) == pytest.approx(expected, abs=1e-15)
    # Cut into micro-batches, numerators and denominators add up to the same.
    parts = [(mask_BT[:1], loss_BT[:1]), (mask_BT[1:], loss_BT[1:])]
    numerator = sum(float((token_weights(loss_type, m, torch.float64) * x).sum()) for m, x in parts)
    assert numerator / sum(denominator(loss_type, m, 8) for m, _ in parts) == pytest.approx(expected, abs=1e-15)


def test_unknown_loss_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown loss_type `bnpo`: grpo, dapo, dr_grpo"):
        token_weights("bnpo", torch.ones(1, 1, dtype=torch.bool))
