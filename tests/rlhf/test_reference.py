"""The three sources of a reference give the same numbers, keep their identity, and are recomputed when they must be."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from rewards.errors import ConfigError, DataError
from rlhf.batch import TokenBatch
from rlhf.models.policy import Policy
from rlhf.objectives.preference import implicit_rewards, pair_margin, sigmoid
from rlhf.ops.masked import sequence_sum
from rlhf.reference.policy import AdapterOff, FrozenCopy, Reference, model_identity
from rlhf.reference.precomputed import Fingerprint, Precomputed, tokens_digest

V = 40


def make_model(seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, attention_dropout=dropout, **sizes)).to(dtype)


def make_adapted(seed: int = 0, dropout: float = 0.0, **kwargs: object) -> Policy:
    """A LoRA policy that has moved away from its base."""
    config = LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], **kwargs)
    policy = Policy(get_peft_model(make_model(seed), config)).train()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return policy


def make_tokens(rows: int = 4, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (rows, 1), generator=generator)
    places = torch.arange(8).expand(rows, 8)
    return TokenBatch(
        torch.randint(V, (rows, 8), generator=generator),
        places < lengths,
        (places >= 2) & (places < lengths),
        tuple(f"train:{seed}:{i}" for i in range(rows)),
    )


def fingerprint(reference: Reference, data: str = "d0") -> Fingerprint:
    return Fingerprint(reference.identity, data, "bpe", "float64")


class Counted:
    """A reference that counts its passes."""

    def __init__(self, reference: Reference) -> None:
        self.reference, self.passes = reference, 0

    identity = property(lambda self: self.reference.identity)

    def logps(self, tokens: TokenBatch, temperature: float = 1.0) -> torch.Tensor:
        self.passes += 1
        return self.reference.logps(tokens, temperature)


@pytest.fixture
def said() -> list[str]:
    return []


def test_adapter_off_equals_frozen_copy_equals_precomputed(tmp_path: Path, said: list[str]) -> None:
    policy, tokens = make_adapted(), make_tokens()
    off, frozen = AdapterOff(policy), FrozenCopy(Policy(make_model()))
    batches = [tokens.select(0, 2), tokens.select(2, 4)]
    column = Precomputed.build(frozen, batches, fingerprint(frozen), tmp_path, said.append)
    expected = torch.where(tokens.mask_BT, frozen.logps(tokens), 0.0)
    assert torch.equal(torch.where(tokens.mask_BT, off.logps(tokens), 0.0), expected)
    assert torch.allclose(column.logps(tokens), expected, rtol=0, atol=1e-12)
    assert torch.equal(off.distributions(tokens).logits(), frozen.distributions(tokens).logits())
    moved = policy(tokens).logps_BT
    assert float((moved.detach() - off.logps(tokens))[tokens.mask_BT].abs().max()) > 0.01


def test_dpo_starts_at_log2_with_every_source(tmp_path: Path, said: list[str]) -> None:
    policy, tokens = Policy(get_peft_model(make_model(), LoraConfig(r=4))).train(), make_tokens()
    off = AdapterOff(policy)
    column = Precomputed.build(off, [tokens], fingerprint(off), tmp_path, said.append)
    logps_BT = policy(tokens).logps_BT.detach()
    for reference in (off, FrozenCopy.of(policy), column):
        sums = [sequence_sum(x, tokens.mask_BT) for x in (logps_BT, reference.logps(tokens))]
        loss_N = sigmoid(pair_margin(implicit_rewards(*sums, 0.1)), torch.zeros(2), torch.ones(2))
        assert loss_N.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-12)


def test_reference_pass_has_no_gradient_no_dropout_and_restores_every_modules_mode() -> None:
    policy, tokens = make_adapted(dropout=0.5), make_tokens()
    kept = policy.model.get_base_model().model.layers[0].eval()
    before = [module.training for module in policy.modules()]
    trained = [parameter.requires_grad for parameter in policy.parameters()]
    off = AdapterOff(policy)
    torch.manual_seed(0)
    first, second = off.logps(tokens), off.logps(tokens)
    assert torch.equal(first, second) and not first.requires_grad
    assert torch.equal(torch.rand(3), torch.manual_seed(0) and torch.rand(3))
    assert [module.training for module in policy.modules()] == before and not kept.training
    assert [parameter.requires_grad for parameter in policy.parameters()] == trained
    live = FrozenCopy(Policy(make_model(dropout=0.5)).train())
    assert torch.equal(live.logps(tokens), live.logps(tokens))


def test_gradient_of_the_policy_is_untouched_by_a_reference_pass_before_its_backward() -> None:
    policy, tokens = make_adapted(), make_tokens()

    def gradients(*, between: bool) -> list[torch.Tensor]:
        policy.zero_grad()
        logps_BT = policy(tokens).logps_BT
        if between:
            AdapterOff(policy).logps(tokens)
        logps_BT[tokens.mask_BT].sum().backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    alone, together = gradients(between=False), gradients(between=True)
    assert alone and all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_frozen_copy_does_not_follow_the_policy() -> None:
    policy, tokens = Policy(make_model()), make_tokens()
    reference = FrozenCopy.of(policy)
    before, identity = reference.logps(tokens), reference.identity
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    assert torch.equal(reference.logps(tokens), before)
    assert model_identity(reference.policy) == identity != model_identity(policy)
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_temperature_and_context_reach_the_reference_pass() -> None:
    tokens, entered = make_tokens(), []

    class Note:
        def __enter__(self) -> None:
            entered.append(True)

        def __exit__(self, *_: object) -> None: ...

    reference = FrozenCopy(Policy(make_model()), Note)
    warm = reference.logps(tokens, 2.0)
    assert entered == [True]
    counted_X = tokens.ids_BT[tokens.mask_BT]
    expected_X = (reference.distributions(tokens).logits() / 2).log_softmax(-1).gather(-1, counted_X[:, None])[:, 0]
    assert torch.allclose(warm[tokens.mask_BT], expected_X, rtol=0, atol=1e-12)


def test_adapter_off_needs_an_adapter_over_a_base_that_stands_still() -> None:
    with pytest.raises(ConfigError, match=r"needs model\.use_peft"):
        AdapterOff(Policy(make_model()))
    policy = make_adapted(bias="all")
    policy.model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"norm\.weight is trained and would move the reference"):
        AdapterOff(policy)


def test_identity_ignores_the_adapter_and_sees_one_changed_number_of_the_base() -> None:
    identity = AdapterOff(make_adapted()).identity
    moved = make_adapted()
    for name, parameter in moved.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    assert AdapterOff(moved).identity == identity
    with torch.no_grad():
        moved.model.get_base_model().lm_head.weight[0, 0] += 1e-9
    assert AdapterOff(moved).identity != identity
    saved_too = make_adapted(modules_to_save=["lm_head"])
    head = AdapterOff(saved_too).identity
    with torch.no_grad():
        saved_too.model.base_model.model.lm_head.modules_to_save["default"].weight.add_(1)
    assert AdapterOff(saved_too).identity == head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_identity_reads_every_precision(dtype: torch.dtype) -> None:
    assert model_identity(make_model(dtype=dtype)) == model_identity(make_model(dtype=dtype))
    assert model_identity(make_model(dtype=dtype)) != model_identity(make_model(seed=1, dtype=dtype))


def test_resuming_against_another_reference_names_both_identities(tmp_path: Path, said: list[str]) -> None:
    first, other = FrozenCopy(Policy(make_model(0))), FrozenCopy(Policy(make_model(1)))
    first.load_state_dict(first.state_dict())
    with pytest.raises(ConfigError, match=f"{first.identity}.*{other.identity}"):
        other.load_state_dict(first.state_dict())
    columns = [
        Precomputed.build(first, [make_tokens()], fingerprint(first, data), tmp_path, said.append) for data in "ab"
    ]
    columns[0].load_state_dict(columns[0].state_dict())
    with pytest.raises(ConfigError, match=f"{columns[0].identity}.*{columns[1].identity}"):
        columns[1].load_state_dict(columns[0].state_dict())


def test_cached_column_is_read_again_bit_for_bit_without_a_pass(tmp_path: Path, said: list[str]) -> None:
    reference, tokens = Counted(FrozenCopy(Policy(make_model(dtype=torch.float32)))), make_tokens()
    first = Precomputed.build(reference, [tokens], fingerprint(reference), tmp_path, said.append)
    again = Precomputed.build(reference, [tokens], fingerprint(reference), tmp_path, said.append)
    assert reference.passes == 1
    assert first.columns.keys() == again.columns.keys() == set(tokens.rows)
    assert torch.equal(first.logps(tokens), again.logps(tokens))
    assert again.logps(tokens).dtype == torch.float32
    assert "nothing is cached" in said[0] and "4 rows from" in said[1]
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]


@pytest.mark.parametrize("part", ["model", "data", "text", "precision"])
def test_changed_model_or_data_invalidates_the_cached_column(tmp_path: Path, said: list[str], part: str) -> None:
    reference, tokens = Counted(FrozenCopy(Policy(make_model()))), make_tokens()
    valid = fingerprint(reference)
    Precomputed.build(reference, [tokens], valid, tmp_path, said.append)
    changed = replace(valid, **{part: "changed"})
    assert Precomputed.load(changed, tmp_path) is None
    Precomputed.build(reference, [tokens], changed, tmp_path, said.append)
    assert reference.passes == 2
    assert said[1].endswith(f"was computed for another {part}; computing")


def test_column_of_another_model_holds_other_numbers(tmp_path: Path, said: list[str]) -> None:
    tokens = make_tokens()
    references = [FrozenCopy(Policy(make_model(seed))) for seed in (0, 1)]
    for reference in references:
        column = Precomputed.build(reference, [tokens], fingerprint(reference), tmp_path, said.append)
        expected = torch.where(tokens.mask_BT, reference.logps(tokens), 0.0)
        assert torch.equal(column.logps(tokens), expected)


def test_broken_cache_file_is_computed_again_and_said(tmp_path: Path, said: list[str]) -> None:
    reference, tokens = Counted(FrozenCopy(Policy(make_model()))), make_tokens()
    column = Precomputed.build(reference, [tokens], fingerprint(reference), tmp_path, said.append)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    again = Precomputed.build(reference, [tokens], fingerprint(reference), tmp_path, said.append)
    assert reference.passes == 2 and "cannot be read; computing" in said[1]
    assert torch.equal(column.logps(tokens), again.logps(tokens))


def test_interrupted_computation_leaves_no_cache_file(tmp_path: Path, said: list[str]) -> None:
    reference = FrozenCopy(Policy(make_model()))

    def interrupted() -> Iterator[TokenBatch]:
        yield make_tokens()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Precomputed.build(reference, interrupted(), fingerprint(reference), tmp_path, said.append)
    assert list(tmp_path.iterdir()) == []


def test_precomputed_column_refuses_what_it_cannot_answer(tmp_path: Path, said: list[str]) -> None:
    reference, tokens = FrozenCopy(Policy(make_model())), make_tokens()
    column = Precomputed.build(reference, [tokens], fingerprint(reference), tmp_path, said.append)
    with pytest.raises(ConfigError, match="full vocabulary"):
        column.distributions(tokens)
    with pytest.raises(ConfigError, match=r"temperature 1, not of 0\.7"):
        column.logps(tokens, 0.7)
    with pytest.raises(DataError, match="row train:9:0 is not among the 4"):
        column.logps(make_tokens(seed=9))
    shorter = replace(tokens, mask_BT=tokens.mask_BT & (torch.arange(8) > 2))
    with pytest.raises(DataError, match="row train:0:0 counts"):
        column.logps(shorter)
    with pytest.raises(DataError, match="row train:0:0 occurs twice"):
        Precomputed.build(reference, [tokens, tokens], fingerprint(reference, "x"), tmp_path, said.append)
    with pytest.raises(DataError, match="no rows"):
        Precomputed.build(reference, [], fingerprint(reference, "x"), tmp_path, said.append)


def test_digest_of_tokens_sees_texts_and_masks_but_not_padding_or_batching() -> None:
    tokens = make_tokens()
    wider = TokenBatch(
        *(torch.nn.functional.pad(x, (0, 3)) for x in (tokens.ids_BT, tokens.attention_BT, tokens.mask_BT)), tokens.rows
    )
    digest = tokens_digest([tokens])
    assert tokens_digest([wider]) == tokens_digest([tokens.select(0, 1), tokens.select(1, 4)]) == digest
    assert tokens_digest([replace(tokens, mask_BT=tokens.attention_BT)]) != digest
    assert tokens_digest([replace(tokens, ids_BT=(tokens.ids_BT + 1) % V)]) != digest
    assert tokens_digest([replace(tokens, rows=tuple("abcd"))]) != digest
