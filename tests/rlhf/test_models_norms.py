"""The norms of a model in fewer passes: where they are put in, and that values and gradients stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhf.models.norms import quicken_norms


class OddRMSNorm(nn.Module):
    """Divides by the largest value instead."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().amax(-1, keepdim=True) + self.eps) * self.weight


def norm_of(kind: Any, eps: float = 1e-5) -> Any:
    torch.manual_seed(1)
    norm = kind(16, eps=eps)
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn(16))
    return norm


def values_and_gradients(norm: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output = norm(x)
    weight = next(norm.parameters())
    generator = torch.Generator().manual_seed(3)
    return [output, *torch.autograd.grad(output, [x, weight], torch.randn(x.shape, generator=generator))]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("shape", [(1, 7, 16), (2, 3, 5, 16), (4, 16)])
def test_a_quick_norm_has_the_values_and_gradients_of_the_model_s_own(kind: Any, shape: tuple[int, ...]) -> None:
    plain, x = norm_of(kind), torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 3
    quick = copy.deepcopy(plain)
    assert quicken_norms(quick) == 1
    for ours, theirs in zip(values_and_gradients(quick, x), values_and_gradients(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_the_gradient_is_that_of_the_formula_in_double_precision() -> None:
    quick, x = norm_of(LlamaRMSNorm), torch.randn(6, 16, generator=torch.Generator().manual_seed(4))
    quicken_norms(quick)
    wide, weight = x.double().requires_grad_(), quick.weight.detach().double().requires_grad_()
    generator = torch.Generator().manual_seed(3)
    upstream = torch.randn(x.shape, generator=generator)
    formula = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    wanted = [formula, *torch.autograd.grad(formula, [wide, weight], upstream.double())]
    for ours, exact in zip(values_and_gradients(quick, x), wanted, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=2e-6)


def test_a_norm_of_another_formula_keeps_its_own_forward() -> None:
    odd = OddRMSNorm()
    assert quicken_norms(odd) == 0
    assert "forward" not in vars(odd)


def test_other_precisions_take_the_model_s_own_forward() -> None:
    plain = norm_of(LlamaRMSNorm).bfloat16()
    quick = copy.deepcopy(plain)
    quicken_norms(quick)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    assert torch.equal(quick(x), plain(x))


def test_a_copy_of_a_quick_norm_uses_its_own_weight() -> None:
    quick = norm_of(LlamaRMSNorm)
    quicken_norms(quick)
    twin, x = copy.deepcopy(quick), torch.randn(3, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        twin.weight.zero_()
        assert not twin(x).any()
        assert quick(x).all()


def test_a_second_call_changes_nothing() -> None:
    quick = norm_of(LlamaRMSNorm)
    assert quicken_norms(quick) == 1
    assert quicken_norms(quick) == 0


def test_under_autocast_a_norm_inside_a_layer_gives_what_a_product_would_round_it_to_and_the_last_one_does_not() -> (
    None
):
    layers, x = nn.ModuleList([norm_of(LlamaRMSNorm)]), torch.randn(3, 16, generator=torch.Generator().manual_seed(7))
    last = norm_of(LlamaRMSNorm)
    quicken_norms(layers)
    quicken_norms(last)
    wanted = last(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside, outside = values_and_gradients(layers[0], x), last(x)
    assert inside[0].dtype == torch.bfloat16
    assert torch.equal(inside[0], wanted.bfloat16())
    assert [part.dtype for part in inside[1:]] == [torch.float32, torch.float32]
    assert torch.equal(outside, wanted)
