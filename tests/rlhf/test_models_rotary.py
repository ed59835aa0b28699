"""Rotary positions in fewer passes: where they are put in, and that values and gradients stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rlhf.models.rotary import _Rotate, quicken_rotations

HEADS, SHARED, LENGTH, WIDTH = 4, 2, 7, 16
KNOWN = [LlamaConfig, Qwen3Config, MistralConfig, Gemma2Config]


def model_of(kind: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    sizes |= {"num_key_value_heads": SHARED, "head_dim": WIDTH, "vocab_size": 97, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(kind(**sizes, **options), attn_implementation="eager")


def states(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries and keys as a projection makes them, and angles whose halves differ."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    query, key = (draw(2, LENGTH, heads, WIDTH).to(dtype).requires_grad_() for heads in (HEADS, SHARED))
    return [query, key, draw(1, LENGTH, WIDTH), draw(1, LENGTH, WIDTH)]


def values_and_gradients(rotate: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    outputs = rotate(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [query, key], upstream)]


def test_the_rotation_has_the_values_and_gradients_of_the_plain_formula() -> None:
    ours, theirs = (values_and_gradients(rotate, *states()) for rotate in (_Rotate.apply, apply_rotary_pos_emb))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-6, atol=2e-6)


def test_half_precision_is_turned_in_single_precision_and_rounded_once() -> None:
    query, key, cos, sin = states(torch.bfloat16)
    ours = values_and_gradients(_Rotate.apply, query, key, cos, sin)
    wide = [part.detach().double().transpose(1, 2) for part in (query, key)]
    exact = apply_rotary_pos_emb(*wide, cos, sin)
    for one, two in zip(ours[:2], exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (
            float(((one.double() - two).abs().max() / two.abs().max()).detach()) <= torch.finfo(torch.bfloat16).eps / 2
        )
    assert [part.dtype for part in ours[2:]] == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("kind", KNOWN)
def test_a_model_with_the_usual_rotation_is_given_it_and_keeps_its_values_and_gradients(kind: Any) -> None:
    plain = model_of(kind)
    quick = copy.deepcopy(plain)
    assert quicken_rotations(quick) == 2
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(4))
    found = []
    for model in (quick, plain):
        logits = model(ids).logits
        found.append([logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(two.abs().max().detach()))


@pytest.mark.parametrize("kind", KNOWN)
def test_under_autocast_a_model_stays_within_what_half_precision_rounds(kind: Any) -> None:
    plain = model_of(kind)
    quick = copy.deepcopy(plain)
    quicken_rotations(quick)
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(4))
    exact = plain(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = quick(ids).logits.float(), plain(ids).logits.float()
    error, of_theirs = (float((found - exact).abs().max().detach()) for found in (ours, theirs))
    assert 0 < error < 2 * of_theirs


def test_a_rotation_of_interleaved_pairs_is_left_alone() -> None:
    model = model_of(CohereConfig)
    assert quicken_rotations(model) == 0
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    "model", [lambda: model_of(GPTNeoXConfig), lambda: model_of(Phi3Config, partial_rotary_factor=0.5)]
)
def test_heads_that_are_turned_in_part_are_left_to_the_model_s_own_rotation(model: Any) -> None:
    plain = model()
    quick = copy.deepcopy(plain)
    quicken_rotations(quick)
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(4))
    assert torch.equal(quick(ids).logits, plain(ids).logits)


def test_a_copy_of_a_quick_model_uses_its_own_weights_and_a_second_call_changes_nothing() -> None:
    model = model_of(LlamaConfig)
    assert quicken_rotations(model) == 2
    assert quicken_rotations(model) == 0
    twin, ids = copy.deepcopy(model), torch.randint(3, 97, (1, 5), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for layer in twin.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        only_embedded = twin.lm_head(twin.model.norm(twin.model.embed_tokens(ids)))
        assert torch.equal(twin(ids).logits, only_embedded)
        assert not torch.equal(model(ids).logits, only_embedded)
