"""Components of a file: lists of structs, or flat columns `component.NAME` and `component.NAME.KEY`.

`component.task` holds what the reward function `task` returned (`raw`), `component.task.weight` its weight, and so on
for the keys of a component. A row carries a component when one of its columns is not null there; the order is that of
the columns. A function whose own name ends like a key is written with its key: `component.my.value.raw`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.importers.convert import Misfit, check_allowed, plain_array, rows_of, to_column
from rewards.schema import COMPONENT_COLUMNS, COMPONENTS_TYPE

PREFIX = "component."
KEYS = {column.name: column for column in COMPONENT_COLUMNS}

Flat = dict[str, dict[str, Any]]


def split_name(column: str) -> tuple[str, str] | None:
    """The reward function and the key that a flat column is about; None for a column that is none."""
    name = column.removeprefix(PREFIX)
    if name == column or not name:
        return None
    function, _, key = name.rpartition(".")
    return (function, key) if function and key in KEYS and key != "name" else (name, "raw")


def flat_name(function: str, key: str) -> str:
    """The flat column for a key of a reward function; `split_name` gives both back."""
    if key == "raw" and split_name(PREFIX + function) == (function, "raw"):
        return PREFIX + function
    return f"{PREFIX}{function}.{key}"


def flat_components(columns: Mapping[str, Any], count: int, parse: bool = False) -> pa.Array:
    """One list of components a row from flat columns, which are arrays or lists.

    Raises: Misfit, its message beginning with the column.
    """
    functions: Flat = {}
    for column, values in columns.items():
        function, key = split_name(column) or (column, "raw")
        try:
            array = to_column(KEYS[key], values, parse)
            check_allowed(KEYS[key], array)
        except Misfit as error:
            raise Misfit(error.row, f"column `{column}`: {error}") from error
        functions.setdefault(function, {})[key] = array
    return _woven(functions, count)


def _woven(functions: Flat, count: int) -> pa.Array:
    """Rows of lists from one column a function and key."""
    present = np.zeros((count, len(functions)), dtype=bool)
    for j, keys in enumerate(functions.values()):
        for array in keys.values():
            present[:, j] |= array.is_valid().to_numpy(zero_copy_only=False)
    rows, owners = np.nonzero(present)
    places = pa.array(owners * count + rows)  # in the columns of one key, laid end to end
    used = [key for key in KEYS if key == "name" or any(key in keys for keys in functions.values())]
    children = [pa.array(list(functions)).take(pa.array(owners))]
    for key in used[1:]:
        parts = [keys.get(key, pa.nulls(count, KEYS[key].type)) for keys in functions.values()]
        children.append(pa.concat_arrays(parts).take(places))
    struct = pa.StructArray.from_arrays(children, fields=[pa.field(key, KEYS[key].type) for key in used])
    offsets = np.concatenate(([0], np.cumsum(present.sum(axis=1)))).astype(np.int32)
    return _lists(offsets, struct, ~present.any(axis=1))


def nested_components(values: Any) -> pa.Array:
    """Lists of structs with any of a component's keys; arrays, or lists of lists of dicts.

    Raises: Misfit, its message beginning with the column.
    """
    if isinstance(values, list):
        try:
            array = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
            return _row_by_row(values)
    else:
        array = plain_array(values)
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), COMPONENTS_TYPE)
    if array.type == COMPONENTS_TYPE and array.offset == 0 and not array.flatten().field("name").null_count:
        flat = array.flatten()
    else:
        flat = None
    return _converted(array) if flat is None else _allowed(array, flat)


def _allowed(array: pa.Array, flat: pa.Array) -> pa.Array:
    for name in ("role", "status"):
        try:
            check_allowed(KEYS[name], flat.field(name))
        except Misfit as error:
            raise _placed(error, _offsets(array), f"key `{name}`: {error}") from error
    return array


def _row_by_row(values: list[Any]) -> pa.Array:
    arrays = []
    for i, value in enumerate(values):
        try:
            one = pa.array([value])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
            one = _entry_by_entry(i, value)
        try:
            arrays.append(full(nested_components(one)))
        except Misfit as error:
            raise Misfit(i, str(error)) from error
    return pa.concat_arrays(arrays)


def _entry_by_entry(row: int, entries: Any) -> pa.Array:
    """For a row whose entries give one key values of several kinds: NaN as a word beside numbers."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Misfit(row, "column `components`: not a list of objects")
    parts = [full(nested_components(pa.array([[entry]]))).flatten() for entry in entries]
    return pa.ListArray.from_arrays(pa.array([0, len(parts)], pa.int32()), pa.concat_arrays(parts))


def _converted(array: pa.Array) -> pa.Array:
    kind = array.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not (
        pa.types.is_struct(kind.value_type) or pa.types.is_null(kind.value_type)
    ):
        raise Misfit(max(pc.index(pc.is_valid(array), True).as_py(), 0), "column `components`: not a list of objects")
    offsets = _offsets(array)
    missing = array.is_null().to_numpy(zero_copy_only=False)
    flat = array.flatten()
    if pa.types.is_null(flat.type):
        if len(flat):
            raise Misfit(rows_of(offsets, 0), "column `components` holds an entry that is null")
        flat = pa.array([], pa.struct([pa.field("name", pa.string())]))
    if flat.null_count:
        entry = pc.index(flat.is_null(), True).as_py()
        raise Misfit(rows_of(offsets, entry), "column `components` holds an entry that is null")
    given = dict(zip((field.name for field in flat.type), flat.flatten(), strict=True))
    for name in given.keys() - KEYS.keys():
        entry = max(pc.index(given[name].is_valid(), True).as_py(), 0)
        raise Misfit(rows_of(offsets, entry), f"column `components` has an unknown key `{name}`: keys are {_keys()}")
    given.setdefault("name", pa.nulls(len(flat), pa.string()))
    fields, children = [], []
    for name, column in KEYS.items():
        if name in given:
            try:
                child = to_column(column, given[name])
                check_allowed(column, child)
            except Misfit as error:
                raise _placed(error, offsets, f"key `{name}`: {error}") from error
            fields.append(pa.field(name, column.type))
            children.append(child)
    return _lists(offsets.astype(np.int32), pa.StructArray.from_arrays(children, fields=fields), missing)


def _placed(error: Misfit, offsets: Any, said: str) -> Misfit:
    row = rows_of(offsets, error.row)
    return Misfit(row, f"column `components`, entry {error.row - int(offsets[row])}, {said}")


def _keys() -> str:
    return ", ".join(KEYS)


def _offsets(array: pa.Array) -> Any:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def _lists(offsets: Any, struct: pa.Array, missing: Any) -> pa.Array:
    mask = pa.array(missing) if missing.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct, type=pa.list_(struct.type), mask=mask)


def full(array: pa.Array) -> pa.Array:
    """Lists of components with all their keys, null where they were not given."""
    if array.type == COMPONENTS_TYPE:
        return array
    flat = array.flatten()
    given = dict(zip((field.name for field in flat.type), flat.flatten(), strict=True))
    children = [given.get(name, pa.nulls(len(flat), column.type)) for name, column in KEYS.items()]
    struct = pa.StructArray.from_arrays(children, fields=list(COMPONENTS_TYPE.value_type))
    missing = array.is_null().to_numpy(zero_copy_only=False)
    return _lists(_offsets(array).astype(np.int32), struct, missing).cast(COMPONENTS_TYPE)
