"""Texts that were taken out: where a report shows that they are gone, and what it cannot say without them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rewards.schema import TEXT_COLUMNS

Gone = dict[tuple[int, int, int], frozenset[str]]


def places(events: Sequence[Mapping[str, Any]]) -> Gone:
    """(attempt, writer, seq) -> the texts of that row of the run that were taken out."""
    gone: Gone = {}
    for event in events:
        if event["kind"] == "text_redacted":
            said = event["payload"]
            place = (said["attempt"], said["writer"], said["seq"])
            gone[place] = gone.get(place, frozenset()) | frozenset(said["columns"])
    return gone


def of_row(gone: Gone, table: pa.Table, i: int) -> list[str]:
    """The texts of a row that are gone."""
    if not gone:
        return []
    attempt, writer, seq = (table[name][i].as_py() for name in ("attempt", "writer", "seq"))
    found = gone.get((attempt, writer, seq), frozenset())
    return [name for name in TEXT_COLUMNS if name in found and table[name][i].as_py() is None]


def sentence(gone: Gone) -> str | None:
    """What a reader of figures over texts must know; None where nothing was taken out."""
    if not gone:
        return None
    rows = "1 row" if len(gone) == 1 else f"{len(gone):,} rows"
    return f"Texts of {rows} of this run were taken out; figures that are computed from texts leave those out."
