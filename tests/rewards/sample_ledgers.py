"""Ledgers for the tests of evidence: the same rows hot, sealed, compacted, and one that schema version 1 wrote."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rewards import Ledger
from rewards.schema import COLUMNS, COMPONENT_COLUMNS, TEXT_COLUMNS, Column
from tests.rewards.ledger_rows import RECALIBRATION, row, rows

Key = tuple[str, int, int]  # run, attempt, writer

FORMS = ("hot", "sealed", "compacted", "version 1")

FIXTURES = Path(__file__).parent / "fixtures"
V1 = json.loads((FIXTURES / "ledger_v1.json").read_text())


@dataclass(frozen=True)
class Sample:
    """A ledger and one commit of it: its chain, rows and how `verify` calls it; superseded, a commit that is that."""

    root: Path
    form: str
    key: Key = ("demo/grpo", 1, 0)
    first: int = 4
    last: int = 6
    name: str = "run demo/grpo, attempt 1, writer 0, step 2, seq 4 to 6 (sessions 6 to 8)"
    superseded: str = "run demo/grpo, attempt 1, writer 0, step 3, seq 7 to 9 (superseded)"
    after: int = 9  # the chain's last row


def filled() -> dict[str, Any]:
    """A row with a value in every column, component key and text."""
    values: dict[str, Any] = {"split": "train", "role": "gold", "status": "ok"}

    def some(column: Column) -> Any:
        if column.name in values:
            return values[column.name]
        if column.name == "components":
            return [{c.name: some(c) for c in COMPONENT_COLUMNS}, {"name": "second"}]
        made: Any = pa.array([7]).cast(pa.float64() if pa.types.is_floating(column.type) else pa.int64())[0].as_py()
        return {pa.string(): f"some {column.name}", pa.bool_(): True}.get(column.type, made)

    row = {column.name: some(column) for column in COLUMNS if column.source == "caller"}
    return row | {name: f"some {name}" for name in TEXT_COLUMNS}


def copied_v1(folder: Path) -> Path:
    """A copy of the ledger that schema version 1 wrote: opening it leaves files beside it."""
    shutil.copytree(FIXTURES / "ledger_v1", folder / "ledger_v1")
    return folder / "ledger_v1"


def version_1(folder: Path) -> Sample:
    return Sample(
        copied_v1(folder),
        "version 1",
        ("alpha", 1, 0),
        5,
        8,
        "run alpha, attempt 1, writer 0, step 2, seq 5 to 8 (sessions 8 to 11)",
        "run alpha, attempt 1, writer 0, step 4, seq 16 to 19 (superseded)",
        23,
    )


def two_attempts(root: Path, seal_at_every_step: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two attempts of one run, two writers and another run; 3 rows a step and writer. Returns both checkpoints."""
    with Ledger.open(root, create=True) as ledger:

        def step_ends() -> None:
            if seal_at_every_step:
                ledger.seal()

        zero = ledger.writer("demo/grpo", seal_rows=None)
        one = ledger.writer("demo/grpo", writer=1, attempt=1, seal_rows=None)
        for step in (1, 2, 3):
            zero.append(step, rows(step, 3, prompt="what?")).wait()
            zero.event("step_stats", {"loss": 1 / step}, step=step)
            one.append(step, [*rows(step, 2), row(9, "eval")]).wait()
            if step == 2:
                zero.event("recalibration", RECALIBRATION, step=2)
                early = zero.checkpoint(2)
            step_ends()
        zero.close()
        again = ledger.writer("demo/grpo", resume=early, seal_rows=None)
        again.append(3, rows(3, 3)).wait()
        late = again.checkpoint(3)
        step_ends()
        again.append(4, rows(4, 3)).wait()
        step_ends()
        with ledger.writer("demo/sft", seal_rows=None) as other:
            other.append(1, rows(0, 2))
        step_ends()
    return early, late


def sample(form: str, folder: Path) -> Sample:
    """A ledger in one of the FORMS."""
    if form == "version 1":
        return version_1(folder)
    two_attempts(folder / "ledger", seal_at_every_step=form == "compacted")
    if form == "sealed":
        Ledger.open(folder / "ledger").seal()
    return Sample(folder / "ledger", form)
