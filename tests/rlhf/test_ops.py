"""Log-probabilities and masked reductions, against loops over positions and torch's own softmax."""

import math

import pytest
import torch
from torch import Tensor

from rlhf.ops import logprobs
from rlhf.ops.logprobs import aligned, entropy, gather_logprobs, position_entropy, predictors, scatter, token_logprobs
from rlhf.ops.masked import masked_mean, masked_sum, sequence_mean, sequence_sum

B, T, V = 3, 5, 7


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 3


def test_index_t_is_the_log_probability_of_token_t_given_the_tokens_before(generator: torch.Generator) -> None:
    raw_BTV, ids_BT = draw(generator, B, T, V), torch.randint(V, (B, T), generator=generator)
    logps_BT = token_logprobs(aligned(raw_BTV), ids_BT)
    assert logps_BT[:, 0].tolist() == [0.0] * B
    for b in range(B):
        for t in range(1, T):
            odds = [math.exp(x) for x in raw_BTV[b, t - 1].tolist()]
            expected = math.log(odds[int(ids_BT[b, t])] / math.fsum(odds))
            assert float(logps_BT[b, t]) == pytest.approx(expected, abs=1e-13)


def test_temperature_divides_the_logits_of_policy_log_probability_and_entropy(generator: torch.Generator) -> None:
    logits_BTV, ids_BT = draw(generator, B, T, V), torch.randint(V, (B, T), generator=generator)
    assert torch.equal(token_logprobs(logits_BTV, ids_BT, 0.7), token_logprobs(logits_BTV / 0.7, ids_BT))
    assert torch.equal(entropy(logits_BTV, 0.7), entropy(logits_BTV / 0.7))
    with pytest.raises(ValueError, match="temperature 0 is not positive"):
        token_logprobs(logits_BTV, ids_BT, 0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("block", [V, 1 << 22])
def test_gradient_of_a_log_probability_is_that_of_torchs_log_softmax(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, temperature: float, block: int
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", block)
    weights_BT, ids_BT = draw(generator, B, T), torch.randint(V, (B, T), generator=generator)
    ours, theirs = (draw(torch.Generator().manual_seed(1), B, T, V).requires_grad_() for _ in range(2))
    result = gather_logprobs(ours, ids_BT, temperature)
    expected = (theirs / temperature).log_softmax(-1).gather(-1, ids_BT[..., None])[..., 0]
    (result * weights_BT).sum().backward()
    (expected * weights_BT).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(result, expected, rtol=0, atol=1e-13)
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x: gather_logprobs(x, ids_BT, temperature), (ours,))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("block", [V, 1 << 22])
def test_gradient_of_the_entropy_is_that_of_finite_differences(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, temperature: float, block: int
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", block)
    logits_XV = (draw(generator, B * T, V) / 3).requires_grad_()
    logps_XV = (logits_XV.detach() / temperature).log_softmax(-1)
    expected_X = -(logps_XV.exp() * logps_XV).sum(-1)
    assert torch.allclose(position_entropy(logits_XV, temperature).detach(), expected_X, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x: position_entropy(x, temperature), (logits_XV,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_reduced_in_float32(generator: torch.Generator, dtype: torch.dtype) -> None:
    logits_BTV, ids_BT = draw(generator, B, T, V).to(dtype).requires_grad_(), torch.randint(V, (B, T))
    logps_BT = token_logprobs(logits_BTV, ids_BT)
    exact_BT = token_logprobs(logits_BTV.detach().double(), ids_BT)
    assert logps_BT.dtype == entropy(logits_BTV).dtype == torch.float32
    assert exact_BT.dtype == torch.float64
    assert torch.allclose(logps_BT.double(), exact_BT, rtol=0, atol=2e-6)
    logps_BT.sum().backward()
    assert logits_BTV.grad is not None and logits_BTV.grad.dtype == dtype


def test_entropy_of_a_uniform_choice_is_the_log_of_its_size_and_impossible_tokens_add_nothing() -> None:
    logits_BTV = torch.zeros(1, 2, V, dtype=torch.float64)
    assert float(entropy(logits_BTV)[0, 1]) == pytest.approx(math.log(V), abs=1e-14)
    logits_BTV[..., 4:] = -torch.inf
    assert float(entropy(logits_BTV)[0, 1]) == pytest.approx(math.log(4), abs=1e-14)
    leaf = logits_BTV.requires_grad_()
    entropy(leaf).sum().backward()
    assert leaf.grad is not None and float(leaf.grad.abs().max()) < 1e-15


def test_head_on_predicting_states_only_gives_the_same_log_probabilities(generator: torch.Generator) -> None:
    states_BTH, head_HV = draw(generator, B, T, 4), draw(generator, 4, V)
    ids_BT = torch.randint(V, (B, T), generator=generator)
    mask_BT = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    everywhere_BT = token_logprobs(aligned(states_BTH @ head_HV), ids_BT)
    logps_X = gather_logprobs(predictors(states_BTH, mask_BT) @ head_HV, ids_BT[mask_BT])
    placed_BT = scatter(logps_X, mask_BT)
    assert torch.allclose(placed_BT, torch.where(mask_BT, everywhere_BT, 0.0), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="counts position 0"):
        predictors(states_BTH, ~mask_BT)


def test_batch_without_a_counted_token_gives_zeros_and_a_gradient_of_zeros(generator: torch.Generator) -> None:
    states_BTH, ids_BT = draw(generator, B, T, V).requires_grad_(), torch.zeros(B, T, dtype=torch.int64)
    mask_BT = torch.zeros(B, T, dtype=torch.bool)
    logits_XV = predictors(states_BTH, mask_BT)
    total = scatter(gather_logprobs(logits_XV, ids_BT[mask_BT]), mask_BT) + scatter(
        position_entropy(logits_XV), mask_BT
    )
    total.sum().backward()
    assert total.shape == (B, T) and not total.any()
    assert states_BTH.grad is not None and not states_BTH.grad.any()


def test_what_is_not_counted_never_reaches_a_sum_or_its_gradient() -> None:
    x_BT = torch.tensor([[1.0, math.nan, 3.0], [math.inf, 4.0, 5.0]], requires_grad=True)
    mask_BT = torch.tensor([[True, False, True], [False, True, False]])
    assert masked_sum(x_BT, mask_BT).item() == 8.0
    assert masked_mean(x_BT, mask_BT).item() == pytest.approx(8 / 3)
    assert sequence_sum(x_BT, mask_BT).tolist() == [4.0, 4.0]
    assert sequence_mean(x_BT, mask_BT).tolist() == [2.0, 4.0]
    masked_sum(x_BT, mask_BT).backward()
    assert x_BT.grad is not None and x_BT.grad.tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def test_mean_over_nothing_raises_and_sum_over_nothing_is_zero() -> None:
    x_BT, mask_BT = torch.ones(2, 3), torch.tensor([[True, True, True], [False, False, False]])
    assert sequence_sum(x_BT, mask_BT).tolist() == [3.0, 0.0]
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        sequence_mean(x_BT, mask_BT)
    with pytest.raises(ValueError, match="empty mask"):
        masked_mean(x_BT, ~mask_BT & mask_BT)
    with pytest.raises(ValueError, match="without rows"):
        sequence_mean(x_BT[:0], mask_BT[:0])


def test_mask_of_numbers_or_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="a mask is boolean"):
        masked_sum(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="differ in shape"):
        masked_sum(torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool))
