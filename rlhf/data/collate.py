"""Samples as padded batches of tensors; the only module of the package that needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.batch import DemonstrationBatch, LabelledBatch, PairBatch, ScoredBatch, StepBatch, TokenBatch
from rlhf.data.records import Record
from rlhf.data.scoring import StepSample
from rlhf.data.tokenise import PairSample, PromptSample, Sample, Tokens


def token_batch(sequences: Sequence[Tokens], pad_id: int, rows: Sequence[str] = ()) -> TokenBatch:
    """Right-padded sequences.

    Shapes: TokenBatch of B = len(sequences) rows, T = the longest of them. pad_id fills the rest, where attention and
    mask are False; it may be a token that texts use too, since nothing is told from its value.

    Raises: ValueError for no sequence, or one that scores its first token or none.
    """
    if not sequences:
        raise ValueError("a batch needs at least one sequence")
    width = max(len(sequence.ids) for sequence in sequences)
    ids_BT = np.full((len(sequences), width), pad_id, dtype=np.int64)
    attention_BT = np.zeros((len(sequences), width), dtype=bool)
    mask_BT = np.zeros((len(sequences), width), dtype=bool)
    for i, sequence in enumerate(sequences):
        length = len(sequence.ids)
        ids_BT[i, :length] = sequence.ids
        attention_BT[i, :length] = True
        mask_BT[i, :length] = sequence.mask
    if mask_BT[:, 0].any():
        raise ValueError(f"row {int(mask_BT[:, 0].argmax())} scores its first token, which nothing precedes")
    if not mask_BT.any(axis=1).all():
        raise ValueError(f"row {int(mask_BT.any(axis=1).argmin())} scores no token")
    return TokenBatch(torch.from_numpy(ids_BT), torch.from_numpy(attention_BT), torch.from_numpy(mask_BT), tuple(rows))


def completions(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int, rows: Sequence[str] = ()
) -> TokenBatch:
    """Prompts with what the model answered, right-padded; every token of an answer is scored.

    Raises: ValueError for an empty prompt or an empty answer.
    """
    sequences = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = np.concatenate([np.asarray(prompt, dtype=np.int32), np.asarray(answer, dtype=np.int32)])
        sequences.append(Tokens(ids, np.arange(len(ids)) >= len(prompt), len(prompt)))
    return token_batch(sequences, pad_id, rows)


def demonstrations(samples: Sequence[Sample], pad_id: int, gains: Sequence[float] | None = None) -> DemonstrationBatch:
    """SFT rows. gains: 1 + d of each row's category, 1 where null."""
    tokens = token_batch([s.tokens for s in samples], pad_id, [s.row_id for s in samples])
    return DemonstrationBatch(tokens, _per_row(gains, 1.0, len(samples)), tuple(_columns(s.record) for s in samples))


def labelled(
    samples: Sequence[Sample],
    pad_id: int,
    gains: Sequence[float] | None = None,
    margins: Sequence[float] | None = None,
) -> LabelledBatch:
    """Labelled completions. gains: 1 + d, 1 where null; margins: the explicit offset m, 0 where null.

    Raises: ValueError naming a row without a label.
    """
    labels = [s.record.label for s in samples]
    if None in labels:
        raise ValueError(f"{samples[labels.index(None)].record.ref} has no label")
    return LabelledBatch(
        token_batch([s.tokens for s in samples], pad_id, [s.row_id for s in samples]),
        torch.tensor(labels, dtype=torch.bool),
        _per_row(gains, 1.0, len(samples)),
        _per_row(margins, 0.0, len(samples)),
        tuple(_columns(s.record) for s in samples),
    )


def scored(
    samples: Sequence[Sample],
    targets: Sequence[Sequence[float | None]],
    pad_id: int,
    gains: Sequence[float] | None = None,
) -> ScoredBatch:
    """Completions with a target for each attribute, null where there is none. gains: 1 + d, 1 where null."""
    return ScoredBatch(
        token_batch([s.tokens for s in samples], pad_id, [s.row_id for s in samples]),
        torch.tensor([[0.0 if t is None else t for t in row] for row in targets], dtype=torch.float64),
        torch.tensor([[t is not None for t in row] for row in targets], dtype=torch.bool),
        _per_row(gains, 1.0, len(samples)),
        tuple(_columns(s.record) for s in samples),
    )


def steps(samples: Sequence[StepSample], pad_id: int, gains: Sequence[float] | None = None) -> StepBatch:
    """Texts with their steps. gains: 1 + d of each row's category, 1 where null."""
    return StepBatch(
        token_batch([s.tokens for s in samples], pad_id, [s.row_id for s in samples]),
        torch.from_numpy(np.concatenate([s.right for s in samples])),
        _per_row(gains, 1.0, len(samples)),
        tuple(_columns(s.record) for s in samples),
    )


def pairs(
    samples: Sequence[PairSample],
    pad_id: int,
    gains: Sequence[float] | None = None,
    margins: Sequence[float] | None = None,
) -> PairBatch:
    """Pairs, the chosen texts first. gains: 1 + d, 1 where null; margins: the explicit offset m, 0 where null."""
    sequences = [s.chosen for s in samples] + [s.rejected for s in samples]
    names = [s.row_id for s in samples]
    tokens = replace(token_batch(sequences, pad_id, names * 2), group_B=torch.arange(len(samples)).repeat(2))
    return PairBatch(
        tokens,
        _per_row(gains, 1.0, len(samples)),
        _per_row(margins, 0.0, len(samples)),
        tuple(_columns(s.record) for s in samples),
    )


def prompts(samples: Sequence[PromptSample], pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-padded prompts for generation: every prompt ends in the last column.

    Shapes: ids_BT int64, attention_BT bool.

    Raises: ValueError for no prompt.
    """
    if not samples:
        raise ValueError("a batch needs at least one prompt")
    width = max(len(s.prompt_ids) for s in samples)
    ids_BT = torch.full((len(samples), width), pad_id, dtype=torch.int64)
    attention_BT = torch.zeros((len(samples), width), dtype=torch.bool)
    for i, sample in enumerate(samples):
        ids_BT[i, width - len(sample.prompt_ids) :] = torch.from_numpy(sample.prompt_ids.astype(np.int64))
        attention_BT[i, width - len(sample.prompt_ids) :] = True
    return ids_BT, attention_BT


def _per_row(values: Sequence[float] | None, default: float, count: int) -> Tensor:
    if values is None:
        return torch.full((count,), default, dtype=torch.float64)
    if len(values) != count:
        raise ValueError(f"{len(values)} values for {count} rows")
    return torch.tensor(list(values), dtype=torch.float64)


def _columns(record: Record) -> dict[str, Any]:
    """A row's own columns, with its identity under names that always exist."""
    return {
        **record.columns,
        "row_id": record.row_id,
        "dataset_id": record.dataset_id,
        "category": record.category,
        "prompt": record.prompt,
    }
