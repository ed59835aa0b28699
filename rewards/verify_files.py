"""The files of a sealed table for `verify`: which rows of which chain each holds, and whether the log says the same."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import LedgerError
from rewards.parts import SCHEMAS, Part, read_parts
from rewards.sealed import Body


@dataclass(frozen=True)
class Place:
    """Where rows of a chain are: from `first` to `last`, in a file. alone: it holds nothing else, and in order."""

    first: int
    last: int
    part: Part
    alone: bool


@dataclass
class Shelf:
    """Where the rows of each chain are in a table. bad: what is wrong with files, in words."""

    body: Body
    holds: dict[int, list[Place]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, body: Body, runs: Mapping[int, str]) -> "Shelf":
        """Reads the keys of all files. runs: chain -> run.

        Raises: FileNotFoundError where a file was replaced by another one meanwhile: the caller looks again.
        """
        shelf = cls(body, bad=[body.damage] if body.damage else [])
        for part in body.parts():
            keys = shelf._keys(part)
            if keys is not None:
                wrong = _wrong_keys(part, keys, runs)
                if wrong:
                    shelf.bad.append(f"{part.path}: {wrong}")
                bounds = keys.group_by("chain").aggregate([("seq", "min"), ("seq", "max")]).to_pylist()
                alone = wrong is None and len(bounds) == 1 and bool((np.diff(keys["seq"].to_numpy()) > 0).all())
                for row in bounds:
                    if None not in row.values():
                        place = Place(row["seq_min"], row["seq_max"], part, alone)
                        shelf.holds.setdefault(row["chain"], []).append(place)
        return shelf

    def _keys(self, part: Part) -> pa.Table | None:
        import pyarrow.parquet as pq

        try:
            batches = list(read_parts([part], ["chain", "seq"]))
            wrong = _wrong_columns(pq.read_schema(part.path), SCHEMAS[self.body.name]())
        except FileNotFoundError:
            if not still_listed(self.body, part):
                raise
            runs = "" if part.run_ids is None else f"; it held {part.rows} rows of {_between(*part.run_ids)}"
            self.bad.append(f"{part.path}: the file is missing{runs}; restore it from a copy of the ledger")
            return None
        except LedgerError as error:
            self.bad.append(str(error))
            return None
        if wrong:
            self.bad.append(f"{part.path}: {wrong}")
        return pa.Table.from_batches(batches, pa.schema([("chain", pa.int64()), ("seq", pa.int64())]))

    def tables(self, chain: int, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """The rows of a chain, in order of seq.

        Files whose rows lie between each other's, as compaction may leave them, are read piece by piece.
        """
        places = self.holds.get(chain, [])
        cuts = sorted({place.first for place in places} | {place.last + 1 for place in places})
        for low, high in pairwise(cuts):
            here = [place for place in places if place.first < high and place.last >= low]
            if len(here) == 1 and here[0].alone and low == here[0].first and here[0].last < high:
                for batch in read_parts([here[0].part], columns):  # the usual case, a row group at a time
                    if batch.num_rows:
                        yield pa.Table.from_batches([batch])
                continue
            keep = (pc.field("chain") == chain) & (pc.field("seq") >= low) & (pc.field("seq") < high)
            batches = [b for b in read_parts([place.part for place in here], columns, keep) if b.num_rows]
            if batches:
                table = pa.Table.from_batches(batches).combine_chunks()
                yield table if (np.diff(table["seq"].to_numpy()) > 0).all() else table.sort_by("seq")


def still_listed(body: Body, part: Part) -> bool:
    """Whether the newest version of the table still holds a file."""
    return part.path in {other.path for other in Body(body.root.parent, body.name).parts()}


def _between(low: str, high: str) -> str:
    return f"run {low}" if low == high else f"runs {low} to {high}"


def _wrong_keys(part: Part, keys: pa.Table, runs: Mapping[int, str]) -> str | None:
    """What is wrong with the keys of a file's rows; readers rely on what the log says of them."""
    if keys["chain"].null_count or keys["seq"].null_count:
        return "holds rows that name no chain or no seq"
    chains, seqs = keys["chain"].unique().to_pylist(), pc.min_max(keys["seq"]).as_py()
    held: list[tuple[str, Any, list[Any]]] = [
        ("run_id", part.run_ids, [runs[chain] for chain in chains if chain in runs]),
        ("chain", part.chains, chains),
        ("seq", part.seqs, [seqs["min"], seqs["max"]] if keys.num_rows else []),
    ]
    for name, bounds, values in held:
        if bounds is not None and values and not (bounds[0] <= min(values) and max(values) <= bounds[1]):
            return f"holds other values of `{name}` than the log of the table says, so that readers would pass it over"
    if part.rows not in (None, keys.num_rows):
        return f"holds {keys.num_rows} rows; the log of the table says {part.rows}"
    return None


def _wrong_columns(stored: pa.Schema, known: pa.Schema) -> str | None:
    for column in stored:
        if column.name not in known.names:
            return f"holds a column `{column.name}` that is none of the ledger's"
        if not _same_values(column.type, known.field(column.name).type):
            return f"column `{column.name}` is {column.type}, not {known.field(column.name).type}"
    return None


def _same_values(stored: pa.DataType, known: pa.DataType) -> bool:
    """Whether a type holds the same values, as another program may have written them: nothing is rounded on reading."""
    if pa.types.is_dictionary(stored):
        return _same_values(stored.value_type, known)
    for same in _ALIKE:
        if same(stored) and same(known):
            return True
    if pa.types.is_struct(known):
        names = {field.name: field.type for field in known}
        return pa.types.is_struct(stored) and all(
            field.name in names and _same_values(field.type, names[field.name]) for field in stored
        )
    if pa.types.is_list(known):
        lists = pa.types.is_list(stored) or pa.types.is_large_list(stored)
        return lists and _same_values(stored.value_type, known.value_type)
    return bool(stored == known)


_ALIKE = (
    lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
    lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind),
    pa.types.is_integer,
    lambda kind: pa.types.is_timestamp(kind) and kind.tz == "UTC",
)
