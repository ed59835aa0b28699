"""Scored sessions as arrays: what every component said of them, and what the signal made of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import ndtri

from rewards.analysis.columns import floats, within_range
from rewards.errors import LedgerError
from rewards.schema import COMPONENTS_TYPE

if TYPE_CHECKING:
    from rewards.ledger import Ledger

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]

_NAMES = (
    "session step pipeline category group_id group_size compliant baseline_reward adjusted_reward differential_pct "
    "pivot components advantage advantage_unadjusted loss_weight"
)
READ = ", ".join(f'"{name}"' for name in _NAMES.split())  # `pivot` is a word of SQL
TRAIN = "run_id = ? AND split = 'train'"
RESIDUE = 1e-12  # what rounding alone may leave between a baseline reward and the sum of its components
OUTSIDE = "(outside the components)"
WHOLE = "(whole reward)"  # where no component with a weight is on record
FEW = 20  # clusters below which a bootstrap's intervals are known to be too narrow
MOST_CLUSTERS = 2000
DETECTABLE = float(ndtri(0.975) + ndtri(0.8))
MOST_CELLS = 20_000_000  # numbers in a table of clusters times features


@dataclass(frozen=True)
class Scored:
    """Sessions in their order.

    Shapes: N sessions, K components in the order in which they first come. steps, category, group, compliant and the
    rewards have one value a session; value, weight, pct, pivots, answered, optimised and scorer are (N, K). NaN is null
    in numbers, -1 in codes. category: code into categories; group: number of the group of one step;
    group_size: how many sessions it had, NaN where that was not recorded; scorer: code into
    scorer_ids. answered: the function gave a number; optimised: that number is part of the baseline reward.
    Units: differential_pct and pct in per cent, 100 d.
    """

    steps: Codes
    category: Codes
    group: Codes
    group_size: Floats
    compliant: Floats
    baseline: Floats
    adjusted: Floats
    differential_pct: Floats
    pivot: Floats
    advantage: Floats
    unadjusted: Floats
    loss_weight: Floats
    value: Floats
    weight: Floats
    pct: Floats
    pivots: Floats
    answered: Flags
    optimised: Flags
    scorer: Codes
    categories: tuple[str, ...]
    components: tuple[str, ...]
    scorer_ids: tuple[str, ...]

    def __len__(self) -> int:
        """How many sessions."""
        return len(self.steps)

    def part(self, where: slice | Flags) -> Scored:
        """Some of the sessions."""
        everything = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays: dict[str, Any] = {k: v[where] for k, v in everything.items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)

    def names(self) -> list[str | None]:
        """The category of every session."""
        known: list[str | None] = [*self.categories, None]
        return [known[code] for code in self.category.tolist()]

    def terms(self) -> tuple[list[str], Floats]:
        """What the baseline reward is made of: names, and w_k r_k (0 where it does not apply), which sum to it.

        Components that are never part of it are left out. Where the components do not account for the recorded
        baseline reward (it was clipped, or its components are not on record) the rest is a term of its own.
        Shapes: (N, terms). A session without a baseline reward has 0 everywhere.
        """
        scored = np.isfinite(self.baseline)
        taken = self.optimised & scored[:, None]
        used: Flags = np.any(taken, axis=0)
        made = np.where(taken, self.weight * self.value, 0.0)[:, used]
        names = [name for name, is_used in zip(self.components, used, strict=True) if is_used]
        rest = np.where(scored, self.baseline - made.sum(axis=1), 0.0)
        scale = max(1.0, float(np.abs(self.baseline[scored]).max(initial=0.0)))
        if np.abs(rest).max(initial=0.0) > RESIDUE * scale:
            return [*names, OUTSIDE if names else WHOLE], np.column_stack([made, rest])
        return names, made

    @classmethod
    def of_table(cls, table: pa.Table) -> Scored:
        """From a table of sessions in their order; a column that is absent is all null."""
        steps = np.asarray(table["step"].to_numpy(zero_copy_only=False), dtype=np.int64)
        group_codes, _ = _codes(table, "group_id")
        category, categories = _codes(table, "category")
        group = np.full(len(steps), -1, dtype=np.int64)
        named = group_codes >= 0
        keys = steps[named] * (int(group_codes.max(initial=0)) + 1) + group_codes[named]
        group[named] = np.unique(keys, return_inverse=True)[1]
        return cls(
            steps=steps,
            category=category,
            group=group,
            group_size=floats(table, "group_size"),
            compliant=floats(table, "compliant"),
            baseline=floats(table, "baseline_reward"),
            adjusted=floats(table, "adjusted_reward"),
            differential_pct=floats(table, "differential_pct"),
            pivot=floats(table, "pivot"),
            advantage=floats(table, "advantage"),
            unadjusted=floats(table, "advantage_unadjusted"),
            loss_weight=floats(table, "loss_weight"),
            categories=categories,
            **_components(table),
        )


def read_scored(
    ledger: Ledger, run_id: str, first: int | None = None, last: int | None = None
) -> tuple[Scored, str | None]:
    """Sessions first..last of a run (all of them without), and its kind of training as they say.

    Raises: LedgerError when the ledger cannot be read.
    """
    where = f"{TRAIN} AND session IS NOT NULL"
    asked: list[Any] = [run_id]
    if first is not None and last is not None:
        where, asked = f"{where} AND session BETWEEN ? AND ?", [run_id, first, last]
    table = select(ledger, f"SELECT {READ} FROM live WHERE {where} ORDER BY session", asked)
    return Scored.of_table(table), table["pipeline"][0].as_py() if table.num_rows else None


def select(ledger: Ledger, query: str, asked: list[Any]) -> pa.Table:
    """What a query over the ledger's views gives. Raises: LedgerError when the ledger cannot be read."""
    import duckdb

    try:
        with ledger.connect() as connection:
            return connection.sql(query, params=asked).to_arrow_table()
    except duckdb.Error as error:
        raise LedgerError(f"{ledger.path}: {' '.join(str(error).split())}; run verify") from error


def clusters(scored: Scored, features: int) -> Codes:
    """What a bootstrap draws: groups, single sessions where they have none; neighbours together where there are many.

    Shapes: one number a session, from 0. features: how many numbers a cluster has, which bounds how many there may be.
    """
    number = np.where(scored.group >= 0, scored.group, scored.group.max(initial=-1) + 1 + np.arange(len(scored)))
    # In the order of their first session, so that those put together are neighbours.
    _, first, inverse = np.unique(number, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    most = max(50, min(MOST_CLUSTERS, MOST_CELLS // max(features, 1)))
    placed = rank[inverse]
    return placed if len(first) <= most else placed * most // len(first)


def resampled(sums: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    """The totals of as many clusters drawn with replacement. Shapes: sums (clusters, ...) to (resamples, ...)."""
    count = len(sums)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    totals: Floats = (drawn @ sums.reshape(count, -1)).reshape(resamples, *sums.shape[1:])
    return totals


def bounds(draws: Floats) -> tuple[float | None, float | None, float | None]:
    """The central 95 % of draws, and the smallest effect that a test at 5 % finds with 80 % power: 2.80 sd.

    All null where the draws do not differ: what does not vary between clusters gives no interval.
    """
    known = draws[np.isfinite(draws)]
    if len(known) < 2 or np.ptp(known) <= RESIDUE * max(1.0, float(np.abs(known).max())):
        return None, None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high), DETECTABLE * float(known.std(ddof=1))


def _codes(table: pa.Table, name: str) -> tuple[Codes, tuple[str, ...]]:
    """A text column as codes into its sorted values."""
    if name not in table.column_names:
        return np.full(table.num_rows, -1, dtype=np.int64), ()
    return _sorted_codes(pc.cast(table[name], pa.string()))


def _flat(column: Any) -> Any:
    """One array, whatever it was split into."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _sorted_codes(column: Any) -> tuple[Codes, tuple[str, ...]]:
    encoded = _flat(column).dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=lambda i: values[i])
    place = np.full(len(values) + 1, -1, dtype=np.int64)
    place[order] = np.arange(len(values))
    indices = pc.fill_null(encoded.indices, len(values)).to_numpy(zero_copy_only=False).astype(np.int64)
    return place[indices], tuple(values[i] for i in order)


def _components(table: pa.Table) -> dict[str, Any]:
    """The (N, K) fields."""
    n = table.num_rows
    kind = table.schema.field("components").type if "components" in table.column_names else pa.null()
    if not pa.types.is_list(kind):
        empty = np.empty((n, 0))
        flags = np.empty((n, 0), dtype=bool)
        numbers = dict.fromkeys(("value", "weight", "pct", "pivots"), empty)
        codes = np.empty((n, 0), dtype=np.int64)
        return {**numbers, "answered": flags, "optimised": flags, "scorer": codes, "components": (), "scorer_ids": ()}
    lists = _flat(table["components"])
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    entries = lists.flatten()
    have = {entries.type.field(i).name for i in range(entries.type.num_fields)}

    def field(name: str) -> Any:
        wanted = COMPONENTS_TYPE.value_type.field(name).type
        return pc.cast(pc.struct_field(entries, name), wanted) if name in have else pa.nulls(len(entries), wanted)

    def numbers_of(name: str) -> Floats:
        column = pc.cast(field(name), pa.float64()).to_numpy(zero_copy_only=False)
        return within_range(np.asarray(column, dtype=np.float64), f"components.{name}")

    names = field("name").dictionary_encode()
    order: Sequence[str] = names.dictionary.to_pylist()
    column = pc.fill_null(names.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(n), lengths)
    known = column >= 0
    row, column, shape = row[known], column[known], (n, len(order))

    def spread(values: Any, empty: Any) -> Any:
        full = np.full(shape, empty, dtype=values.dtype)
        full[row, column] = values[known]
        return full

    value, raw = numbers_of("value"), numbers_of("raw")
    value = np.where(np.isnan(value), raw, value)  # no value on record: no declared scale, so value = raw
    status, role, weight = field("status"), field("role"), numbers_of("weight")
    well = pc.or_(pc.is_null(status), pc.fill_null(pc.equal(status, "ok"), False)).to_numpy(zero_copy_only=False)
    rewarded = pc.or_(pc.is_null(role), pc.fill_null(pc.equal(role, "optimised"), False)).to_numpy(zero_copy_only=False)
    answered = np.isfinite(value) & well.astype(bool)
    scorer, ids = _sorted_codes(field("scorer_id"))
    return {
        "value": spread(value, np.nan),
        "weight": spread(weight, np.nan),
        "pct": spread(numbers_of("differential_pct"), np.nan),
        "pivots": spread(numbers_of("pivot"), np.nan),
        "answered": spread(answered, False),
        "optimised": spread(answered & rewarded.astype(bool) & np.isfinite(weight), False),
        "scorer": spread(scorer, -1),
        "components": tuple(order),
        "scorer_ids": ids,
    }
