"""The rows of one chain against its heads: every stored value hashed again, window by window, sealed and hot alike."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.blocks import place_keys
from rewards.catalog import Chain
from rewards.chain import SALT_BYTES, ChainHasher, text_hashes
from rewards.hot import Block, HotRows
from rewards.schema import FILE_COLUMNS, STORED, TEXT_COLUMNS, TEXT_FIELDS, TEXT_HASHES
from rewards.seal import sealed_rows, sealed_texts
from rewards.verify_files import Shelf

# (chain number, seq) -> names of the texts that were taken out
Redacted = Mapping[tuple[int, int], frozenset[str]]

_HASHED = tuple(c.name for c in STORED if c.name != "seq")
_ROWS = ("seq", "chain", "block", "position", *FILE_COLUMNS, *_HASHED, *TEXT_HASHES)
_TEXTS = ("seq", *FILE_COLUMNS, *(f.name for f in TEXT_FIELDS))


@dataclass
class Finding:
    """What was recomputed of a chain.

    head: after the last commit that fits. good: those that do, in order. bad: the first that does not, if it is about
    one; reason: in words.
    """

    head: str
    good: list[Block] = field(default_factory=list)
    bad: Block | None = None
    reason: str | None = None


def verify_rows(
    chain: Chain,
    blocks: list[Block],
    timed: bool,
    hot: list[HotRows],
    shelves: tuple[Shelf, Shelf],
    redacted: Redacted,
    finding: Finding,
) -> None:
    """Recomputes the heads of a chain, into the finding. timed: whether they cover the times of the commits.

    Raises: LedgerError when rows cannot be read: those of the block after the finding's last.
    """
    sessions, texts = shelves
    sealed = sessions.body.sealed_up_to(chain.number)
    window_of = _Windows(chain, timed, _TextStream(_text_tables(chain, hot, texts)), redacted)
    waiting, next_block = None, 0
    seq = chain.identity.first_seq
    last = blocks[-1].last_seq if blocks else seq - 1
    for table in _row_tables(chain, [h for h in hot if h.first_seq > sealed], sessions):
        table = table.slice(0, int(np.searchsorted(table["seq"].to_numpy(), last, side="right")))
        if not table.num_rows:
            break  # what comes after the blocks is looked at elsewhere
        window = table if waiting is None else pa.concat_tables([waiting, table])
        misplaced = _misplaced(window["seq"].to_numpy(), seq)
        if misplaced is not None:
            _fail(finding, _block_at(blocks, next_block, misplaced[0]), misplaced[1])
            return
        end = next_block
        while end < len(blocks) and blocks[end].last_seq < seq + window.num_rows:
            end += 1
        if end == next_block:
            waiting = window
            continue
        rows = blocks[end - 1].last_seq - seq + 1
        if window_of.check(blocks[next_block:end], window.slice(0, rows).combine_chunks(), finding):
            return
        waiting = window.slice(rows) if rows < window.num_rows else None
        next_block, seq = end, seq + rows
    if next_block < len(blocks):
        there = 0 if waiting is None else waiting.num_rows
        block = blocks[next_block]
        _fail(finding, block, f"{there} rows are stored where {block.count} were recorded")


def _fail(finding: Finding, block: Block | None, reason: str) -> None:
    finding.bad, finding.reason = block, reason


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
        if (np.diff(table["seq"].to_numpy()) < 0).any():
            table = table.sort_by("seq")
        taken = int(np.searchsorted(table["seq"].to_numpy(), seq, side="right"))
        self._waiting = table.slice(taken) if taken < table.num_rows else None
        return table.slice(0, taken).combine_chunks()


# -- one window of whole blocks --------------------------------------------------------------------------------------


@dataclass
class _Windows:
    """Checks windows of a chain, one after the other."""

    chain: Chain
    timed: bool
    texts: _TextStream
    redacted: Redacted

    def check(self, blocks: list[Block], rows: pa.Table, finding: Finding) -> bool:
        """Appends the blocks that fit to the finding; True when one does not."""
        first = blocks[0].first_seq
        columns = {}
        for name in (*_HASHED, *TEXT_HASHES):
            array = _one_chunk(rows[name])
            if array.null_count < len(array):
                columns[name] = array
        reasons = _shape_reasons(self.chain, blocks, rows)
        text_reasons = _text_reasons(self.chain, rows, self.texts.up_to(blocks[-1].last_seq), self.redacted)
        hasher = ChainHasher(self.chain.identity.key, columns)
        for number, block in enumerate(blocks):
            start = block.first_seq - first
            time = block.time if self.timed else None
            expected = hasher.commit(finding.head, time, block.first_seq, start, start + block.count)
            reason = reasons.get(number)
            if reason is None and expected != block.head:
                reason = "its rows or its head are not those that were recorded"
            if reason is None:
                seq = next((s for s in sorted(text_reasons) if block.first_seq <= s <= block.last_seq), None)
                reason = None if seq is None else text_reasons[seq]
            if reason is not None:
                _fail(finding, block, reason)
                return True
            finding.good.append(block)
            finding.head = expected
        return False


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _shape_reasons(chain: Chain, blocks: list[Block], rows: pa.Table) -> dict[int, str]:
    """What the hash does not cover: a block's own step and sessions, and the keys of sealed rows."""
    counts = np.array([b.count for b in blocks])
    starts = np.cumsum(counts) - counts
    train = _flags(pc.equal(rows["split"], "train"))
    sessions = np.add.reduceat(train.astype(np.int64), starts)
    steps = np.maximum.reduceat(pc.fill_null(rows["step"], -1).to_numpy(), starts)
    before = np.cumsum(train) - train
    position = before - np.repeat(before[starts], counts)
    placed = _flags(rows["position"].is_valid())
    misplaced = (placed != train) | (train & (pc.fill_null(rows["position"], 0).to_numpy() != position))
    keys = place_keys(chain.number, [b.first_seq for b in blocks])
    misplaced |= pc.fill_null(rows["block"], -1).to_numpy() != np.repeat(keys, counts)
    misplaced |= _foreign(chain, rows)
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


def _flags(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Truth values, false for null."""
    flags: np.ndarray[Any, np.dtype[np.bool_]] = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return flags


def _foreign(chain: Chain, table: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows say that they are another run's, attempt's or writer's."""
    foreign = np.zeros(table.num_rows, dtype=np.bool_)
    for name, value in zip(FILE_COLUMNS, chain.identity.key, strict=True):
        foreign |= ~_flags(pc.equal(table[name], value))
    return foreign


# -- texts -----------------------------------------------------------------------------------------------------------


def _text_reasons(chain: Chain, rows: pa.Table, texts: pa.Table | None, redacted: Redacted) -> dict[int, str]:
    """Rows whose text is not the recorded one: seq -> why."""
    found: dict[int, str] = {}
    first = rows["seq"][0].as_py()
    if texts is not None:
        texts = texts.slice(int(np.searchsorted(texts["seq"].to_numpy(), first)))  # what is below is found elsewhere
        found |= _strange_texts(chain, first, rows, texts)
    for name in TEXT_COLUMNS:
        missing = _flags(rows[f"{name}_hash"].is_valid()).copy()
        if texts is not None:
            places = texts["seq"].to_numpy() - first
            for seq in _misfits(name, rows[f"{name}_hash"].take(pa.array(places)), texts):
                found.setdefault(seq, f"the {name} of row {seq} or its salt is not the one that was recorded")
            missing[places[_flags(texts[name].is_valid())]] = False
        for place in np.flatnonzero(missing).tolist():
            seq = first + place
            if name not in redacted.get((chain.number, seq), ()):
                found.setdefault(seq, f"the {name} of row {seq} is missing, and no redaction is on record")
    return found


def _strange_texts(chain: Chain, first: int, rows: pa.Table, texts: pa.Table) -> dict[int, str]:
    """Rows with texts that cannot be theirs, whatever they say."""
    found: dict[int, str] = {}
    seqs = texts["seq"].to_numpy()
    for seq in seqs[1:][np.diff(seqs) == 0].tolist():
        found[seq] = f"the texts of row {seq} are stored twice"
    for seq in seqs[_foreign(chain, texts)].tolist():
        found.setdefault(seq, f"the texts of row {seq} say that they are another writer's")
    some = np.zeros(rows.num_rows, dtype=np.bool_)
    for name in TEXT_HASHES:
        some |= _flags(rows[name].is_valid())
    for seq in seqs[~some[seqs - first]].tolist():
        found.setdefault(seq, f"texts are stored for row {seq}, which was recorded without")
    return found


def _misfits(name: str, recorded: pa.ChunkedArray, texts: pa.Table) -> list[int]:
    """Rows whose text does not have the recorded hash, or has no salt, or another's; recorded: of the same rows."""
    salts, given = _one_chunk(texts[f"{name}_salt"]), _one_chunk(texts[name]).cast(pa.binary())
    there = _flags(given.is_valid())
    odd = _flags(salts.is_valid()) != there
    odd |= _flags(pc.not_equal(pc.binary_length(salts), SALT_BYTES))
    odd |= there & ~_flags(pc.equal(_hashes(name, salts, given), _one_chunk(recorded)))
    seqs: list[int] = texts["seq"].to_numpy()[odd].tolist()
    return seqs


def _hashes(name: str, salts: pa.Array, texts: pa.Array) -> pa.Array:
    """The hashes of texts; those that stand in many rows of a commit, with one salt, are hashed once."""
    if pc.count_distinct(salts).as_py() > 0.5 * len(salts):
        return pa.array(text_hashes(name, salts.to_pylist(), texts.to_pylist()), pa.binary())
    codes = [array.dictionary_encode(null_encoding="encode").indices.to_numpy() for array in (salts, texts)]
    _, firsts, which = np.unique((codes[0].astype(np.int64) << 32) | codes[1], return_index=True, return_inverse=True)
    once = pa.array(firsts)
    hashes = text_hashes(name, salts.take(once).to_pylist(), texts.take(once).to_pylist())
    return pa.array(hashes, pa.binary()).take(pa.array(which))
