"""The files that an export writes: Parquet, JSON lines, and CSV with components as columns."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import UserError
from rewards.importers.components import KEYS, flat_name, full

Write = Callable[[pa.Table], None]


class Rows(Protocol):
    """What is written: tables of one schema; some of their columns on request."""

    schema: pa.Schema

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows in their order."""


@contextmanager
def _parquet(path: Path, packed: bool, rows: Rows) -> Iterator[Write]:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, rows.schema, compression="zstd") as writer:
        yield writer.write_table


@contextmanager
def _jsonl(path: Path, packed: bool, rows: Rows) -> Iterator[Write]:
    with gzip.open(path, "wt", encoding="utf-8") if packed else path.open("w", encoding="utf-8") as file:
        yield lambda table: file.writelines(json_line(row) for row in table.to_pylist())


def json_line(row: dict[str, Any]) -> str:
    """A row as JSON, without its nulls."""
    return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    return [_plain(part) for part in value] if isinstance(value, list) else value


@contextmanager
def _csv(path: Path, packed: bool, rows: Rows) -> Iterator[Write]:
    from pyarrow import csv as arrow_csv

    functions = _functions(rows)
    schema = _flattened(rows.schema.empty_table(), functions).schema
    with pa.OSFile(str(path), "wb") as file:
        stream = pa.CompressedOutputStream(file, "gzip") if packed else file
        with stream, arrow_csv.CSVWriter(stream, schema) as writer:
            yield lambda table: writer.write_table(_flattened(table, functions))


# -- components as columns ---------------------------------------------------------------------------------------------


def _functions(rows: Rows) -> dict[str, list[str]]:
    """Reward function -> the keys that some row has, in the order in which they first appear."""
    found: dict[str, list[str]] = {}
    for table in rows.tables(["components"]):
        flat = full(table["components"].combine_chunks()).flatten()
        for name in pc.unique(flat.field("name")).to_pylist():
            mine = flat.filter(pc.equal(flat.field("name"), name))
            keys = found.setdefault(name, [])
            new = [key for key in KEYS if key != "name" and key not in keys]
            keys += [key for key in new if mine.field(key).null_count < len(mine)]
    return {name: [key for key in KEYS if key in keys] for name, keys in found.items()}


def _flattened(table: pa.Table, functions: dict[str, list[str]]) -> pa.Table:
    place = table.column_names.index("components")
    lists = table["components"].combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    flat, owners = full(lists).flatten(), pc.list_parent_indices(lists)
    columns = {name: table[name] for name in table.column_names[:place]}
    for name, keys in functions.items():
        mine = pc.equal(flat.field("name"), name)
        rows = owners.filter(mine).to_numpy()
        if len(np.unique(rows)) < len(rows):
            raise UserError(
                f"a session has two components `{name}`, which CSV cannot hold: export Parquet or JSON lines"
            )
        where = np.full(table.num_rows, -1, np.int64)
        where[rows] = np.flatnonzero(mine.to_numpy(zero_copy_only=False))
        take = pa.array(where, mask=where < 0)
        columns |= {flat_name(name, key): flat.field(key).take(take) for key in keys}
    return pa.table(columns | {name: table[name] for name in table.column_names[place + 1 :]})


WRITERS = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}
