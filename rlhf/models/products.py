"""Attention of a flat batch in half precision on a processor: all texts of a layer in one function.

Each text's attention is a few matrix products; what stands around them (padding, copies, bookkeeping of gradients) is
done once for all texts of a layer, since it would take longer than the products otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf.models.layout import Layout
from rlhf.ops.readout import STEP

# Queries of a text's first part that are multiplied at once: twice as many or half as many took longer.
PIECE = 192


class Text(NamedTuple):
    """One text: its queries and keys, where their blocks begin, and the flat tokens before its own that it looks at."""

    queries: int
    keys: int
    query_block: int
    key_block: int
    begins: int
    shared: int
    shared_begins: int


@dataclass(frozen=True)
class Blocks:
    """Where each (token, head) stands when the texts of a layout are blocks of (shared heads, rows, width).

    Shapes: query_place of each of N x heads in the query blocks; key_source of each row of the key blocks in N x shared
    heads; key_place of each of N x shared heads in the key block of its own text.
    """

    texts: tuple[Text, ...]
    query_place: Tensor
    key_source: Tensor
    key_place: Tensor
    query_rows: int


def blocks_of(layout: Layout, heads: int, shared_heads: int) -> Blocks:
    """The blocks of a layout; the layers of a model ask for the same ones."""
    known: dict[tuple[int, int], Blocks] = layout.cache
    if (heads, shared_heads) not in known:
        known[heads, shared_heads] = _blocks(layout, heads, shared_heads)
    return known[heads, shared_heads]


def _blocks(layout: Layout, heads: int, shared_heads: int) -> Blocks:
    texts: list[Text] = []
    query_place, key_place, key_source = [], [], []
    query_rows = key_rows = begins = 0
    for shared, rests in layout.groups:
        trunk, first = begins, shared + rests[0]
        # The first text in pieces, each of which looks at those before it: half of the products would be masked else.
        pieces = [(done, min(PIECE, first - done)) for done in range(0, first, PIECE)]
        for front, queries in [*pieces, *((shared, rest) for rest in rests[1:])]:
            keys = front + queries
            text = Text(queries, keys, query_rows, key_rows, begins, front, trunk)
            texts.append(text)
            long, wide = _up(queries), _up(keys)
            at = np.arange(queries)[:, None]
            query_place.append(query_rows + np.arange(heads) * long + at)
            key_place.append(key_rows + np.arange(shared_heads) * wide + front + at)
            tokens = np.zeros(wide, dtype=np.int64)
            tokens[:front], tokens[front:keys] = trunk + np.arange(front), begins + np.arange(queries)
            key_source.append(tokens * shared_heads + np.arange(shared_heads)[:, None])
            query_rows, key_rows, begins = query_rows + heads * long, key_rows + shared_heads * wide, begins + queries
    joined = [np.concatenate([part.ravel() for part in parts]) for parts in (query_place, key_source, key_place)]
    places = [torch.from_numpy(part) for part in joined]
    return Blocks(tuple(texts), *places, query_rows=query_rows)


def _up(length: int) -> int:
    return length + -length % STEP


@lru_cache(maxsize=64)
def _bias(queries: int, keys: int, window: int | None) -> Tensor:
    """0 where a query may look, -inf elsewhere; both sides rounded up.

    Shapes: (queries, keys), the queries being the last positions. What fills the queries up may look everywhere, which
    nobody sees; what fills the keys up is seen by none.
    """
    at = torch.arange(keys)
    behind = at[-queries:, None] - at
    near = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
    bias = torch.zeros(_up(queries), _up(keys), dtype=torch.bfloat16)
    bias[:queries, :keys].masked_fill_(~near, -torch.inf)
    bias[:, keys:] = -torch.inf
    return bias


def attend(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention within each text. Shapes: (1, heads, N, width) each; returns (1, N, heads, width)."""
    blocks = blocks_of(layout, query.shape[1], key.shape[1])
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    output: Tensor = _Products.apply(query, key, value, blocks, window)  # type: ignore[no-untyped-call]
    return output


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, window: int | None) -> Tensor:
        heads, shared = query.shape[1], key.shape[1]
        queries = _spread(query, blocks.query_place, blocks.query_rows)
        keys, values = (_rows(states).index_select(0, blocks.key_source) for states in (key, value))
        outputs, weights = torch.empty_like(queries), []
        for text in blocks.texts:
            bias = _bias(text.queries, text.keys, window)
            q, k, v, out = _views(text, bias, heads, shared, queries, keys, values, outputs)
            scores = torch.bmm(q, k.transpose(1, 2)).view(shared, -1, *bias.shape).add_(bias)
            weights.append(torch.softmax(scores, dim=-1).view(shared, -1, bias.shape[1]))
            torch.bmm(weights[-1], v, out=out)
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.blocks, ctx.window, ctx.heads = blocks, window, (heads, shared)
        return outputs.index_select(0, blocks.query_place).view(1, -1, heads, query.shape[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *weights = ctx.saved_tensors
        blocks, (heads, shared) = ctx.blocks, ctx.heads
        upstream = _spread(grad.transpose(1, 2), blocks.query_place, blocks.query_rows)
        of_queries, of_keys, of_values = (torch.empty_like(part) for part in (queries, keys, values))
        for text, w in zip(blocks.texts, weights, strict=True):
            bias = _bias(text.queries, text.keys, ctx.window)
            q, k, v, g = _views(text, bias, heads, shared, queries, keys, values, upstream)
            of_q, of_k, of_v, _ = _views(text, bias, heads, shared, of_queries, of_keys, of_values, upstream)
            slope = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), w, -1, w.dtype)
            torch.bmm(slope, k, out=of_q)
            torch.bmm(slope.transpose(1, 2), q, out=of_k)
            torch.bmm(w.transpose(1, 2), g, out=of_v)
        width = queries.shape[1]
        of_query = of_queries.index_select(0, blocks.query_place).view(1, -1, heads, width).transpose(1, 2)
        gathered = [_gathered(part, blocks, shared) for part in (of_keys, of_values)]
        return of_query, *(part.transpose(0, 1)[None] for part in gathered), None, None


def _rows(states: Tensor) -> Tensor:
    """Shapes: (1, heads, N, width) to (N x heads, width)."""
    return states[0].transpose(0, 1).reshape(-1, states.shape[3])


def _spread(states: Tensor, place: Tensor, rows: int) -> Tensor:
    """Each row at its place in the blocks, 0 where nothing stands."""
    return states.new_zeros(rows, states.shape[3]).index_copy_(0, place, _rows(states))


def _views(text: Text, bias: Tensor, heads: int, shared: int, *parts: Tensor) -> list[Tensor]:
    """A text's blocks of queries, keys, values and of what has the shape of queries. Shapes: (shared, rows, width)."""
    long, wide = bias.shape
    cuts = [(text.query_block, heads * long), *[(text.key_block, shared * wide)] * 2, (text.query_block, heads * long)]
    width = parts[0].shape[1]
    return [part.narrow(0, *cut).view(shared, -1, width) for part, cut in zip(parts, cuts, strict=True)]


def _gathered(of_keys: Tensor, blocks: Blocks, shared: int) -> Tensor:
    """Gradient of keys or values by token, of shared ones summed over texts. Shapes: returns (N, shared, width)."""
    width = of_keys.shape[1]
    found = of_keys.index_select(0, blocks.key_place).view(-1, shared, width)
    for text in blocks.texts:
        if text.shared:
            block = of_keys.narrow(0, text.key_block, shared * _up(text.keys)).view(shared, -1, width)
            found[text.shared_begins : text.shared_begins + text.shared] += block[:, : text.shared].transpose(0, 1)
    return found
