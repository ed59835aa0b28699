"""The Parquet files of the sealed tables: what the log says of them, their rows, and which of them may go."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rewards.blocks import place_keys
from rewards.errors import LedgerError
from rewards.schema import sealed_schema, texts_schema

SESSIONS, TEXTS = "sessions", "texts"
SCHEMAS = {SESSIONS: sealed_schema, TEXTS: texts_schema}

Keys = np.ndarray[Any, np.dtype[np.int64]]  # of rows, as `place_keys` makes them

RESTORE = "restore it from a copy of the ledger, or read what is left with `rewards export --salvage`"
_KEYS = ("chain", "seq")  # what rows are asked for by
_WHOLE = b"PAR1"  # what a Parquet file ends with


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table. rows, bytes: as the log says; keys: chain -> (first seq, last seq) where it says."""

    path: Path
    rows: int
    bytes: int
    run_ids: tuple[str, str] | None
    chains: tuple[int, int] | None
    seqs: tuple[int, int] | None

    def may_hold(self, run_id: str | None) -> bool:
        """Whether rows of a run can be in the file."""
        return run_id is None or self.run_ids is None or self.run_ids[0] <= run_id <= self.run_ids[1]

    def may_be_within(self, low: int, high: int) -> bool:
        """Whether keys of rows from `low` to `high` can be in the file."""
        if self.chains is None or self.seqs is None:
            return True
        return bool(place_keys(self.chains[0], 0) <= high and place_keys(self.chains[1] + 1, 0) > low)


def part_of(root: Path, action: dict[str, Any]) -> Part:
    """A file as an entry of the log tells of it."""

    def bounds(name: str) -> Any:
        low, high = action.get(f"min.{name}"), action.get(f"max.{name}")
        return None if low is None or high is None else (low, high)

    return Part(
        root / action["path"],
        action["num_records"] or 0,
        action["size_bytes"] or 0,
        bounds("run_id"),
        bounds("chain"),
        bounds("seq"),
    )


def read_parts(
    parts: Sequence[Part], columns: Sequence[str], keep: pa.compute.Expression | None = None
) -> Iterator[Any]:
    """Record batches of files, in the files' order, only the rows that `keep` keeps, a condition on chain and seq.

    Raises: LedgerError naming the file that is damaged; FileNotFoundError where one is missing: the caller may have an
    old snapshot.
    """
    for part in parts:
        yield from _read_file(part.path, columns, keep)


def _read_file(path: Path, columns: Sequence[str], keep: pa.compute.Expression | None = None) -> Iterator[Any]:
    """Nothing here looks at the statistics in the file: where they are damaged, arrow hangs or aborts on a filter."""
    import pyarrow.parquet as pq

    read = list(columns) if keep is None else list(dict.fromkeys([*columns, *_KEYS]))
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = set(read) - set(file.schema_arrow.names)
            if missing:
                raise LedgerError(f"{path}: the file is damaged (it has no column `{min(missing)}`); {RESTORE}")
            groups = list(range(file.num_row_groups))
            if keep is not None:
                groups = [g for g in groups if file.read_row_group(g, [*_KEYS]).filter(keep).num_rows]
            for batch in file.iter_batches(row_groups=groups, columns=read):
                yield _cast(batch if keep is None else batch.filter(keep), path, columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        said = str(error).splitlines()[0].rpartition(str(path))[2].lstrip("': ")
        said = "".join(c if c.isprintable() else "?" for c in said)
        raise LedgerError(f"{path}: the file is damaged ({said}); {RESTORE}") from error


def _cast(batch: pa.RecordBatch, path: Path, columns: Sequence[str]) -> pa.RecordBatch:
    """The columns as the table has them: another program may have written the values in a type of its own."""
    batch = batch.select(list(columns))
    if path.parent.name not in SCHEMAS:
        return batch
    schema = SCHEMAS[path.parent.name]()
    wanted = pa.schema([schema.field(name) for name in columns])
    return batch if batch.schema.equals(wanted) else batch.cast(wanted)


def _keys_of(path: Path) -> Keys:
    batches = list(_read_file(path, ["chain", "seq"]))
    return np.concatenate([np.zeros(0, np.int64), *(place_keys(b["chain"], b["seq"]) for b in batches)])


def spared(gone: list[Path], parts: list[Part], elsewhere: Callable[[], Keys]) -> list[Path]:
    """Those of the files that may be deleted: each of their rows is in the table too, or elsewhere."""
    free, held = [], {}
    for path in gone:
        try:
            held[path] = _keys_of(path)
        except LedgerError:
            with open(path, "rb") as file:
                ends = file.read()[-len(_WHOLE) :]
            free += [] if ends == _WHOLE else [path]  # its writing was interrupted: it never was part of a table
    low = min((keys.min() for keys in held.values() if len(keys)), default=0)
    high = max((keys.max() for keys in held.values() if len(keys)), default=0)
    known = np.concatenate([np.zeros(0, np.int64), *(_keys_of(p.path) for p in parts if p.may_be_within(low, high))])
    lost = {path: keys[~np.isin(keys, known)] for path, keys in held.items()}
    if any(len(keys) for keys in lost.values()):
        known = elsewhere()
        lost = {path: keys[~np.isin(keys, known)] for path, keys in lost.items()}
    return free + [path for path, keys in lost.items() if not len(keys)]


def missing_file(error: FileNotFoundError) -> str:
    """The file an error speaks of; arrow says it in its text only."""
    said = str(error).splitlines()[0]
    file = error.filename or (said.split("'")[-2] if said.count("'") > 1 else said)
    return "".join(c if c.isprintable() else "?" for c in str(file))
