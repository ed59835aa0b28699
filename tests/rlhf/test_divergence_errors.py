"""What is wrong in the field, with its error measured by enumeration in one world of `kl_world`.

Logits have unit variance; the older policy's are 0.3 standard deviations away from the policy's, as after a few steps.
Value and gradient are compared with those of KL(pi || ref) of whole texts, or with what the row names. A gradient's
error is the length of the difference in lengths of the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlhf.reference.divergence import k3
from tests.rlhf.kl_world import EXACT, MASK, TEXTS, Form, T, World, error, relative


def nearby() -> World:
    world = World(0)
    world.old = world.logits.detach() + 0.3 * world.old
    return world


def form(*choices: str, off_policy: bool = False) -> Callable[[World], Tensor]:
    """The expectation of a form of the code under test."""
    return lambda world: world.expected(Form(*choices), off_policy=off_policy)


def sequence_mean_ratio(*, off_policy: bool) -> Callable[[World], Tensor]:
    """Token-level k3 times the text's mean ratio, exp(mean log pi / pi_old), as sequence-level clipping has it."""

    def expected(world: World) -> Tensor:
        sampler = world.old if off_policy else world.logits.detach()
        logps, old, ref = (world.logps(t)[:, 1:] for t in (world.logits, sampler, world.reference))
        ratio = (logps - old).mean(1).exp()
        return (world.probability(sampler) * ratio * k3(ref - logps).sum(1)).sum()

    return expected


def whole_ratio(*, off_policy: bool) -> Callable[[World], Tensor]:
    """Token-level k3 times the text's whole ratio, pi / pi_old."""

    def expected(world: World) -> Tensor:
        sampler = world.old if off_policy else world.logits.detach()
        logps, old, ref = (world.logps(t)[:, 1:] for t in (world.logits, sampler, world.reference))
        return (world.probability(sampler) * (logps - old).sum(1).exp() * k3(ref - logps).sum(1)).sum()

    return expected


def without_temperature(choices: tuple[str, ...], temperature: float) -> Callable[[World], Tensor]:
    """A form on texts sampled at a temperature that the log-probabilities do not know of."""

    def expected(world: World) -> Tensor:
        sampled = world.probability(world.logits.detach() / temperature)
        penalty = world.penalty(Form(*choices))
        return (sampled * (penalty if penalty.dim() == 1 else penalty.sum(1))).sum()

    return expected


def at_temperature(world: World, temperature: float) -> Tensor:
    """KL of whole texts between policy and reference at the temperature that texts are sampled with."""
    logp, logq = (world.logps(table / temperature)[:, 1:].sum(1) for table in (world.logits, world.reference))
    return (logp.exp() * (logp - logq)).sum()


def nucleus(world: World, top_p: float) -> Tensor:
    """Probability of each text where only the likeliest tokens are drawn, those that reach top_p together."""
    p = world.logits.detach().softmax(-1)
    ordered, order = p.sort(-1, descending=True)
    kept = torch.zeros_like(p).scatter(-1, order, (ordered.cumsum(-1) - ordered < top_p).double())
    return world.probability((p * kept / (p * kept).sum(-1, keepdim=True)).log())


def on_nucleus(choices: tuple[str, ...], top_p: float) -> Callable[[World], Tensor]:
    return lambda world: (nucleus(world, top_p) * world.penalty(Form(*choices))).sum()


def ends(world: World) -> Tensor:
    """Mask of texts that end with their first token 0."""
    return torch.cat([MASK[:, :1], (TEXTS == 0).cumsum(1).roll(1, 1).index_fill(1, torch.tensor([0]), 0) == 0], dim=1)


def per_token(*, padded: bool) -> Callable[[World], Tensor]:
    """k3 with a live ratio, per token of a text, or per token and padding."""

    def expected(world: World) -> Tensor:
        mask, p = ends(world), world.probability(world.logits.detach())
        logps, ref = world.logps(world.logits), world.logps(world.reference)
        value = (logps - logps.detach()).exp() * k3(ref - logps)
        total = (p * torch.where(mask, value, torch.zeros(())).sum(1)).sum()
        return total / (T if padded else (p * mask.sum(1)).sum())

    return expected


def kl(world: World) -> Tensor:
    return world.sequence_kl()


def forward(world: World) -> Tensor:
    return world.sequence_kl(forward=True)


@dataclass(frozen=True)
class Wrong:
    """What is done, against what, and by how much value and gradient are off."""

    what: str
    done: Callable[[World], Tensor]
    truth: Callable[[World], Tensor]
    value_pct: float
    gradient_pct: float

    def __str__(self) -> str:
        return f"{self.what}: value off by {self.value_pct:g} %, gradient by {self.gradient_pct:g} %"


TAU = 0.6
WRONG = [
    Wrong("k3 in the loss without a ratio (sequence)", form("k3", "loss", "sequence", "none"), kl, 0, 106.1),
    Wrong("k3 in the loss without a ratio (token, grpo_paper)", form("k3", "loss", "token", "none"), kl, 0, 76.8),
    Wrong("the same with a detached ratio", form("k3", "loss", "token", "detached"), kl, 0, 76.8),
    Wrong("the same against the KL at visited prefixes", form("k3", "loss", "token", "none"), World.visited, 0, 41.7),
    Wrong("k1 in the loss", form("k1", "loss", "sequence", "none"), kl, 0, 100),
    Wrong("k2 in the loss with a live ratio", form("k2", "loss", "sequence", "live"), kl, 49.1, 137.9),
    Wrong(
        "k2 in the loss with a live ratio, tokens at visited prefixes",
        form("k2", "loss", "token", "live"),
        World.visited,
        40.7,
        66.8,
    ),
    Wrong("k3 in the reward", form("k3", "reward", "sequence"), kl, 0, 167),
    Wrong("k2 in the reward", form("k2", "reward", "sequence"), kl, 49.1, 69.6),
    Wrong("token level leaves later states out (trl_grpo)", form("k3", "loss", "token", "live"), kl, 0, 61.9),
    Wrong("token level leaves later states out (full)", form("full", "loss", "token", "none"), kl, 0, 61.9),
    Wrong("older texts: k2 without a weight", form("k2", "loss", "sequence", "none", off_policy=True), kl, 49.8, 61.8),
    Wrong(
        "older texts: k2 without a weight, tokens", form("k2", "loss", "token", "none", off_policy=True), kl, 41.6, 65.2
    ),
    Wrong("older texts: k3 without a weight", form("k3", "loss", "token", "none", off_policy=True), kl, 3.2, 96.6),
    Wrong(
        "older texts: k3 without a weight, against the forward KL",
        form("k3", "loss", "sequence", "none", off_policy=True),
        forward,
        -22.6,
        25.3,
    ),
    Wrong(
        "older texts: k1 in the reward, measured once",
        form("k1", "reward", "sequence", off_policy=True),
        kl,
        -3.8,
        24.1,
    ),
    Wrong("older texts: token ratio (trl_grpo)", form("k3", "loss", "token", "live", off_policy=True), kl, -1.5, 62.1),
    Wrong(
        "older texts: full at their prefixes", form("full", "loss", "sequence", "none", off_policy=True), kl, -1.5, 62.1
    ),
    Wrong("mean ratio of the text on token k3", sequence_mean_ratio(off_policy=False), kl, 0, 51.2),
    Wrong(
        "mean ratio of the text on token k3, at visited prefixes",
        sequence_mean_ratio(off_policy=False),
        World.visited,
        0,
        33.8,
    ),
    Wrong("older texts: mean ratio of the text on token k3", sequence_mean_ratio(off_policy=True), kl, 0.5, 61.2),
    Wrong("mean over padded tokens", per_token(padded=True), per_token(padded=False), -14.6, 14.6),
    Wrong(
        "temperature 0.6 of the sampler not applied (k3 live)",
        without_temperature(("k3", "loss", "sequence", "live"), TAU),
        lambda w: at_temperature(w, TAU),
        -58.3,
        81,
    ),
    Wrong(
        "temperature 0.6 of the sampler not applied (k2)",
        without_temperature(("k2", "loss", "sequence", "none"), TAU),
        lambda w: at_temperature(w, TAU),
        -16.9,
        81,
    ),
    Wrong(
        "nucleus of 0.8 taken for the policy (k3 live)",
        on_nucleus(("k3", "loss", "sequence", "live"), 0.8),
        kl,
        -20.4,
        76.4,
    ),
    Wrong(
        "nucleus of 0.8 taken for the policy (k2)", on_nucleus(("k2", "loss", "sequence", "none"), 0.8), kl, 46.4, 76.4
    ),
]


def measured(wrong: Wrong, world: World) -> tuple[float, float]:
    done, truth = wrong.done(world), wrong.truth(world)
    return (done / truth - 1).item() * 100, relative(world.gradient(done), world.gradient(truth)) * 100


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_is_wrong_is_wrong_by_so_much(wrong: Wrong) -> None:
    assert measured(wrong, nearby()) == pytest.approx((wrong.value_pct, wrong.gradient_pct), abs=0.051)


@pytest.mark.parametrize("off_policy", [False, True])
def test_the_whole_texts_ratio_on_token_k3_is_exact_where_its_mean_is_not(off_policy: bool) -> None:
    # A penalty per token that is summed and weighted with pi / pi_old of the text is unbiased at every policy.
    world = World(0)
    done, truth = whole_ratio(off_policy=off_policy)(world), world.sequence_kl()
    assert done.item() == pytest.approx(truth.item(), abs=EXACT)
    assert float((world.gradient(done) - world.gradient(truth)).abs().max()) < EXACT


# On texts of an older policy: what a form's gradient is exactly, if it is any divergence's.
OFF_POLICY: list[tuple[Form, Callable[[World], Tensor]]] = [
    (Form("k1", "loss", "sequence", "live"), kl),
    (Form("k2", "loss", "sequence", "detached"), kl),
    (Form("k3", "loss", "sequence", "live"), kl),
    (Form("full", "loss", "sequence", "live"), kl),
    (Form("k3", "loss", "sequence", "detached"), forward),
    (Form("full", "loss", "sequence", "detached"), World.visited),
    (Form("k1", "loss", "token", "live"), lambda w: w.along("reverse", w.old)),
    (Form("k2", "loss", "token", "detached"), lambda w: w.along("reverse", w.old)),
    (Form("k3", "loss", "token", "live"), lambda w: w.along("reverse", w.old)),
    (Form("k3", "loss", "token", "detached"), lambda w: w.along("forward", w.old)),
    (Form("full", "loss", "token", "none"), lambda w: w.along("reverse", w.old)),
    (Form("full", "loss", "sequence", "none"), lambda w: w.along("reverse", w.old)),
    (Form("k1", "reward", "sequence"), lambda w: w.sequence_kl() - w.sequence_kl(to=w.old)),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("form", "truth"), OFF_POLICY, ids=[str(form) for form, _ in OFF_POLICY])
def test_on_an_older_policys_texts_a_weighted_form_has_exactly_this_gradient(
    form: Form, truth: Callable[[World], Tensor], seed: int
) -> None:
    world = World(seed)
    assert error(world, form, truth(world), off_policy=True) < EXACT


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_on_an_older_policys_texts_no_sampled_form_without_a_ratio_has_a_divergences_gradient(
    estimator: str, level: str
) -> None:
    world = World()
    truths = [world.sequence_kl(), forward(world)]
    truths += [world.along(name, visitor) for name in ("reverse", "forward") for visitor in (None, world.old)]
    assert min(error(world, Form(estimator, "loss", level, "none"), truth, off_policy=True) for truth in truths) > 0.05


def standardised(world: World, beta: float, *, by_std: bool) -> Tensor:
    """Expected policy-gradient loss of equal task rewards less beta k1, centred over all texts, an endless group."""
    chances = world.probability(world.logits.detach())
    reward = 1.0 - beta * world.penalty(Form("k1", "reward", "sequence"))
    centred = reward - (chances * reward).sum()
    advantage = centred / (chances * centred**2).sum().sqrt() if by_std else centred
    return -(chances * advantage * world.logps(world.logits)[:, 1:].sum(1)).sum()


@pytest.mark.parametrize("beta", [1e-1, 1e-3, 1e-6])
def test_a_penalty_in_a_reward_that_is_standardised_by_group_pushes_as_hard_at_every_coefficient(beta: float) -> None:
    world = World(0)
    truth, k1 = world.gradient(world.sequence_kl()), world.penalty(Form("k1", "reward", "sequence"))
    chances = world.probability(world.logits.detach())
    spread = ((chances * k1**2).sum() - (chances * k1).sum() ** 2).sqrt()
    plain, scaled = (world.gradient(standardised(world, beta, by_std=flag)) for flag in (False, True))
    # Where all rewards are equal: beta times the KL's gradient by itself, and the same one over k1's spread whatever
    # beta is once it is standardised. `scale_rewards: group` with such a penalty is refused for that.
    assert float((plain - beta * truth).abs().max()) < EXACT
    assert float((scaled - truth / spread).abs().max()) < 1e-8


def test_a_coefficient_per_text_is_worth_t_times_that_of_a_mean_over_tokens() -> None:
    world = World(0)
    token = world.penalty(Form("k1", "loss", "token", "live"))[:, 1:]
    whole = world.penalty(Form("k1", "loss", "sequence", "live"))
    assert float(whole.detach().abs().max()) > 1
    assert torch.allclose(whole, T * token.mean(1), rtol=0, atol=EXACT)
