"""The rows of one chain against its heads: every stored value hashed again, window by window, sealed and hot alike."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.blocks import place_keys
from rewards.catalog import Chain
from rewards.chain import ChainHasher, text_hashes
from rewards.errors import LedgerError
from rewards.hot import Block, HotRows
from rewards.schema import FILE_COLUMNS, STORED, TEXT_COLUMNS, TEXT_FIELDS, TEXT_HASHES
from rewards.seal import sealed_rows, sealed_texts
from rewards.sealed import Body, Part, read_parts

# (chain number, seq) -> names of the texts that were taken out
Redacted = Mapping[tuple[int, int], frozenset[str]]

_HASHED = tuple(c.name for c in STORED if c.name != "seq")
_ROWS = ("seq", "chain", "block", "position", *FILE_COLUMNS, *_HASHED, *TEXT_HASHES)
_TEXTS = ("seq", *(f.name for f in TEXT_FIELDS))


@dataclass
class Shelf:
    """Where the rows of each chain are in a table.

    holds: chain -> [(first seq, last seq, rows, file)]. bad: files that cannot be read.
    """

    body: Body
    holds: dict[int, list[tuple[int, int, int, Part]]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, body: Body) -> "Shelf":
        """Reads the keys of all files."""
        shelf = cls(body)
        for part in body.parts():
            try:
                keys = pa.Table.from_batches(
                    list(read_parts([part], ["chain", "seq"])), pa.schema([("chain", pa.int64()), ("seq", pa.int64())])
                )
            except FileNotFoundError:
                runs = "" if part.run_ids is None else f"; it held {part.rows} rows of {_between(*part.run_ids)}"
                shelf.bad.append(f"{part.path}: the file is missing{runs}; restore it from a copy of the ledger")
                continue
            except LedgerError as error:
                shelf.bad.append(str(error))
                continue
            bounds = keys.group_by("chain").aggregate([("seq", "min"), ("seq", "max"), ("seq", "count")])
            for row in bounds.to_pylist():
                place = (row["seq_min"], row["seq_max"], row["seq_count"], part)
                shelf.holds.setdefault(row["chain"], []).append(place)
        for places in shelf.holds.values():
            places.sort(key=lambda place: place[:2])
        return shelf

    def tables(self, chain: int, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """The rows of a chain, in order of seq as far as the files are."""
        for _, _, _, part in self.holds.get(chain, []):
            batches = list(read_parts([part], columns, pc.field("chain") == chain))
            table = pa.Table.from_batches(batches).combine_chunks()
            seqs = table["seq"].to_numpy()
            yield table if (np.diff(seqs) > 0).all() else table.sort_by("seq")


def _between(low: str, high: str) -> str:
    return f"run {low}" if low == high else f"runs {low} to {high}"


@dataclass
class Finding:
    """good: blocks that fit, in order. bad: the first that does not, if it is about one; reason: in words."""

    good: list[Block] = field(default_factory=list)
    bad: Block | None = None
    reason: str | None = None


def verify_rows(
    chain: Chain, blocks: list[Block], hot: list[HotRows], shelves: tuple[Shelf, Shelf], redacted: Redacted
) -> Finding:
    """Recomputes every head of a chain. shelves: of the tables `sessions` and `texts`."""
    finding = Finding()
    sessions, texts = shelves
    sealed = sessions.body.sealed_up_to(chain.number)
    stored_texts = _TextStream(_text_tables(chain, hot, texts))
    waiting, next_block, head = None, 0, chain.identity.genesis
    seq = chain.identity.first_seq
    last = blocks[-1].last_seq if blocks else seq - 1
    tables = _row_tables(chain, [h for h in hot if h.first_seq > sealed], sessions)
    for table in tables:
        if table["seq"][0].as_py() > last:
            break  # committed and sealed since the blocks were read
        window = table if waiting is None else pa.concat_tables([waiting, table])
        misplaced = _misplaced(window["seq"].to_numpy(), seq)
        if misplaced is not None:
            return _fail(finding, _block_at(blocks, next_block, misplaced[0]), misplaced[1])
        end = next_block
        while end < len(blocks) and blocks[end].last_seq < seq + window.num_rows:
            end += 1
        if end == next_block:
            waiting = window
            continue
        rows = blocks[end - 1].last_seq - seq + 1
        done = window.slice(0, rows).combine_chunks()
        bad = _check_window(chain, blocks[next_block:end], done, head, stored_texts, redacted, finding)
        if bad:
            return finding
        waiting = window.slice(rows) if rows < window.num_rows else None
        next_block, seq, head = end, seq + rows, blocks[end - 1].head
    if next_block < len(blocks):
        there = 0 if waiting is None else waiting.num_rows
        block = blocks[next_block]
        return _fail(finding, block, f"{there} rows are stored where {block.count} were recorded")
    return finding


def _fail(finding: Finding, block: Block | None, reason: str) -> Finding:
    finding.bad, finding.reason = block, reason
    return finding


def _block_at(blocks: list[Block], start: int, seq: int) -> Block | None:
    return next((b for b in blocks[start:] if b.last_seq >= seq), blocks[-1] if blocks else None)


def _misplaced(seqs: np.ndarray[Any, Any], first: int) -> tuple[int, str] | None:
    """The first row that does not follow the one before it, and what is wrong."""
    wanted = np.arange(first, first + len(seqs))
    wrong = np.flatnonzero(seqs != wanted)
    if not len(wrong):
        return None
    here, expected = int(seqs[wrong[0]]), int(wanted[wrong[0]])
    if here > expected:
        return expected, f"rows {expected} to {here - 1} are missing"
    return here, f"row {here} is stored twice"


def _row_tables(chain: Chain, hot: list[HotRows], shelf: Shelf) -> Iterator[pa.Table]:
    yield from shelf.tables(chain.number, _ROWS)
    for some in _packs(hot):
        yield pa.concat_tables([sealed_rows(chain, h) for h in some]).select(list(_ROWS)).combine_chunks()


def _text_tables(chain: Chain, hot: list[HotRows], shelf: Shelf) -> Iterator[pa.Table]:
    sealed = shelf.body.sealed_up_to(chain.number)
    yield from shelf.tables(chain.number, _TEXTS)
    for some in _packs([h for h in hot if h.first_seq > sealed and h.texts is not None]):
        yield pa.concat_tables([sealed_texts(chain, h) for h in some]).select(list(_TEXTS)).combine_chunks()


def _packs(hot: list[HotRows], size: int = 256) -> Iterator[list[HotRows]]:
    for start in range(0, len(hot), size):
        yield hot[start : start + size]


class _TextStream:
    """The texts of a chain, taken in order of seq."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._waiting: pa.Table | None = None

    def up_to(self, seq: int) -> pa.Table | None:
        """The texts not taken yet of rows up to `seq`."""
        tables = [] if self._waiting is None else [self._waiting]
        while not tables or tables[-1]["seq"][-1].as_py() <= seq:
            more = next(self._tables, None)
            if more is None:
                break
            if more.num_rows:
                tables.append(more)
        if not tables:
            return None
        table = pa.concat_tables(tables)
        taken = int(np.searchsorted(table["seq"].to_numpy(), seq, side="right"))
        self._waiting = table.slice(taken) if taken < table.num_rows else None
        return table.slice(0, taken).combine_chunks()


# -- one window of whole blocks --------------------------------------------------------------------------------------


def _check_window(
    chain: Chain,
    blocks: list[Block],
    rows: pa.Table,
    head: str,
    stored: _TextStream,
    redacted: Redacted,
    finding: Finding,
) -> bool:
    """Appends the blocks that fit to the finding; True when one does not."""
    first = blocks[0].first_seq
    columns = {}
    for name in (*_HASHED, *TEXT_HASHES):
        array = _one_chunk(rows[name])
        if array.null_count < len(array):
            columns[name] = array
    reasons = _shape_reasons(chain, blocks, rows)
    text_reasons = _text_reasons(chain, rows, columns, stored.up_to(blocks[-1].last_seq), redacted)
    hasher = ChainHasher(chain.identity.key, columns)
    for number, block in enumerate(blocks):
        start = block.first_seq - first
        expected = hasher.commit(head, block.first_seq, start, start + block.count)
        reason = reasons.get(number)
        if reason is None and expected != block.head:
            reason = "its rows or its head are not those that were recorded"
        if reason is None:
            seq = next((s for s in text_reasons if block.first_seq <= s <= block.last_seq), None)
            reason = None if seq is None else text_reasons[seq]
        if reason is not None:
            _fail(finding, block, reason)
            return True
        finding.good.append(block)
        head = block.head
    return False


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _shape_reasons(chain: Chain, blocks: list[Block], rows: pa.Table) -> dict[int, str]:
    """What the hash does not cover: a block's own step and sessions, and the keys of sealed rows."""
    counts = np.array([b.count for b in blocks])
    starts = np.cumsum(counts) - counts
    train = pc.equal(rows["split"], "train").combine_chunks().to_numpy(zero_copy_only=False)
    sessions = np.add.reduceat(train.astype(np.int64), starts)
    steps = np.maximum.reduceat(rows["step"].to_numpy(), starts)
    before = np.cumsum(train) - train
    position = np.where(train, before - np.repeat(before[starts], counts), -1)
    stored = pc.fill_null(rows["position"], -1).to_numpy()
    keys = place_keys(chain.number, [b.first_seq for b in blocks])
    misplaced = (stored != position) | (rows["block"].to_numpy() != np.repeat(keys, counts))
    for name, value in zip(FILE_COLUMNS, chain.identity.key, strict=True):
        misplaced |= ~pc.fill_null(pc.equal(rows[name], value), False).to_numpy(zero_copy_only=False)
    wrong_keys = np.add.reduceat(misplaced.astype(np.int64), starts)
    found = {}
    for number, block in enumerate(blocks):
        if steps[number] != block.step:
            found[number] = "the rows' step is not the block's"
        elif sessions[number] != block.sessions:
            found[number] = "the number of train sessions is not the block's"
        elif wrong_keys[number]:
            found[number] = "the keys of its rows (run, attempt, writer, block, position) are not those of the block"
    return found


def _text_reasons(
    chain: Chain, rows: pa.Table, columns: Mapping[str, pa.Array], texts: pa.Table | None, redacted: Redacted
) -> dict[int, str]:
    """Rows whose text is not the recorded one: seq -> why."""
    found: dict[int, str] = {}
    first = rows["seq"][0].as_py()
    empty = np.zeros(0, np.int64)
    seqs = empty if texts is None else texts["seq"].to_numpy()
    if len(np.unique(seqs)) < len(seqs):
        found[int(seqs[np.argmax(np.diff(seqs) == 0)])] = "its texts are stored twice"
    for name in TEXT_COLUMNS:
        recorded = columns.get(f"{name}_hash")
        values: list[Any] = [None] * rows.num_rows if recorded is None else recorded.to_pylist()
        missing = {i for i, value in enumerate(values) if value is not None}
        if texts is not None:
            given = _one_chunk(texts[name]).cast(pa.binary()).to_pylist()
            hashes = text_hashes(name, _one_chunk(texts[f"{name}_salt"]).to_pylist(), given)
            for seq, text, expected in zip(seqs.tolist(), given, hashes, strict=True):
                if text is not None:
                    missing.discard(seq - first)
                    if seq < first or expected is None or values[seq - first] != expected:
                        found.setdefault(seq, f"the {name} of row {seq} is not the one that was recorded")
        for place in sorted(missing):
            seq = first + place
            if name not in redacted.get((chain.number, seq), ()):
                found.setdefault(seq, f"the {name} of row {seq} is missing, and no redaction is on record")
    return found
