"""What a damaged ledger still has of a writer's chain: rows that can be read, and its commits from whatever file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.blocks import FIELDS, ChainBlocks, chain_blocks
from rewards.catalog import Chain
from rewards.errors import DamagedRows, LedgerError
from rewards.hot import HotRows, hot_rows
from rewards.parts import read_parts
from rewards.sealed import Body
from rewards.sqlite import snapshot, translated


def read_tail(root: Path, chain: Chain, texts: bool, damaged: list[str]) -> tuple[ChainBlocks, list[HotRows]]:
    """The commits of a chain and its hot rows, as far as its file can be read; what cannot is said in `damaged`.

    Of a file that is lost, the commits are known from the table `blocks`: those up to the last seal.
    """
    found: ChainBlocks | None = None
    hot: list[HotRows] = []
    try:
        with translated(chain.path, "read"), snapshot(chain.path) as tail:
            found = chain_blocks(chain, tail)
            above = 0
            while True:
                try:
                    for rows in hot_rows(tail, above, texts):
                        hot.append(rows)
                        above = rows.first_seq
                    break
                except DamagedRows as error:
                    damaged.append(str(error))
                    above = error.first_seq
    except LedgerError as error:
        damaged.append(str(error))
    return (found if found is not None else ChainBlocks(chain, _published(root, chain, damaged))), hot


def _published(root: Path, chain: Chain, damaged: list[str]) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    names = {"count": "rows"}
    columns = [names.get(field, field) for field in FIELDS]
    try:
        body = Body(root, "blocks")
        batches = [
            batch.filter(pc.field("chain") == chain.number) for batch in read_parts(body.parts(), ["chain", *columns])
        ]
    except (LedgerError, FileNotFoundError) as error:
        damaged.append(str(error))
        batches = []
    table = (
        pa.Table.from_batches(batches) if batches else pa.table({name: pa.array([], pa.int64()) for name in columns})
    )
    return np.stack([table[name].to_numpy() for name in columns], axis=1).astype(np.int64)
