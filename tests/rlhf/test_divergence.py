"""What each form of KL penalty does, by enumerating every text of three tokens over a vocabulary of four.

The policy has free logits for each of its 21 prefixes, so that nothing is approximated: expectations are sums over the
64 texts, the truth is the gradient of the exact divergence.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rewards.errors import ConfigError
from rlhf.reference.divergence import forward_kl, k1, k2, k3, kl_penalty, reverse_kl, reward_penalty
from rlhf.reference.settings import KLSettings, refuse

V, T = 4, 3
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=T)))
PREFIXES = [text for n in range(T) for text in itertools.product(range(V), repeat=n)]
# Row of each text's prefix before each of its tokens; position 0 is a start token that nothing predicts.
ROWS = torch.tensor([[PREFIXES.index(tuple(text[:t])) for t in range(T)] for text in TEXTS.tolist()])
MASK = torch.tensor([[False] + [True] * T] * len(TEXTS))
EXACT = 1e-10


@dataclass(frozen=True)
class Form:
    estimator: str
    place: str
    level: str
    ratio: str = "none"


class World:
    """Policy, reference and behaviour policy in one table of logits each."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits, self.reference, self.old = (
            scale * torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64) for _ in range(3)
        )
        self.logits.requires_grad_()

    def logps(self, table: Tensor) -> Tensor:
        """Shapes: (64, 4), index 0 uncounted and of absurd value."""
        logps = table.log_softmax(-1)[ROWS, TEXTS]
        return torch.cat([torch.full((len(TEXTS), 1), -1e6, dtype=torch.float64), logps], dim=1)

    def aligned(self, table: Tensor) -> Tensor:
        return torch.cat([torch.zeros(len(TEXTS), 1, V, dtype=torch.float64), table[ROWS]], dim=1)

    def probability(self, table: Tensor) -> Tensor:
        return self.logps(table)[:, 1:].sum(1).exp()

    def gradient(self, value: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(value, self.logits, retain_graph=True)
        return gradient

    def sequence_kl(self, *, forward: bool = False) -> Tensor:
        """KL(pi || ref) over whole texts, or KL(ref || pi)."""
        tables = (self.reference, self.logits) if forward else (self.logits, self.reference)
        logp, logq = (self.logps(table)[:, 1:].sum(1) for table in tables)
        return (logp.exp() * (logp - logq)).sum()

    def visited(self, *, forward: bool = False) -> Tensor:
        """The divergence at each prefix, weighted by how often pi gets there; what gets it there has no gradient."""
        total = torch.zeros((), dtype=torch.float64)
        for row, prefix in enumerate(PREFIXES):
            starts = (TEXTS[:, : len(prefix)] == torch.tensor(prefix)).all(1)
            reach = self.probability(self.logits).detach()[starts].sum()
            logp, logq = self.logits[row].log_softmax(-1), self.reference[row].log_softmax(-1)
            divergence = (logq.exp() * (logq - logp)) if forward else (logp.exp() * (logp - logq))
            total = total + reach * divergence.sum()
        return total

    def expected(self, form: Form, *, off_policy: bool = False) -> Tensor:
        """The loss term in expectation over texts drawn from pi, or from the old policy."""
        sampler = self.old if off_policy else self.logits.detach()
        logps, ref_logps = self.logps(self.logits), self.logps(self.reference)
        if form.place == "reward":
            penalty = reward_penalty(form, logps, ref_logps, MASK)
            assert not penalty.requires_grad
            surrogate = penalty * logps[:, 1:].sum(1) if form.level == "sequence" else (penalty * logps)[:, 1:].sum(1)
        else:
            penalty = kl_penalty(
                form,
                logps,
                ref_logps,
                MASK,
                self.logps(self.old) if off_policy else None,
                policy_logits_BTV=self.aligned(self.logits),
                ref_logits_BTV=self.aligned(self.reference),
            )
            assert penalty.shape == (MASK.shape if form.level == "token" else MASK.shape[:1])
            surrogate = penalty if form.level == "sequence" else penalty.sum(1)
        return (self.probability(sampler) * surrogate).sum()


@pytest.fixture(params=[0, 1, 2])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def error(world: World, form: Form, truth: Tensor, *, off_policy: bool = False) -> float:
    """Largest difference of the two gradients."""
    estimate = world.gradient(world.expected(form, off_policy=off_policy))
    return float((estimate - world.gradient(truth)).abs().max())


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
    truth = world.gradient(world.sequence_kl())
    omitted = float((world.gradient(world.visited()) - truth).norm() / truth.norm())
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


@pytest.mark.parametrize("form", [f for f in EXACT_FORMS if f.place == "loss" and f.ratio != "none"], ids=str)
def test_sequence_ratio_keeps_the_gradient_exact_on_texts_of_an_older_policy(world: World, form: Form) -> None:
    assert error(world, form, world.sequence_kl(), off_policy=True) < EXACT


def test_k2_without_a_ratio_is_wrong_on_texts_of_an_older_policy(world: World) -> None:
    assert error(world, Form("k2", "loss", "sequence", "none"), world.sequence_kl(), off_policy=True) > 0.01


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
    logits, reference = world.aligned(world.logits.detach()), world.aligned(world.reference)
    kl_BT = reverse_kl(logits, reference, MASK)
    expected = (world.probability(world.logits.detach()) * kl_BT.sum(1)).sum()
    assert kl_BT[:, 0].tolist() == [0.0] * len(TEXTS)
    assert float(expected) == pytest.approx(world.sequence_kl().item(), abs=EXACT)
    assert torch.allclose(reverse_kl(logits, reference, MASK), forward_kl(reference, logits, MASK), rtol=0, atol=1e-15)


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


def test_tokens_that_neither_model_can_draw_add_nothing_to_a_full_kl() -> None:
    policy = torch.tensor([[[0.0] * 3, [1.0, 2.0, -torch.inf]]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[[0.0] * 3, [0.5, 0.1, -torch.inf]]], dtype=torch.float64)
    mask = torch.tensor([[False, True]])
    for kl in (reverse_kl, forward_kl):
        value = kl(policy, reference, mask)
        without = kl(policy[..., :2], reference[..., :2], mask)
        assert torch.allclose(value, without, rtol=0, atol=1e-15)
        (gradient,) = torch.autograd.grad(value.sum(), policy)
        assert bool(gradient.isfinite().all())


def test_form_in_the_wrong_place_or_without_its_tensors_is_refused() -> None:
    logps, mask = torch.zeros(1, 2), torch.tensor([[False, True]])
    with pytest.raises(ValueError, match="use reward_penalty"):
        kl_penalty(Form("k1", "reward", "sequence"), logps, logps, mask)
    with pytest.raises(ValueError, match="use kl_penalty"):
        reward_penalty(Form("k1", "loss", "sequence"), logps, logps, mask)
    with pytest.raises(ValueError, match="`full` has no form"):
        reward_penalty(Form("full", "reward", "sequence"), logps, logps, mask)
    with pytest.raises(ValueError, match="needs the logits"):
        kl_penalty(Form("full", "loss", "token"), logps, None, mask)
    with pytest.raises(ValueError, match="needs the reference"):
        kl_penalty(Form("k2", "loss", "token"), logps, None, mask)
