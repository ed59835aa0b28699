"""Batch records and the legend of shapes that every tensor name in `rlhf` carries.

========  =====================================================================
suffix    meaning
========  =====================================================================
B         rows of a micro-batch (sequences; a batch of N pairs has B = 2N rows)
T         tokens, padded to the longest row of the micro-batch
V         vocabulary
X         counted tokens of a micro-batch, in row order
N         pairs: rows 0..N-1 are the chosen texts, rows N..2N-1 the rejected
P         prompts of an online-RL step, one group each
G         completions of a prompt
========  =====================================================================

One mask convention everywhere: True where a token counts. Index t of every `_BT` tensor speaks of token t itself
(its log-probability given tokens < t), so position 0 never counts; `rlhf.ops.logprobs` is the only place that shifts,
and for flat batches `rlhf.models.layout`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded token sequences.

    Shapes: ids_BT int64; attention_BT bool, True where a token is real; mask_BT bool, True where a token is scored
    (a subset of attention_BT, never position 0); rows is one identifier per row, for errors and for the ledger.
    group_B int64: rows with one number are about one prompt, and a model may read what they begin with only once.
    """

    ids_BT: Tensor
    attention_BT: Tensor
    mask_BT: Tensor
    rows: tuple[str, ...] = ()
    group_B: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of rows B."""
        return int(self.ids_BT.shape[0])

    def select(self, start: int, stop: int) -> TokenBatch:
        """Rows start..stop-1."""
        return TokenBatch(
            self.ids_BT[start:stop],
            self.attention_BT[start:stop],
            self.mask_BT[start:stop],
            self.rows[start:stop],
            None if self.group_B is None else self.group_B[start:stop],
        )


@dataclass(frozen=True)
class DemonstrationBatch:
    """SFT rows. Shapes: tokens B rows; gain_B float64, 1 + d of the row's category. columns: one dict a row."""

    tokens: TokenBatch
    gain_B: Tensor
    columns: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class PairBatch:
    """Preference pairs.

    Shapes: tokens B = 2N rows, chosen first; gain_N, 1 + d of the pair's category; margin_N, explicit offset m (0 by
    default). columns: one dict a pair. preference_N: probability that the chosen text is the better one; None: certain.
    """

    tokens: TokenBatch
    gain_N: Tensor
    margin_N: Tensor
    columns: tuple[dict[str, Any], ...] = ()
    preference_N: Tensor | None = None

    @property
    def pairs(self) -> int:
        """Number of pairs N."""
        return self.tokens.size // 2


@dataclass(frozen=True)
class LabelledBatch:
    """Completions that are desirable or not.

    Shapes: tokens B rows; label_B bool, True desirable; gain_B, 1 + d of the row's category; margin_B, explicit offset
    m (0 by default). columns: one dict a row.
    """

    tokens: TokenBatch
    label_B: Tensor
    gain_B: Tensor
    margin_B: Tensor
    columns: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class ScoredBatch:
    """Completions with scores.

    Shapes: tokens B rows; target_BA, A attributes: shares of the declared scale, of ordinal scores levels from 0; 0
    where known_BA is False and there is no score; gain_B, 1 + d of the row's category. columns: one dict a row.
    """

    tokens: TokenBatch
    target_BA: Tensor
    known_BA: Tensor
    gain_B: Tensor
    columns: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class StepBatch:
    """Texts whose steps are right or wrong.

    Shapes: tokens B rows, whose mask_BT is True at the last token of each step; right_X bool, of the steps in row
    order; gain_B, 1 + d of the row's category. columns: one dict a row.
    """

    tokens: TokenBatch
    right_X: Tensor
    gain_B: Tensor
    columns: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class RolloutBatch:
    """Scored completions of the policy itself.

    Shapes: tokens B rows (mask_BT True on completion tokens); advantages_B; ref_logps_BT and old_logps_BT float or
    None: log-probabilities of the same tokens under the reference, and under the policy that sampled them (None while
    the two are the same forward pass). index: each row's place in this rank's list of sessions of the step.
    """

    tokens: TokenBatch
    advantages_B: Tensor
    ref_logps_BT: Tensor | None = None
    old_logps_BT: Tensor | None = None
    index: tuple[int, ...] = ()
    columns: tuple[dict[str, Any], ...] = field(default=())


Record = TypeVar("Record")


def to_device(record: Record, device: torch.device | str) -> Record:
    """The same record with every tensor on `device`."""
    if isinstance(record, Tensor):
        return record.to(device)  # type: ignore[return-value]
    if is_dataclass(record) and not isinstance(record, type):
        return replace(record, **{f.name: to_device(getattr(record, f.name), device) for f in fields(record)})
    return record
