"""Session rows on their way in and out: checked column by column, Arrow in memory, plain values in SQLite."""

import json
import math
import numbers
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import LedgerError
from rewards.schema import (
    BY_NAME,
    COMPONENT_COLUMNS,
    COMPONENTS_TYPE,
    FILLED,
    ROW_KEYS,
    STORED,
    TEXT_COLUMNS,
    Column,
)

_COMPONENT_NAMES = frozenset(c.name for c in COMPONENT_COLUMNS)
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_DEFAULTS = ("arm", "pipeline_id")


@dataclass(frozen=True)
class Batch:
    """Rows of one step, checked. columns: the stored columns that have a value; texts: the texts that were given."""

    step: int
    count: int
    sessions: int
    columns: dict[str, pa.Array]
    texts: dict[str, list[str | None]]


def make_batch(step: int, rows: Any, defaults: Mapping[str, str | None]) -> Batch:
    """Checks rows (dicts, or an Arrow table) and turns them into columns.

    defaults: values of `arm` and `pipeline_id` for rows that give none.
    Raises: LedgerError naming the column and the row, counted from 0.
    """
    count, given = _by_column(rows)
    if count == 0:
        raise LedgerError(f"append(step={step}): no rows; append what was scored, or do not call")
    _check_keys(given, rows)
    texts = {name: given.pop(name) for name in TEXT_COLUMNS if name in given}
    for name, values in texts.items():
        as_array(Column(name, pa.string(), "", ""), values)
    for name in _DEFAULTS:
        value = defaults.get(name)
        if value is not None:
            given[name] = [value if v is None else v for v in given.get(name) or [None] * count]
    now = time.time_ns() // 1000
    given["time"] = [now if v is None else v for v in given.get("time") or [None] * count]
    given["step"] = [step] * count
    columns = {}
    for column in STORED:
        if column.name in given:
            array = as_array(column, given[column.name])
            if array.null_count < count:
                columns[column.name] = array
        if column.required and column.name not in columns and column.name != "seq":
            raise LedgerError(f"row 0: column `{column.name}` is missing; every row must have it")
    sessions = given["split"].count("train")
    return Batch(step, count, sessions, columns, {n: v for n, v in texts.items() if any(t is not None for t in v)})


def _by_column(rows: Any) -> tuple[int, dict[str, list[Any]]]:
    if isinstance(rows, pa.Table | pa.RecordBatch):
        return rows.num_rows, {name: rows.column(name).to_pylist() for name in rows.schema.names}
    if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
        raise LedgerError(f"rows are {type(rows).__name__}, not a list of dicts or an Arrow table")
    rows = list(rows)
    for i, row in enumerate(rows):
        if type(row) is not dict and not isinstance(row, Mapping):
            raise LedgerError(f"row {i} is {type(row).__name__}, not a dict")
    return len(rows), _pivot(rows)


def _pivot(dicts: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One list a key, None where a dict has no such key."""
    names = list(dicts[0]) if dicts else []
    first = set(names)
    if len(names) > 1 and all(d.keys() == first for d in dicts):
        return dict(zip(names, map(list, zip(*map(itemgetter(*names), dicts), strict=True)), strict=True))
    names = list(dict.fromkeys(name for d in dicts for name in d))
    return {name: [d.get(name) for d in dicts] for name in names}


def _check_keys(given: Mapping[str, Any], rows: Any) -> None:
    for name in given:
        if name in ROW_KEYS:
            continue
        holders = (
            [] if isinstance(rows, pa.Table | pa.RecordBatch) else [i for i, row in enumerate(rows) if name in row]
        )
        where = f"row {holders[0]}: " if holders else ""
        if name in FILLED:
            raise LedgerError(f"{where}column `{name}` is filled by the ledger; leave it out")
        raise LedgerError(f"{where}unknown column `{name}`; the columns are listed in rewards/schema.py")


# -- one column ----------------------------------------------------------------------------------------------------

_PLAIN: dict[str, frozenset[type]] = {
    "float": frozenset([float, type(None)]),
    "int": frozenset([int, type(None)]),
    "bool": frozenset([bool, type(None)]),
    "text": frozenset([str, type(None)]),
    "time": frozenset([int, type(None)]),
}
_CALLED = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "text": "text",
    "time": "a datetime with a time zone or microseconds since 1970",
}


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_timestamp(kind):
        return "time"
    if pa.types.is_boolean(kind):
        return "bool"
    return "int" if pa.types.is_integer(kind) else "text"


def as_array(column: Column, values: list[Any], where: str = "row") -> pa.Array:
    """The values of one column as an Arrow array of the column's type.

    Raises: LedgerError naming the column and the row whose value does not fit.
    """
    if column.name == "components":
        return _components(values, where)
    kind = _kind(column.type)
    if not _PLAIN[kind].issuperset(map(type, values)):
        values = [_plain(column, kind, value, f"{where} {i}") for i, value in enumerate(values)]
    try:
        array = pa.array(values, type=column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError) as error:
        raise LedgerError(_first_misfit(column, values, where) or f"column `{column.name}`: {error}") from error
    if column.required and array.null_count:
        raise LedgerError(f"{where} {values.index(None)}: column `{column.name}` is missing; every row must have it")
    if column.one_of:
        wrong = set(values) - {None, *column.one_of}
        if wrong:
            value = next(v for v in values if v in wrong)
            raise LedgerError(
                f"{where} {values.index(value)}: column `{column.name}` is {value!r}, not one of "
                f"{', '.join(column.one_of)}"
            )
    return array


def _plain(column: Column, kind: str, value: Any, where: str) -> Any:
    """One value as the plain Python type of its column: numpy scalars, whole numbers in float columns, identifiers."""
    convert: Callable[[Any], Any] | None = None
    if value is None or type(value) in _PLAIN[kind]:
        return value
    if isinstance(value, bool | np.bool_):
        convert = bool if kind == "bool" else None
    elif kind == "float" and isinstance(value, numbers.Real):
        convert = float
    elif kind in ("int", "time") and isinstance(value, numbers.Integral):
        convert = int
    elif (kind == "text" and isinstance(value, str)) or (column.unit == "id" and isinstance(value, numbers.Integral)):
        convert = str
    elif kind == "time" and isinstance(value, datetime) and value.tzinfo is not None:
        return value
    if convert is None:
        raise LedgerError(f"{where}: column `{column.name}` is {type(value).__name__}, not {_CALLED[kind]}")
    return convert(value)


def _first_misfit(column: Column, values: Sequence[Any], where: str) -> str | None:
    for i, value in enumerate(values):
        try:
            pa.array([value], type=column.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
            return f"{where} {i}: column `{column.name}`: {str(value)[:60]!r} does not fit in {column.type}"
    return None


def _components(values: list[Any], where: str) -> pa.Array:
    offsets, owner = [0], list[int]()
    flat: list[Mapping[str, Any]] = []
    for i, entries in enumerate(values):
        if entries is not None:
            if not isinstance(entries, list | tuple):
                raise LedgerError(f"{where} {i}: column `components` is {type(entries).__name__}, not a list of dicts")
            for entry in entries:
                if type(entry) is not dict and not isinstance(entry, Mapping):
                    raise LedgerError(f"{where} {i}: column `components` holds {type(entry).__name__}, not dicts")
            flat += entries
            owner += [i] * len(entries)
        offsets.append(len(flat))
    given = _pivot(flat)
    for name in given.keys() - _COMPONENT_NAMES:
        holder = next(i for i, entry in zip(owner, flat, strict=True) if name in entry)
        raise LedgerError(f"{where} {holder}: unknown key `{name}` in column `components`")
    children = []
    for column in COMPONENT_COLUMNS:
        try:
            children.append(as_array(column, given.get(column.name) or [None] * len(flat), "entry"))
        except LedgerError as error:
            text = str(error)
            entry = text.removeprefix("entry ").split(":")[0]
            row = f"{where} {owner[int(entry)]}, " if entry.isdigit() else ""
            raise LedgerError(f"{row}column `components`, {text}") from error
    struct = pa.StructArray.from_arrays(children, fields=list(COMPONENTS_TYPE.value_type))
    missing = pa.array([v is None for v in values]) if None in values else None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct, type=COMPONENTS_TYPE, mask=missing)


# -- SQLite --------------------------------------------------------------------------------------------------------


def to_sql(name: str, array: pa.Array) -> list[Any]:
    """Values that SQLite stores as they are. NaN becomes the text NaN (SQLite would store null); components JSON."""
    if name == "components":
        return _components_to_json(array)
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    values: list[Any] = array.to_pylist()
    if pa.types.is_floating(array.type) and pc.any(pc.is_nan(array)).as_py():
        values = ["NaN" if v is not None and v != v else v for v in values]
    return values


def from_sql(name: str, values: list[Any], where: str = "row") -> pa.Array:
    """The Arrow array that `to_sql` was made from.

    Raises: LedgerError when a stored value is not one the ledger writes.
    """
    column = BY_NAME[name]
    if name == "components":
        return _components_from_json(values, where)
    if pa.types.is_boolean(column.type):
        values = [bool(v) if v == 0 or v == 1 else v for v in values]
    elif pa.types.is_floating(column.type):
        values = [_NOT_FINITE.get(v, v) if type(v) is str else v for v in values]
    return as_array(column, values, where)


def _components_to_json(array: pa.Array) -> list[str | None]:
    flat = array.flatten()
    encoded: list[list[str]] = []
    complete = True
    for column, child in zip(COMPONENT_COLUMNS, flat.flatten(), strict=True):
        if child.null_count == len(child):
            continue
        complete = complete and child.null_count == 0
        key = f'"{column.name}": '
        values = child.to_pylist()
        if pa.types.is_floating(column.type):
            encoded.append(["" if v is None else key + (repr(v) if math.isfinite(v) else _quoted(v)) for v in values])
        else:
            known = {v: "" if v is None else key + json.dumps(v, ensure_ascii=False) for v in set(values)}
            encoded.append([known[v] for v in values])
    entries = ["{" + ", ".join(p if complete else filter(None, p)) + "}" for p in zip(*encoded, strict=True)]
    lengths = pc.list_value_length(array).to_pylist()
    texts: list[str | None] = []
    start = 0
    for length in lengths:
        texts.append(None if length is None else "[" + ", ".join(entries[start : start + length]) + "]")
        start += length or 0
    return texts


def _quoted(value: float) -> str:
    return '"NaN"' if value != value else '"Infinity"' if value > 0 else '"-Infinity"'


def _components_from_json(values: list[Any], where: str) -> pa.Array:
    try:
        rows = [None if v is None else json.loads(v) for v in values]
    except (ValueError, TypeError) as error:
        raise LedgerError(f"column `components` holds text that is not JSON: {error}") from error
    for row in rows:
        for entry in row if isinstance(row, list) else ():
            if isinstance(entry, dict):
                for key, value in entry.items():
                    if type(value) is str and value in _NOT_FINITE and key in _FLOATS:
                        entry[key] = _NOT_FINITE[value]
    return _components(rows, where)


_FLOATS = frozenset(c.name for c in COMPONENT_COLUMNS if pa.types.is_floating(c.type))
