"""Sampled completions as the batches that the loop takes, and as what a checkpoint keeps of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import RolloutBatch, TokenBatch
from rlhf.data import collate
from rlhf.evaluation.answers import Answer
from rlhf.stages.work import Run


def token_batch(run: Run, answers: list[Answer], drop_truncated: bool) -> TokenBatch:
    """Prompts and answers as one batch; the tokens of a truncated answer do not count with `drop_truncated`."""
    tokens = collate.completions(
        [a.sample.prompt_ids for a in answers],  # type: ignore[misc]
        [a.ids for a in answers],
        run.tokenizer.pad_token_id,
        [a.record.row_id for a in answers],
    )
    places: dict[str, int] = {}
    tokens = replace(tokens, group_B=torch.tensor([places.setdefault(a.record.row_id, len(places)) for a in answers]))
    if drop_truncated:
        keep_B = torch.tensor([a.finished for a in answers])
        return replace(tokens, mask_BT=tokens.mask_BT & keep_B.unsqueeze(1))
    return tokens


def trainable(
    tokens: TokenBatch,
    keep: list[int],
    advantages_B: Tensor,
    ref_logps_BT: Tensor | None,
    old_logps_BT: Tensor | None,
    index: tuple[int, ...],
) -> RolloutBatch:
    """The rows `keep` of a batch with their advantages. Shapes: advantages_B and index speak of the kept rows."""
    rows = tuple(tokens.rows[k] for k in keep)
    return RolloutBatch(
        tokens=TokenBatch(
            tokens.ids_BT[keep], tokens.attention_BT[keep], tokens.mask_BT[keep], rows, _groups(tokens, keep)
        ),
        advantages_B=advantages_B,
        ref_logps_BT=None if ref_logps_BT is None else ref_logps_BT[keep],
        old_logps_BT=None if old_logps_BT is None else old_logps_BT[keep],
        index=index,
    )


def _groups(tokens: TokenBatch, keep: list[int]) -> Tensor | None:
    return None if tokens.group_B is None else tokens.group_B[keep]


def blank(tokens: TokenBatch, ref_logps_BT: Tensor | None, old_logps_BT: Tensor | None) -> RolloutBatch:
    """A row that has no session and of which no token counts: its gradient is 0."""
    batch = trainable(tokens, [0], torch.zeros(1, dtype=torch.float64), ref_logps_BT, old_logps_BT, ())
    row = batch.tokens
    nothing = TokenBatch(row.ids_BT, row.attention_BT, torch.zeros_like(row.mask_BT))
    return RolloutBatch(nothing, batch.advantages_B, batch.ref_logps_BT, batch.old_logps_BT)


def pack(batch: RolloutBatch) -> dict[str, Any]:
    """A batch as plain values and tensors, for a checkpoint."""
    tokens = batch.tokens
    return {
        "ids": tokens.ids_BT,
        "attention": tokens.attention_BT,
        "mask": tokens.mask_BT,
        "rows": list(tokens.rows),
        "group": tokens.group_B,
        "advantages": batch.advantages_B,
        "reference": batch.ref_logps_BT,
        "old": batch.old_logps_BT,
        "index": list(batch.index),
    }


def unpack(state: dict[str, Any]) -> RolloutBatch:
    """The batch that `pack` described."""
    tokens = TokenBatch(state["ids"], state["attention"], state["mask"], tuple(state["rows"]), state.get("group"))
    return RolloutBatch(tokens, state["advantages"], state["reference"], state["old"], tuple(state["index"]))
