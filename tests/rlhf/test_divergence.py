"""What each form of KL penalty does on the policy's own texts, by enumerating all of them: see `kl_world`."""

from collections.abc import Callable

import pytest
import torch

from rewards.errors import ConfigError
from rlhf.reference.divergence import forward_kl, k1, k2, k3, kl_penalty, reverse_kl, reward_penalty
from rlhf.reference.settings import KLSettings, refuse
from tests.rlhf.kl_world import EXACT, MASK, TEXTS, Form, World, error, relative


@pytest.fixture(params=[0, 1, 2])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


EXACT_FORMS = [
    Form("k1", "reward", "sequence"),
    Form("k2", "loss", "sequence", "none"),
    Form("k2", "loss", "sequence", "detached"),
    Form("k1", "loss", "sequence", "live"),
    Form("k3", "loss", "sequence", "live"),
    Form("full", "loss", "sequence", "live"),
]
TOKEN_FORMS = [
    Form("k1", "reward", "token"),
    Form("k2", "loss", "token", "none"),
    Form("k2", "loss", "token", "detached"),
    Form("k1", "loss", "token", "live"),
    Form("k3", "loss", "token", "live"),
    Form("full", "loss", "token", "none"),
    Form("full", "loss", "sequence", "none"),
]


@pytest.mark.parametrize("form", EXACT_FORMS, ids=str)
def test_sequence_level_form_has_exactly_the_gradient_of_the_sequence_kl(world: World, form: Form) -> None:
    assert error(world, form, world.sequence_kl()) < EXACT


@pytest.mark.parametrize("form", TOKEN_FORMS, ids=str)
def test_token_level_form_has_the_gradient_at_visited_prefixes_and_omits_later_states(
    world: World, form: Form, record_property: Callable[[str, object], None]
) -> None:
    assert error(world, form, world.visited()) < EXACT
    omitted = relative(world.gradient(world.visited()), world.gradient(world.sequence_kl()))
    record_property("omitted share of the gradient", omitted)
    print(f"{form}: omits {omitted:.1%} of the gradient of the sequence KL")
    assert 0.05 < omitted < 1.0


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("ratio", ["none", "detached"])
def test_k1_in_the_loss_without_a_live_ratio_has_no_expected_gradient(world: World, level: str, ratio: str) -> None:
    gradient = world.gradient(world.expected(Form("k1", "loss", level, ratio)))
    assert float(gradient.abs().max()) < EXACT


def test_grpo_papers_k3_has_the_gradient_of_the_forward_kl_at_visited_prefixes(world: World) -> None:
    form = Form("k3", "loss", "token", "none")
    assert error(world, form, world.visited(forward=True)) < EXACT
    assert error(world, form, world.visited()) > 0.01


def test_token_k3_with_a_live_ratio_is_k2_with_a_detached_one_sample_by_sample(world: World) -> None:
    logps, ref_logps, old = (world.logps(table) for table in (world.logits, world.reference, world.old))
    weights = torch.rand(MASK.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = [
        world.gradient((weights * kl_penalty(form, logps, ref_logps, MASK, old)).sum())
        for form in (Form("k3", "loss", "token", "live"), Form("k2", "loss", "token", "detached"))
    ]
    assert float((gradients[0] - gradients[1]).abs().max()) < EXACT


# A ratio on a sum that samples nothing only adds noise; one number a token does not fit one reward a completion.
REFUSED_THOUGH_EXACT = {
    ("full", "loss", "token", "live"),
    ("full", "loss", "token", "detached"),
    ("k1", "reward", "token", "none"),
}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("place", ["loss", "reward"])
@pytest.mark.parametrize("ratio", ["none", "live", "detached"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_a_form_is_accepted_without_reserve_only_if_its_gradient_is_that_of_a_divergence(
    estimator: str, place: str, level: str, ratio: str
) -> None:
    world = World()
    form = Form(estimator, place, level, ratio)
    try:
        reserve = bool(refuse(KLSettings(estimator, place, level, ratio)))  # type: ignore[arg-type]
    except ConfigError:
        reserve = True
    if place == "reward" and (estimator == "full" or ratio != "none"):
        assert reserve  # there is no such form, or the ratio would do nothing
        return
    truths = [kl(forward=forward) for kl in (world.sequence_kl, world.visited) for forward in (False, True)]
    smallest = min(error(world, form, truth) for truth in truths)
    if (estimator, place, level, ratio) in REFUSED_THOUGH_EXACT:
        assert reserve and smallest < EXACT
        return
    assert smallest > 0.01 if reserve else smallest < EXACT


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_have_another_gradient(world: World, estimator: str) -> None:
    assert error(world, Form(estimator, "reward", "sequence"), world.sequence_kl()) > 0.01


def test_k1_and_k3_are_unbiased_and_never_or_sometimes_negative_while_k2_is_biased(world: World) -> None:
    logps, ref_logps = (world.logps(table)[:, 1:] for table in (world.logits.detach(), world.reference))
    probability, truth = world.probability(world.logits.detach()), world.sequence_kl().item()
    r = (ref_logps - logps).sum(1)
    assert float((probability * k1(r)).sum()) == pytest.approx(truth, abs=EXACT)
    assert float((probability * k3(r)).sum()) == pytest.approx(truth, abs=EXACT)
    assert abs(float((probability * k2(r)).sum()) - truth) > 0.01
    assert float(k1(r).min()) < 0 <= float(k3(r).min())


def test_sequence_kl_is_the_expected_sum_of_full_vocabulary_kls(world: World) -> None:
    kl_BT = world.full_BT().detach()
    expected = (world.probability(world.logits.detach()) * kl_BT.sum(1)).sum()
    assert kl_BT[:, 0].tolist() == [0.0] * len(TEXTS)
    assert float(expected) == pytest.approx(world.sequence_kl().item(), abs=EXACT)
    policy, reference = world.counted(world.logits), world.counted(world.reference)
    assert torch.allclose(reverse_kl(policy, reference, MASK), forward_kl(reference, policy, MASK), rtol=0, atol=1e-15)


def test_k2_bias_is_a_quarter_between_gaussians_half_a_nat_apart() -> None:
    # N(1, 1) against N(0, 1): KL = 1/2; r = 1/2 - x, so that E r^2 / 2 = (1 + 1/4) / 2 = 0.625 in closed form.
    x = torch.linspace(-11, 13, 200_001, dtype=torch.float64)
    density = torch.exp(-((x - 1) ** 2) / 2) / (2 * torch.pi) ** 0.5
    r = 0.5 - x
    means = [float(torch.trapezoid(density * k(r), x)) for k in (k1, k2, k3)]
    assert means == pytest.approx([0.5, 0.625, 0.5], abs=1e-9)


def test_k3_keeps_its_digits_where_policy_and_reference_almost_agree() -> None:
    r = torch.tensor([1e-4], dtype=torch.float32)
    assert float(k3(r)) == pytest.approx(5e-9, rel=0.3)
    assert float(torch.exp(r) - 1 - r) != pytest.approx(5e-9, rel=0.3)


def test_form_in_the_wrong_place_or_without_its_tensors_is_refused() -> None:
    logps, mask = torch.zeros(1, 2), torch.tensor([[False, True]])
    with pytest.raises(ValueError, match="use reward_penalty"):
        kl_penalty(Form("k1", "reward", "sequence"), logps, logps, mask)
    with pytest.raises(ValueError, match="use kl_penalty"):
        reward_penalty(Form("k1", "loss", "sequence"), logps, logps, mask)
    with pytest.raises(ValueError, match="`full` has no form"):
        reward_penalty(Form("full", "reward", "sequence"), logps, logps, mask)
    with pytest.raises(ValueError, match="needs the divergence over the vocabulary"):
        kl_penalty(Form("full", "loss", "token"), logps, None, mask)
    with pytest.raises(ValueError, match="needs the reference"):
        kl_penalty(Form("k2", "loss", "token"), logps, None, mask)
