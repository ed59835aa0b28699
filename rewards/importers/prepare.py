"""A stretch of a file's rows as columns of the ledger: renamed, converted, checked value by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import DataError, UserError
from rewards.importers.components import PREFIX, flat_components, nested_components, split_name
from rewards.importers.convert import Misfit, check_allowed, to_column
from rewards.importers.fields import Fields
from rewards.importers.place import Chunk
from rewards.schema import BY_NAME, TEXT_COLUMNS, Column

DEFAULTS = {"pipeline": "import", "split": "train"}
_FILLED_IN = frozenset(["session", "step", "split", "pipeline", "prompt_id", "time"])
_SESSION = Column("session", pa.int64(), "", "number of the session in its run, from 1")
_STEP = Column("step", pa.int64(), "", "optimizer step", required=True)
_TEXTS = {name: Column(name, pa.string(), "", name) for name in TEXT_COLUMNS}


@dataclass(frozen=True)
class Prepared:
    """Rows with the ledger's columns, of the ledger's types; `session` and `step` only where the file has them."""

    columns: dict[str, pa.Array]
    count: int
    at: Callable[[int], str]


def column_of(name: str) -> Column:
    """The ledger's column, or what stands in for `session`, `step` and the texts."""
    return {"session": _SESSION, "step": _STEP, **_TEXTS}.get(name) or BY_NAME[name]


def constant_values(constants: dict[str, str]) -> dict[str, pa.Array]:
    """One value for every --set COLUMN=VALUE, read as a CSV cell is.

    Raises: UserError for a value that the column cannot hold, or a column that differs from row to row.
    """
    values = {}
    for name, text in constants.items():
        if name in ("session", "components") or split_name(name):
            raise UserError(f"--set {name}={text}: `{name}` cannot be the same in every row")
        try:
            array = to_column(column_of(name), pa.array([text]), parse=True)
            check_allowed(column_of(name), array)
        except Misfit as error:
            raise UserError(f"--set {name}={text}: {error}") from error
        values[name] = array
    return values


def prepare(chunk: Chunk, fields: Fields, constants: dict[str, pa.Array]) -> Prepared:
    """The chunk's rows as the ledger takes them. Rows that need no value of their own get the defaults.

    Raises: DataError naming the place, the column and the value that does not fit.
    """
    plan = fields.targets(list(chunk.columns), lambda name: _place(chunk, name))
    columns: dict[str, pa.Array] = {}
    flat: dict[str, Any] = {}
    for name, targets in plan.items():
        if not targets and name not in fields.options.drop:
            _check_foreign(chunk, name, fields)
        for target in targets:
            if target.startswith(PREFIX):
                flat[target] = chunk.columns[name]
            else:
                columns[target] = _column(chunk, name, target)
    if flat:
        columns["components"] = _components(chunk, flat)
    _check_all_or_none(chunk, plan, fields)
    for target, value in constants.items():
        columns[target] = pa.repeat(value[0], chunk.count)
    for target, text in DEFAULTS.items():
        if target not in columns:
            columns[target] = pa.repeat(text, chunk.count)
    return Prepared(columns, chunk.count, chunk.at)


def _check_all_or_none(chunk: Chunk, plan: dict[str, list[str]], fields: Fields) -> None:
    """What would be filled in where it is missing is given by every stretch of rows or by none."""
    given = {target: name for name, targets in plan.items() for target in targets if target in _FILLED_IN}
    if fields.filled_in is None:
        fields.filled_in = _FILLED_IN - given.keys()
    for target in sorted(given.keys() & fields.filled_in):
        raise DataError(
            f"{_place(chunk, given[target])}: gives `{target}`, rows before it do not; give it to all or none"
        )
    for target in sorted(_FILLED_IN - given.keys() - fields.filled_in):
        raise chunk.error(0, f"column `{target}` is missing, rows before have it; every row must have it")


def _column(chunk: Chunk, name: str, target: str) -> pa.Array:
    values = chunk.columns[name]
    try:
        if target == "components":
            return nested_components(values)
        column = column_of(target)
        array = to_column(column, values, chunk.parse)
        check_allowed(column, array)
        return array
    except Misfit as error:
        if target == "components":
            raise chunk.error(error.row, str(error)) from error
        said = f"column `{target}`" + (f" (field `{name}`)" if name != target else "")
        raise chunk.error(error.row, f"{said}: {error}") from error


def _components(chunk: Chunk, flat: dict[str, Any]) -> pa.Array:
    try:
        return flat_components(flat, chunk.count, chunk.parse)
    except Misfit as error:
        raise chunk.error(error.row, str(error)) from error


def _check_foreign(chunk: Chunk, name: str, fields: Fields) -> None:
    """Checks what an exported file says about the ledger it came from: one run, and only rows that count."""
    if name == "run_id":
        found = to_column(BY_NAME[name], chunk.columns[name])
        for value in pc.unique(found).to_pylist():
            fields.runs.add(value)
            if len(fields.runs) > 1:
                said = "` and `".join(sorted(map(str, fields.runs)))
                raise chunk.error(
                    _first(found, value), f"holds sessions of the runs `{said}`: import one run at a time"
                )
    elif name == "live":
        live = to_column(Column("live", pa.bool_(), "", ""), chunk.columns[name], chunk.parse)
        if pc.any(pc.invert(live)).as_py():
            raise chunk.error(_first(live, False), "a superseded row, which would count: export the live view")


def _first(array: pa.Array, value: Any) -> int:
    found = array.is_null() if value is None else pc.equal(array, value)
    return int(pc.index(found, True).as_py())


def _place(chunk: Chunk, name: str) -> str:
    """The first line with a value for the field where rows may have fields of their own, else the file."""
    values = chunk.columns[name]
    if isinstance(values, list):
        return chunk.at(next((i for i, value in enumerate(values) if value is not None), 0))
    return chunk.at(0).rpartition(":")[0]
