"""The last layer at the positions that are read: the same values and gradients, with less work."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from rlhf.batch import TokenBatch
from rlhf.models import layout as layout_module
from rlhf.models.heads import RewardModel
from rlhf.models.policy import Policy

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 1,
}
KINDS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "norms of queries": lambda: Qwen3Config(**SIZES, head_dim=8),
    "sliding window": lambda: MistralConfig(**SIZES, sliding_window=4),
    "soft caps and four norms": lambda: Gemma2Config(**SIZES, head_dim=8, sliding_window=4),
}
PROMPT = [5, 9, 2, 7, 11, 6]
TEXTS = [[*PROMPT, 3, 8, 4], [*PROMPT, 12, 4], [20, 21, 22, 23, 24, 30, 31], [40, 41, 42, 43]]


@pytest.fixture(autouse=True)
def every_common_token_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "LEAST_SHARED", 1)


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(KINDS[kind](), dtype=dtype)


def batch() -> TokenBatch:
    """Only the ends of the texts count: two tokens of each."""
    width = max(map(len, TEXTS))
    ids = torch.ones(len(TEXTS), width, dtype=torch.long)
    attention = torch.zeros(len(TEXTS), width, dtype=torch.bool)
    mask = attention.clone()
    for row, text in enumerate(TEXTS):
        ids[row, : len(text)] = torch.tensor(text)
        attention[row, : len(text)] = True
        mask[row, len(text) - 2 : len(text)] = True
    return TokenBatch(ids, attention, mask, group_B=torch.tensor([0, 0, 1, 2]))


def gradients(policy: Policy, values: Tensor) -> dict[str, Tensor]:
    policy.zero_grad()
    generator = torch.Generator().manual_seed(7)
    (values * torch.rand(values.shape, generator=generator, dtype=values.dtype)).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def both_ways(policy: Policy, read: Any) -> None:
    """Asserts equal values and gradients with the last layer narrowed and whole."""
    narrow = read()
    narrow_gradients = gradients(policy, narrow)
    assert policy._last_layer is not None
    policy._last_layer = None
    whole = read()
    whole_gradients = gradients(policy, whole)
    torch.testing.assert_close(narrow, whole, rtol=1e-10, atol=1e-12)
    assert narrow_gradients.keys() == whole_gradients.keys()
    for name, found in narrow_gradients.items():
        torch.testing.assert_close(
            found, whole_gradients[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_gradients_are_those_of_the_whole_layer(kind: str) -> None:
    policy = Policy(model_of(kind))
    both_ways(policy, lambda: policy(batch()).logps_BT)


def test_a_reward_model_s_scores_and_gradients_are_those_of_the_whole_layer() -> None:
    policy = RewardModel(model_of("llama"), seed=0)
    both_ways(policy, lambda: policy(batch()).scores_B)


def test_scores_and_log_probabilities_from_one_pass_are_those_of_the_whole_layer() -> None:
    policy = RewardModel(model_of("llama"), seed=0, trains_language_head=True)

    def read() -> Tensor:
        output = policy(batch(), frozenset({"scores", "logps"}))
        return torch.cat([output.scores_B.double(), output.logps_BT.sum(dim=1)])

    both_ways(policy, read)


def test_the_last_feed_forward_block_sees_only_what_is_read() -> None:
    policy = Policy(model_of("llama"))
    policy.shortcuts()
    seen: list[int] = []
    layers = policy.model.model.layers
    for layer in layers:
        layer.mlp.up_proj.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    policy(batch())
    first, last = seen
    # 28 tokens of which 6 are shared by two texts; two tokens of each of the four texts are read.
    assert (first, last) == (22, 8)


def rows_of_the_last_block(policy: Policy) -> list[int]:
    seen: list[int] = []
    policy.model.model.layers[-1].mlp.up_proj.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    return seen


def test_rows_that_fill_a_matrix_up_to_a_shape_that_comes_back_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.models.policy.shape_step", lambda device, dtype: 16)
    policy = Policy(model_of("llama"))
    policy.shortcuts()
    seen = rows_of_the_last_block(policy)
    both_ways(policy, lambda: policy(batch()).logps_BT)
    assert seen == [16, 32]  # 8 of 22 positions are read


def test_more_rows_than_there_are_positions_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(model_of("llama"))
    policy.shortcuts()
    assert policy._last_layer is not None
    rows = torch.tensor([0, 3, 4])
    seen = rows_of_the_last_block(policy)
    with policy._last_layer.only(rows, 5, 64), torch.no_grad():
        policy.model(torch.tensor([[5, 9, 2, 7, 11]]))
    assert seen == [5]


def test_in_half_precision_on_a_processor_the_last_layer_s_shapes_come_back() -> None:
    policy = Policy(model_of("llama", torch.float32))
    policy.shortcuts()
    seen = rows_of_the_last_block(policy)
    with torch.autocast("cpu", torch.bfloat16):
        policy(batch())
    assert seen == [128]


def test_checkpointed_layers_are_not_narrowed_and_give_the_same_gradients() -> None:
    plain, checkpointed = Policy(model_of("llama")), Policy(model_of("llama"))
    checkpointed.enable_gradient_checkpointing()
    checkpointed.train()
    found = [gradients(policy, policy(batch()).logps_BT) for policy in (plain, checkpointed)]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-8, atol=1e-10)


def test_a_copy_is_narrowed_on_its_own() -> None:
    policy = Policy(model_of("llama"))
    wanted = policy(batch()).logps_BT
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(batch()).logps_BT, wanted)


def test_a_model_with_other_names_keeps_its_whole_layer() -> None:
    config = GPT2Config(vocab_size=53, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    policy = Policy(AutoModelForCausalLM.from_config(config, dtype=torch.float64))
    policy.shortcuts()
    assert policy._last_layer is None


def test_after_a_pass_the_model_itself_gives_every_position() -> None:
    policy = Policy(model_of("llama"))
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad():
        before = policy.model(ids).logits
        policy(batch())
        torch.testing.assert_close(policy.model(ids).logits, before)


def test_a_layer_with_active_dropout_is_not_narrowed() -> None:
    import peft

    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.5)
    policy = Policy(peft.get_peft_model(model_of("llama"), adapter))
    policy.shortcuts()
    assert policy._last_layer is not None
    policy.train()
    assert policy._last_layer.drops()
    policy.eval()
    assert not policy._last_layer.drops()


def test_a_batch_in_which_nothing_is_read_leaves_every_parameter_in_the_graph() -> None:
    policy = Policy(model_of("llama"))
    tokens = batch()
    nothing = TokenBatch(tokens.ids_BT, tokens.attention_BT, torch.zeros_like(tokens.mask_BT), group_B=tokens.group_B)
    (policy(nothing).logps_BT.sum() * 0.0).backward()
    without = [name for name, parameter in policy.named_parameters() if parameter.grad is None]
    assert without == []


def test_a_second_policy_over_a_copied_model_is_narrowed_too() -> None:
    first = Policy(model_of("llama"))
    wanted = first(batch()).logps_BT
    second = Policy(copy.deepcopy(first.model))
    assert torch.equal(second(batch()).logps_BT, wanted)
    assert second._last_layer is not None
