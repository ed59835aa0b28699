"""How large batches are: what the memory of a step is a function of, apart from the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.batch import TokenBatch
from rlhf.models.layout import Layout


@dataclass(frozen=True)
class Size:
    """Of a micro-batch as the model is given it.

    tokens: positions that are computed, what rows share counted once; attended: pairs of a query and a key of one text;
    scored: tokens that count; texts: rows; whole: their lengths in all; width: the longest of them.
    """

    tokens: int = 0
    attended: int = 0
    scored: int = 0
    texts: int = 0
    whole: int = 0
    width: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.tokens + other.tokens,
            self.attended + other.attended,
            self.scored + other.scored,
            self.texts + other.texts,
            self.whole + other.whole,
            max(self.width, other.width),
        )

    def padded(self) -> Size:
        """The same texts for a model that is given padded rows."""
        positions = self.texts * self.width
        return Size(positions, positions * self.width, self.scored, self.texts, self.whole, self.width)


def size_of(tokens: TokenBatch) -> Size:
    """Of a batch that is given flat."""
    groups = Layout.of(tokens).groups
    lengths = tokens.attention_BT.sum(dim=1)
    return Size(
        tokens=sum(shared + sum(rests) for shared, rests in groups),
        attended=sum(
            (shared + rests[0]) ** 2 + sum(rest * (shared + rest) for rest in rests[1:]) for shared, rests in groups
        ),
        scored=int(tokens.mask_BT.sum()),
        texts=tokens.size,
        whole=int(lengths.sum()),
        width=int(lengths.max()),
    )


def micro_batches(order: Any, sizes: Sequence[Size], steps: int, batch: int, accumulated: int) -> list[Size]:
    """Of the micro-batches of the first `steps` steps, as the stage's order takes its rows."""
    found = []
    for step in range(1, steps + 1):
        groups = order.groups(step)[: batch * accumulated]
        for start in range(0, len(groups), batch):
            members = [sizes[i] for group in groups[start : start + batch] for i in group]
            found.append(sum(members, Size()))
    return found


def completions(prompt: int, completion: int, rows: int, group: int) -> Size:
    """Of `rows` answers of the greatest length in groups that share a prompt."""
    size, length = Size(), prompt + completion
    while rows > 0:
        members = min(group, rows)
        attended = length**2 + (members - 1) * completion * length
        tokens = prompt + members * completion
        size += Size(tokens, attended, members * completion, members, members * length, length)
        rows -= members
    return size
