"""TRL's log of completions: `completions/completions_00010.parquet`, one file a logged step.

Columns: step, prompt, completion, one of floats a reward function, what the functions logged beside, advantage.
A reward function that does not apply to a completion is NaN there.

Source: huggingface/trl 1.16.0, trl/trainer/grpo_trainer.py, `GRPOTrainer.log`: only GRPO writes the files, from a
queue that holds the newest generation batch; nothing else of the trainer writes samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import DataError, UserError
from rewards.importers.components import flat_name
from rewards.importers.convert import conversation_text, plain_array
from rewards.importers.fields import nearest
from rewards.importers.place import Chunk, rows_from
from rewards.importers.readers import open_parquet
from rewards.importers.source import Source

MARKS = ("step", "prompt", "completion", "advantage")


class TrlSource(Source):
    """The completions of a GRPO run.

    weights: of the reward functions, which the files do not say. reserved: columns that the user maps or drops.
    """

    limits = (
        "only steps at which the trainer logged: sessions in between were scored and are not there",
        "an evaluation at a logged step replaces the training completions of that step, unmarked",
        "a resumed run replaces the files of the steps it repeats",
        "no weights, no weighted total (give the weights with --reward-weight), no ids of prompts or groups",
        "no KL, no log-probabilities, no token counts, no attempts",
    )

    def __init__(
        self, files: Sequence[Path], weights: Mapping[str, float] | None = None, reserved: Collection[str] = ()
    ) -> None:
        super().__init__(files, "parquet")
        self.weights = dict(weights or {})
        self._reserved = reserved

    def chunks(self) -> Iterator[Chunk]:
        """One chunk a file. A file that repeats the one before is left out: one generation served several steps."""
        before: pa.Table | None = None
        repeats, rows = 0, 0
        for path in self.files:
            table = _read(path)
            if before is not None and _same(before, table):
                repeats, rows = repeats + 1, rows + table.num_rows
                continue
            before = table
            names = [name for name in _reward_functions(table) if name not in self._reserved]
            self._check_weights(names, path)
            yield Chunk(self._columns(table, names), table.num_rows, rows_from(path, 1))
        if repeats:
            self.notes["repeats"] = (
                f"{repeats} of {len(self.files)} files repeat the completions of the file before ({rows:,} rows): one "
                "generation served several steps; they count once"
            )

    def _columns(self, table: pa.Table, functions: Sequence[str]) -> dict[str, Any]:
        columns: dict[str, Any] = {name: table[name] for name in table.column_names if name not in functions}
        prompts = [conversation_text(value) for value in table["prompt"].to_pylist()]
        columns["prompt"] = prompts
        columns["response"] = columns.pop("completion")
        columns["prompt_id"] = text_ids(prompts)
        columns["pipeline"] = pa.repeat("grpo", table.num_rows)
        raws = {name: _absent(table[name]) for name in functions}
        for name, raw in raws.items():
            columns[flat_name(name, "raw")] = raw
            columns[flat_name(name, "role")] = pa.repeat("optimised", len(raw))
            columns[flat_name(name, "status")] = pc.if_else(raw.is_null(), "na", "ok")
            if self.weights:
                columns[flat_name(name, "weight")] = pa.repeat(self.weights[name], len(raw))
        if self.weights and functions:
            columns["baseline_reward"] = columns["adjusted_reward"] = self._total(raws)
        return columns

    def _check_weights(self, functions: Sequence[str], path: Path) -> None:
        if not self.weights:
            return
        for name in self.weights.keys() - set(functions):
            near = nearest(name, functions)
            known = f"did you mean `{near}`?" if near else f"they are {', '.join(functions)}"
            raise UserError(f"--reward-weight {name}: {path} has no reward function of that name; {known}")
        for name in functions:
            if name not in self.weights:
                given = ", ".join(self.weights)
                raise UserError(f"--reward-weight: {path} has `{name}` too; give its weight as well as that of {given}")

    def _total(self, raws: Mapping[str, pa.Array]) -> pa.Array:
        """The weighted sum of the functions that apply; null where none does."""
        parts = [self.weights[name] * raw.to_numpy(zero_copy_only=False) for name, raw in raws.items()]
        stacked = np.stack(parts)
        return pa.array(np.nansum(stacked, axis=0), mask=np.isnan(stacked).all(axis=0))


def _read(path: Path) -> pa.Table:
    table = open_parquet(path).read()
    missing = [name for name in MARKS if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: no column `{missing[0]}`; TRL's completions have {', '.join(MARKS)}")
    if not table.num_rows:
        raise DataError(f"{path}: holds no completion")
    return table


def _reward_functions(table: pa.Table) -> list[str]:
    """Columns of floats: what functions log beside their rewards is text, truth values or whole numbers."""
    fields = [table.schema.field(name) for name in table.column_names if name not in MARKS]
    return [field.name for field in fields if pa.types.is_floating(field.type)]


def _absent(column: pa.ChunkedArray) -> pa.Array:
    """Rewards with null where the function returned none."""
    array = plain_array(column).cast(pa.float64())
    return pc.if_else(pc.fill_null(pc.is_nan(array), True), pa.scalar(None, pa.float64()), array)


def _same(one: pa.Table, other: pa.Table) -> bool:
    names = [name for name in one.column_names if name != "step"]
    if [name for name in other.column_names if name != "step"] != names or one.num_rows != other.num_rows:
        return False
    return all(_comparable(one[name]).equals(_comparable(other[name])) for name in names)


def _comparable(column: pa.ChunkedArray) -> pa.Array:
    """NaN is not equal to itself, null is."""
    return _absent(column) if pa.types.is_floating(column.type) else plain_array(column)


def text_ids(texts: Sequence[str | None]) -> list[str | None]:
    """Ids of texts that have none: the same text, the same id."""
    return [
        None if text is None else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16] for text in texts
    ]
