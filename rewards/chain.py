"""The hash chain: what is hashed, byte by byte, so that another program can recompute it.

A commit is a batch of rows of one step of one writer: h_n = SHA-256(h_(n-1) | preamble | columns). Values are hashed,
never file bytes, so moving rows to another file format changes nothing. Every variable-length part is preceded by its
length as 8 little-endian bytes, so no two batches have the same encoding.

What a chain cannot show without a head kept elsewhere: that a whole chain was rewritten from some commit on with
all its later hashes, or that the end of the chain was cut after the last checkpoint.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_COMMIT = b"reward ledger commit 1"
_EVENT = b"reward ledger event 1"
_GENESIS = b"reward ledger genesis 1"
_TEXT = b"reward ledger text 1"

EVENTS_CHAIN = "events"
EVENTS_GENESIS = hashlib.sha256(_GENESIS + b"events").hexdigest()


def chain_name(run_id: str, attempt: int, writer: int) -> str:
    """The name of a writer's chain. The last two parts are numbers, so two chains never share a name."""
    return f"{run_id}/{attempt}/{writer}"


def genesis(run_id: str, attempt: int, writer: int) -> str:
    """Where the chain of a writer without a parent starts."""
    return hashlib.sha256(_GENESIS + _frames(run_id, attempt, writer)).hexdigest()


def ledger_head(heads: Mapping[str, str]) -> str:
    """One hash for the whole ledger: SHA-256 of the sorted (chain, head) pairs."""
    return hashlib.sha256(b"".join(_frames(name, heads[name]) for name in sorted(heads))).hexdigest()


def text_hash(salt: bytes, column: str, text: str) -> bytes:
    """The salted hash that stands for a text in the chain."""
    return hashlib.sha256(_TEXT + _frames(salt, column) + text.encode()).digest()


def event_hash(previous: str, fields: Iterable[Any]) -> str:
    """The next head of the chain of events; fields are text, whole numbers or None."""
    return hashlib.sha256(_EVENT + bytes.fromhex(previous) + _frames(*fields)).hexdigest()


def commit_hash(
    previous: str, identity: tuple[str, int, int], first_seq: int, count: int, columns: Mapping[str, pa.Array]
) -> str:
    """The next head of a writer's chain.

    identity: run, attempt, writer. columns: every stored column of the batch, hashes of texts included, `seq` left
    out: rows are numbered first_seq, first_seq + 1, ...
    """
    preamble = _COMMIT + bytes.fromhex(previous) + _frames(*identity, first_seq, count)
    return hashlib.sha256(preamble + canonical(columns)).hexdigest()


def canonical(columns: Mapping[str, pa.Array]) -> bytes:
    """The bytes of a batch: columns by name, each with its validity and its normalised values.

    Columns without any value are left out. Numbers are little-endian, every NaN is the same one, -0.0 is 0.0; where
    a value is null its bytes are zero.
    """
    parts: list[bytes] = []
    for name in sorted(columns):
        array = columns[name]
        if array.null_count < len(array):
            parts += (_frame(name.encode()), _frame(_column(array)))
    return b"".join(parts)


def _column(array: pa.Array) -> bytes:
    kind = array.type
    validity = b"\1" if array.null_count == 0 else b"\0" + np.packbits(_numpy(array.is_valid())).tobytes()
    if pa.types.is_list(kind):
        lengths = _numpy(pc.fill_null(pc.list_value_length(array), 0)).astype("<u4")
        flat = array.flatten()
        names = [kind.value_type.field(i).name for i in range(kind.value_type.num_fields)]
        return b"l" + validity + _frame(lengths.tobytes()) + canonical(dict(zip(names, flat.flatten(), strict=True)))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return b"s" + validity + _strings(array)
    if pa.types.is_timestamp(kind):
        array = array.cast(pa.int64())
    values = _numpy(array if array.null_count == 0 else pc.fill_null(array, False if pa.types.is_boolean(kind) else 0))
    if values.dtype.kind == "f":
        values = values + values.dtype.type(0)  # -0.0 + 0.0 is 0.0
        values[np.isnan(values)] = np.nan
        little: bytes = values.astype(f"<f{values.dtype.itemsize}", copy=False).tobytes()
        return b"f" + validity + little
    if values.dtype.kind == "b":
        return b"b" + validity + np.packbits(values).tobytes()
    return b"i" + validity + values.astype("<i8").tobytes()


def _strings(array: pa.Array) -> bytes:
    if array.null_count:
        array = pc.fill_null(array, "" if pa.types.is_string(array.type) else b"")
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, dtype="<i4", count=len(array) + 1, offset=4 * array.offset)
    body: bytes = b"" if data is None else data[int(bounds[0]) : int(bounds[-1])].to_pybytes()
    return np.diff(bounds).astype("<u4").tobytes() + body


def _numpy(array: pa.Array) -> np.ndarray[Any, np.dtype[Any]]:
    values: np.ndarray[Any, np.dtype[Any]] = array.to_numpy(zero_copy_only=False)
    return values


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _frames(*values: Any) -> bytes:
    parts = []
    for value in values:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, int):
            parts.append(b"i" + value.to_bytes(8, "little", signed=True))
        else:
            data = value if isinstance(value, bytes) else value.encode()
            parts.append(b"s" + _frame(data))
    return b"".join(parts)
