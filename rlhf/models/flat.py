"""Only the work that counts: a batch as one flat row of real tokens, and a head that sees counted positions only.

Linear layers and norms work on real tokens, attention sees the rows apart. One attention function is registered with
transformers under `NAME`: given a layout it puts the flat tokens back into rows for the attention itself; without one
it is sdpa, masks included, so that padded batches and decoding work as before.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.batch import TokenBatch

NAME = "rlhf_flat"


@dataclass(frozen=True)
class Layout:
    """Where the N real tokens of a batch stand.

    Shapes: source_N place of each in the batch's flattened (B, T); place_N its place in rows that begin at column 0,
    flattened (rows, columns); position_N its number within its row; last_B the flat index of each row's last token.
    """

    source_N: Tensor
    place_N: Tensor
    position_N: Tensor
    last_B: Tensor
    rows: int
    columns: int

    @classmethod
    def of(cls, tokens: TokenBatch) -> Layout:
        """The layout of a batch, padded on whichever side."""
        attention_BT = tokens.attention_BT
        source_N = attention_BT.flatten().nonzero()[:, 0]
        position_N = (attention_BT.cumsum(1) - 1).flatten()[source_N]
        columns = int(position_N.max()) + 1
        place_N = source_N // attention_BT.shape[1] * columns + position_N
        last_B = attention_BT.sum(1).cumsum(0) - 1
        return cls(source_N, place_N, position_N, last_B, tokens.size, columns)

    def flat(self, values_BT: Tensor) -> Tensor:
        """Per-token values of the batch as one row. Shapes: returns (1, N)."""
        return values_BT.flatten()[self.source_N][None]

    def inputs(self, tokens: TokenBatch) -> dict[str, Any]:
        """What the model is called with. The mask of one element is handed through as it is, and ignored."""
        return {
            "input_ids": self.flat(tokens.ids_BT),
            "position_ids": self.position_N[None],
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.ids_BT.device),
            "use_cache": False,
            "flat_layout": self,
        }

    def apart(self, states: Tensor) -> Tensor:
        """Flat heads as rows. Shapes: (1, heads, N, width) to (rows, heads, columns, width), 0 where nothing stands."""
        states_NHW = states[0].transpose(0, 1)
        padded = states_NHW.new_zeros(self.rows * self.columns, *states_NHW.shape[1:])
        padded = padded.index_copy(0, self.place_N, states_NHW)
        return padded.view(self.rows, self.columns, *states_NHW.shape[1:]).transpose(1, 2)

    def together(self, states: Tensor) -> Tensor:
        """Rows as flat tokens. Shapes: (rows, columns, ...) to (1, N, ...)."""
        return states.flatten(0, 1).index_select(0, self.place_N)[None]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    flat_layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention over the rows of a layout, which begin at column 0: no token sees what fills them up."""
    if flat_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows = [flat_layout.apart(states) for states in (query, key, value)]
    output, _ = sdpa_attention_forward(module, *rows, None, **options)
    return flat_layout.together(output), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def flat_reach(core: Any) -> int:
    """How long rows may be that this model can be given flat; 0 where it cannot.

    Tried on two rows: the hidden states must be those of the padded batch. Such a model is left with the attention
    function above, any other as it was. A model that looks back a limited distance takes rows within that distance.
    """
    config, before = core.config, core.config._attn_implementation
    reach = _lookback(config.get_text_config())
    if reach == 0 or before not in ("sdpa", NAME) or not getattr(core, "_supports_attention_backend", False):
        return 0
    tokens = _trial(core, min(9, reach))
    layout = Layout.of(tokens)
    padded_BTH = core.base_model(**_padded(tokens)).last_hidden_state
    config._attn_implementation = NAME
    try:
        flat_1NH = core.base_model(**layout.inputs(tokens)).last_hidden_state
        same = _close(flat_1NH[0], padded_BTH.flatten(0, 1)[layout.source_N])
    except (TypeError, ValueError, RuntimeError):  # an argument it does not take, a shape it does not expect
        same = False
    if not same:
        config._attn_implementation = before
    return reach if same else 0


def head_is_all(core: Any) -> bool:
    """Whether logits are the head's output and nothing more, no scaling, no soft cap: tried on two rows, to the bit."""
    head, inputs = core.get_output_embeddings(), _padded(_trial(core))
    return head is not None and torch.equal(head(core.base_model(**inputs).last_hidden_state), core(**inputs).logits)


def _lookback(config: Any) -> int:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return 0
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min([limit for limit in limits if isinstance(limit, int)], default=sys.maxsize)


def _trial(core: Any, columns: int = 9) -> TokenBatch:
    """Two rows of different lengths and tokens."""
    vocabulary = core.config.get_text_config().vocab_size
    ids_BT = torch.arange(1, 2 * columns + 1, device=core.device).view(2, columns) * 7919 % vocabulary
    attention_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    attention_BT[0, columns // 2 + 1 :] = False
    return TokenBatch(ids_BT, attention_BT, attention_BT)


def _padded(tokens: TokenBatch) -> dict[str, Any]:
    return {"input_ids": tokens.ids_BT, "attention_mask": tokens.attention_BT.long(), "use_cache": False}


def _close(one: Tensor, two: Tensor) -> bool:
    half = one.dtype in (torch.float16, torch.bfloat16)
    tolerance = 4 * torch.finfo(one.dtype).eps if half else 64 * torch.finfo(torch.float32).eps
    return bool((one - two).abs().max() <= tolerance * two.abs().max())
