"""Columns of a session table as numpy arrays: null reads as NaN, and a column that is absent as all null."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rewards.errors import DataError

Floats = NDArray[np.float64]

# Products of a weight and a value are squared, and squares summed over a run.
LARGEST = 1e60


def within_range(values: Floats, name: str) -> Floats:
    """The values as they are. Raises: DataError where one is too large to be squared and summed; infinite ones pass."""
    large = np.abs(values) > LARGEST
    if large.any():
        worst = np.max(np.abs(values[large]), where=np.isfinite(values[large]), initial=0.0)
        if worst > 0:
            raise DataError(f"`{name}` holds a number of size {worst:.3g}: beyond {LARGEST:g} nothing can be computed")
    return values


def floats(table: pa.Table, name: str) -> Floats:
    """A numeric or boolean column. Shapes: one value a row. Units: the column's; NaN is null.

    Raises: DataError for a number beyond `LARGEST`.
    """
    if name not in table.column_names or pa.types.is_null(table.schema.field(name).type):
        return np.full(table.num_rows, np.nan)
    column = pc.cast(table[name], pa.float64())
    return within_range(np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64), name)


def strings(table: pa.Table, name: str) -> list[str | None]:
    """A text column; None is null."""
    if name not in table.column_names:
        return [None] * table.num_rows
    values: list[str | None] = table[name].to_pylist()
    return values


def component_roles(table: pa.Table) -> dict[str, str]:
    """Name -> role of every component that some session carries, sorted by name."""
    structs = _components(table)
    if structs is None:
        return {}
    pairs = set(zip(structs.field("name").to_pylist(), structs.field("role").to_pylist(), strict=True))
    return dict(sorted((str(name), str(role)) for name, role in pairs if name is not None))


def component(table: pa.Table, name: str, field: str = "raw") -> Floats:
    """One field of one component. Shapes: one value a row; NaN where the component is absent or null.

    Raises: DataError for a number beyond `LARGEST`.
    """
    values = np.full(table.num_rows, np.nan)
    structs = _components(table)
    if structs is None:
        return values
    parents = _parents(table)
    mine = np.asarray(pc.fill_null(pc.equal(structs.field("name"), name), False).to_numpy(zero_copy_only=False))
    found = pc.cast(structs.field(field), pa.float64()).to_numpy(zero_copy_only=False)
    values[parents[mine.astype(bool)]] = found[mine.astype(bool)]
    return within_range(values, name)


def where(values: Sequence[Any], wanted: Any) -> NDArray[np.bool_]:
    """True where a value equals the wanted one."""
    return np.fromiter((value == wanted for value in values), dtype=bool, count=len(values))


def _components(table: pa.Table) -> Any:
    if "components" not in table.column_names or not pa.types.is_list(table.schema.field("components").type):
        return None
    structs = pc.list_flatten(table["components"]).combine_chunks()
    return structs.flatten_chunks() if hasattr(structs, "flatten_chunks") else structs


def _parents(table: pa.Table) -> NDArray[np.int64]:
    lengths = pc.fill_null(pc.list_value_length(table["components"]), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(table.num_rows), lengths.astype(np.int64))
