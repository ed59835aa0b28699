"""Rows that wait on disk to be sorted: files whose rows do not stand in the order of their sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rewards.importers.components import full
from rewards.importers.readers import ROWS
from rewards.schema import COLUMNS, TEXT_COLUMNS

_MEMORY = "1GB"
_ORDER = "ORDER BY step, split = 'eval', _session, _row"


class Staging:
    """A Parquet file in a temporary folder, read back in the order of steps and sessions within bounded memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "rows.parquet"
        self._writer: Any = None
        self._given: set[str] = set()

    def add(self, table: pa.Table, sessions: NDArray[np.int64], first: int) -> None:
        """Takes rows in. sessions: their numbers, 0 for none. first: how many rows came before."""
        import pyarrow.parquet as pq

        columns = {}
        self._given.update(table.column_names)
        for field in _fields():
            if field.name in table.column_names:
                array = table[field.name].combine_chunks()
                columns[field.name] = full(array) if field.name == "components" else array
            else:
                columns[field.name] = pa.nulls(table.num_rows, field.type)
        columns["_session"] = pa.array(sessions)
        columns["_row"] = pa.array(np.arange(first, first + table.num_rows))
        staged = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, staged.schema, compression="zstd")
        self._writer.write_table(staged, row_group_size=ROWS)

    def close(self) -> None:
        """Ends the writing."""
        self._writer.close()

    def sorted(self) -> Iterator[pa.Table]:
        """The rows by step, the training rows of a step before its evaluation rows, each by their numbers."""
        import duckdb

        schema = pa.schema([field for field in _fields() if field.name in self._given])
        shown = ", ".join(f'"{name}"' for name in schema.names)
        with duckdb.connect() as connection:
            connection.execute(f"SET memory_limit = '{_MEMORY}'")
            connection.execute(f"SET temp_directory = '{_quoted(self._folder / 'sort')}'")
            found = connection.sql(f"SELECT {shown} FROM read_parquet('{_quoted(self._path)}') {_ORDER}")
            for batch in found.to_arrow_reader(ROWS):
                yield pa.Table.from_batches([batch]).cast(schema)


def _fields() -> list[pa.Field]:
    given = [pa.field(c.name, c.type) for c in COLUMNS if c.source == "caller" or c.name == "step"]
    return given + [pa.field(name, pa.string()) for name in TEXT_COLUMNS]


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
