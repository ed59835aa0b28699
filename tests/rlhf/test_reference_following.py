"""References that follow the policy: their arithmetic by hand and against TRL's callback; what a pass leaves alone."""

import hashlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.models.policy import Policy
from rlhf.reference.following import Following, chained
from rlhf.reference.policy import AdapterOff, FrozenCopy, model_identity
from tests.rlhf.test_reference import make_adapted, make_model, make_tokens


def drift(policy: Policy, seed: int = 0, scale: float = 0.1) -> None:
    """Moves what is trained, as an optimizer step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def trained(policy: Policy) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}


def answers(reference: FrozenCopy | Following | AdapterOff, tokens: TokenBatch) -> Tensor:
    return reference.logps(tokens)[tokens.mask_BT]


@pytest.mark.parametrize("adapter", [False, True])
def test_the_average_is_the_one_worked_out_by_hand(adapter: bool) -> None:
    policy = make_adapted() if adapter else Policy(make_model())
    reference = Following(policy, "ema", 1 - 0.9)
    points = [trained(policy)]
    for step in (1, 2, 3):
        drift(policy, step)
        points.append(trained(policy))
        reference.moved(step)
    # r3 = .9^3 p0 + .1 (.9^2 p1 + .9 p2 + p3)
    expected = {
        name: 0.729 * points[0][name] + 0.081 * points[1][name] + 0.09 * points[2][name] + 0.1 * points[3][name]
        for name in points[0]
    }
    weights = reference.state_dict()["weights"]
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], rtol=0, atol=1e-14) for name in expected)
    # The answers are those of a model that has these weights.
    other = make_adapted() if adapter else Policy(make_model())
    other.load_state_dict({**policy.state_dict(), **expected})
    tokens = make_tokens()
    assert torch.allclose(answers(reference, tokens), answers(FrozenCopy(other), tokens), rtol=0, atol=1e-12)


def test_mixing_happens_every_n_steps_and_alpha_is_on_the_policys_side() -> None:
    policy = Policy(make_model())
    reference = Following(policy, "synced", 0.25, every=2)
    start = trained(policy)
    drift(policy)
    assert reference.moved(1) is None
    drift(policy, 1)
    moved = reference.moved(2)
    assert moved is not None and moved["share"] == 0.25
    weights = reference.state_dict()["weights"]
    for name, now in trained(policy).items():
        assert torch.allclose(weights[name], 0.25 * now + 0.75 * start[name], rtol=0, atol=1e-14)
    hard = Following(policy, "synced", 1.0)
    drift(policy, 2)
    hard.moved(1)
    assert all(torch.equal(weight, trained(policy)[name]) for name, weight in hard.state_dict()["weights"].items())


@pytest.mark.parametrize("alpha", [0.6, 0.01, 1.0])
def test_the_weights_are_those_of_trls_callback_bit_for_bit(alpha: float) -> None:
    callbacks = pytest.importorskip("trl.trainer.callbacks", reason="TRL is not installed")
    policy, theirs = Policy(make_model(dtype=torch.float32)), make_model(dtype=torch.float32)
    reference = Following(policy, "synced", alpha)
    for step in (1, 2, 3):
        drift(policy, step)
        reference.moved(step)
        callbacks.SyncRefModelCallback._sync_target_model(policy.model, theirs, alpha)
    weights = reference.state_dict()["weights"]
    assert all(torch.equal(weights[f"model.{name}"], p) for name, p in theirs.named_parameters())


def test_narrow_weights_are_averaged_in_float32_where_a_small_share_would_be_rounded_away() -> None:
    policy = Policy(make_model(dtype=torch.bfloat16))
    reference = Following(policy, "ema", 1 - 0.999)
    name, parameter = next(iter(policy.named_parameters()))
    start = parameter.detach().clone()
    with torch.no_grad():
        parameter.fill_(1.0)
    for step in range(1, 401):
        reference.moved(step)
    narrow = start.clone()
    for _ in range(400):
        narrow.mul_(0.999).add_(parameter.detach(), alpha=0.001)
    expected = 1.0 + 0.999**400 * (start.float() - 1.0)
    assert torch.allclose(reference.state_dict()["weights"][name], expected, rtol=0, atol=1e-4)
    # In bfloat16 it would have stopped short of that by a quarter of the way.
    assert float((narrow.float() - expected).abs().max()) > 0.05
    assert reference.logps(make_tokens()).dtype == FrozenCopy.of(policy).logps(make_tokens()).dtype


@pytest.mark.parametrize("adapter", [False, True])
def test_a_pass_leaves_the_policy_its_gradient_and_its_mode_as_they_were(adapter: bool) -> None:
    policy, tokens = make_adapted() if adapter else Policy(make_model()).train(), make_tokens()
    policy.enable_gradient_checkpointing()
    reference = Following(policy, "ema", 0.5)
    drift(policy)

    def gradients(*, between: bool) -> list[Tensor]:
        policy.zero_grad()
        logps_BT = policy(tokens).logps_BT
        if between:
            reference.logps(tokens)
        logps_BT[tokens.mask_BT].sum().backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    before = trained(policy)
    places = [p.data_ptr() for p in policy.parameters()]
    alone, together = gradients(between=False), gradients(between=True)
    assert alone and all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(before[name], now) for name, now in trained(policy).items())
    assert places == [p.data_ptr() for p in policy.parameters()] and policy.training


def test_a_pass_that_fails_gives_the_policy_its_weights_back() -> None:
    policy = Policy(make_model())
    reference = Following(policy, "synced", 0.5)
    drift(policy)
    before = trained(policy)
    counted = torch.tensor([[False, True, True, True]])
    with pytest.raises(IndexError):
        reference.logps(TokenBatch(torch.full((1, 4), 999), torch.ones(1, 4, dtype=torch.bool), counted))
    assert all(torch.equal(before[name], now) for name, now in trained(policy).items())


def test_under_lora_the_reference_costs_an_adapter_and_not_a_model() -> None:
    policy = make_adapted()
    kept = Following(policy, "ema", 0.5).state_dict()["weights"]
    assert kept and all("lora_" in name for name in kept)
    assert sum(weight.numel() for weight in kept.values()) < 0.2 * sum(p.numel() for p in policy.parameters())
    frozen = Policy(make_model()).requires_grad_(False)
    with pytest.raises(ConfigError, match="trains no parameter that could be followed"):
        Following(frozen, "ema", 0.5)


def test_the_start_is_the_policy_with_its_adapter_and_not_the_model_under_it() -> None:
    policy, tokens = make_adapted(), make_tokens()
    reference = Following(policy, "synced", 0.5)
    assert torch.equal(answers(reference, tokens), policy(tokens).logps_BT.detach()[tokens.mask_BT])
    assert float((answers(reference, tokens) - answers(AdapterOff(policy), tokens)).abs().max()) > 0.01
    assert reference.identity == reference.origin == model_identity(policy)


def test_the_identity_is_a_chain_over_source_step_and_share_that_reads_no_weights() -> None:
    policy = Policy(make_model())
    reference = Following(policy, "synced", 0.6, every=2)
    origin = reference.identity
    drift(policy)
    for step in (1, 2, 3, 4):
        reference.moved(step)
    expected = origin
    for step in (2, 4):
        expected = hashlib.sha256(f"{expected} synced {step} 0.6".encode()).hexdigest()
    assert reference.identity == expected and reference.origin == origin
    assert chained(chained(origin, "synced", 2, 0.6), "synced", 4, 0.6) == expected
    assert chained(origin, "synced", 2, 0.6) != chained(origin, "synced", 2, 0.5) != chained(origin, "ema", 2, 0.5)


def test_a_restored_reference_goes_on_as_the_one_that_was_saved() -> None:
    policy, tokens = Policy(make_model()), make_tokens()
    first = Following(policy, "ema", 0.3)
    again = Following(policy, "ema", 0.3)
    drift(policy)
    first.moved(1)
    again.load_state_dict(first.state_dict())
    assert again.identity == first.identity and torch.equal(answers(again, tokens), answers(first, tokens))
    drift(policy, 1)
    # Only the first move of an average is an event, before and after a restart.
    assert first.moved(2) is None and again.moved(2) is None
    assert torch.equal(answers(again, tokens), answers(first, tokens)) and again.identity == first.identity


def test_a_state_of_another_source_start_or_model_is_refused() -> None:
    state = Following(Policy(make_model()), "ema", 0.3).state_dict()
    with pytest.raises(ConfigError, match=r"this one .synced. as"):
        Following(Policy(make_model()), "synced", 0.3).load_state_dict(state)
    with pytest.raises(ConfigError, match="resume with the model"):
        Following(Policy(make_model(1)), "ema", 0.3).load_state_dict(state)
    with pytest.raises(ConfigError, match="resume with the model"):
        Following(Policy(make_model()), "ema", 0.3).load_state_dict(
            FrozenCopy(Policy(make_model())).state_dict() | {"origin": ""}
        )
    partly = Policy(make_model())
    partly.model.lm_head.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"follows other parameters .*lm_head"):
        Following(partly, "ema", 0.3).load_state_dict(state)


def test_an_adapter_that_was_merged_is_what_a_new_adapters_reference_answers_as() -> None:
    """Upstream trl#3194: GRPO on a fine-tuned adapter had the base model as its reference."""
    tuned, tokens = make_adapted(), make_tokens()
    expected = tuned(tokens).logps_BT.detach()[tokens.mask_BT]
    base = FrozenCopy(Policy(make_model()))
    again = Policy(get_peft_model(tuned.model.merge_and_unload(), LoraConfig(r=2, target_modules=["q_proj"])))
    for reference in (AdapterOff(again), FrozenCopy.of(again), Following(again, "ema", 0.5)):
        drift(again)
        assert torch.allclose(answers(reference, tokens), expected, rtol=0, atol=1e-10)
        assert float((answers(reference, tokens) - answers(base, tokens)).abs().max()) > 0.01
        for name, parameter in again.named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(parameter)
