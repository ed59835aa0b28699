"""Distributions compared block by block: values and gradients of the whole, in bounded memory."""

from typing import Any

import pytest
import torch

from rlhf.ops import readout
from rlhf.ops.compared import Beside, Distributions, compare
from rlhf.ops.readout import Head, read
from rlhf.plan.live import Live
from rlhf.reference.full_vocabulary import DIVERGENCES, divergence

X, H, V = 11, 5, 7
FORMS = [(1.0, 0.0), (0.3, 0.0), (1.7, 1.5)]


def model(seed: int, *, bias: bool = True, scale: float = 1.0, softcap: float = 0.0) -> tuple[Distributions, list[Any]]:
    """Distributions of X positions, and what they depend on."""
    generator = torch.Generator().manual_seed(seed)
    states, weight, offset = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((X, H), (V, H), (V,))
    )
    head = Head(weight, offset if bias else None, torch.float64, scale, softcap)
    return Distributions(states, head), [states, weight, *([offset] if bias else [])]


@pytest.mark.parametrize("keep", [0, 200, 1 << 28], ids=["recomputed", "some kept", "kept"])
@pytest.mark.parametrize(("scale", "softcap"), FORMS)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_blocks_give_the_values_and_gradients_of_the_whole(
    kind: str, scale: float, softcap: float, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout, "BLOCK", 3 * V)
    monkeypatch.setattr(readout, "KEEP", keep)
    (own, leaves), (other, _) = model(0, scale=scale, softcap=softcap), model(1, bias=False)
    ids_X, upstream_X = torch.arange(X) % V, torch.linspace(-1, 2, X, dtype=torch.float64)
    measure, counted = divergence(kind), torch.ones(1, X, dtype=torch.bool)
    found = compare(own, Beside(other, measure), ids_X, 0.7, logps=True, spread=True)
    logits_XV = own.logits()
    logps_XV = torch.log_softmax(logits_XV / 0.7, -1)
    wanted_X = measure(logits_XV, other.logits().detach(), counted, 0.7)[0]
    wanted_logps_X = logps_XV.gather(-1, ids_X[:, None])[:, 0]
    torch.testing.assert_close(found.divergence_X, wanted_X)
    torch.testing.assert_close(found.logps_X, wanted_logps_X)
    torch.testing.assert_close(found.entropy_X, -(logps_XV.exp() * logps_XV).sum(-1))
    torch.testing.assert_close(found.collision_X, logps_XV.exp().square().sum(-1).log())
    assert not found.entropy_X.requires_grad and not found.collision_X.requires_grad  # type: ignore[union-attr]
    one = torch.autograd.grad(((found.divergence_X + found.logps_X) * upstream_X).sum(), leaves)
    two = torch.autograd.grad(((wanted_X + wanted_logps_X) * upstream_X).sum(), leaves)
    for mine, whole in zip(one, two, strict=True):
        torch.testing.assert_close(mine, whole)


def test_distributions_whose_logits_are_there_already_are_compared_alike() -> None:
    (own, leaves), (other, _) = model(0), model(1)
    made = Distributions(own.states_XH, None, own.logits())
    ids_X, beside = torch.zeros(X, dtype=torch.long), Beside(other, divergence("reverse"))
    one, two = (compare(d, beside, ids_X, 1.0, logps=False, spread=False) for d in (own, made))
    assert one.logps_X is None and one.entropy_X is None
    torch.testing.assert_close(one.divergence_X, two.divergence_X)
    for a, b in zip(*(torch.autograd.grad(c.divergence_X.sum(), leaves[:2]) for c in (one, two)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(own.logps(ids_X), made.logps(ids_X))


def test_where_no_token_counts_the_parameters_still_have_their_place_in_the_graph() -> None:
    (own, leaves), (other, _) = model(0), model(1)
    none = [Distributions(d.states_XH[:0], d.head) for d in (own, other)]
    found = compare(none[0], Beside(none[1], divergence("js")), torch.zeros(0).long(), 1.0, logps=True, spread=False)
    assert found.divergence_X.shape == (0,)
    slopes = torch.autograd.grad(found.divergence_X.sum(), leaves)
    assert all(torch.equal(slope, torch.zeros_like(slope)) for slope in slopes)


def test_another_vocabulary_or_other_positions_are_not_compared() -> None:
    (own, _), (other, _) = model(0), model(1)
    few = Distributions(other.states_XH[:3], other.head)
    narrow = Distributions(other.states_XH, Head(torch.zeros(V - 1, H).double(), None, torch.float64))
    for wrong in (few, narrow):
        with pytest.raises(ValueError, match="cannot be compared"):
            compare(own, Beside(wrong, divergence("js")), torch.zeros(X).long(), 1.0, logps=False, spread=False)


def test_detached_distributions_have_no_graph_and_outlive_the_weights_where_copied() -> None:
    own, leaves = model(0)
    before = own.logits().detach()
    seen, copied = own.detached(copied=False), own.detached(copied=True)
    assert not seen.logits().requires_grad
    with torch.no_grad():
        leaves[1].zero_()
    torch.testing.assert_close(copied.logits(), before)
    assert not torch.allclose(seen.logits(), before)


def peak_of(what: str, positions: int) -> int:
    """Most bytes of a pass there and back, beside what goes in."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, hidden = 512, 8
    weight = torch.randn(vocabulary, hidden, generator=generator).requires_grad_()
    states = torch.randn(positions, hidden, generator=generator).requires_grad_()
    head, ids_X = Head(weight, None, torch.float32), torch.zeros(positions, dtype=torch.long)
    other = Distributions(torch.randn(positions, hidden, generator=generator), head).detached(copied=True)
    with Live(torch.device("cpu")) as live:
        if what == "read":
            total = read(states, head, ids_X).logps_X.sum()
        else:
            beside = Beside(other, divergence("forward"))
            found = compare(Distributions(states, head), beside, ids_X, 1.0, logps=True, spread=True)
            total = found.divergence_X.sum() + found.logps_X.sum()  # type: ignore[union-attr]
        total.backward()
    return live.mark()


@pytest.mark.parametrize("what", ["read", "compare"])
def test_beyond_what_is_kept_memory_grows_by_states_and_results_and_not_by_logits(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout, "BLOCK", 64 * 512)
    logits = 4 * (4096 - 1024) * 512
    kept = peak_of(what, 4096) - peak_of(what, 1024)
    monkeypatch.setattr(readout, "KEEP", 0)
    bounded = peak_of(what, 4096) - peak_of(what, 1024)
    # States, their gradient, and a few numbers a position are 70 of the 2,048 bytes that a position's logits take.
    assert kept > logits and bounded < 0.1 * logits
