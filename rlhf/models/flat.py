"""Only the work that counts: a batch as one flat row of real tokens, and attention that keeps its texts apart.

Linear layers and norms work on real tokens, and on what several rows begin with only once. One attention function is
registered with transformers under `NAME`: given a layout it attends within each text; without one it does what sdpa
does, masks included, so that padded batches and decoding work as before.
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.batch import TokenBatch
from rlhf.models import products, ragged
from rlhf.models.front import LEAST, attend_behind
from rlhf.models.layout import Layout
from rlhf.models.narrow import LastLayer, last_layer, rows_of
from rlhf.ops.readout import STEP

NAME = "rlhf_flat"


def shape_step(device: str, dtype: torch.dtype) -> int:
    """What the number of rows of a matrix should be a multiple of, where it is free to choose."""
    return 2 * STEP if device == "cpu" and dtype == torch.bfloat16 else 1


class _Call(NamedTuple):
    """What a layer asks of its attention."""

    scaling: float | None
    window: int | None
    softcap: float | None
    dropout: float


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    flat_layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each text of a layout; no text sees another but for what they begin with together."""
    softcap = options.get("softcap")
    if flat_layout is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    call = _Call(options.get("scaling"), options.get("sliding_window"), softcap, float(options.get("dropout") or 0.0))
    if flat_layout is None:
        return _by_hand(query, key, value, _bool(attention_mask, query, key), call).transpose(1, 2).contiguous(), None
    _seen.append(call.window)
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else value.dtype
    states = [part.to(dtype) for part in (query, key, value)]
    if query.device.type == "cpu":
        # Half precision by products of our own: sdpa's kernel is slower in it than in single precision.
        by_products = dtype == torch.bfloat16 and softcap is None and not call.dropout
        if by_products:
            return products.attend(flat_layout, *states, call.scaling, call.window), None
        return _by_text(flat_layout, *states, call, rows_of(module)), None
    if ragged.suits(states[0], softcap, call.dropout):
        return ragged.attend(flat_layout, *states, call.scaling, call.window), None
    return flat_layout.together(_in_rows(flat_layout, *states, call)), None


_seen: list[int | None] = []


def _by_text(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, call: _Call, rows_X: Tensor | None = None
) -> Tensor:
    """Text by text: nothing is padded, and a processor's cache holds what is worked on.

    rows_X: the ascending flat positions whose output is read; each text is served from its first of them on.
    """
    key, value = _for_each_head(query, key, value)
    sizes = [size for shared, rests in layout.groups for size in (shared + rests[0], *rests[1:])]
    skipped = iter(_skipped(sizes, rows_X))
    parts = iter(zip(*(states.split(sizes, dim=2) for states in (query, key, value)), strict=True))
    outputs = []
    for shared, rests in layout.groups:
        trunk = next(parts)
        outputs.append(_attend_from(next(skipped), *trunk, call, layout.cache))
        front = [states[:, :, :shared] for states in trunk[1:]]
        for rest in islice(parts, len(rests) - 1):
            outputs.append(_attend_behind(next(skipped), *rest, front, call, layout.cache))
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


def _attend_behind(
    skipped: int, query: Tensor, key: Tensor, value: Tensor, front: list[Tensor], call: _Call, cache: dict[Any, Any]
) -> Tensor:
    """Attention of a text whose queries see all of `front`, keys and values of what it shares, first."""
    shared = front[0].shape[2]
    if not skipped and _in_parts(shared, shared + key.shape[2], call):
        return attend_behind(query, key, value, *front, call.scaling)
    if shared:
        key, value = (torch.cat(part, dim=2) for part in zip(front, (key, value), strict=True))
    return _attend_from(skipped, query, key, value, call, cache)


def _skipped(sizes: list[int], rows_X: Tensor | None) -> list[int]:
    """How many positions of each text come before the first one that is read."""
    if rows_X is None:
        return [0] * len(sizes)
    ends = torch.tensor(sizes).cumsum(0)
    begins = ends - torch.tensor(sizes)
    first = torch.searchsorted(rows_X, begins)
    found = torch.cat([rows_X, ends[-1:]])[first]  # the next one read may stand in a later text
    skipped: list[int] = (torch.minimum(found, ends) - begins).tolist()
    return skipped


def _attend_from(skipped: int, query: Tensor, key: Tensor, value: Tensor, call: _Call, cache: dict[Any, Any]) -> Tensor:
    """Attention of a text's queries but the first ones, whose output is 0."""
    if skipped == 0:
        return _attend(query, key, value, call, cache)
    nothing = query.new_zeros(*query.shape[:2], skipped, value.shape[3])
    if skipped == query.shape[2]:
        return nothing
    return torch.cat([nothing, _attend(query[:, :, skipped:], key, value, call, cache)], dim=2)


def _in_parts(before: int, keys: int, call: _Call) -> bool:
    """Whether queries of the last of `keys` positions attend to the ones `before` them by themselves.

    Never where queries and keys are the same positions, as on a GPU, which has no such kernel.
    """
    near = call.window is None or keys <= call.window
    return before >= LEAST and near and call.softcap is None and not call.dropout


def _in_rows(layout: Layout, query: Tensor, key: Tensor, value: Tensor, call: _Call) -> Tensor:
    """All texts at once, put back into rows: few large operations for a device that likes them."""
    return _attend(*(layout.apart(states) for states in (query, key, value)), call, layout.cache)


def _attend(query: Tensor, key: Tensor, value: Tensor, call: _Call, cache: dict[Any, Any]) -> Tensor:
    """Causal attention of the last positions of `key`. Shapes: (B, heads, positions, width).

    cache: what the layers of a batch have made for each other.
    """
    own, before = query.shape[2], key.shape[2] - query.shape[2]
    near = call.window is None or key.shape[2] <= call.window
    if call.softcap is not None:
        return _by_hand(query, key, value, _causal(query, key, call.window), call)
    key, value = _for_each_head(query, key, value)
    if _in_parts(before, key.shape[2], call):
        (front_key, key), (front_value, value) = (part.split([before, own], dim=2) for part in (key, value))
        return attend_behind(query, key, value, front_key, front_value, call.scaling)
    mask = None if before == 0 and near else _bias(query, key, call.window, cache)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=call.dropout, is_causal=mask is None, scale=call.scaling
    )


def _for_each_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that several query heads share, once for each of them."""
    times = query.shape[1] // key.shape[1]
    return repeat_kv(key, times), repeat_kv(value, times)


def _by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, call: _Call) -> Tensor:
    """Attention as two matrix products, for what sdpa does not know: a soft cap. Shapes: as `_attend`."""
    key, value = _for_each_head(query, key, value)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if call.scaling is None else call.scaling)
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return drop(weights, call.dropout) @ value


def _bias(query: Tensor, key: Tensor, window: int | None, cache: dict[Any, Any]) -> Tensor:
    """0 where a query may look, -inf elsewhere: sdpa would make it of a mask in each layer, and keep each of them."""
    wanted = (query.shape[2], key.shape[2], window, query.dtype)
    if wanted not in cache:
        mask = _causal(query, key, window)
        cache[wanted] = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    found: Tensor = cache[wanted]
    return found


def _causal(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """True where a query may look. Shapes: (queries, keys), the queries being the last positions."""
    at = torch.arange(key.shape[2], device=key.device)
    behind = at[-query.shape[2] :, None] - at
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)


def _bool(attention_mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A mask as sdpa takes it, made True where a query may look; None means causal to sdpa."""
    if attention_mask is None:
        return None if query.shape[2] == 1 else _causal(query, key, None)
    return attention_mask if attention_mask.dtype == torch.bool else attention_mask >= 0


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def flat_reach(core: Any) -> int:
    """How long rows may be that this model can be given flat; 0 where it cannot.

    Tried on three rows, of which two begin alike: the hidden states must be those of the padded batch. Such a model is
    left with the attention function above, any other as it was. A model that looks back a limited distance and does
    not tell its attention so takes rows within that distance.
    """
    config, before = core.config, core.config._attn_implementation
    reach = _lookback(config.get_text_config())
    # A model that does not support sdpa stands on `eager` without having been asked for it.
    known = ("sdpa", NAME) if getattr(core, "_supports_sdpa", True) else ("sdpa", NAME, "eager")
    if reach == 0 or before not in known or not getattr(core, "_supports_attention_backend", False):
        return 0
    tokens = trial_batch(core, min(9, reach))
    layout = Layout.of(tokens, least_shared=1)
    padded_BTH = core.base_model(**padded_inputs(tokens)).last_hidden_state
    config._attn_implementation = NAME
    _seen.clear()
    try:
        flat_1NH = core.base_model(**layout.inputs(tokens)).last_hidden_state
        same = bool(_seen) and close(flat_1NH[0], padded_BTH.flatten(0, 1)[layout.source_N])
    except (TypeError, ValueError, RuntimeError):  # an argument it does not take, a shape it does not expect
        same = False
    if not same:
        config._attn_implementation = before
        return 0
    told = any(window is not None for window in _seen)
    return sys.maxsize if told and not _chunked(config.get_text_config()) else reach


def narrowing(core: Any) -> LastLayer | None:
    """The last layer, where it can be told which positions are read: what they get must not change."""
    found = last_layer(core.base_model)
    if found is None:
        return None
    tokens = trial_batch(core)
    layout = Layout.of(tokens, least_shared=1)
    rows_X = torch.cat([layout.last_B, layout.last_B[:1] - 2])
    whole_1NH = core.base_model(**layout.inputs(tokens)).last_hidden_state
    try:
        with found.only(rows_X, whole_1NH.shape[1]):
            part_1NH = core.base_model(**layout.inputs(tokens)).last_hidden_state
    except (TypeError, ValueError, RuntimeError, AttributeError):  # a module that returns more, or other shapes
        return None
    return found if close(part_1NH[0, rows_X], whole_1NH[0, rows_X]) else None


def _chunked(config: Any) -> bool:
    return isinstance(getattr(config, "attention_chunk_size", None), int)


def _lookback(config: Any) -> int:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return 0
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min([limit for limit in limits if isinstance(limit, int)], default=sys.maxsize)


def trial_batch(core: Any, columns: int = 9) -> TokenBatch:
    """Three rows of different lengths and tokens, the first two with a common beginning."""
    vocabulary = core.config.get_text_config().vocab_size
    ids_BT = torch.arange(1, 3 * columns + 1, device=core.device).view(3, columns) * 7919 % vocabulary
    ids_BT[1, : columns // 2] = ids_BT[0, : columns // 2]
    attention_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    attention_BT[0, columns // 2 + 2 :] = False
    return TokenBatch(ids_BT, attention_BT, attention_BT, group_B=torch.tensor([0, 0, 1]))


def padded_inputs(tokens: TokenBatch) -> dict[str, Any]:
    """What a model is called with that does not take flat rows."""
    return {"input_ids": tokens.ids_BT, "attention_mask": tokens.attention_BT.long(), "use_cache": False}


def close(one: Tensor, two: Tensor) -> bool:
    """Equal but for the order of sums, measured at the largest of them."""
    half = one.dtype in (torch.float16, torch.bfloat16)
    tolerance = 4 * torch.finfo(one.dtype).eps if half else 64 * torch.finfo(torch.float32).eps
    return bool((one - two).abs().max() <= tolerance * two.abs().max())
