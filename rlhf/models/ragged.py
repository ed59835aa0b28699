"""Attention of a flat batch on a GPU in half precision: one kernel over texts of any lengths, nothing padded or copied.

sdpa would take such a batch only as rows, and there it chooses cuDNN's attention, which prepares a plan for every new
shape: 3.3 ms a layer and direction on an H200, and no two batches have one shape.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf.models.layout import Layout

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

_TAKES = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else frozenset()
# The kernel's limits: its first generation of GPUs, the widths of a head.
_GENERATION = (8, 0)
_WIDEST, _MULTIPLE = 256, 8


class Texts(NamedTuple):
    """Texts of a layout as the kernel takes them: queries are the last positions of their keys.

    Shapes: key_K flat token of each key, text after text, None where those are all flat tokens in their order;
    queries_E, keys_E where each text begins among them, and the end. longest: queries and keys of a text at most.
    """

    key_K: Tensor | None
    queries_E: Tensor
    keys_E: Tensor
    longest: tuple[int, int]


def suits(query: Tensor, softcap: float | None, dropout: float) -> bool:
    """Whether the kernel takes these heads. Shapes: query (1, heads, N, width)."""
    width = query.shape[-1]
    return (
        {"scale", "window_size"} <= _TAKES
        and query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and softcap is None
        and not dropout
        and width <= _WIDEST
        and width % _MULTIPLE == 0
        and torch.cuda.get_device_capability(query.device) >= _GENERATION
    )


def attend(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention within each text.

    Shapes: (1, heads, N, width), of keys and values fewer heads; returns (1, N, heads, width).
    """
    texts = texts_of(layout, query.device)
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    if texts.key_K is not None:
        key, value = key.index_select(0, texts.key_K), value.index_select(0, texts.key_K)
    fewer: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _TAKES else {}
    behind = -1 if window is None else window - 1  # how far a query looks back, itself not counted
    ends = texts.queries_E, texts.keys_E
    found = varlen_attn(query, key, value, *ends, *texts.longest, scale=scaling, window_size=(behind, 0), **fewer)
    assert isinstance(found, Tensor)
    return found[None]


def texts_of(layout: Layout, device: torch.device) -> Texts:
    """Made once per batch, for all layers."""
    if Texts not in layout.cache:
        layout.cache[Texts] = _texts(layout, device)
    found: Texts = layout.cache[Texts]
    return found


def _texts(layout: Layout, device: torch.device) -> Texts:
    keys, queries, count = [], [], 0
    for shared, rests in layout.groups:
        trunk = np.arange(count, count + shared)
        for nth, rest in enumerate(rests):
            own = shared + rest if nth == 0 else rest
            mine = np.arange(count, count + own)
            keys.append(mine if nth == 0 else np.concatenate([trunk, mine]))
            queries.append(own)
            count += own
    lengths = [len(part) for part in keys]
    ends = [np.concatenate([[0], np.cumsum(part)]).astype(np.int32) for part in (queries, lengths)]
    queries_E, keys_E = (torch.from_numpy(part).to(device) for part in ends)
    key_K = None if queries == lengths else torch.from_numpy(np.concatenate(keys)).to(device)
    return Texts(key_K, queries_E, keys_E, (max(queries), max(lengths)))
