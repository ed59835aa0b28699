"""Values of a file as values of a ledger's column: nothing is guessed, rounded away or clamped.

What becomes what: whole numbers become floats and, in text columns, text; floats without a fraction become whole
numbers; 0 and 1 become false and true; decimals become floats; a conversation becomes text (the content of its only
message, else JSON). A single precision column keeps single precision. Times need a zone (ISO 8601 text, or an Arrow
timestamp), or are whole microseconds since 1970. Only a CSV file's cells are parsed: there they are all text, and
12.0 is a whole number. NaN is a value of its own, not a missing one; JSON writes it and the infinities as NaN or "NaN".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import UserError
from rewards.schema import TEXT_COLUMNS, Column

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_EXACT = 2.0**53 - 1  # a double holds every whole number up to here, and none rounds to it
_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError)

Cast = Callable[[pa.Array], pa.Array]


class Misfit(UserError):
    """A value that its column cannot hold. row: its place in the array."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def to_column(column: Column, values: Any, parse: bool = False) -> pa.Array:
    """The values as an array of the column's type, or of a narrower struct for lists of structs.

    values: a list of Python values, or an Arrow array. parse: text may stand for numbers, true and false (CSV).
    Raises: Misfit for the first value that does not fit.
    """
    if isinstance(values, list):
        try:
            values = pa.array(values)
        except _MISFITS:
            return _one_by_one(column, values)
    array = plain_array(values)
    if array.type == column.type:
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), column.type)
    return _checked(column, array, _cast(column, array.type, parse))


def plain_array(values: Any) -> pa.Array:
    """One array without dictionary and without the larger and the view forms of text."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):  # combining keeps chunks where one array would be too large
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    return array


def _one_by_one(column: Column, values: Sequence[Any]) -> pa.Array:
    """For lists that Arrow takes for no single type: each value may still be one of the column's."""
    arrays = []
    for i, value in enumerate(values):
        try:
            arrays.append(to_column(column, pa.array([value])))
        except Misfit as error:
            raise Misfit(i, str(error)) from error
        except _MISFITS as error:
            raise Misfit(i, f"{_shown(value)} does not fit in {column.type}") from error
    return pa.concat_arrays(arrays)


def _checked(column: Column, array: pa.Array, cast: Cast | None) -> pa.Array:
    if cast is None:
        row = pc.index(pc.is_valid(array), True).as_py()
        if row < 0:
            return pa.nulls(len(array), column.type)
        raise Misfit(row, f"{_shown(array[row].as_py())} is {_name(array.type)}, not {_wanted(column)}")
    try:
        return cast(array)
    except _MISFITS:
        row = _first_misfit(array, cast)
        raise Misfit(row, f"{_shown(array[row].as_py())} is not {_wanted(column)}") from None


def _first_misfit(array: pa.Array, cast: Cast) -> int:
    """The first row with which a cast fails; it does with the whole array."""
    good, bad = 0, len(array)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            cast(array.slice(good, middle - good))
            good = middle
        except _MISFITS:
            bad = middle
    return good


# -- which cast ------------------------------------------------------------------------------------------------------


def _cast(column: Column, source: pa.DataType, parse: bool) -> Cast | None:
    target = column.type
    is_text = pa.types.is_string(source)
    if pa.types.is_floating(target):
        return _to_float(target, source, parse)
    if pa.types.is_boolean(target):
        if is_text:
            return _parsed_truth if parse else None
        return _truth if _is_number(source) else None
    if pa.types.is_timestamp(target):
        zoned = pa.types.is_timestamp(source) and source.tz is not None
        fits = zoned or is_text or pa.types.is_integer(source)
        return (lambda array: array.cast(target, safe=not zoned)) if fits else None
    if pa.types.is_integer(target):
        if is_text:
            return (lambda array: _parsed_whole(array, target)) if parse else None
        return (lambda array: array.cast(target)) if _is_number(source) else None
    if pa.types.is_integer(source):
        return lambda array: array.cast(pa.string())
    return _conversations if column.name in TEXT_COLUMNS and _is_conversation(source) else None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _to_float(target: pa.DataType, source: pa.DataType, parse: bool) -> Cast | None:
    if pa.types.is_string(source) and not parse:
        return _words
    if not _is_number(source) and not pa.types.is_string(source):
        return None

    def cast(array: pa.Array) -> pa.Array:
        wide = array.cast(pa.float64(), safe=pa.types.is_integer(array.type))
        if target == pa.float64():
            return wide
        narrow = wide.cast(target, safe=False)
        if pc.any(pc.and_(pc.is_inf(narrow), pc.is_finite(wide))).as_py():
            raise pa.ArrowInvalid("too large for single precision")
        return narrow

    return cast


def _words(array: pa.Array) -> pa.Array:
    """NaN and the infinities, which JSON has no numbers for."""
    strange = pc.invert(pc.is_in(array, pa.array([*_NOT_FINITE, None], pa.string())))
    if pc.any(strange).as_py():
        raise pa.ArrowInvalid("text")
    return pa.array([_NOT_FINITE.get(value) for value in array.to_pylist()], pa.float64())


def _parsed_whole(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Whole numbers, also as 12.0: programs that have no missing whole numbers write them so."""
    if pc.any(pc.match_substring_regex(array, "[xX]")).as_py():
        raise pa.ArrowInvalid("a number to another base")
    try:
        return array.cast(target)
    except pa.ArrowInvalid:
        numbers = array.cast(pa.float64())
        if pc.any(pc.greater(pc.abs(numbers), _EXACT)).as_py():
            raise
        return numbers.cast(target)


def _parsed_truth(array: pa.Array) -> pa.Array:
    try:
        return array.cast(pa.bool_())
    except pa.ArrowInvalid:
        return _truth(array.cast(pa.float64()))


def _truth(array: pa.Array) -> pa.Array:
    numbers = array.cast(pa.float64())
    if pc.any(pc.and_(pc.not_equal(numbers, 0), pc.not_equal(numbers, 1))).as_py():
        raise pa.ArrowInvalid("neither 0 nor 1")
    return pc.equal(numbers, 1)


# -- conversations ---------------------------------------------------------------------------------------------------


def _is_conversation(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and pa.types.is_struct(kind.value_type) and kind.value_type.get_field_index("content") >= 0)


def _conversations(array: pa.Array) -> pa.Array:
    return pa.array([conversation_text(value) for value in array.to_pylist()], pa.string())


def conversation_text(value: Any) -> str | None:
    """Text as it is; of a conversation with one message in plain text, its content; any other as JSON."""
    if value is None or isinstance(value, str):
        return value
    messages = [{key: part for key, part in turn.items() if part is not None} for turn in value]
    if len(messages) == 1 and isinstance(messages[0].get("content"), str) and messages[0].keys() <= {"role", "content"}:
        return str(messages[0]["content"])
    return json.dumps(messages, ensure_ascii=False, default=str)


# -- words for people ------------------------------------------------------------------------------------------------


def _wanted(column: Column) -> str:
    kind = column.type
    if pa.types.is_floating(kind):
        return "a number"
    if pa.types.is_boolean(kind):
        return "true or false"
    if pa.types.is_timestamp(kind):
        return "a time with its zone, as in 2026-01-31T12:00:00Z"
    if pa.types.is_integer(kind):
        return f"a whole number of {kind.bit_width} bits"
    return "text"


def _name(kind: pa.DataType) -> str:
    if pa.types.is_string(kind):
        return "text"
    if pa.types.is_timestamp(kind):
        return "a time without a zone"
    if pa.types.is_struct(kind) or pa.types.is_nested(kind):
        return "a nested value"
    return "true or false" if pa.types.is_boolean(kind) else str(kind)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_allowed(column: Column, array: pa.Array) -> None:
    """Checks what a required or a closed column may hold.

    Raises: Misfit for the first value that may not stand there.
    """
    if column.required and array.null_count:
        row = pc.index(pc.is_null(array), True).as_py()
        raise Misfit(row, "is empty; every row must have it")
    if column.one_of:
        strange = pc.invert(pc.is_in(array, pa.array([*column.one_of, None], pa.string())))
        if pc.any(strange).as_py():
            row = pc.index(strange, True).as_py()
            raise Misfit(row, f"{_shown(array[row].as_py())} is not one of {', '.join(column.one_of)}")


def rows_of(offsets: np.ndarray[Any, Any], entry: int) -> int:
    """The row whose list holds an entry. offsets: of the lists, one more than rows."""
    return int(np.searchsorted(offsets, entry, side="right")) - 1
