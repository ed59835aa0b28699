"""Divergences over the vocabulary: definitions, limits, bounds, gradients, half precision, memory, demonstrations."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.ops.logprobs import gather_logprobs
from rlhf.reference import full_vocabulary
from rlhf.reference.full_vocabulary import (
    DIVERGENCES,
    alpha_divergence,
    divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
)
from tests.rlhf.kl_world import ALPHA, EXACT, Form, World, error

NAMES = ["reverse", "forward", "js", "alpha"]


def everything(x: int) -> Tensor:
    """One row of which all tokens count but the first."""
    return torch.tensor([[False] + [True] * x])


def draw(
    x: int, v: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 2.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = (scale * torch.randn(x, v, generator=generator, dtype=torch.float64) for _ in range(2))
    return policy.to(dtype).requires_grad_(), reference.to(dtype)


def from_definition(name: str, policy: Tensor, reference: Tensor) -> Tensor:
    p, q = policy.double().softmax(-1), reference.double().softmax(-1)
    m = (p + q) / 2
    if name == "alpha":
        return (1 - (p**ALPHA * q ** (1 - ALPHA)).sum(-1)) / (ALPHA * (1 - ALPHA))
    if name == "js":
        return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    return (p * (p / q).log()).sum(-1) if name == "reverse" else (q * (q / p).log()).sum(-1)


def of(name: str) -> Callable[..., Tensor]:
    return divergence(name, ALPHA if name == "alpha" else None)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_definition_however_rows_are_cut(
    name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, reference = draw(7, 11)
    mask = torch.tensor(
        [[False, True, False, True, True], [False, False, True, True, True], [False, True, False] + [False] * 2]
    )
    weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = from_definition(name, policy / temperature, reference / temperature)
    (slope,) = torch.autograd.grad((truth * weights[mask]).sum(), policy)
    for block in (1, 2 * 11, 3 * 11, 1 << 20):
        monkeypatch.setattr(full_vocabulary, "BLOCK", block)
        found_BT = of(name)(policy, reference, mask, temperature)
        assert found_BT.shape == mask.shape and not found_BT[~mask].any()
        assert torch.allclose(found_BT[mask], truth, rtol=0, atol=1e-13)
        (gradient,) = torch.autograd.grad((found_BT * weights).sum(), policy)
        assert torch.allclose(gradient, slope, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_passes_a_check_by_finite_differences(name: str) -> None:
    policy, reference = draw(4, 5)
    assert torch.autograd.gradcheck(lambda logits: of(name)(logits, reference, everything(4), 0.8), (policy,))


def test_alpha_has_the_two_kls_as_its_limits_and_four_squared_hellinger_distances_in_the_middle() -> None:
    policy, reference = draw(5, 6)
    mask = everything(5)
    for alpha, limit in ((1 - 1e-6, reverse_kl), (1e-6, forward_kl)):
        near = alpha_divergence(policy, reference, mask, alpha=alpha)
        assert torch.allclose(near, limit(policy, reference, mask), rtol=1e-4, atol=0)
        gradients = [torch.autograd.grad(v.sum(), policy)[0] for v in (near, limit(policy, reference, mask))]
        assert torch.allclose(*gradients, rtol=0, atol=1e-4)
    p, q = policy.softmax(-1), reference.softmax(-1)
    hellinger_X = (p.sqrt() - q.sqrt()).square().sum(-1) / 2
    assert torch.allclose(alpha_divergence(policy, reference, mask)[mask], 4 * hellinger_X, rtol=0, atol=1e-13)
    for alpha in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="not between 0 and 1"):
            alpha_divergence(policy, reference, mask, alpha=alpha)


def test_the_alpha_of_a_reversed_pair_is_one_minus_alpha_and_jensen_shannon_is_symmetric() -> None:
    policy, reference = (table.detach() for table in draw(5, 6))
    mask = everything(5)
    there, back = (
        alpha_divergence(*pair, mask, alpha=a) for pair, a in (((policy, reference), 0.3), ((reference, policy), 0.7))
    )
    assert torch.allclose(there, back, rtol=0, atol=1e-13)
    assert torch.allclose(
        jensen_shannon(policy, reference, mask), jensen_shannon(reference, policy, mask), rtol=0, atol=1e-13
    )


def test_jensen_shannon_is_at_most_log_2_and_alpha_at_most_its_bound_where_nothing_is_shared() -> None:
    policy = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    reference = torch.tensor([[-torch.inf, -torch.inf, 0.0, 0.0]], dtype=torch.float64)
    mask = everything(1)
    assert float(jensen_shannon(policy, reference, mask)[0, 1]) == pytest.approx(math.log(2), abs=1e-15)
    assert float(alpha_divergence(policy, reference, mask, alpha=0.25)[0, 1]) == pytest.approx(
        1 / (0.25 * 0.75), abs=1e-12
    )
    assert reverse_kl(policy, reference, mask)[0, 1] == torch.inf == forward_kl(policy, reference, mask)[0, 1]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_neither_can_draw_add_nothing_to_value_or_gradient(name: str) -> None:
    policy, reference = draw(3, 5)
    padding = torch.full((3, 2), -torch.inf, dtype=torch.float64)
    padded = torch.cat([policy.detach(), padding], dim=1).requires_grad_()
    mask = everything(3)
    value = of(name)(padded, torch.cat([reference, padding], dim=1), mask)
    without = of(name)(policy, reference, mask)
    assert torch.allclose(value, without, rtol=0, atol=1e-14)
    (gradient,), (expected,) = torch.autograd.grad(value.sum(), padded), torch.autograd.grad(without.sum(), policy)
    assert torch.allclose(gradient[:, :5], expected, rtol=0, atol=1e-14) and not gradient[:, 5:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_reduced_in_float32_and_has_a_gradient_of_its_own_type(name: str, dtype: torch.dtype) -> None:
    policy, reference = draw(6, 64, dtype=dtype)
    found_BT = of(name)(policy, reference, everything(6))
    assert found_BT.dtype == torch.float32
    exact_X = from_definition(name, policy, reference)
    assert torch.allclose(found_BT[0, 1:].double(), exact_X, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found_BT.sum(), policy)
    (expected,) = torch.autograd.grad(exact_X.sum(), policy)
    assert gradient.dtype == dtype and torch.allclose(gradient, expected, rtol=1e-2, atol=1e-3)


def test_small_divergences_keep_their_digits_in_float32() -> None:
    policy, _ = draw(4, 200, scale=1.0)
    exact = policy.detach()
    near = exact + 1e-2 * torch.randn(4, 200, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for name in NAMES:
        found = of(name)(near.float(), exact.float(), everything(4))[0, 1:].double()
        assert torch.allclose(found, from_definition(name, near, exact), rtol=0.05, atol=0), name


class Largest(TorchDispatchMode):
    """Notes the sizes of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        # A view of the logits is no buffer.
        if isinstance(found, Tensor) and not func.is_view:
            self.sizes[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
        return found


@pytest.mark.parametrize("name", NAMES)
def test_beside_the_logits_and_their_gradient_no_buffer_of_their_size_is_made_or_kept(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_vocabulary, "BLOCK", 4 * 500)
    policy, reference = draw(256, 500, dtype=torch.float32)
    whole, kept = policy.untyped_storage().nbytes(), []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with Largest() as forward, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        total = of(name)(policy, reference, everything(256)).sum()
    assert max(forward.sizes.values()) <= whole / 60
    assert {policy.data_ptr(), reference.data_ptr()} <= set(kept)
    with Largest() as backward:
        total.backward()
    assert policy.grad is not None
    assert backward.sizes.pop(policy.grad.data_ptr()) == whole
    assert max(backward.sizes.values()) <= whole / 60


def test_logits_that_do_not_belong_to_the_mask_are_refused() -> None:
    policy, reference = draw(3, 5)
    with pytest.raises(ValueError, match="not those of the 4 tokens"):
        reverse_kl(policy, reference, everything(4))
    with pytest.raises(ValueError, match="differ"):
        reverse_kl(policy, reference[:, :4], everything(3))
    with pytest.raises(ValueError, match="not positive"):
        reverse_kl(policy, reference, everything(3), 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_no_counted_token_gives_zeros_that_still_have_a_gradient(name: str) -> None:
    policy, reference = draw(1, 5)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    found_BT = of(name)(policy[:0], reference[:0], mask)
    assert found_BT.tolist() == [[0.0] * 3] * 2
    found_BT.sum().backward()
    assert policy.grad is not None and not policy.grad.any()


# --- what a text's sum of divergences is -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_on_own_texts_a_live_ratio_gives_the_gradient_of_the_sum_along_the_policys_path(name: str) -> None:
    world = World()
    form = Form("full", "loss", "sequence", "live", name)
    along = world.along(name, through_visits=True)
    assert world.expected(form).item() == pytest.approx(along.item(), abs=EXACT)
    for off_policy in (False, True):
        assert error(world, form, along, off_policy=off_policy) < EXACT
    exact = world.sequence_kl(forward=name == "forward")
    # Over whole texts only the reverse divergence adds up.
    assert (error(world, form, exact) < EXACT) == (name == "reverse")


@pytest.mark.parametrize("name", NAMES)
def test_at_an_older_policys_prefixes_the_full_divergence_needs_no_ratio(name: str) -> None:
    world = World()
    for level in ("token", "sequence"):
        assert (
            error(world, Form("full", "loss", level, "none", name), world.along(name, world.old), off_policy=True)
            < EXACT
        )
    weighted = Form("full", "loss", "sequence", "detached", name)
    assert error(world, weighted, world.along(name), off_policy=True) < EXACT


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("writer", ["policy", "reference", "others"])
def test_a_sum_over_texts_is_a_divergence_of_whole_texts_for_reverse_on_own_and_forward_on_the_references(
    writer: str, name: str
) -> None:
    world = World()
    table = {"policy": world.logits.detach(), "reference": world.reference, "others": world.old}[writer]
    value = (world.probability(table) * world.full_BT(name).sum(1)).sum()
    gradient = world.gradient(value)
    exact = {forward: world.sequence_kl(forward=forward) for forward in (False, True)}
    holds = {forward: (value - truth).abs().item() < EXACT for forward, truth in exact.items()}
    assert holds == {False: (writer, name) == ("policy", "reverse"), True: (writer, name) == ("reference", "forward")}
    # On texts of the reference nothing of the gradient is left out either; on the policy's own it is.
    slopes = {
        forward: float((gradient - world.gradient(truth)).abs().max()) < EXACT for forward, truth in exact.items()
    }
    assert slopes == {False: False, True: (writer, name) == ("reference", "forward")}


def minimiser(name: str, data: np.ndarray, reference: np.ndarray, weight: float) -> np.ndarray:
    """Where -sum data log p + weight D(p, reference) is least: data / p - weight dD / dp = c at each token."""

    def slope(p: float, q: float) -> float:
        return {
            "reverse": np.log(p / q),
            "forward": -q / p,
            "js": np.log(2 * p / (p + q)) / 2,
            "alpha": -((q / p) ** (1 - ALPHA)) / (1 - ALPHA),
        }[name]

    def at(c: float) -> np.ndarray:
        def condition(log_p: float, d: float, q: float) -> float:
            return d / np.exp(log_p) - weight * slope(np.exp(log_p), q) - c

        return np.exp(
            [brentq(condition, -60, 60, args=(d, q), xtol=1e-14) for d, q in zip(data, reference, strict=True)]
        )

    lowest = {"reverse": -8.0, "js": -weight * math.log(2) / 2 + 1e-9}.get(name, 1e-3)
    c = brentq(lambda c: at(c).sum() - 1, lowest, 50, xtol=1e-13)
    return at(c)


@pytest.mark.parametrize("weight", [0.3, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_on_demonstrations_each_divergence_has_a_minimiser_of_its_own_and_forward_the_mixture(
    name: str, weight: float
) -> None:
    data, reference = np.array([0.6, 0.25, 0.1, 0.05]), np.array([0.05, 0.15, 0.3, 0.5])
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    mask, ids = everything(4), torch.arange(4)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=800, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        rows = logits.expand(4, 4)
        nll_X = -gather_logprobs(rows, ids)
        kl_BT = of(name)(rows, torch.from_numpy(np.log(reference)).expand(4, 4), mask)
        total = (torch.from_numpy(data) * (nll_X + weight * kl_BT[0, 1:])).sum()
        total.backward()
        return total

    optimiser.step(loss)
    found = logits.detach().softmax(-1)[0].numpy()
    assert np.abs(found - minimiser(name, data, reference, weight)).max() < 1e-6
    mixture = (data + weight * reference) / (1 + weight)
    assert (np.abs(found - mixture).max() < 1e-6) == (name == "forward")


def test_what_the_reference_never_writes_costs_a_bounded_price_under_jensen_shannon_and_alpha_only() -> None:
    # A demonstration of a token that the reference gives e^-40: the policy that follows it.
    policy = torch.tensor([[0.0, -40.0]], dtype=torch.float64)
    reference = policy.flip(-1)
    price = {name: float(of(name)(policy, reference, everything(1))[0, 1]) for name in NAMES}
    assert price["reverse"] == pytest.approx(40, rel=1e-6) == pytest.approx(price["forward"], rel=1e-6)
    assert price["js"] == pytest.approx(math.log(2), rel=1e-6)
    assert price["alpha"] == pytest.approx(1 / (ALPHA * (1 - ALPHA)), rel=1e-4)


def test_every_divergence_is_known_by_its_name() -> None:
    assert set(DIVERGENCES) == set(NAMES)
