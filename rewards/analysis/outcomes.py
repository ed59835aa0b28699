"""What is compared: one value a prompt or answer, from a run of a ledger or from an evaluation file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.analysis.columns import component, within_range
from rewards.analysis.outcome_files import FileRows
from rewards.errors import DataError, LedgerError, UserError
from rewards.runs import choose_run, pipeline_kinds, unknown_run
from rewards.schema import BY_NAME, SPLITS

METRIC = "baseline_reward"


@dataclass(frozen=True)
class Place:
    """Where one side is: a ledger's folder or a file, and of a ledger the run. step: only what was scored for it."""

    path: Path
    run: str | None = None
    step: int | None = None

    @classmethod
    def read(cls, text: str, run: str | None = None, step: int | None = None) -> Place:
        """From `FILE`, `LEDGER` or `LEDGER:RUN`, the longest that exists.

        Raises: UserError when nothing of that name exists, or the run is named twice.
        """
        if Path(text).exists():
            return cls(Path(text), run, step)
        parts = text.split(":")
        for i in range(len(parts) - 1, 0, -1):
            path, named = Path(":".join(parts[:i])), ":".join(parts[i:])
            if path.exists():
                if run not in (None, named):
                    raise UserError(f"{text}: names the run `{named}`, the option names `{run}`; give one of them")
                return cls(path, named, step)
        raise UserError(f"{text}: no such ledger or file; check the path")


@dataclass(frozen=True)
class Outcomes:
    """Answers of one side that have a value, in their order.

    table: prompt_id, category (null: none), value. missing: answers without a value, which take no part. weight: of
    the metric where it is a component.
    """

    source: str
    run: str | None
    split: str | None
    step: int | None
    table: pa.Table
    missing: int = 0
    weight: float | None = None

    @classmethod
    def of(
        cls, prompts: Sequence[str], values: Any, categories: Sequence[str | None] | None = None, source: str = "given"
    ) -> Outcomes:
        """From arrays; NaN is no value."""
        known = np.asarray(values, dtype=np.float64)
        fields = {
            "prompt_id": pa.array(prompts, pa.string()),
            "category": pa.array(categories or [None] * len(prompts), pa.string()),
            "value": pa.array(known, from_pandas=True),
        }
        return cls(source, None, None, None, *_with_value(pa.table(fields), source, "value"))

    def describe(self) -> dict[str, Any]:
        """What was read, for JSON."""
        return {
            "source": self.source,
            "run": self.run,
            "split": self.split,
            "step": self.step,
            "answers": self.table.num_rows,
            "missing": self.missing,
        }


def read_sides(a: Place, b: Place, metric: str | None, split: str | None) -> tuple[Outcomes, Outcomes, str]:
    """Both sides and the metric.

    metric: by default the baseline reward, or the only number that the files have. split: by default eval where both
    sides have such rows, else train. Of eval rows only those of the last step are taken: they are the newest policy's.
    Raises: UserError for what cannot be read or compared.
    """
    if a == b:
        other = "two runs (LEDGER:RUN) or two steps (--step-a)" if a.path.is_dir() else "another file"
        raise UserError(f"{a.path}: both sides are the same; name {other}")
    sources = [_open(place) for place in (a, b)]
    chosen = metric or _default_metric(sources)
    tables = [source.read(chosen) for source in sources]
    common = _common_split([table for table, _ in tables], (a, b), split, chosen)
    sides = []
    for place, source, (table, weight) in zip((a, b), sources, tables, strict=True):
        sides.append(_side(place, chosen, source.run, _of_split(table, common), weight))
    if sides[0].source == sides[1].source and sides[0].run == sides[1].run and sides[0].step == sides[1].step:
        raise UserError(f"{a.path}: both sides are run `{sides[0].run}`; name the other one (LEDGER:RUN, or --run-b)")
    return sides[0], sides[1], chosen


def _side(place: Place, metric: str, run: str | None, table: pa.Table, weight: float | None) -> Outcomes:
    known = table.filter(pc.is_valid(table["value"]))
    splits = pc.unique(known["split"]).to_pylist()
    split = splits[0] if len(splits) == 1 else None
    step = place.step
    if step is None and split == "eval" and run is not None:
        step = pc.max(known["step"]).as_py()
    if step is not None:
        table = table.filter(pc.equal(table["step"], step))
        if table.num_rows == 0:
            raise UserError(f"{place.path}: no row is of step {step}")
    kept, missing = _with_value(table.select(["prompt_id", "category", "value"]), str(place.path), metric)
    if kept.num_rows == 0:
        raise UserError(f"{place.path}: no row has a value of `{metric}`")
    return Outcomes(str(place.path), run, split, step, kept, missing, weight)


def _with_value(table: pa.Table, source: str, metric: str) -> tuple[pa.Table, int]:
    """The rows with a value, and how many have none. Raises: DataError for numbers too large to be squared."""
    kept = table.filter(pc.is_valid(table["value"])).combine_chunks()
    try:
        within_range(np.asarray(kept["value"].to_numpy(zero_copy_only=False), dtype=np.float64), metric)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    return kept, table.num_rows - kept.num_rows


def _of_split(table: pa.Table, split: str | None) -> pa.Table:
    """Rows of the split; those that name none belong to any."""
    if split is None:
        return table
    return table.filter(pc.or_kleene(pc.is_null(table["split"]), pc.equal(table["split"], split)))


def _common_split(tables: Sequence[pa.Table], places: Sequence[Place], split: str | None, metric: str) -> str | None:
    found = [set(pc.unique(t.filter(pc.is_valid(t["value"]))["split"]).to_pylist()) for t in tables]
    for place, names in zip(places, found, strict=True):
        if not names:
            raise UserError(f"{place.path}: no row has a value of `{metric}`")
        if split is not None and not names & {split, None}:
            raise UserError(f"{place.path}: no {split} row has a value of `{metric}`")
    if split is not None or found == [{None}, {None}]:
        return split
    for name in reversed(SPLITS):  # eval before train
        if all(names & {name, None} for names in found):
            return name
    raise UserError(f"one side has values only in {_told(found[0])} rows, the other in {_told(found[1])} rows")


def _told(names: set[str | None]) -> str:
    return " and ".join(sorted(str(name) for name in names))


# -- where values come from --------------------------------------------------------------------------------------------


class _Source(Protocol):
    run: str | None

    def metrics(self) -> list[str] | None:
        """Names of what could be compared; None where the baseline reward is what one would."""

    def read(self, metric: str) -> tuple[pa.Table, float | None]:
        """prompt_id, category, split, step, value; and the weight where the metric is a component."""


def _open(place: Place) -> _Source:
    if place.path.is_dir():
        return _LedgerRows(place)
    if place.run is not None:
        raise UserError(f"{place.path}: a file has no runs; leave `{place.run}` out")
    return FileRows(place.path)


def _default_metric(sources: Sequence[_Source]) -> str:
    known = [names for names in (source.metrics() for source in sources) if names is not None]
    if all(METRIC in names for names in known):
        return METRIC
    common = [name for name in known[0] if all(name in names for names in known)]
    if len(common) == 1 and len(known) == len(sources):
        return common[0]
    told = ", ".join(f"`{name}`" for name in common) or "no common column of numbers"
    raise UserError(f"say what to compare with --metric; the files have {told}")


class _LedgerRows:
    """Live rows of a run."""

    def __init__(self, place: Place) -> None:
        from rewards.ledger import Ledger

        self._path = place.path
        with Ledger.open(place.path) as ledger:
            runs = ledger.runs()
            self.run: str | None = place.run
            if place.run is None:
                self.run = choose_run(runs, pipeline_kinds(ledger.events(kind="attempt_started")))
            elif place.run not in [run["run_id"] for run in runs]:
                raise LedgerError(f"{place.path}: {unknown_run(place.run, runs)}")

    def metrics(self) -> list[str] | None:
        return None

    def read(self, metric: str) -> tuple[pa.Table, float | None]:
        column = BY_NAME.get(metric)
        if column is not None and not (pa.types.is_boolean(column.type) or _is_number(column.type)):
            raise UserError(f"--metric {metric}: not a column of numbers")
        if column is not None:
            return self._ask(f'CAST("{metric}" AS DOUBLE) AS value'), None
        table = self._ask("components")
        raw = component(table, metric)
        if not np.isfinite(raw).any():
            raise UserError(f"{self._path}: run `{self.run}` has no number and no component `{metric}`{_known(table)}")
        weights = component(table, metric, "weight")
        weights = weights[np.isfinite(weights)]
        values = pa.array(raw, from_pandas=True)
        return table.drop_columns(["components"]).append_column("value", values), (
            float(weights[-1]) if len(weights) else None
        )

    def _ask(self, expression: str) -> pa.Table:
        import duckdb

        from rewards.ledger import Ledger

        query = (
            f"SELECT prompt_id, category, split, step, {expression} FROM live WHERE run_id = ? "
            "ORDER BY step, writer, seq"
        )
        try:
            with Ledger.open(self._path) as ledger, ledger.connect() as connection:
                return connection.sql(query, params=[self.run]).to_arrow_table()
        except duckdb.Error as error:
            said = " ".join(str(error).split("\n\n")[0].split())
            raise LedgerError(f"{self._path}: {said}; `rewards verify` tells what is damaged") from error


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _known(table: pa.Table) -> str:
    from rewards.analysis.columns import component_roles

    names = component_roles(table)
    return f"; its components: {', '.join(f'`{name}`' for name in names)}" if names else ""
