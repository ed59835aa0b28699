"""Attention over texts of any lengths: what the kernel of a GPU is given, played by a loop on a processor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.models import flat, ragged
from rlhf.models.layout import Layout
from tests.rlhf.test_models_policy import batch


def by_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries_E: Tensor,
    keys_E: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """What the kernel is documented to compute, text by text."""
    assert window_size[1] == 0
    window = None if window_size[0] < 0 else window_size[0] + 1
    times = query.shape[1] // key.shape[1]
    parts, queries, keys = [], queries_E.diff().tolist(), keys_E.diff().tolist()
    assert (max(queries), max(keys)) == (most_queries, most_keys)
    texts = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    for q, k, v in texts:
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(times, 1)) * scale
        hidden = torch.ones(len(q), len(k)).triu(1 + len(k) - len(q)).bool()
        if window is not None:
            hidden |= torch.ones(len(q), len(k)).tril(len(k) - len(q) - window).bool()
        scores = scores.masked_fill(hidden, -torch.inf)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.repeat_interleave(times, 1)))
    return torch.cat(parts)


@pytest.mark.parametrize("group", [None, [0, 0, 1, 0], [0, 1, 1, 0]])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
def test_texts_given_to_the_kernel_attend_as_texts_one_by_one(
    group: list[int] | None, window: int | None, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ragged, "varlen_attn", by_loop)
    layout = Layout.of(batch(group=group), least_shared=1)
    count, generator = len(layout.source_N), torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(1, n, count, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (heads[0], heads[1], heads[1])
    ]
    found = ragged.attend(layout, *leaves, 0.3, window)
    wanted = flat._by_text(layout, *leaves, flat._Call(0.3, window, None, 0.0))
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for one, two in zip(*(torch.autograd.grad(x, leaves, upstream) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(one, two)


def test_texts_that_share_nothing_are_given_without_a_copy_of_their_keys() -> None:
    layouts = [Layout.of(batch(group=group), least_shared=1) for group in (None, [0, 0, 1, 0])]
    alone, shared = (ragged.texts_of(layout, torch.device("cpu")) for layout in layouts)
    assert alone.key_K is None and torch.equal(alone.queries_E, alone.keys_E)
    assert shared.key_K is not None and shared.key_K.tolist()[:9] == [0, 1, 2, 3, 4, 0, 1, 5, 6]


def test_the_kernel_is_left_out_where_it_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability[0])

    def suits(*, softcap: float | None = None, dropout: float = 0.0, **changes: Any) -> bool:
        there = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "shape": (1, 4, 6, 64)}
        return ragged.suits(SimpleNamespace(**(there | changes)), softcap, dropout)  # type: ignore[arg-type]

    assert suits() and suits(dtype=torch.float16) and suits(shape=(1, 4, 6, 256))
    assert not suits(device=torch.device("cpu"))
    assert not suits(dtype=torch.float32)
    assert not suits(shape=(1, 4, 6, 12)) and not suits(shape=(1, 4, 6, 264))
    assert not suits(softcap=30.0) and not suits(dropout=0.1)
    capability[0] = (7, 5)
    assert not suits()
