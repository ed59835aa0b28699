"""The head applied block by block: values and gradients of the plain computation, memory that stops growing."""

import pytest
import torch

from rlhf.ops import readout
from rlhf.ops.readout import Head, read

X, H, V = 11, 5, 7


def case(dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    states, weight = draw(X, H).requires_grad_(), draw(V, H).requires_grad_()
    offset = draw(V).requires_grad_() if bias else None
    return states, weight, offset, torch.randint(V, (X,), generator=generator), draw(X)


def plainly(states, weight, bias, ids, temperature, scale, softcap):
    logits = scale * (states @ weight.T + (0 if bias is None else bias))
    logits = torch.tanh(logits / softcap) * softcap if softcap else logits
    logps = torch.log_softmax(logits / temperature, -1)
    return logps, logps.gather(-1, ids[:, None])[:, 0]


FORMS = [(1.0, 0.0), (0.3, 0.0), (1.0, 2.0), (1.7, 1.5)]


@pytest.mark.parametrize(("scale", "softcap"), FORMS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keep", [0, 200, 1 << 28], ids=["recomputed", "some kept", "kept"])
def test_blocks_give_the_values_and_gradients_of_the_whole(scale, softcap, temperature, bias, keep, monkeypatch):
    monkeypatch.setattr(readout, "BLOCK", 3 * V)
    monkeypatch.setattr(readout, "KEEP", keep)
    states, weight, offset, ids, upstream = case(bias=bias)
    leaves = [leaf for leaf in (states, weight, offset) if leaf is not None]
    found = read(states, Head(weight, offset, torch.float64, scale, softcap), ids, temperature, spread=True)
    logps, wanted = plainly(states, weight, offset, ids, temperature, scale, softcap)
    torch.testing.assert_close(found.logps_X, wanted)
    torch.testing.assert_close(found.entropy_X, -(logps.exp() * logps).sum(-1))
    torch.testing.assert_close(found.collision_X, logps.exp().square().sum(-1).log())
    slopes = torch.autograd.grad((found.logps_X * upstream).sum(), leaves)
    for one, two in zip(slopes, torch.autograd.grad((wanted * upstream).sum(), leaves), strict=True):
        torch.testing.assert_close(one, two)


def test_the_gradient_is_that_of_finite_differences():
    states, weight, offset, ids, _ = case()

    def function(states, weight, offset):
        return read(states, Head(weight, offset, torch.float64, 0.5, 3.0), ids, 0.8).logps_X

    assert torch.autograd.gradcheck(function, (states, weight, offset))


def test_entropy_and_collision_have_no_gradient_and_are_left_out_unless_asked_for():
    states, weight, offset, ids, _ = case()
    found = read(states, Head(weight, offset, torch.float64), ids, spread=True)
    assert not found.entropy_X.requires_grad and not found.collision_X.requires_grad
    assert read(states, Head(weight, offset, torch.float64), ids)[1:] == (None, None)


def test_a_frozen_head_gets_no_gradient_and_the_states_still_do():
    states, weight, _, ids, _ = case(bias=False)
    read(states, Head(weight.detach(), None, torch.float64), ids).logps_X.sum().backward()
    assert states.grad is not None and weight.grad is None


def test_products_in_half_precision_are_summed_up_in_float32():
    states, weight, _, ids, _ = case(torch.float32, bias=False)
    found = read(states, Head(weight, None, torch.bfloat16), ids)
    assert found.logps_X.dtype == torch.float32
    found.logps_X.sum().backward()
    assert weight.grad.dtype == states.grad.dtype == torch.float32
    exact = plainly(states.double(), weight.double(), None, ids, 1.0, 1.0, 0.0)[1]
    assert 0 < float((found.logps_X.detach().double() - exact.detach()).abs().max()) < 0.1


def test_half_precision_of_any_number_of_rows_has_the_gradient_of_single_precision_but_for_rounding():
    for rows in (1, 63, 65, 300):
        generator = torch.Generator().manual_seed(rows)
        states = torch.randn(rows, 32, generator=generator).bfloat16().float().requires_grad_()
        weight = (0.1 * torch.randn(50, 32, generator=generator)).bfloat16().float().requires_grad_()
        ids, upstream = torch.randint(50, (rows,), generator=generator), torch.randn(rows, generator=generator)
        found = []
        for dtype in (torch.bfloat16, torch.float32):
            logps = read(states, Head(weight, None, dtype), ids, 0.7).logps_X
            found.append([logps, *torch.autograd.grad((logps * upstream).sum(), [states, weight])])
        for one, two in zip(*found, strict=True):
            assert float(((one - two).norm() / two.norm()).detach()) < 0.01


def test_a_second_backward_pass_through_kept_probabilities_gives_the_same_gradients():
    for softcap in (0.0, 2.0):
        states, weight, offset, ids, upstream = case()
        value = (read(states, Head(weight, offset, torch.float64, 1.0, softcap), ids).logps_X * upstream).sum()
        first = torch.autograd.grad(value, [states, weight, offset], retain_graph=True)
        for one, two in zip(first, torch.autograd.grad(value, [states, weight, offset]), strict=True):
            torch.testing.assert_close(one, two)


def test_a_token_that_cannot_be_drawn_adds_nothing_to_the_entropy():
    states, weight, _, _, _ = case(bias=False)
    offset = torch.zeros(V, dtype=torch.float64)
    offset[4:] = -torch.inf
    found = read(
        states.detach() * 0, Head(weight, offset, torch.float64), torch.zeros(X, dtype=torch.int64), spread=True
    )
    torch.testing.assert_close(found.entropy_X, torch.full((X,), 4.0, dtype=torch.float64).log())
    torch.testing.assert_close(found.collision_X, -torch.full((X,), 4.0, dtype=torch.float64).log())


def test_no_counted_token_gives_no_value_and_a_gradient_of_zero():
    states, weight, _, ids, _ = case(bias=False)
    found = read(states[:0], Head(weight, None, torch.float64), ids[:0])
    assert found.logps_X.shape == (0,)
    found.logps_X.sum().backward()
    assert float(weight.grad.abs().sum()) == 0


def test_a_temperature_that_is_not_positive_is_refused():
    states, weight, _, ids, _ = case(bias=False)
    with pytest.raises(ValueError, match="temperature"):
        read(states, Head(weight, None, torch.float64), ids, 0.0)
