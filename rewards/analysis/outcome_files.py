"""Evaluation files: one row an answer, with `prompt_id`, numbers, and where known category, split and step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from rewards.errors import DataError
from rewards.importers.files import kind_of
from rewards.importers.place import Chunk, rows_from
from rewards.importers.readers import read_chunks, readable

_KEYS = ("prompt_id", "category", "split", "step")
_ABOUT = ("session", "attempt", "writer", "seq", "turn", "group_size", "sample_seed", "live")
_TRUTHS = {"true": 1.0, "false": 0.0}


class FileRows:
    """Rows of an evaluation file, all of them in memory."""

    run: str | None = None

    def __init__(self, path: Path) -> None:
        """Raises: DataError for a file that cannot be read, has no row, or does not say what to pair."""
        self._path = path
        self._chunks = _json(path) if path.suffix.lower() == ".json" else _chunks(path)
        if not any(chunk.count for chunk in self._chunks):
            raise DataError(f"{path}: no row")
        if not any("prompt_id" in chunk.columns for chunk in self._chunks):
            raise DataError(f"{path}: no column `prompt_id`, which says what to pair")

    def metrics(self) -> list[str] | None:
        """Names of the columns of numbers, other than those that say where a row stands."""
        names = dict.fromkeys(name for chunk in self._chunks for name in chunk.columns)
        return [name for name in names if name not in (*_KEYS, *_ABOUT) and self._numeric(name)]

    def _numeric(self, name: str) -> bool:
        seen = False
        for chunk in self._chunks:
            for value in _values(chunk, name)[:100]:
                number = _number(value, chunk.parse)
                if number is None:
                    return False
                seen = seen or not math.isnan(number)
        return seen

    def read(self, metric: str) -> tuple[pa.Table, float | None]:
        """The rows, and no weight. Raises: DataError for a column that is not there or holds no numbers."""
        names = {name for chunk in self._chunks for name in chunk.columns}
        name = metric if metric in names else f"component.{metric}"
        if name not in names:
            told = ", ".join(f"`{known}`" for known in self.metrics() or [])
            raise DataError(f"{self._path}: no column `{metric}`" + (f"; its numbers: {told}" if told else ""))
        tables = [self._table(chunk, name) for chunk in self._chunks]
        return pa.concat_tables(tables), None

    def _table(self, chunk: Chunk, name: str) -> pa.Table:
        def numbers(column: str, what: str) -> list[float | None]:
            found: list[float | None] = []
            for row, value in enumerate(_values(chunk, column)):
                number = _number(value, chunk.parse)
                if number is None or math.isinf(number):
                    raise chunk.error(row, f"`{column}` is {value!r}, {what}")
                found.append(None if math.isnan(number) else number)
            return found

        prompts = [None if value in (None, "") else str(value) for value in _values(chunk, "prompt_id")]
        for row, prompt in enumerate(prompts):
            if prompt is None:
                raise chunk.error(row, "`prompt_id` is empty: it says what to pair")
        texts = {key: [_text(value) for value in _values(chunk, key)] for key in ("category", "split")}
        fields = {"prompt_id": prompts, **texts}
        table = pa.table({key: pa.array(values, pa.string()) for key, values in fields.items()})
        steps = [None if step is None else int(step) for step in numbers("step", "no step")]
        table = table.append_column("step", pa.array(steps, pa.int64()))
        return table.append_column("value", pa.array(numbers(name, "no number"), pa.float64()))


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def _values(chunk: Chunk, name: str) -> list[Any]:
    if name not in chunk.columns:
        return [None] * chunk.count
    column = chunk.columns[name]
    values: list[Any] = column if isinstance(column, list) else column.to_pylist()
    return values


def _number(value: Any, parse: bool) -> float | None:
    """The value as a number, NaN for a missing one; None where it is neither."""
    if value is None or (parse and value == ""):
        return math.nan
    if isinstance(value, bool | int | float):
        return float(value)
    if parse and isinstance(value, str):
        if value.strip().lower() in _TRUTHS:
            return _TRUTHS[value.strip().lower()]
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _chunks(path: Path) -> list[Chunk]:
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path}: not a file that can be read; known are .json, .jsonl, .csv and .parquet, or a ledger")
    return list(read_chunks(path, kind))


def _json(path: Path) -> list[Chunk]:
    """One document: a list of rows, or an object in which exactly one list of rows stands."""
    with readable(path):
        text = path.read_text(encoding="utf-8-sig")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: broken JSON: {error}") from error
    lists = [found] if isinstance(found, list) else []
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) != 1 or not all(isinstance(row, dict) for row in lists[0]):
        raise DataError(f"{path}: neither a list of rows nor an object with one such list")
    rows = lists[0]
    at: Callable[[int], str] = rows_from(path, 1)
    names = dict.fromkeys(name for row in rows for name in row)
    return [Chunk({name: [row.get(name) for row in rows] for name in names}, len(rows), at)]
