"""A batch as one flat row of real tokens, in which rows of one group keep what they begin with only once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf.batch import TokenBatch

# Fewer common tokens than this are not worth the copies that sharing them takes.
LEAST_SHARED = 8


@dataclass(frozen=True)
class Layout:
    """Where the N flat tokens of a batch stand. Groups follow each other: what their rows share, then the rest of each.

    Shapes: source_N place of each in the batch's flattened (B, T); position_N its number within its row; flat_BC the
    flat token of each row's c-th real token, 0 beyond its end; take_N the place of each in the flattened (B, C);
    last_B the flat token that ends each row.
    groups: (shared tokens, lengths of the rests) of each group.
    """

    source_N: Tensor
    position_N: Tensor
    flat_BC: Tensor
    take_N: Tensor
    last_B: Tensor
    groups: tuple[tuple[int, tuple[int, ...]], ...]
    cache: dict[Any, Any] = field(default_factory=dict, compare=False)
    """What an attention has made of the layout, for the next layer."""

    @classmethod
    def of(cls, tokens: TokenBatch, least_shared: int | None = None, multiple: int = 1) -> Layout:
        """The layout of a batch, padded on whichever side. least_shared: instead of LEAST_SHARED.

        multiple: the batch's first token is repeated as a text of its own, which nothing reads, until this divides N.
        """
        least = LEAST_SHARED if least_shared is None else least_shared
        real, ids = tokens.attention_BT.cpu().numpy(), tokens.ids_BT.cpu().numpy()
        width = real.shape[1]
        places = [np.flatnonzero(row) for row in real]
        lengths = [len(row) for row in places]
        flat = np.zeros((len(places), max(lengths)), dtype=np.int64)
        source, position, take = [], [], []
        groups, count = [], 0
        for members in _members(tokens):
            shared = _shared(ids, members, places, least) if len(members) > 1 else 0
            rests = []
            for nth, row in enumerate(members):
                begin = 0 if nth == 0 else shared
                own = np.arange(begin, lengths[row])
                flat[row, :begin] = flat[members[0], :begin]
                flat[row, begin : lengths[row]] = count + own - begin
                source.append(row * width + places[row][begin:])
                position.append(own)
                take.append(row * flat.shape[1] + own)
                rests.append(lengths[row] - shared)
                count += len(own)
            groups.append((shared, tuple(rests)))
        filling = -count % multiple
        if filling:
            source.append(np.full(filling, places[0][0]))
            position.append(np.arange(filling))
            take.append(np.zeros(filling, dtype=np.int64))
            groups.append((0, (filling,)))
        last = flat[np.arange(len(places)), np.asarray(lengths) - 1]
        device = tokens.ids_BT.device
        joined = [np.concatenate(part) for part in (source, position, take)]
        source_N, position_N, take_N = (torch.from_numpy(part).to(device) for part in joined)
        flat_BC, last_B = torch.from_numpy(flat).to(device), torch.from_numpy(last).to(device)
        return cls(source_N, position_N, flat_BC, take_N, last_B, tuple(groups))

    def predictors(self, mask_BT: Tensor, attention_BT: Tensor) -> Tensor:
        """The flat tokens from which the counted tokens are predicted, in row order; no other place shifts flat ones.

        Raises: ValueError when the mask counts a row's first token.
        """
        number_X = (attention_BT.cumsum(1) - 1)[mask_BT]
        if bool((number_X == 0).any()):
            raise ValueError("the mask counts a row's first token, of which nothing is predicted")
        return self.flat_BC[mask_BT.nonzero()[:, 0], number_X - 1]

    def at(self, where_BT: Tensor, attention_BT: Tensor) -> Tensor:
        """The flat tokens at the marked places, in row order."""
        return self.flat_BC[where_BT.nonzero()[:, 0], (attention_BT.cumsum(1) - 1)[where_BT]]

    def inputs(self, tokens: TokenBatch) -> dict[str, Any]:
        """What the model is called with. The mask of one element is handed through as it is, and ignored."""
        return {
            "input_ids": tokens.ids_BT.flatten()[self.source_N][None],
            "position_ids": self.position_N[None],
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.ids_BT.device),
            "use_cache": False,
            "flat_layout": self,
        }

    def apart(self, states: Tensor) -> Tensor:
        """Flat heads as rows. Shapes: (1, heads, N, width) to (B, heads, C, width)."""
        # index_select, whose backward pass adds up; that of indexing sorts first, which costs a GPU more than the rest.
        rows = states[0].transpose(0, 1).index_select(0, self.flat_BC.flatten())
        return rows.unflatten(0, self.flat_BC.shape).transpose(1, 2)

    def together(self, states: Tensor) -> Tensor:
        """Rows as flat tokens. Shapes: (B, heads, C, width) to (1, N, heads, width)."""
        return states.transpose(1, 2).flatten(0, 1).index_select(0, self.take_N)[None]


def _members(tokens: TokenBatch) -> list[list[int]]:
    """The rows of each group, in the order of their first rows."""
    if tokens.group_B is None:
        return [[row] for row in range(tokens.size)]
    found: dict[int, list[int]] = {}
    for row, group in enumerate(tokens.group_B.tolist()):
        found.setdefault(group, []).append(row)
    return list(found.values())


def _shared(ids: NDArray[np.int64], rows: list[int], places: list[NDArray[np.int64]], least: int) -> int:
    """How many tokens all these rows begin with; each keeps one of its own, and few are as good as none."""
    limit = min(len(places[row]) for row in rows) - 1
    texts = np.stack([ids[row, places[row][:limit]] for row in rows])
    differ = (texts != texts[0]).any(axis=0)
    shared = int(differ.argmax()) if differ.any() else limit
    return shared if shared >= least else 0
