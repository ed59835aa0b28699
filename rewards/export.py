"""A run as one file: Parquet, CSV or JSON lines; what `rewards import` makes the same live view of.

Parquet and JSON lines hold every column as it is. JSON lines leave nulls out and write NaN and the infinities as text.
CSV writes times in ISO 8601 (UTC), null as an empty cell, empty text as "", and components as the columns
`component.NAME` and `component.NAME.KEY`: the order of a row's components, an empty list of them and an entry without
any value are what it cannot tell.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rewards.annotations import read_notes
from rewards.errors import LedgerError, UserError
from rewards.events import encode
from rewards.export_files import WRITERS
from rewards.schema import TEXT_COLUMNS, arrow_schema

if TYPE_CHECKING:
    from rewards.ledger import Ledger

FORMATS = ("parquet", "csv", "jsonl")
_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv", ".jsonl": "jsonl", ".jsonl.gz": "jsonl"}
_ROWS = 65_536
_TRIES = 5
_MEMORY = "1GB"
_SESSION = pa.field("session", pa.int64())
_LIVE = pa.field("live", pa.bool_())


@dataclass(frozen=True)
class Export:
    """What to export. every: superseded rows too, with the column `live`. salvage: what a damaged ledger still has."""

    run_id: str
    out: Path
    form: str | None = None
    every: bool = False
    texts: bool = False
    events: bool = False
    salvage: bool = False

    @property
    def schema(self) -> pa.Schema:
        """The columns of the file: the session's number first."""
        live = [_LIVE] if self.every else []
        return pa.schema([_SESSION, *live, *(f.with_nullable(True) for f in arrow_schema(self.texts))])


def export_run(ledger: Ledger, wanted: Export) -> dict[str, Any]:
    """Writes the file aside and renames it when it is whole; says what was written.

    Raises: UserError when the file cannot be written, or the ledger is damaged and `salvage` is not asked for.
    """
    form = wanted.form or form_of(wanted.out)
    if wanted.out.is_dir():
        raise UserError(f"{wanted.out}: a folder; give the name of a file in it")
    written = retried(ledger, lambda: _export(ledger, wanted, form))
    target = events_file(wanted.out) if wanted.events else None
    events = 0 if target is None else _export_events(ledger, wanted, target)
    named = {"run": wanted.run_id, "file": str(wanted.out), "format": form}
    return named | written | {"events_file": None if target is None else str(target), "events": events}


def form_of(path: Path) -> str:
    """The format that a file's name says.

    Raises: UserError for a name that says none.
    """
    name = path.name.lower()
    for suffix, form in _SUFFIXES.items():
        if name.endswith(suffix):
            return form
    raise UserError(f"{path}: the name says no format ({', '.join(_SUFFIXES)}); say --format")


def events_file(path: Path) -> Path:
    """Where the events of an exported run stand: sessions.parquet -> sessions.events.jsonl."""
    name = path.name
    suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return path.with_name(f"{name[: len(name) - len(suffix)]}.events.jsonl")


def _export(ledger: Ledger, wanted: Export, form: str) -> dict[str, Any]:
    rows = sessions = 0
    with _aside(wanted.out) as path, _reader(ledger, wanted) as reader:
        with WRITERS[form](path, wanted.out.name.lower().endswith(".gz"), reader) as write:
            for table in reader.tables():
                write(table)
                rows += table.num_rows
                sessions += table.num_rows - table["session"].null_count
        reader.check(rows)
    return {"rows": rows, "sessions": sessions, "damaged": reader.damaged}


# -- reading -----------------------------------------------------------------------------------------------------------


class _Reader(ABC):
    """The rows of a run in the order of their sessions, as of one moment."""

    def __init__(self, wanted: Export) -> None:
        self.schema = wanted.schema
        self.damaged: list[str] = []

    @abstractmethod
    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows, or some of their columns."""

    def check(self, rows: int) -> None:
        """Checks that so many rows are all; a reader that says itself what is missing has nothing to check."""
        return


class _Salvage(_Reader):
    """What a damaged ledger still has, held in memory."""

    def __init__(self, ledger: Ledger, wanted: Export) -> None:
        from rewards.view import session_table

        super().__init__(wanted)
        live = not wanted.every
        table = session_table(ledger.path, wanted.run_id, live, wanted.texts, self.damaged)
        self._table = table.select(self.schema.names).cast(self.schema)

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        names = self.schema.names if columns is None else columns
        for start in range(0, max(self._table.num_rows, 1), _ROWS):
            yield self._table.select(names).slice(start, _ROWS)


class _Stream(_Reader):
    """The rows as DuckDB sorts them, on disk where memory does not do."""

    def __init__(self, wanted: Export, connection: Any) -> None:
        super().__init__(wanted)
        self._run_id = wanted.run_id
        self._connection = connection
        self._view = "sessions" if wanted.every else "live"
        self._texts = wanted.texts

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        names = self.schema.names if columns is None else columns
        shown = ", ".join(f't."{name}"' if name in TEXT_COLUMNS else f's."{name}"' for name in names)
        joined = "LEFT JOIN texts t USING (run_id, attempt, writer, seq)" if self._texts and columns is None else ""
        order = "ORDER BY s.split = 'eval', s.step, s.writer, s.attempt, s.seq"
        query = f"SELECT {shown} FROM {self._view} s {joined} WHERE s.run_id = ? {order}"
        schema = pa.schema([self.schema.field(name) for name in names])
        for batch in self._connection.sql(query, params=[self._run_id]).to_arrow_reader(_ROWS):
            yield pa.Table.from_batches([batch]).cast(schema)

    def check(self, rows: int) -> None:
        only = "" if self._view == "sessions" else "AND live"
        query = f"SELECT coalesce(sum(rows), 0)::BIGINT FROM blocks WHERE run_id = ? {only}"
        ((expected,),) = self._connection.sql(query, params=[self._run_id]).fetchall()
        if rows != expected:
            raise LedgerError(
                f"run `{self._run_id}`: {rows:,} rows are stored of {expected:,}; run `rewards verify`, restore the "
                "ledger from a copy, or take what is left with --salvage"
            )


@contextmanager
def _reader(ledger: Ledger, wanted: Export) -> Iterator[_Reader]:
    if wanted.salvage:
        yield _Salvage(ledger, wanted)
        return
    with TemporaryDirectory(prefix="rewards-export-") as folder, ledger.connect() as connection:
        spill = folder.replace("'", "''")
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute(f"SET temp_directory = '{spill}'")
        yield _Stream(wanted, connection)


def retried(ledger: Ledger, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Does the work again where files were put together, and the old ones deleted, while it read them.

    Raises: LedgerError naming what cannot be read.
    """
    import duckdb

    for tries_left in reversed(range(_TRIES)):
        try:
            return work()
        except duckdb.Error as error:
            if tries_left and isinstance(error, duckdb.IOException):
                continue
            said = " ".join(str(error).split("\n\n")[0].split())
            raise LedgerError(
                f"{ledger.path}: {said}; `rewards verify` tells what is damaged, --salvage takes what is left"
            ) from error
    raise AssertionError("the last try returns or raises")


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A file beside the target that takes its place when the block ends well.

    Raises: UserError when it cannot be written.
    """
    path = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        try:
            yield path
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(out)
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        said = os.strerror(error.errno) if error.errno else str(error)  # arrow's own text names the file set aside
        raise UserError(f"{out}: cannot be written: {said}") from error


# -- events ------------------------------------------------------------------------------------------------------------


def _export_events(ledger: Ledger, wanted: Export, out: Path) -> int:
    """The run's events, one JSON object a line; notes on sessions with the numbers that these have now."""
    events = ledger.events(wanted.run_id, live=not wanted.every)
    now = {note["number"]: note for note in read_notes(ledger, wanted.run_id)}
    with _aside(out) as path, path.open("w", encoding="utf-8") as file:
        for event in events:
            note = now.get(event["seq"], {})
            numbers = {key: note[key] for key in ("session_now", "sessions_now") if key in note}
            payload = json.loads(encode(event["kind"], event["payload"]))
            file.write(json.dumps(event | numbers | {"payload": payload}, ensure_ascii=False) + "\n")
    return len(events)
