"""The values of one column as an Arrow array of the column's type, or an error that names the row."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import LedgerError
from rewards.schema import COMPONENT_COLUMNS, Column

_COMPONENTS = {column.name: column for column in COMPONENT_COLUMNS}

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
_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError)


def as_array(column: Column, values: Any, where: str = "row", count: int | None = None) -> pa.Array:
    """The values of one column as an Arrow array of the column's type.

    values: a list, a numpy array of one dimension, an Arrow array; or one value, which is repeated `count` times.
    Raises: LedgerError naming the column and the row whose value does not fit.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    elif isinstance(values, np.ndarray):
        values = _from_numpy(column, values, where)
    if isinstance(values, pa.Array):
        array = values if has_type(column, values.type) else _from_arrow(column, values, where)
        _check_bytes(column, array)
        check_array(column, array, where)
        return array
    if column.name == "components":
        return _components(list(values) if isinstance(values, tuple) else values, where)
    if not isinstance(values, list | tuple):
        return pa.repeat(as_array(column, [values], where)[0], 1 if count is None else count)
    kind = _kind(column.type)
    if not _PLAIN[kind].issuperset(map(type, values)):
        values = [_plain(column, kind, value, f"{where} {i}") for i, value in enumerate(values)]
    try:
        array = pa.array(values, type=column.type)
    except _MISFITS as error:
        raise LedgerError(_first_misfit(column, values, where) or f"column `{column.name}`: {error}") from error
    if column.required or column.one_of:
        check_array(column, array, where)
    return array


def _check_bytes(column: Column, array: pa.Array) -> None:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise LedgerError(f"column `{column.name}` is not valid: {str(error).splitlines()[0]}") from error


def has_type(column: Column, kind: pa.DataType) -> bool:
    """Whether arrays of a type are stored as they are."""
    return bool(kind == column.type or (column.name == "components" and _is_known(kind)))


def check_array(column: Column, array: pa.Array, where: str) -> None:
    """Raises LedgerError where a value is missing that must be there, or is not one of those there can be."""
    if column.name == "components":
        _check_components(array, where)
        return
    if column.required and array.null_count:
        row = pc.index(pc.is_null(array), True).as_py()
        raise LedgerError(f"{where} {row}: column `{column.name}` is missing; every row must have it")
    if column.one_of:
        if constant(array) in column.one_of:
            return
        strange = set(array.unique().to_pylist()) - {None, *column.one_of}
        if strange:
            row, value = next((i, v) for i, v in enumerate(array.to_pylist()) if v in strange)
            raise LedgerError(
                f"{where} {row}: column `{column.name}` is {value!r}, not one of {', '.join(column.one_of)}"
            )


def constant(array: pa.Array) -> str | None:
    """The text that every row has; None where there is none, or it is not told at a glance."""
    _, offsets, data = array.buffers()
    if array.null_count or not len(array) or data is None:
        return None
    bounds = np.frombuffer(offsets, np.int32, len(array) + 1, 4 * array.offset)
    start, second, end = int(bounds[0]), int(bounds[1]), int(bounds[-1])
    first = data[start:second].to_pybytes()
    if end - start != len(first) * len(array) or not (bounds[1:] - bounds[:-1] == len(first)).all():
        return None
    return first.decode() if data[start:end].to_pybytes() == first * len(array) else None


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_timestamp(kind):
        return "time"
    if pa.types.is_boolean(kind):
        return "bool"
    return "int" if pa.types.is_integer(kind) else "text"


# -- numpy and Arrow -------------------------------------------------------------------------------------------------


def _from_numpy(column: Column, values: np.ndarray[Any, Any], where: str) -> Any:
    """An Arrow array of numbers and truth values; a list for the rest."""
    if values.ndim != 1:
        raise LedgerError(f"column `{column.name}` has the shape {values.shape}, not one value a {where}")
    if values.dtype.kind in "fiub":
        return pa.array(values.copy())  # the caller may go on writing to it
    return values.tolist()


def _from_arrow(column: Column, array: pa.Array, where: str) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), column.type)
    if column.name == "components":
        return _components_from_arrow(array, where)
    if not _may_become(array.type, column):
        wanted = _CALLED[_kind(column.type)]
        raise LedgerError(f"column `{column.name}` is {array.type}, not {wanted}; convert it first")
    try:
        return array.cast(column.type)
    except _MISFITS as error:
        raise LedgerError(
            _first_misfit(column, array.to_pylist(), where) or f"column `{column.name}`: {error}"
        ) from error


def _may_become(kind: pa.DataType, column: Column) -> bool:
    """Whether values of a type are meant to be values of the column: nothing is rounded, parsed or guessed."""
    whole = pa.types.is_integer(kind)
    wanted = _kind(column.type)
    if wanted == "text":
        texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        return bool(texts or (whole and column.unit == "id"))
    if wanted == "float":
        return bool(whole or pa.types.is_floating(kind))
    if wanted == "time":
        return bool(whole or (pa.types.is_timestamp(kind) and kind.tz is not None))
    return bool(whole if wanted == "int" else pa.types.is_boolean(kind))


@lru_cache(maxsize=64)
def _is_known(kind: pa.DataType) -> bool:
    """Whether a type is that of components of which some keys are not given."""
    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    given = {field.name: field.type for field in kind.value_type}
    return "name" in given and all(n in _COMPONENTS and _COMPONENTS[n].type == t for n, t in given.items())


def _check_components(array: pa.Array, where: str) -> None:
    """The rules of the single keys, for lists of structs of any subset of them."""
    flat = array.flatten()
    for field, child in zip(flat.type, flat.flatten(), strict=True):
        column = _COMPONENTS[field.name]
        if column.required or column.one_of:
            try:
                check_array(column, child, "entry")
            except LedgerError as error:
                raise LedgerError(f"column `components`, {error} (entries of all {where}s counted)") from error


def _components_from_arrow(array: pa.Array, where: str) -> pa.Array:
    kind = array.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_struct(kind.value_type):
        raise LedgerError(f"column `components` is {kind}, not a list of structs")
    if not pa.types.is_list(kind):
        array = array.cast(pa.list_(kind.value_type))
    flat = array.flatten()
    given = dict(zip((field.name for field in flat.type), flat.flatten(), strict=True))
    unknown = sorted(given.keys() - _COMPONENTS.keys())
    if unknown:
        raise LedgerError(f"unknown key `{unknown[0]}` in column `components`")
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    missing = pc.is_null(array) if array.null_count else None
    return _assembled(given, offsets, np.repeat(np.arange(len(array)), lengths), missing, where)


# -- Python values ---------------------------------------------------------------------------------------------------


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
    try:
        return convert(value)
    except OverflowError as error:
        raise LedgerError(f"{where}: column `{column.name}`: {str(value)[:20]}... does not fit") from error


def _first_misfit(column: Column, values: Sequence[Any], where: str) -> str | None:
    for i, value in enumerate(values):
        try:
            pa.array([value], type=column.type)
        except _MISFITS:
            return f"{where} {i}: column `{column.name}`: {str(value)[:60]!r} does not fit in {column.type}"
    return None


def _components(values: Any, where: str) -> pa.Array:
    if not isinstance(values, list):
        raise LedgerError(f"column `components` is {type(values).__name__}, not a list of dicts a {where}")
    offsets, owner = [0], list[int]()
    flat: list[Mapping[str, Any]] = []
    missing = []
    for i, entries in enumerate(values):
        if entries is not None:
            if not isinstance(entries, list | tuple):
                raise LedgerError(f"{where} {i}: column `components` is {type(entries).__name__}, not a list of dicts")
            for entry in entries:
                if type(entry) is not dict and not isinstance(entry, Mapping):
                    raise LedgerError(f"{where} {i}: column `components` holds {type(entry).__name__}, not dicts")
            flat += entries
            owner += [i] * len(entries)
        missing.append(entries is None)
        offsets.append(len(flat))
    from rewards.rows import pivot

    given = pivot(flat)
    for name in given.keys() - _COMPONENTS.keys():
        holder = next(i for i, entry in zip(owner, flat, strict=True) if name in entry)
        raise LedgerError(f"{where} {holder}: unknown key `{name}` in column `components`")
    return _assembled(given, offsets, owner, pa.array(missing) if any(missing) else None, where)


def _assembled(given: Mapping[str, Any], offsets: Any, owner: Any, missing: pa.Array | None, where: str) -> pa.Array:
    """The list array over the children that were given; those that were not have no bytes until a reader asks."""
    names, children = [], []
    for name, column in _COMPONENTS.items():
        if name not in given:
            if column.required and len(owner):
                raise LedgerError(f"{where} {owner[0]}, column `components`, entry 0: column `{name}` is missing")
            if not column.required:
                continue
        try:
            child = as_array(column, given.get(name, []), "entry")
        except LedgerError as error:
            text = str(error)
            entry = text.removeprefix("entry ").split(":")[0]
            row = f"{where} {owner[int(entry)]}, " if entry.isdigit() else ""
            raise LedgerError(f"{row}column `components`, {text}") from error
        if column.required or child.null_count < len(child):
            names.append(pa.field(name, column.type))
            children.append(child)
    struct = pa.StructArray.from_arrays(children, fields=names)
    kind = pa.list_(struct.type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct, type=kind, mask=missing)


def full_components(array: pa.Array) -> pa.Array:
    """The components with all their keys, null where they were not given."""
    from rewards.schema import COMPONENTS_TYPE

    if array.type == COMPONENTS_TYPE:
        return array
    flat = array.flatten()
    given = dict(zip((field.name for field in flat.type), flat.flatten(), strict=True))
    children = [given.get(c.name) for c in COMPONENT_COLUMNS]
    filled = [
        pa.nulls(len(flat), column.type) if child is None else child
        for column, child in zip(COMPONENT_COLUMNS, children, strict=True)
    ]
    struct = pa.StructArray.from_arrays(filled, fields=list(COMPONENTS_TYPE.value_type))
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    missing = pc.is_null(array) if array.null_count else None
    return pa.ListArray.from_arrays(offsets, struct, type=COMPONENTS_TYPE, mask=missing)
