"""A seal that ends at any of its steps: the view stays, verify holds, and the next seal completes it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rewards import Ledger
from tests.rewards.ledger_files import orphans
from tests.rewards.ledger_rows import row, rows, scratch

ROOT = Path(__file__).resolve().parents[2]


def build(path: Path) -> None:
    """Two runs, one of them resumed; nine small files a table, so that they are put together; rows with text wait."""
    with Ledger.open(path, create=True) as ledger:
        for run in ("r", "s"):
            first = ledger.writer(run, seal_rows=None)
            for step in range(1, 6):
                first.append(step, rows(step, 3, prompt=f"step {step}"))
                if step == 4:
                    position = first.checkpoint(4)
                first.flush()
                ledger.seal(vacuum=False)
            first.close()
        with ledger.writer("s", resume=position, seal_rows=None) as second:
            second.append(5, [row(1), row(2, "eval"), row(3, response=None)])
            second.append(6, rows(9, 4, prompt="the last"))
        with ledger.writer("t", seal_rows=None) as third:
            third.append(1, rows(0, 5))


def view(path: Path) -> dict[str, Any]:
    """Everything that readers see."""
    ledger = Ledger.open(path)
    seen: dict[str, Any] = {run["run_id"]: run for run in ledger.runs()}
    for run in list(seen):
        seen[f"all of {run}"] = ledger.sessions(run, live=False, texts=True)
    with ledger.connect() as connection:
        for name in ("live", "texts"):
            query = f"SELECT * FROM {name} ORDER BY run_id, attempt, writer, seq"
            seen[name] = connection.sql(query).to_arrow_table()
    return seen


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].equals(b[key]) if isinstance(a[key], pa.Table) else a[key] == b[key] for key in a
    )


def crash_everywhere(stride: int, start: int) -> int:
    """Ends a seal at every `stride`-th step; returns how many steps were tried."""
    with scratch() as folder:
        build(folder / "ledger")
        before = view(folder / "ledger")
        command = [sys.executable, "-m", "tests.rewards.ledger_crash_child", str(folder / "ledger"), str(folder)]
        done = subprocess.run([*command, str(stride), str(start)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        tried = [json.loads(line) for line in done.stdout.splitlines()]
        assert [one["code"] for one in tried] == [9] * (len(tried) - 1) + [0], tried[-1]
        for one in tried:
            path, where = Path(one["copy"]), f"step {one['step']}: {one['name']}"
            assert same(view(path), before), where
            if stride == 1:
                assert Ledger.open(path).verify().problems == (), where
            Ledger.open(path).seal()
            assert same(view(path), before), where
            assert Ledger.open(path).verify().problems == (), where
            assert Ledger.open(path).sizes()["hot_rows"] == 0, where
            assert orphans(path) == set(), where
            shutil.rmtree(path)
        return len(tried) - 1


def test_a_seal_that_ends_at_some_step_is_completed_by_the_next() -> None:
    assert crash_everywhere(stride=29, start=5) >= 5


@pytest.mark.slow
def test_a_seal_that_ends_at_any_step_is_completed_by_the_next() -> None:
    assert crash_everywhere(stride=1, start=0) >= 90
