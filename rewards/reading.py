"""One consistent look at the rows of chains: what is still in the tails and what is sealed, each row once.

The tails are read first, then the tables: a row that was sealed in between is in the table that is opened later, and
its copy from the tail is left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from rewards import salvage
from rewards.blocks import Blocks, ChainBlocks, chain_blocks, number
from rewards.catalog import DATABASE, Chain, read_chains, read_lineage
from rewards.errors import LedgerError
from rewards.hot import HotRows, hot_rows
from rewards.lineage import Lineage
from rewards.parts import RESTORE, SESSIONS, TEXTS, Part, missing_file, read_parts
from rewards.schema import sealed_schema, texts_schema
from rewards.seal import sealed_rows, sealed_texts
from rewards.sealed import Body
from rewards.sqlite import snapshot, translated

_TRIES = 5

Result = TypeVar("Result")


@dataclass(frozen=True)
class Look:
    """The chains that were asked for, their blocks, the rows that are hot, and the tables as of the same moment.

    hot, hot_texts: with the columns of the tables `sessions` and `texts`.
    """

    lineage: Lineage
    chains: list[Chain]
    found: list[ChainBlocks]
    blocks: Blocks
    hot: pa.Table
    hot_texts: pa.Table
    sessions: Body
    texts: Body

    def sealed(self, columns: list[str], run_id: str | None, damaged: list[str] | None = None) -> Iterator[pa.Table]:
        """The sealed rows of the chains, file by file.

        damaged: where given, files that cannot be read are left out and said there. A row may come twice then: all
        files of the folder are read, also those that were replaced.
        Raises: LedgerError naming the file; FileNotFoundError where it is missing: the caller looks again.
        """
        yield from self._read(self.sessions, columns, run_id, damaged)

    def sealed_texts(
        self, columns: list[str], run_id: str | None, damaged: list[str] | None = None
    ) -> Iterator[pa.Table]:
        """The sealed texts of the chains, as `sealed`."""
        yield from self._read(self.texts, columns, run_id, damaged)

    def _read(
        self, body: Body, columns: list[str], run_id: str | None, damaged: list[str] | None
    ) -> Iterator[pa.Table]:
        numbers = [chain.number for chain in self.chains]
        keep = pc.field("chain").isin(numbers)
        parts = [part for part in body.parts() if part.may_hold(run_id) and _may_hold(part, numbers)]
        for part in parts:
            try:
                batches = list(read_parts([part], columns, keep))
            except (LedgerError, FileNotFoundError) as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
                continue
            if batches:
                yield pa.Table.from_batches(batches)


def _may_hold(part: Part, numbers: list[int]) -> bool:
    return part.chains is None or any(part.chains[0] <= number <= part.chains[1] for number in numbers)


def look(
    root: Path,
    wanted: Callable[[Lineage], Callable[[Chain], bool]],
    texts: bool,
    damaged: list[str] | None = None,
) -> Look:
    """Looks at the chains that `wanted(lineage)` selects.

    damaged: where given, what cannot be read is left out and said there.
    """
    with snapshot(root / DATABASE) as ledger:
        lineage = read_lineage(ledger)
        select = wanted(lineage)
        chains = [chain for chain in read_chains(ledger, root, lineage) if select(chain)]
    found: list[ChainBlocks] = []
    waiting: list[tuple[Chain, HotRows]] = []
    for chain in chains:
        blocks, hot_of_chain = _read_tail(root, chain, texts, damaged)
        found.append(blocks)
        waiting += [(chain, hot) for hot in hot_of_chain]
    sessions, text_body = Body(root, SESSIONS, damaged), Body(root, TEXTS, damaged)
    limits = {
        chain.number: (sessions.sealed_up_to(chain.number), text_body.sealed_up_to(chain.number)) for chain in chains
    }
    rows = [sealed_rows(chain, hot, hashes=False) for chain, hot in waiting if hot.first_seq > limits[chain.number][0]]
    salted = [
        sealed_texts(chain, hot)
        for chain, hot in waiting
        if hot.texts is not None and hot.first_seq > limits[chain.number][1]
    ]
    return Look(
        lineage,
        chains,
        found,
        number(lineage, found),
        pa.concat_tables([sealed_schema().empty_table(), *rows]),
        pa.concat_tables([texts_schema().empty_table(), *salted]),
        sessions,
        text_body,
    )


def _read_tail(root: Path, chain: Chain, texts: bool, damaged: list[str] | None) -> tuple[ChainBlocks, list[HotRows]]:
    if damaged is not None:
        return salvage.read_tail(root, chain, texts, damaged)
    with translated(chain.path, "read"), snapshot(chain.path) as tail:
        return chain_blocks(chain, tail), list(hot_rows(tail, texts=texts))


def retried(read: Callable[[], Result]) -> Result:
    """Runs `read` again where a file vanished under it: files were put together and the old ones deleted.

    Raises: LedgerError naming the file when it is missing for good.
    """
    for _ in range(_TRIES - 1):
        try:
            return read()
        except FileNotFoundError:
            continue
    try:
        return read()
    except FileNotFoundError as error:
        raise LedgerError(f"{missing_file(error)}: the file is missing; {RESTORE}") from error
