"""Queries, keys and values in one product: where, and that values and gradients stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.models.projections import quicken_projections

LAYERS = 3
NAMES = ("q_proj", "k_proj", "v_proj")


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def attention(of: LlamaForCausalLM, layer: int = 0) -> list[nn.Linear]:
    return [getattr(of.model.layers[layer].self_attn, name) for name in NAMES]


def states() -> Tensor:
    return torch.randn(1, 37, 32, generator=torch.Generator().manual_seed(1))


def projected(modules: list[nn.Linear], x: Tensor, half: bool = True) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return [module(x) for module in modules]


def values_and_gradients(modules: list[nn.Linear], half: bool = True) -> list[Tensor]:
    x = states().requires_grad_()
    outputs = projected(modules, x, half)
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
    inputs = [x, *(module.weight for module in modules)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]


def test_one_product_has_the_values_and_gradients_of_three_within_its_digits() -> None:
    plain, quick = model(), model()
    assert quicken_projections(quick) == LAYERS - 1
    exact = values_and_gradients(attention(plain), half=False)
    ours, theirs = values_and_gradients(attention(quick)), values_and_gradients(attention(plain))
    for one, two, wanted in zip(ours, theirs, exact, strict=True):
        assert one.dtype == two.dtype and one.shape == two.shape
        error, its = ((part.float() - wanted).norm() / wanted.norm() for part in (one, two))
        assert 0 < error <= max(1.1 * its, 4e-3)


def test_it_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, seen = model(), []
    quicken_projections(quick)
    whole = Tensor.__matmul__
    monkeypatch.setattr(Tensor, "__matmul__", lambda a, b: seen.append((a.shape, b.shape)) or whole(a, b))
    projected(attention(quick), states())
    assert seen == [((37, 32), (32, 64))]


@pytest.mark.parametrize("layer", range(LAYERS))
def test_single_precision_and_the_last_layer_are_left_as_they_are(layer: int) -> None:
    plain, quick = model(), model()
    quicken_projections(quick)
    half = layer == LAYERS - 1
    for one, two in zip(*(values_and_gradients(attention(of, layer), half) for of in (plain, quick)), strict=True):
        assert torch.equal(one, two)


def test_results_are_handed_out_for_the_same_states_alone() -> None:
    plain, quick = model(), model()
    quicken_projections(quick)
    query, key, value = attention(quick)
    other = states() + 1
    with torch.autocast("cpu", torch.bfloat16):
        query(states())
        assert torch.equal(key(other), attention(plain)[1](other))
        assert torch.equal(value(other), attention(plain)[2](other))


def test_a_copy_computes_with_its_own_weights_and_nothing_is_saved_beside_them() -> None:
    quick = model()
    quicken_projections(quick)
    again = copy.deepcopy(quick)
    with torch.no_grad():
        for module in attention(again):
            module.weight.zero_()
    assert all(not output.any() for output in projected(attention(again), states()))
    assert all(output.any() for output in projected(attention(quick), states()))
    assert quick.state_dict().keys() == model().state_dict().keys()
    assert len(list(quick.modules())) == len(list(model().modules()))


def test_frozen_weights_get_no_gradient() -> None:
    quick = model()
    quicken_projections(quick)
    for module in attention(quick):
        module.weight.requires_grad_(False)
    x = states().requires_grad_()
    sum(output.float().sum() for output in projected(attention(quick), x)).backward()
    assert x.grad is not None and all(module.weight.grad is None for module in attention(quick))


def test_projections_with_a_bias_or_a_forward_pass_of_another_s_are_left_alone() -> None:
    biased = LlamaForCausalLM(LlamaConfig(**{**model().config.to_dict(), "attention_bias": True}))
    assert quicken_projections(biased) == 0
    watched = model()
    attention(watched)[1].forward = lambda x: x  # type: ignore[method-assign]
    assert quicken_projections(watched) == LAYERS - 2
    assert quicken_projections(watched) == LAYERS - 2
