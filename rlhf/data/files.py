"""One reader per file type: (row, line, values) for every row, errors with file and line."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rewards.errors import DataError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Parsed = tuple[int, int | None, dict[str, Any]]


def suffix_of(path: Path) -> str | None:
    """The suffix that chooses the reader, or None for a file that is no data file."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_file(path: Path) -> list[Parsed]:
    """Every row of a data file.

    Raises: DataError for an unknown type, broken JSON (file:line), a ragged table (file:line), a damaged archive.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"{path}: not a data file that can be read; known are {', '.join(SUFFIXES)}")
    try:
        return list(_READERS[suffix](path))
    except UnicodeDecodeError as error:
        raise DataError(_undecodable(path)) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip archive ({error}): copy the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _undecodable(path: Path) -> str:
    """The error for a file that is not UTF-8, with its first line that is not."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
                return f"{path}:{number}: not UTF-8 text ({byte}): save the file as UTF-8"
    return f"{path}: not UTF-8 text: save the file as UTF-8"


def _open(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(path: Path) -> Iterator[Parsed]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: broken JSON: {error.msg} at column {error.colno}") from error
            except (ValueError, RecursionError) as error:
                raise _beyond(f"{path}:{number}", error) from error
            yield number, number, _object(path, number, values, line)


def _object(path: Path, number: int, values: object, source: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DataError(f"{path}:{number}: row {number} is {type(values).__name__}, not an object with named columns")
    if _SURROGATE.search(source):  # a whole pair is one character by now, half of one is none
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):x}"
            raise DataError(
                f"{path}:{number}: row {number} holds {half}, half of a surrogate pair, which is no character: "
                "export the file again without cutting characters in two"
            ) from error
    return values


def _beyond(place: str, error: Exception) -> DataError:
    """The error for JSON that is well-formed and still cannot be read."""
    if isinstance(error, RecursionError):
        return DataError(f"{place}: broken JSON: nested too deeply")
    return DataError(f"{place}: JSON with a whole number that is too long to read: write it as text")


def _json(path: Path) -> Iterator[Parsed]:
    with _open(path) as file:
        text = file.read()
    if not text.strip():
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not text.lstrip().startswith("["):
            yield from _json_lines(path)  # one object after another: JSON lines under the name .json
            return
        raise DataError(f"{path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise _beyond(str(path), error) from error
    if isinstance(values, dict) and isinstance(values.get("data"), list):
        values = values["data"]
    if isinstance(values, dict):
        values = [values]
    if not isinstance(values, list):
        raise DataError(f"{path}: expected a list of objects, found {type(values).__name__}")
    for number, value in enumerate(values, 1):
        yield number, None, _object(path, number, value, text)


def _parquet(path: Path) -> Iterator[Parsed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    for number, values in enumerate(table.to_pylist(), 1):
        yield number, None, values


def _csv(path: Path, delimiter: str = ",") -> Iterator[Parsed]:
    csv.field_size_limit(sys.maxsize)  # a transcript is easily longer than the module's 128 KiB
    with _open(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DataError(f"{path}:1: the column `{twice}` appears twice in the header")
            row, line = 0, reader.line_num + 1
            for cells in reader:
                start, line = line, reader.line_num + 1
                if not cells:
                    continue
                row += 1
                if len(cells) != len(header):
                    raise DataError(f"{path}:{start}: row {row} has {len(cells)} cells, the header {len(header)}")
                yield row, start, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not a readable table: {error}") from error


def _tsv(path: Path) -> Iterator[Parsed]:
    yield from _csv(path, delimiter="\t")


_READERS: dict[str, Callable[[Path], Iterator[Parsed]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".tsv": _tsv,
}
SUFFIXES = tuple(_READERS)
