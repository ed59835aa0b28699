"""Readers for CSV, JSON lines and Parquet: one stretch of rows after the other, never the whole file."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from rewards.errors import DataError
from rewards.importers.place import Chunk, at_lines, rows_from

ROWS = 65_536
_LINES = 16_384
_CSV_BLOCK = 8 << 20


def read_chunks(path: Path, kind: str) -> Iterator[Chunk]:
    """The rows of a file of that kind.

    Raises: DataError naming the file and the line or row that cannot be read.
    """
    with readable(path):
        yield from {"csv": _csv_chunks, "jsonl": json_chunks, "parquet": _parquet_chunks}[kind](path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong with a file, in one line that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip archive ({error}): copy the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _parquet_chunks(path: Path) -> Iterator[Chunk]:
    file = open_parquet(path)
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: the column `{twice}` appears twice")
    first = 1
    try:
        for batch in file.iter_batches(batch_size=ROWS):
            columns = dict(zip(names, batch.columns, strict=True))
            yield Chunk(columns, batch.num_rows, rows_from(path, first))
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _not_parquet(path, error) from error


def open_parquet(path: Path) -> Any:
    """The open file.

    Raises: DataError when it is not Parquet.
    """
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _not_parquet(path, error) from error


def _not_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}")


# -- JSON lines --------------------------------------------------------------------------------------------------------


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and object of every line that is not blank.

    Raises: DataError naming file and line.
    """
    with readable(path), _open(path) as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{line}: broken JSON: {error.msg} at column {error.colno}") from error
            except RecursionError as error:
                raise DataError(f"{path}:{line}: broken JSON: nested too deeply") from error
            except ValueError as error:
                raise DataError(f"{path}:{line}: a whole number that is too long to read: write it as text") from error
            if not isinstance(value, dict):
                raise DataError(f"{path}:{line}: {type(value).__name__}, not an object with named columns")
            yield line, value


def json_chunks(path: Path) -> Iterator[Chunk]:
    """The objects of a file as columns; a key that an object lacks is null there."""
    lines: list[int] = []
    rows: list[dict[str, Any]] = []
    for line, row in json_objects(path):
        lines.append(line)
        rows.append(row)
        if len(rows) == _LINES:
            yield _json_chunk(path, lines, rows)
            lines, rows = [], []
    if rows:
        yield _json_chunk(path, lines, rows)


def _json_chunk(path: Path, lines: list[int], rows: list[dict[str, Any]]) -> Chunk:
    names = dict.fromkeys(name for row in rows for name in row)
    return Chunk({name: [row.get(name) for row in rows] for name in names}, len(rows), at_lines(path, lines))


# -- CSV ---------------------------------------------------------------------------------------------------------------


def _csv_chunks(path: Path) -> Iterator[Chunk]:
    """Cells stay text here: an empty cell is null, a quoted empty one ("") is empty text."""
    from pyarrow import csv as arrow_csv

    header = _header(path)
    _check_quotes(path)
    options = {
        "read_options": arrow_csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
        "parse_options": arrow_csv.ParseOptions(newlines_in_values=True),
        "convert_options": arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        ),
    }
    places = _Places(path)
    first = 0
    try:
        with arrow_csv.open_csv(path, **options) as reader:
            for batch in reader:
                if batch.num_rows:
                    yield Chunk(
                        dict(zip(header, batch.columns, strict=True)), batch.num_rows, places.after(first), True
                    )
                    first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        _scan(path, len(header))  # says which line it is
        raise DataError(f"{path}: not a readable table: {str(error).splitlines()[0]}") from error


class _Places:
    """Lines of records, looked up only for an error: a record may run over several lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after(self, first: int) -> Any:
        """Places of a stretch that begins after `first` records."""
        return lambda row: f"{self._path}:{self._line(first + row)}"

    def _line(self, record: int) -> int:
        for number, (line, _) in enumerate(_records(self._path)):
            if number == record + 1:  # the header is record 0
                return line
        raise AssertionError("the record was read before")


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of every record that is not blank, the header included."""
    csv.field_size_limit(sys.maxsize)
    with _open(path) as file:
        reader = csv.reader(file, strict=True)
        line = 1
        try:
            for cells in reader:
                start, line = line, reader.line_num + 1
                if cells:
                    yield start, cells
        except csv.Error as error:
            hint = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
            raise DataError(f"{path}:{line}: not a readable table: {hint}") from error


def _header(path: Path) -> list[str]:
    found = next(_records(path), None)
    if found is None:
        raise DataError(f"{path}: empty; the first line names the columns")
    line, header = found
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}:{line}: the column `{twice}` appears twice in the header")
    for other, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and other in header[0]:
            raise DataError(f"{path}:{line}: the columns are separated by {name}; write them with commas")
    return header


def _check_quotes(path: Path) -> None:
    """A quote that is never closed would take the rest of the file into one cell."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    quotes = 0
    with opener(path, "rb") as file:
        while block := file.read(_CSV_BLOCK):
            quotes += block.count(b'"')
    if quotes % 2:
        _scan(path, None)


def _scan(path: Path, width: int | None) -> None:
    """Raises: DataError naming the first record that no table has."""
    for line, cells in _records(path):
        if width is not None and len(cells) != width:
            raise DataError(f"{path}:{line}: {len(cells)} cells, the header has {width}")
