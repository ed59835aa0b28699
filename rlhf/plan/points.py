"""Which steps are tried: sizes that tell apart what the memory of a step is a function of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Record
from rlhf.plan.sizes import Size

# Enough that a batch outweighs what a step takes without one, few enough that a trial is a second.
TRIAL_TOKENS = 900

Point = tuple[dict[str, Any], list[Record]]


def over_rows(known: Sequence[tuple[Size, Record]]) -> list[Point]:
    """Short and long texts, few and many scored tokens, so that what a batch holds can be told apart."""
    by_length = sorted(known, key=lambda pair: pair[0].tokens)
    by_share = sorted(known, key=lambda pair: pair[0].scored / pair[0].tokens)
    step = max(1, len(by_length) // 7)
    mixed = [pair for first in range(step) for pair in by_length[first::step]]
    # Three of the shortest rows fit in any case.
    most = max(TRIAL_TOKENS, 4 * by_length[min(2, len(by_length) - 1)][0].tokens)
    chosen = [(by_length, 0.3), (by_length[::-1], 1.0), (by_share, 0.5), (by_share[::-1], 0.7), (mixed, 0.9)]
    points: list[Point] = []
    for pairs, share in chosen:
        rows = _with_both_labels(_filled(pairs, share * most), [record for _, record in by_length])
        points.append(({"per_device_train_batch_size": len(rows)}, rows))
    return points


def _filled(pairs: Sequence[tuple[Size, Record]], tokens: float) -> list[Record]:
    """The first rows that come to so many tokens, those left out that are too long; at least one."""
    rows, count = [], 0
    for size, record in pairs:
        if count + size.tokens <= tokens:
            rows.append(record)
            count += size.tokens
    return rows or [min(pairs, key=lambda pair: pair[0].tokens)[1]]


def over_rollouts(train: Any, prompts: list[Record]) -> list[Point]:
    """Short, long, few and several answers."""
    group = train.num_generations
    lengths = sorted({min(train.max_completion_length, length) for length in (4, 16, 40)})
    shapes = [(group, length) for length in lengths] + [(2 * group, lengths[-1]), (4 * group, lengths[0])]
    free = {"max_length": None, "max_sessions": None, "mask_truncated_completions": False}
    return [
        ({"per_device_train_batch_size": rows, "max_completion_length": length, **free}, prompts)
        for rows, length in shapes
    ]


def _with_both_labels(rows: list[Record], others: Sequence[Record]) -> list[Record]:
    """Rows with labels get one of each: a stage may need both in a batch."""
    if rows[0].label is None:
        return rows
    missing = {True, False} - {row.label for row in rows}
    return rows + [next(row for row in others if row.label == label and row not in rows) for label in missing]
