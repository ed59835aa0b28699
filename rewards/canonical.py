"""The canonical bytes of rows: columns by name, each with its validity and its normalised values.

Columns without any value among the rows are left out. Numbers are little-endian, every NaN is the same one, -0.0 is
0.0; where a value is null its bytes are zero. A source normalises a column once; every commit then takes its slice.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Bytes = bytes | memoryview


class Source(Protocol):
    """One column, ready to be cut into commits."""

    name: bytes

    def empty(self, start: int, stop: int) -> bool:
        """Whether no row of the slice has a value."""

    def parts(self, start: int, stop: int) -> list[Bytes]:
        """The slice's bytes, in pieces."""


def canonical(sources: Iterable[Source], start: int, stop: int) -> list[Bytes]:
    """The bytes of the rows `start` to `stop`, in pieces; sources are in the order of their names."""
    pieces: list[Bytes] = []
    for source in sources:
        if not source.empty(start, stop):
            parts = source.parts(start, stop)
            pieces.append(source.name)
            pieces.append(sum(map(len, parts)).to_bytes(8, "little"))
            pieces += parts
    return pieces


def sources_of(columns: Mapping[str, pa.Array]) -> list[Source]:
    """The sources of a batch's columns, in the order in which they are hashed."""
    with np.errstate(over="ignore", invalid="ignore"):
        return [column_source(name, columns[name]) for name in sorted(columns)]


def column_source(name: str, array: pa.Array) -> Source:
    """The source for a column of any type that the ledger stores."""
    return _SOURCES[array.type.id](name, array)


class _Column:
    """What all kinds share: the framed name, and which rows have a value."""

    tag = b""

    def __init__(self, name: str, array: pa.Array) -> None:
        encoded = name.encode()
        self.name = len(encoded).to_bytes(8, "little") + encoded
        self._valid = None if array.null_count == 0 else _numpy(array.is_valid())
        self._whole = self.tag + b"\1"

    def empty(self, start: int, stop: int) -> bool:
        return start == stop or (self._valid is not None and not self._valid[start:stop].any())

    def _validity(self, start: int, stop: int) -> bytes:
        if self._valid is None:
            return self._whole
        rows = self._valid[start:stop]
        return self._whole if rows.all() else self.tag + b"\0" + np.packbits(rows).tobytes()


class _Numbers(_Column):
    dtype = "<i8"

    def __init__(self, name: str, array: pa.Array) -> None:
        super().__init__(name, array)
        if self._valid is not None:
            array = pc.fill_null(array, 0)
        dtype = np.dtype(self.dtype)
        values = np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
        self._set(self._normal(values))

    def _normal(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return values

    def _set(self, values: np.ndarray[Any, Any]) -> None:
        self._width = values.itemsize
        self._data = values.data.cast("B") if len(values) else memoryview(b"")

    def parts(self, start: int, stop: int) -> list[Bytes]:
        return [self._validity(start, stop), self._data[start * self._width : stop * self._width]]


class _Ints(_Numbers):
    tag = b"i"


class _SmallInts(_Ints):
    dtype = "<i4"

    def _normal(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return values.astype("<i8")


class _Times(_Ints):
    def __init__(self, name: str, array: pa.Array) -> None:
        super().__init__(name, array.view(pa.int64()))


class _Floats(_Numbers):
    tag = b"f"
    dtype = "<f8"

    def _normal(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        values = values + values.dtype.type(0)  # -0.0 + 0.0 is 0.0
        square = np.dot(values, values)  # NaN iff a value is: much cheaper than asking each
        if square != square:
            values[np.isnan(values)] = np.nan
        return values


class _SmallFloats(_Floats):
    dtype = "<f4"


class _Bits(_Column):
    tag = b"b"

    def __init__(self, name: str, array: pa.Array) -> None:
        super().__init__(name, array)
        self._values = _numpy(array if self._valid is None else pc.fill_null(array, False))

    def parts(self, start: int, stop: int) -> list[Bytes]:
        return [self._validity(start, stop), np.packbits(self._values[start:stop]).tobytes()]


class _Strings(_Column):
    tag = b"s"

    def __init__(self, name: str, array: pa.Array) -> None:
        super().__init__(name, array)
        if self._valid is not None:
            array = pc.fill_null(array, "" if pa.types.is_string(array.type) else b"")
        _, offsets, data = array.buffers()
        self._bounds = np.frombuffer(offsets, "<i4", len(array) + 1, 4 * array.offset)
        self._lengths = memoryview((self._bounds[1:] - self._bounds[:-1]).astype("<u4", copy=False)).cast("B")
        self._data = memoryview(b"" if data is None else data)

    def parts(self, start: int, stop: int) -> list[Bytes]:
        bounds = self._bounds
        return [
            self._validity(start, stop),
            self._lengths[4 * start : 4 * stop],
            self._data[bounds[start] : bounds[stop]],
        ]


class _Lists(_Column):
    tag = b"l"

    def __init__(self, name: str, array: pa.Array) -> None:
        super().__init__(name, array)
        bounds = np.frombuffer(array.buffers()[1], "<i4", len(array) + 1, 4 * array.offset)
        lengths = bounds[1:] - bounds[:-1]
        if self._valid is None:
            flat = array.values.slice(int(bounds[0]), int(bounds[-1] - bounds[0]))
            self._bounds = bounds - bounds[0]
        else:
            lengths = np.where(self._valid, lengths, 0)
            flat = array.flatten()  # skips what stands where a row is null
            self._bounds = np.concatenate(([0], np.cumsum(lengths)))
        self._lengths = memoryview(lengths.astype("<u4", copy=False)).cast("B")
        children = [(field.name, child) for field, child in zip(flat.type, flat.flatten(), strict=True)]
        self._children = [
            column_source(name, child)
            for name, child in sorted(children, key=lambda pair: pair[0])
            if child.null_count < len(child)
        ]

    def parts(self, start: int, stop: int) -> list[Bytes]:
        lengths = self._lengths[4 * start : 4 * stop]
        rows = canonical(self._children, int(self._bounds[start]), int(self._bounds[stop]))
        return [self._validity(start, stop), len(lengths).to_bytes(8, "little"), lengths, *rows]


_SOURCES: dict[int, Callable[[str, pa.Array], Source]] = {
    pa.float64().id: _Floats,
    pa.float32().id: _SmallFloats,
    pa.int64().id: _Ints,
    pa.int32().id: _SmallInts,
    pa.timestamp("us", tz="UTC").id: _Times,
    pa.bool_().id: _Bits,
    pa.string().id: _Strings,
    pa.binary().id: _Strings,
    pa.list_(pa.null()).id: _Lists,
}


def _numpy(array: pa.Array) -> np.ndarray[Any, np.dtype[Any]]:
    values: np.ndarray[Any, np.dtype[Any]] = array.to_numpy(zero_copy_only=False)
    return values
