"""The tables `attempts` and `blocks`, from which other engines have the live view, against the claims and blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.blocks import ChainBlocks, as_table, number
from rewards.catalog import Chain
from rewards.errors import LedgerError
from rewards.hot import Block
from rewards.lineage import Lineage
from rewards.seal import attempt_table
from rewards.sealed import Body
from rewards.verify_files import still_listed


@dataclass(frozen=True)
class Published:
    """The two tables as of one moment, None where there is none yet. bad: what could not be read, in words."""

    attempts: pa.Table | None
    blocks: pa.Table | None
    bad: tuple[str, ...]

    @classmethod
    def read(cls, root: Path) -> "Published":
        """Reads the tables as they are now: before what they are compared with, which only grows.

        Raises: FileNotFoundError where a file was replaced by another one meanwhile: the caller looks again.
        """
        bad: list[str] = []
        attempts, blocks = (_table(root, name, bad) for name in ("attempts", "blocks"))
        return cls(attempts, blocks, tuple(bad))


def _table(root: Path, name: str, bad: list[str]) -> pa.Table | None:
    import pyarrow.parquet as pq

    tables = []
    try:
        body = Body(root, name)
        for part in body.parts():
            try:
                tables.append(pq.read_table(part.path, partitioning=None))
            except FileNotFoundError:
                if not still_listed(body, part):
                    raise
                bad.append(f"{part.path}: the file is missing; `rewards seal` writes the table anew")
                return None
        return pa.concat_tables(tables) if tables else None
    except FileNotFoundError:
        raise
    except (LedgerError, pa.ArrowException, OSError) as error:
        bad.append(f"{root / name}: cannot be read: {str(error).splitlines()[0]}; `rewards seal` writes it anew")
        return None


def wrong_tables(
    root: Path, published: Published, lineage: Lineage, stored: Sequence[tuple[Chain, Sequence[Block]]]
) -> list[str]:
    """What is published and does not follow from the claims and blocks. stored: every chain with its blocks."""
    attempts = list(lineage.by_id.values())
    known = len(attempts) if published.attempts is None else published.attempts.num_rows
    found = []
    if published.attempts is not None:
        expected = attempt_table(Lineage(attempts[:known]))
        if not _same(published.attempts, expected, ["attempt_id"]):
            found.append(_said(root, "attempts"))
    if published.blocks is not None and not _follows(published.blocks, attempts[:known], stored):
        found.append(_said(root, "blocks"))
    return found


def _said(root: Path, name: str) -> str:
    return (
        f"{root / name}: this table for other engines is not what the ledger's own records say; `rewards seal` writes "
        "it anew"
    )


def _follows(blocks: pa.Table, attempts: Sequence[object], stored: Sequence[tuple[Chain, Sequence[Block]]]) -> bool:
    """Whether the table is what the blocks were at the time of some claim: it is written a moment after `attempts`."""
    if "chain" not in blocks.schema.names:
        return False
    counts = {row["values"]: row["counts"] for row in pc.value_counts(blocks["chain"]).to_pylist()}
    found, chains = [], []
    for chain, mine in stored:
        if counts.get(chain.number):
            rows = [(b.first_seq, b.count, b.sessions, b.step) for b in mine[: counts[chain.number]]]
            found.append(ChainBlocks(chain, np.array(rows, dtype=np.int64).reshape(-1, 4)))
            chains.append(chain)
    oldest = max((chain.attempt.id for chain in chains), default=0)
    for count in range(len(attempts), 0, -1):
        lineage = Lineage(attempts[:count])  # type: ignore[arg-type]
        if oldest not in lineage.by_id and chains:
            return False
        if _same(blocks, as_table(number(lineage, found), chains), ["chain", "first_seq"]):
            return True
    return not blocks.num_rows


def _same(table: pa.Table, expected: pa.Table, keys: list[str]) -> bool:
    if sorted(table.schema.names) != sorted(expected.schema.names):
        return False
    try:
        table = table.select(expected.schema.names).cast(expected.schema)
    except (pa.ArrowException, ValueError):
        return False
    order = [(key, "ascending") for key in keys]
    return bool(table.sort_by(order).combine_chunks().equals(expected.sort_by(order).combine_chunks()))
