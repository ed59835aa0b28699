"""Attention of a flat batch in half precision on a processor: all texts of a layer in one function.

Each text's attention is a few matrix products; what stands around them (padding, copies, bookkeeping of gradients) is
done once for all texts of a layer, and texts of one rounded shape are multiplied together, since the calls would take
longer than the products otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf.models.layout import Layout
from rlhf.ops.readout import STEP

# Queries of a text's first part that are multiplied at once, and what numbers of queries and of keys are rounded up to.
# A call costs about as much as such a product, so that few shapes, of which there are many texts each, are worth some
# masked keys: half as many or twice as many took longer.
PIECE = 128
QUERIES, KEYS = STEP, 2 * STEP
# How many texts of one rounded shape are multiplied in one call: few numbers, since each is a shape of its own.
STACKS = (16, 8, 4, 3, 2, 1)
# Added to the score of a key that must not be seen: its weight is 0, and a row of such keys alone is still a number.
HIDDEN = -1e30


class Text(NamedTuple):
    """One text: its queries and keys, and the flat tokens before its own that it looks at."""

    queries: int
    keys: int
    begins: int
    shared: int
    shared_begins: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of queries and of keys, rounded up."""
        return _up(self.queries, QUERIES), _up(self.keys, KEYS)


class Stack(NamedTuple):
    """Texts of one rounded shape, whose blocks follow each other: each of its products is one call."""

    texts: tuple[Text, ...]
    query_block: int
    key_block: int


@dataclass(frozen=True)
class Blocks:
    """Where each (token, head) stands when the texts of a layout are blocks of (shared heads, rows, width).

    Keys and values stand in one tensor, the keys first. What fills a block up is any row: nobody sees what queries of
    it find, and no query looks at keys of it. Shapes: query_place of each of N x heads in the query blocks and
    query_source of each of their rows; key_source of each row of keys in N x shared heads; place of each of 2 x N x
    shared heads in the block of its own text.
    """

    stacks: tuple[Stack, ...]
    query_place: Tensor
    query_source: Tensor
    key_source: Tensor
    place: Tensor
    query_rows: int
    key_rows: int
    cache: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)

    def biases(self, window: int | None) -> tuple[Tensor, ...]:
        """What is added to the scores of each stack. Shapes: (texts, 1, queries, keys) each."""
        if window not in self.cache:
            self.cache[window] = tuple(
                torch.stack([_bias(text, window) for text in stack.texts]).unsqueeze_(1) for stack in self.stacks
            )
        return self.cache[window]


def blocks_of(layout: Layout, heads: int, shared_heads: int) -> Blocks:
    """The blocks of a layout; the layers of a model ask for the same ones."""
    known: dict[tuple[int, int], Blocks] = layout.cache
    if (heads, shared_heads) not in known:
        known[heads, shared_heads] = _blocks(layout, heads, shared_heads)
    return known[heads, shared_heads]


def _blocks(layout: Layout, heads: int, shared_heads: int) -> Blocks:
    stacks: list[Stack] = []
    query_place, key_place, key_source = [], [], []
    query_rows = key_rows = 0
    for texts in _stacked(_texts(layout)):
        stacks.append(Stack(texts, query_rows, key_rows))
        long, wide = texts[0].shape
        for text in texts:
            own, front = np.arange(text.queries)[:, None], np.arange(text.shared)
            query_place.append((text.begins + own, query_rows + np.arange(heads) * long + own))
            key_place.append((text.begins + own, key_rows + np.arange(shared_heads) * wide + text.shared + own))
            tokens = np.zeros(wide, dtype=np.int64)
            tokens[: text.shared], tokens[text.shared : text.keys] = text.shared_begins + front, text.begins + own[:, 0]
            key_source.append((tokens * shared_heads + np.arange(shared_heads)[:, None]).ravel())
            query_rows, key_rows = query_rows + heads * long, key_rows + shared_heads * wide
    place, of_query = _by_token(key_place), _by_token(query_place)
    of_row = np.zeros(query_rows, dtype=np.int64)
    of_row[of_query] = np.arange(len(of_query))
    both = np.concatenate([place, place + key_rows])
    places = [torch.from_numpy(part) for part in (of_query, of_row, np.concatenate(key_source), both)]
    return Blocks(tuple(stacks), *places, query_rows=query_rows, key_rows=key_rows)


def _texts(layout: Layout) -> list[Text]:
    """All texts of a layout, a group's first one in pieces, each of which looks at those before it.

    Half of the products of a long text would be masked else.
    """
    texts: list[Text] = []
    begins = 0
    for shared, rests in layout.groups:
        trunk, first = begins, shared + rests[0]
        pieces = [(done, min(PIECE, first - done)) for done in range(0, first, PIECE)]
        for front, queries in [*pieces, *((shared, rest) for rest in rests[1:])]:
            texts.append(Text(queries, front + queries, begins, front, trunk))
            begins += queries
    return texts


def _stacked(texts: list[Text]) -> list[tuple[Text, ...]]:
    """Texts of one rounded shape, as many at a time as there are stacks of: else any number would be a new shape."""
    found: dict[tuple[int, int], list[Text]] = {}
    for text in texts:
        found.setdefault(text.shape, []).append(text)
    stacks: list[tuple[Text, ...]] = []
    for same in found.values():
        while same:
            count = next(size for size in STACKS if size <= len(same))
            stacks.append(tuple(same[:count]))
            same = same[count:]
    return stacks


def _by_token(parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """Places of each token's heads, in the order of tokens. Shapes: parts of (n, 1) tokens and (n, heads) places."""
    tokens = np.concatenate([part[0][:, 0] for part in parts])
    places = np.concatenate([part[1] for part in parts])
    return places[np.argsort(tokens)].ravel()


def _up(length: int, step: int) -> int:
    return length + -length % step


def _bias(text: Text, window: int | None) -> Tensor:
    """0 where a query may look, `HIDDEN` elsewhere. Shapes: those of `text.shape`.

    What fills the queries up may see anything, which nobody reads; what fills the keys up is seen by none.
    """
    rows, keys = text.shape
    behind = text.keys - text.queries
    return _diagonals(rows, keys, window)[:, keys - behind : 2 * keys - behind]


@lru_cache(maxsize=32)
def _diagonals(rows: int, keys: int, window: int | None) -> Tensor:
    """Biases of all texts of one shape: column c is key c - keys of a text whose queries are its first positions.

    Shapes: (rows, 2 x keys).
    """
    behind = torch.arange(rows)[:, None] - (torch.arange(2 * keys) - keys)
    hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
    return torch.zeros(rows, 2 * keys, dtype=torch.bfloat16).masked_fill_(hidden, HIDDEN)


def attend(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention within each text. Shapes: (1, heads, N, width) each; returns (1, N, heads, width)."""
    blocks = blocks_of(layout, query.shape[1], key.shape[1])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _Products.apply(query, key, value, blocks, scale, window)  # type: ignore[no-untyped-call]
    return output


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scale: float, window: int | None
    ) -> Tensor:
        heads, shared, width = query.shape[1], key.shape[1], query.shape[3]
        queries = _rows(query).index_select(0, blocks.query_source)
        both = query.new_empty(2 * blocks.key_rows, width)
        for part, half in zip((key, value), both.chunk(2), strict=True):
            torch.index_select(_rows(part), 0, blocks.key_source, out=half)
        outputs, weights = torch.empty_like(queries), []
        for stack, bias in zip(blocks.stacks, blocks.biases(window), strict=True):
            q, out = (_query_view(part, stack, heads, shared) for part in (queries, outputs))
            k, v = _key_views(both, stack, shared, blocks.key_rows)
            scores = q.new_empty(*q.shape[:2], k.shape[1])
            scores.view(len(bias), heads, *bias.shape[2:]).copy_(bias)
            scores.baddbmm_(q, k.transpose(1, 2), alpha=scale)
            weights.append(torch._softmax(scores, -1, False, out=scores))
            torch.bmm(scores, v, out=out)
        ctx.save_for_backward(queries, both, *weights)
        ctx.blocks, ctx.scale, ctx.heads = blocks, scale, (heads, shared)
        return outputs.index_select(0, blocks.query_place).view(1, -1, heads, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, both, *weights = ctx.saved_tensors
        blocks, (heads, shared), width = ctx.blocks, ctx.heads, grad.shape[3]
        # Zero where a block is filled up, or what stands there would reach keys and values.
        upstream = torch.zeros_like(queries).index_copy_(0, blocks.query_place, grad.reshape(-1, width))
        of_queries, of_both = torch.empty_like(queries), torch.empty_like(both)
        for stack, w in zip(blocks.stacks, weights, strict=True):
            q, g, of_q = (_query_view(part, stack, heads, shared) for part in (queries, upstream, of_queries))
            k, v = _key_views(both, stack, shared, blocks.key_rows)
            of_k, of_v = _key_views(of_both, stack, shared, blocks.key_rows)
            slope = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), w, -1, w.dtype)
            torch.baddbmm(of_q, slope, k, beta=0, alpha=ctx.scale, out=of_q)
            torch.baddbmm(of_k, slope.transpose(1, 2), q, beta=0, alpha=ctx.scale, out=of_k)
            torch.bmm(w.transpose(1, 2), g, out=of_v)
        of_query = of_queries.index_select(0, blocks.query_place).view(1, -1, heads, width)
        of_key, of_value = _gathered(of_both, blocks, shared).transpose(1, 2).unsqueeze(1)
        return of_query.transpose(1, 2), of_key, of_value, None, None, None


def _rows(states: Tensor) -> Tensor:
    """Shapes: (1, heads, N, width) to (N x heads, width)."""
    return states[0].transpose(0, 1).reshape(-1, states.shape[3])


def _query_view(part: Tensor, stack: Stack, heads: int, shared: int) -> Tensor:
    """A stack's block of what has the shape of queries. Shapes: returns (texts x shared, rows, width)."""
    rows = heads // shared * stack.texts[0].shape[0]
    return _block(part, stack.query_block, len(stack.texts) * shared, rows)


def _key_views(both: Tensor, stack: Stack, shared: int, key_rows: int) -> tuple[Tensor, Tensor]:
    """A stack's blocks of keys and of values. Shapes: (texts x shared, rows, width)."""
    count, rows = len(stack.texts) * shared, stack.texts[0].shape[1]
    return _block(both, stack.key_block, count, rows), _block(both, key_rows + stack.key_block, count, rows)


def _block(part: Tensor, first: int, count: int, rows: int) -> Tensor:
    """From row `first` on, (count, rows, width); one call instead of the two of narrow and view."""
    width = part.shape[1]
    return part.as_strided((count, rows, width), (rows * width, width, 1), first * width)


def _gathered(of_both: Tensor, blocks: Blocks, shared: int) -> Tensor:
    """Gradients of keys and values by token, summed over the texts that share it.

    Shapes: returns (2, N, shared heads, width).
    """
    width = of_both.shape[1]
    found = of_both.index_select(0, blocks.place).view(2, -1, shared, width)
    whole, half = found.stride(0), blocks.key_rows * width
    for stack in blocks.stacks:
        wide = stack.texts[0].shape[1] * width
        for number, text in enumerate(stack.texts):
            if text.shared:
                # Of (keys and values, tokens, heads, width); one call each instead of six.
                sizes = (2, text.shared, shared, width)
                first = stack.key_block * width + number * shared * wide
                part = of_both.as_strided(sizes, (half, width, wide, 1), first)
                own = (whole, shared * width, width, 1)
                found.as_strided(sizes, own, text.shared_begins * shared * width).add_(part)
    return found
