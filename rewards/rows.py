"""Session rows on their way in: dicts, columns or Arrow, checked column by column and turned into Arrow arrays."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import LedgerError
from rewards.schema import BY_NAME, FILLED, ROW_KEYS, STORED, TEXT_COLUMNS, Column
from rewards.values import as_array, check_array, constant, has_type

_DEFAULTS = ("arm", "pipeline_id")
_REQUIRED = {c.name for c in STORED if c.required and c.source == "caller"} - {"time"}
_TEXTS = {name: Column(name, pa.string(), "", "") for name in TEXT_COLUMNS}


@dataclass(frozen=True)
class Packed:
    """Rows as bytes of their own: what the caller does to his arrays later changes nothing."""

    schema: pa.Schema
    data: pa.Buffer

    @classmethod
    def of(cls, rows: pa.RecordBatch) -> "Packed":
        """The rows, copied."""
        return cls(rows.schema, rows.serialize())

    def unpacked(self) -> pa.RecordBatch:
        """The rows, as they were."""
        return pa.ipc.read_record_batch(self.data, self.schema)


@dataclass(frozen=True)
class Batch:
    """Rows of one commit, checked.

    step: of all rows, or the highest where the rows bring their own; first_step: the lowest. rows: stored columns
    without seq; without step and time where these are the commit's. texts: those that were given.
    """

    first_step: int
    step: int
    count: int
    sessions: int
    rows: Packed
    texts: Packed | None


def make_batch(step: int, rows: Any, defaults: Mapping[str, str | None]) -> Batch:
    """Checks the rows of one step.

    rows: dicts; a dict of columns (lists, numpy arrays, or one value for all rows); or an Arrow table.
    defaults: values of `arm` and `pipeline_id` for rows that give none.
    Raises: LedgerError naming the column and the row, counted from 0.
    """
    if isinstance(rows, pa.Table | pa.RecordBatch) and rows.num_rows:
        batch = _ready(step, rows, defaults)
        if batch is not None:
            return batch
    count, given = _by_column(rows)
    if count == 0:
        raise LedgerError(f"append(step={step}): no rows; append what was scored, or do not call")
    _check_keys(given, rows)
    whole = _checked(count, given, defaults)
    sessions = pc.sum(pc.equal(whole.rows.column("split"), "train")).as_py()
    texts = None if whole.texts is None else Packed.of(whole.texts)
    return Batch(step, step, count, sessions, Packed.of(whole.rows), texts)


def _ready(step: int, rows: pa.Table | pa.RecordBatch, defaults: Mapping[str, str | None]) -> Batch | None:
    """The batch of rows whose columns have the ledger's types already; None where something must be converted.

    A trainer appends batches of one schema, so what the schema says is worked out once.
    """
    plain = _plain(rows.schema)
    if plain is None:
        return None
    if isinstance(rows, pa.Table):
        rows = (rows if rows.column(0).num_chunks == 1 else rows.combine_chunks()).to_batches()[0]
    _check_valid(rows)
    stored = rows.select(plain.stored)
    for name in plain.present:
        _check_present(BY_NAME[name], stored.column(name))
    for name in plain.ruled:
        check_array(BY_NAME[name], stored.column(name), "row")
    splits = stored.column("split")
    sessions = rows.num_rows if constant(splits) == "train" else pc.sum(pc.equal(splits, "train")).as_py()
    if "time" in plain.stored and stored.column("time").null_count:
        return None
    for name, default in defaults.items():
        if default is None:
            continue
        if name in plain.stored:
            return None
        stored = stored.append_column(name, pa.repeat(default, rows.num_rows))
    texts = Packed.of(rows.select(plain.texts)) if plain.texts else None
    return Batch(step, step, rows.num_rows, sessions, Packed.of(stored), texts)


def _check_valid(rows: pa.RecordBatch) -> None:
    """Raises LedgerError for bytes that are no text, or offsets that lead nowhere: what would be stored unreadable."""
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise LedgerError(f"the table is not valid: {str(error).splitlines()[0]}; nothing of it is written") from error


@dataclass(frozen=True)
class _Plain:
    """A schema whose columns are as the ledger stores them.

    stored, texts: names. present: must have a value in every row. ruled: whose values have other rules.
    """

    stored: list[str]
    texts: list[str]
    present: list[str]
    ruled: list[str]


_known: list[tuple[pa.Schema, _Plain | None]] = []  # newest first; comparing schemas is far cheaper than hashing one


def _plain(schema: pa.Schema) -> _Plain | None:
    for known, plain in _known:
        if schema.equals(known):
            return plain
    found = _work_out(schema)
    _known[:] = [(schema, found), *_known[:7]]
    return found


def _work_out(schema: pa.Schema) -> _Plain | None:
    kinds = dict(zip(schema.names, schema.types, strict=True))
    for name, kind in kinds.items():
        column = _TEXTS.get(name) or (BY_NAME.get(name) if name in ROW_KEYS else None)
        if column is None or not has_type(column, kind):
            return None
    if len(kinds) < len(schema.names) or not kinds.keys() >= _REQUIRED:
        return None
    stored = [name for name in kinds if name not in _TEXTS]
    ruled = [n for n in stored if BY_NAME[n].one_of or n == "components"]
    return _Plain(stored, [name for name in kinds if name in _TEXTS], sorted(_REQUIRED), ruled)


def _now() -> pa.Scalar:
    return pa.scalar(time.time_ns() // 1000, BY_NAME["time"].type)


def table_batches(table: pa.Table, defaults: Mapping[str, str | None], rows_a_batch: int) -> list[Batch]:
    """Checks rows that bring their own steps, which must not go backwards, and cuts them into batches.

    Raises: LedgerError naming the column and the row, counted from 0.
    """
    if table.num_rows == 0:
        raise LedgerError("append_table: no rows; append what was scored, or do not call")
    _check_unique(table.schema.names)
    given = dict(zip(table.schema.names, table.columns, strict=True))
    steps = given.pop("step", None)
    if steps is None:
        raise LedgerError("append_table: column `step` is missing; every row must have it")
    steps = as_array(next(c for c in STORED if c.name == "step"), steps)
    values = steps.to_numpy()
    if values[0] < 0 or (np.diff(values) < 0).any():
        row = int(np.argmax(np.diff(values, prepend=0) < 0))
        raise LedgerError(f"row {row}: column `step` is {values[row]}; steps count from 0 and do not go backwards")
    _check_keys(given, table)
    whole = _checked(table.num_rows, given, defaults, steps)
    return [_cut(whole, start, rows_a_batch) for start in range(0, table.num_rows, rows_a_batch)]


def _cut(whole: "_Checked", start: int, count: int) -> Batch:
    rows = whole.rows.slice(start, count)
    sessions = pc.sum(pc.equal(rows.column("split"), "train")).as_py()
    texts = None if whole.texts is None else Packed.of(whole.texts.slice(start, count))
    steps = rows.column("step")
    return Batch(steps[0].as_py(), steps[-1].as_py(), rows.num_rows, sessions, Packed.of(rows), texts)


@dataclass(frozen=True)
class _Checked:
    rows: pa.RecordBatch
    texts: pa.RecordBatch | None


def _checked(
    count: int, given: dict[str, Any], defaults: Mapping[str, str | None], steps: pa.Array | None = None
) -> _Checked:
    if isinstance(given.get("time"), list | tuple):
        now = time.time_ns() // 1000
        given["time"] = [now if value is None else value for value in given["time"]]
    texts = _present(_TEXTS.values(), given, count)
    columns = _present(STORED, given, count)
    if steps is not None:
        columns["step"] = steps
    for name, default in {"time": _now(), **defaults}.items():
        if default is None or (name == "time" and name not in columns):
            continue
        if name not in columns:
            columns[name] = pa.repeat(default, count)
        elif columns[name].null_count:
            columns[name] = pc.fill_null(columns[name], default)
    for name in sorted(_REQUIRED):
        _check_present(BY_NAME[name], columns.get(name))
    return _Checked(_as_batch(columns), _as_batch(texts) if texts else None)


def _as_batch(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def _present(columns: Iterable[Column], given: Mapping[str, Any], count: int) -> dict[str, pa.Array]:
    """The columns that were given and have a value."""
    present = {}
    for column in columns:
        if column.name in given:
            array = as_array(column, given[column.name], count=count)
            if array.null_count < count:
                present[column.name] = array
    return present


def _check_present(column: Column, array: pa.Array | None) -> None:
    if array is None or array.null_count:
        row = 0 if array is None else pc.index(pc.is_null(array), True).as_py()
        raise LedgerError(f"row {row}: column `{column.name}` is missing; every row must have it")


def _by_column(rows: Any) -> tuple[int, dict[str, Any]]:
    if isinstance(rows, pa.Table | pa.RecordBatch):
        _check_unique(rows.schema.names)
        return rows.num_rows, dict(zip(rows.schema.names, rows.columns, strict=True))
    if isinstance(rows, Mapping):
        for name, values in rows.items():
            if hasattr(values, "__len__") and not (is_column(values) or isinstance(values, str | bytes | Mapping)):
                raise LedgerError(
                    f"column `{name}` is {type(values).__name__}; give a list, a numpy array or an Arrow one"
                )
        lengths = {name: len(values) for name, values in rows.items() if is_column(values)}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
            raise LedgerError(f"the columns have different lengths: {said}")
        if not lengths:
            raise LedgerError("rows are a dict and not a dict of columns: none of its values is a list or an array")
        return next(iter(lengths.values())), dict(rows)
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise LedgerError(f"rows are {type(rows).__name__}, not a list of dicts, a dict of columns or an Arrow table")
    rows = list(rows)
    for i, row in enumerate(rows):
        if type(row) is not dict and not isinstance(row, Mapping):
            raise LedgerError(f"row {i} is {type(row).__name__}, not a dict")
    return len(rows), pivot(rows)


def _check_unique(names: Sequence[str]) -> None:
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise LedgerError(f"column `{twice[0]}` is there twice; give it once")


def is_column(values: Any) -> bool:
    """Whether the values given for a column are one a row, not one for all."""
    return isinstance(values, list | tuple | np.ndarray | pa.Array | pa.ChunkedArray)


def pivot(dicts: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One list a key, None where a dict has no such key."""
    names = list(dicts[0]) if dicts else []
    if len(names) > 1 and set(map(len, dicts)) == {len(names)}:
        with suppress(KeyError):  # as many keys, and none of the first's is missing: they are the same
            return dict(zip(names, map(list, zip(*map(itemgetter(*names), dicts), strict=True)), strict=True))
    names = list(dict.fromkeys(name for d in dicts for name in d))
    return {name: [d.get(name) for d in dicts] for name in names}


def _check_keys(given: Mapping[str, Any], rows: Any) -> None:
    for name in given:
        if name in ROW_KEYS:
            continue
        holders = [i for i, row in enumerate(rows) if name in row] if isinstance(rows, list | tuple) else []
        where = f"row {holders[0]}: " if holders else ""
        if name in FILLED:
            raise LedgerError(f"{where}column `{name}` is filled by the ledger; leave it out")
        raise LedgerError(f"{where}unknown column `{name}`; the columns are listed in rewards/schema.py")
