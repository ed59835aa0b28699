"""Where the columns of a run come from: DuckDB over a ledger, or a table in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rewards.analysis.columns import component, component_roles, floats, strings, within_range
from rewards.errors import LedgerError
from rewards.schema import BY_NAME, TEXT_COLUMNS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from rewards.ledger import Ledger

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_FIELDS = ("raw", "value", "weight", "pivot", "differential_pct")
_TOGETHER = ("raw", "value")
_HELD_BYTES = 3 << 28


class TableSource:
    """Columns of a table whose rows are in session order."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()

    def numbers(self, name: str) -> Floats:
        """See `Source`."""
        return floats(self._table, name).copy()

    def component(self, name: str, field: str) -> Floats:
        """See `Source`."""
        return component(self._table, name, field)

    def roles(self) -> dict[str, str]:
        """See `Source`."""
        return component_roles(self._table)

    def labels(self, name: str) -> list[str | None]:
        """See `Source`."""
        return strings(self._table, name)

    def codes(self, name: str) -> NDArray[np.int64]:
        """See `Source`."""
        if name not in self._table.column_names:
            return np.full(self._table.num_rows, -1)
        return _encoded(self._table[name])[0]

    def named(self, name: str) -> tuple[NDArray[np.int16], tuple[str, ...]]:
        """See `Source`."""
        values = strings(self._table, name)
        names = tuple(sorted({value for value in values if value is not None}))
        places = {value: place for place, value in enumerate(names)}
        return np.array([-1 if value is None else places[value] for value in values], dtype=np.int16), names

    def texts(self, first: int, last: int, column: str) -> list[str | None]:
        """See `Source`."""
        return strings(self._table.slice(first - 1, last - first + 1), column)

    def part(self, first: int, last: int, numbers: Sequence[str], label: str) -> tuple[list[Floats], Ints]:
        """See `Source`."""
        part = self._table.slice(first - 1, last - first + 1)
        codes = _encoded(part[label])[0] if label in part.column_names else np.full(part.num_rows, -1)
        return [floats(part, name) for name in numbers], codes


class LedgerSource:
    """Columns of one run of a ledger, as of the moment at which it was opened."""

    def __init__(self, ledger: Ledger, run_id: str, connection: DuckDBPyConnection) -> None:
        self._ledger, self._run_id, self._connection = ledger, run_id, connection
        found = self._ask("SELECT max(session_offset + sessions) FROM blocks WHERE run_id = ? AND live", [run_id])
        self._sessions = int(found.fetchall()[0][0] or 0)
        self._places: dict[str, list[int]] | None = None
        self._roles: dict[str, str] = {}
        self._same: bool | None = None
        self._numbers: dict[tuple[str, str], Floats] = {}

    @classmethod
    @contextmanager
    def open(cls, ledger: Ledger, run_id: str) -> Iterator[LedgerSource]:
        """A source that ends with the block."""
        with ledger.connect() as connection:
            yield cls(ledger, run_id, connection)

    def steps(self) -> NDArray[np.int64]:
        """Optimizer step of each session."""
        found = self._column("step", np.int64, 0)
        return np.asarray(found, dtype=np.int64)

    def pipeline(self) -> str | None:
        """Kind of training, as the first session says."""
        rows = self._ask("SELECT pipeline FROM live WHERE run_id = ? AND session = 1", [self._run_id]).fetchall()
        return str(rows[0][0]) if rows else None

    def numbers(self, name: str) -> Floats:
        """See `Source`."""
        if name not in BY_NAME:
            return np.full(self._sessions, np.nan)
        return within_range(np.asarray(self._column(f'CAST("{name}" AS DOUBLE)'), dtype=np.float64), name)

    def component(self, name: str, field: str) -> Floats:
        """See `Source`."""
        if field not in _FIELDS:
            raise ValueError(f"a component has no number `{field}`")
        if field in _TOGETHER and self._together():
            known = self._numbers.get((name, field))
            return np.full(self._sessions, np.nan) if known is None else within_range(known, name)
        values = np.full(self._sessions, np.nan)
        for place in self._component_places().get(name, []):
            item = f"components[{place}]"
            expression = f"CASE WHEN {item}.name = ? THEN CAST({item}.{field} AS DOUBLE) END"
            found = self._column(expression, parameters=[name])
            np.copyto(values, found, where=np.isfinite(found))
        return within_range(values, name)

    def roles(self) -> dict[str, str]:
        """See `Source`."""
        if not self._together():
            self._component_places()
        return dict(self._roles)

    def _together(self) -> bool:
        """Reads what most sections ask of components in one pass over the sessions, where all list the same ones.

        Lists are slow to read, whatever is taken of them. False where sessions differ or there is too much to hold.
        """
        if self._same is None:
            query = f"SELECT components FROM live WHERE {_MINE} LIMIT 1"  # any: all are compared with it
            first = [row[0] or [] for row in self._ask(query, [self._run_id]).fetchall()]
            listed = first[0] if first else []
            size = len(listed) * len(_TOGETHER) * 8 * self._sessions
            names = [part["name"] for part in listed]
            self._same = size <= _HELD_BYTES and len(set(names)) == len(names) and self._read_together(listed)
        return self._same

    def _read_together(self, listed: list[dict[str, Any]]) -> bool:
        shown = [f"CAST(components[{place}].{field} AS DOUBLE)" for place, field in _pairs(len(listed))]
        parameters: list[Any] = [len(listed)]
        same = ["len(components) = ?"]
        for place, part in enumerate(listed, start=1):
            for key in ("name", "role"):
                same.append(f"components[{place}].{key} IS NOT DISTINCT FROM ?")
                parameters.append(part[key])
        columns = ", ".join(["session", f"({' AND '.join(same)}) IS TRUE", *shown])
        query = f"SELECT {columns} FROM live WHERE {_MINE}"
        values = [np.full(self._sessions, np.nan) for _ in shown]
        for batch in self._ask(query, [*parameters, self._run_id]).to_arrow_reader(1 << 18):
            if not pc.all(batch.column(1)).as_py():
                return False
            places = batch.column(0).to_numpy(zero_copy_only=False) - 1
            for number, target in enumerate(values, start=2):
                target[places] = pc.fill_null(batch.column(number), np.nan).to_numpy(zero_copy_only=False)
        for (place, field), found in zip(_pairs(len(listed)), values, strict=True):
            name = listed[place - 1]["name"]
            self._roles[name] = listed[place - 1]["role"]
            other = self._numbers.get((name, _TOGETHER[0]))
            equal = other is not None and np.array_equal(other, found, equal_nan=True)
            self._numbers[name, field] = other if equal and other is not None else found
        return True

    def labels(self, name: str) -> list[str | None]:
        """See `Source`."""
        values: list[str | None] = [None] * self._sessions
        query = f'SELECT session, "{name}" AS v FROM live WHERE {_MINE}'
        table = self._ask(query, [self._run_id]).to_arrow_table()
        for place, value in zip(table["session"].to_numpy(), table["v"].to_pylist(), strict=True):
            values[place - 1] = value
        return values

    def codes(self, name: str) -> NDArray[np.int64]:
        """See `Source`."""
        codes = np.full(self._sessions, -1)
        found = self._ask(
            f'SELECT session, "{name}" IS NULL AS missing, hash("{name}") AS h FROM live WHERE {_MINE}', [self._run_id]
        ).fetchnumpy()
        codes[found["session"] - 1] = np.unique(np.asarray(found["h"]), return_inverse=True)[1]
        codes[found["session"][np.asarray(found["missing"])] - 1] = -1
        return codes

    def named(self, name: str) -> tuple[NDArray[np.int16], tuple[str, ...]]:
        """See `Source`."""
        query = f'SELECT DISTINCT "{name}" AS v FROM live WHERE {_MINE} AND "{name}" IS NOT NULL ORDER BY v'
        names = tuple(str(row[0]) for row in self._ask(query, [self._run_id]).fetchall())
        codes = np.full(self._sessions, -1, dtype=np.int16)
        if names:
            found = self._column(f'list_position(?::VARCHAR[], "{name}")', np.int64, 0, [list(names)])
            codes = (np.asarray(found) - 1).astype(np.int16)
        return codes, tuple(sorted(names)) if list(names) != sorted(names) else names

    def texts(self, first: int, last: int, column: str) -> list[str | None]:
        """See `Source`."""
        if column not in TEXT_COLUMNS:
            raise ValueError(f"`{column}` is no text: {', '.join(TEXT_COLUMNS)}")
        values: list[str | None] = [None] * (last - first + 1)
        low, high = self._seqs(first, last)
        query = (
            f"SELECT l.session, t.{column} FROM live l JOIN texts t USING (run_id, attempt, writer, seq) "
            "WHERE l.run_id = ? AND l.split = 'train' AND l.session BETWEEN ? AND ? "
            "AND l.seq BETWEEN ? AND ? AND t.run_id = ? AND t.seq BETWEEN ? AND ?"
        )
        asked = [self._run_id, first, last, low, high, self._run_id, low, high]
        for session, text in self._ask(query, asked).fetchall():
            values[session - first] = text
        return values

    def part(self, first: int, last: int, numbers: Sequence[str], label: str) -> tuple[list[Floats], Ints]:
        """See `Source`."""
        shown = ", ".join(f'CAST("{name}" AS DOUBLE)' for name in numbers)
        query = f'SELECT session, "{label}", {shown} FROM live WHERE {_MINE} AND session BETWEEN ? AND ? '
        asked = [self._run_id, first, last, *self._seqs(first, last)]
        table = self._ask(f"{query} AND seq BETWEEN ? AND ?", asked).to_arrow_table()
        places = table.column(0).to_numpy() - first
        codes = np.full(last - first + 1, -1)
        codes[places] = _encoded(table.column(1))[0]
        values = [np.full(last - first + 1, np.nan) for _ in numbers]
        for name, column, target in zip(numbers, table.columns[2:], values, strict=True):
            target[places] = within_range(pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False), name)
        return values, codes

    def _seqs(self, first: int, last: int) -> tuple[int, int]:
        """Between which numbers of rows sessions first..last lie: files that hold none of them are not opened."""
        query = (
            "SELECT min(first_seq), max(first_seq + rows - 1) FROM blocks "
            "WHERE run_id = ? AND live AND session_offset < ? AND session_offset + sessions >= ?"
        )
        low, high = self._ask(query, [self._run_id, last, first]).fetchall()[0]
        return (0, -1) if low is None else (int(low), int(high))

    def _component_places(self) -> dict[str, list[int]]:
        """At which places of the list each component stands in some session."""
        if self._places is None:
            self._places, self._roles = {}, {}
            ((longest,),) = self._ask(f"SELECT max(len(components)) FROM live WHERE {_MINE}", [self._run_id]).fetchall()
            for place in range(1, (longest or 0) + 1):
                item = f"components[{place}]"
                query = f"SELECT DISTINCT {item}.name, {item}.role FROM live WHERE {_MINE} AND {item} IS NOT NULL"
                for name, role in self._ask(query, [self._run_id]).fetchall():
                    if name is not None:
                        self._roles.setdefault(str(name), str(role))
                        if place not in self._places.setdefault(str(name), []):
                            self._places[str(name)].append(place)
        return self._places

    def _column(
        self, expression: str, dtype: Any = np.float64, missing: Any = np.nan, parameters: list[Any] | None = None
    ) -> Any:
        """An expression over the sessions, each at its place."""
        query = f"SELECT session, {expression} AS v FROM live WHERE {_MINE}"
        values = np.full(self._sessions, missing, dtype=dtype)
        reader = self._ask(query, [*(parameters or []), self._run_id]).to_arrow_reader(1 << 20)
        for batch in reader:
            places = batch.column(0).to_numpy(zero_copy_only=False) - 1
            column = pc.fill_null(batch.column(1), missing) if batch.column(1).null_count else batch.column(1)
            values[places] = column.to_numpy(zero_copy_only=False)
        return values

    def _ask(self, query: str, parameters: list[Any]) -> Any:
        import duckdb

        try:
            return self._connection.sql(query, params=parameters)
        except duckdb.Error as error:
            said = " ".join(str(error).split("\n\n")[0].split())
            raise LedgerError(
                f"{self._ledger.path}: {said}; ask again, and where it stays, `rewards verify` tells what is damaged"
            ) from error


_MINE = "run_id = ? AND split = 'train' AND session IS NOT NULL"


def _pairs(places: int) -> list[tuple[int, str]]:
    return [(place, field) for field in _TOGETHER for place in range(1, places + 1)]


def _encoded(column: Any) -> tuple[NDArray[np.int64], list[Any]]:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, encoded.dictionary.to_pylist()
