"""Attention in two parts: over a shared beginning and over the text itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.models import flat
from rlhf.models.front import attend_behind
from rlhf.models.layout import Layout
from tests.rlhf.test_models_policy import CONFIGS, GROUPED, batch, every_common_token_is_shared, make_policy

__all__ = ["every_common_token_is_shared"]


def by_hand(query: Tensor, key: Tensor, value: Tensor, front_key: Tensor, front_value: Tensor, scale: float) -> Tensor:
    keys, values = torch.cat([front_key, key], dim=2), torch.cat([front_value, value], dim=2)
    hidden = torch.ones(query.shape[2], keys.shape[2]).triu(1 + front_key.shape[2]).bool()
    scores = (query @ keys.transpose(2, 3) * scale).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ values


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("shared", "own"), [(1, 1), (7, 1), (5, 33), (130, 70)])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_two_parts_have_the_values_and_gradients_of_one_softmax(
    scale: float | None, shared: int, own: int, dtype: torch.dtype, within: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Scores of up to 50: a part that hardly counts must not spoil the other.
    leaves = [
        (torch.randn(1, 3, length, 16, generator=generator, dtype=torch.float64) * 3).requires_grad_()
        for length in (own, own, own, shared, shared)
    ]
    wanted = by_hand(*leaves, 16**-0.5 if scale is None else scale)
    found = attend_behind(*(leaf.to(dtype) for leaf in leaves), scale)
    upstream = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    pairs = zip(
        [found.double(), *torch.autograd.grad(found, leaves, upstream.to(dtype))],
        [wanted, *torch.autograd.grad(wanted, leaves, upstream)],
        strict=True,
    )
    for one, two in pairs:
        one, two = one.detach(), two.detach()
        assert float((one - two).abs().max()) <= within * max(1.0, float(two.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_flat_rows_with_a_long_beginning_give_the_values_and_gradients_of_padded_rows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "LEAST", 1)
    results = []
    for is_flat in (True, False):
        policy = make_policy(CONFIGS[name](), dtype=torch.float32).eval()
        assert policy.shortcuts()[0] >= max(map(len, GROUPED))  # or both would be padded
        if not is_flat:
            policy._shortcuts = (0, None)
        logps_BT = policy(batch(group=[0, 0, 1, 0])).logps_BT
        (logps_BT * torch.linspace(0.5, 2, logps_BT.numel()).view_as(logps_BT)).sum().backward()
        results.append([logps_BT, *(p.grad for p in policy.parameters())])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * max(1.0, float(two.detach().abs().max())))


def test_long_beginnings_alone_are_a_part_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(*args: Any) -> Tensor:
        seen.append(args[3].shape[2])
        return attend_behind(*args)

    monkeypatch.setattr(flat, "attend_behind", watched)
    layout = Layout.of(batch(group=[0, 0, 1, 0]), least_shared=1)
    states = [torch.randn(1, 4, len(layout.source_N), 8) for _ in range(3)]
    plain = flat._Call(None, None, None, 0.0)
    expected = flat._by_text(layout, *states, plain)
    assert not seen
    monkeypatch.setattr(flat, "LEAST", 2)
    torch.testing.assert_close(flat._by_text(layout, *states, plain), expected)
    assert seen == [2, 2]
    flat._by_text(layout, *states, plain._replace(window=3))
    flat._by_text(layout, *states, plain._replace(softcap=2.0))
    assert seen == [2, 2]


@pytest.mark.parametrize("shared", [1, 99], ids=["behind a shared beginning", "whole texts"])
def test_what_precedes_the_first_position_read_is_a_beginning_too(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[int, int]] = []

    def watched(*args: Any) -> Tensor:
        spans.append((args[3].shape[2], args[1].shape[2]))
        return attend_behind(*args)

    monkeypatch.setattr(flat, "attend_behind", watched)
    layout = Layout.of(batch(group=[0, 0, 1, 0]), least_shared=shared)
    rows_X = layout.last_B.sort().values
    results = []
    for least in (99, 2):
        monkeypatch.setattr(flat, "LEAST", least)
        generator = torch.Generator().manual_seed(3)
        states = [torch.randn(1, 4, len(layout.source_N), 8, generator=generator).double() for _ in range(3)]
        leaves = [state.requires_grad_() for state in states]
        read = flat._by_text(layout, *leaves, flat._Call(None, None, None, 0.0), rows_X)[:, rows_X]
        (read * torch.linspace(1, 2, read.numel()).view_as(read)).sum().backward()
        results.append([read.detach(), *(leaf.grad for leaf in leaves)])
        assert bool(spans) == (least == 2)
    assert all(own == 1 for _, own in spans)  # the queries of the last positions alone
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
