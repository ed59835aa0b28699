"""Scored responses, each on its own: one record a response, its scores as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf.data.records import Record, Text

SCORE = "score"


def scored_responses(record: Record, responses: Sequence[Text], scores: Sequence[Any]) -> list[Record]:
    """A record for each response of a row.

    A score that is a mapping gives a column an attribute, any other the column `score`. Row ids get the number of the
    response, `ROW#1`.
    """
    found = []
    for number, (response, score) in enumerate(zip(responses, scores, strict=True), 1):
        given = dict(score) if isinstance(score, dict) else {SCORE: score}
        found.append(
            replace(
                record,
                row_id=f"{record.row_id}#{number}",
                ref=f"{record.ref} (response {number})",
                kind="scored",
                completion=response,
                columns={**record.columns, **given},
            )
        )
    return found


def score_of(record: Record, name: str) -> float | None:
    """The score of a record under a column; None where there is none.

    Raises: ValueError for something that is no number.
    """
    value = record.columns.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"column `{name}` holds {value!r}, which is no number")
    return float(value)
