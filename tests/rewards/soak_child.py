"""Two writers of one attempt and a reader, each a process; imported once by a server that forks them."""

import json
import time
from pathlib import Path
from typing import Any

from rewards.ledger import Ledger
from tests.rewards import kill_child  # noqa: F401  # loads what a child needs
from tests.rewards.ledger_rows import row

ROWS = 4


def write(root: Path, run: str, writer: int, seconds: float, report: Path) -> None:
    """Appends, seals in the background, notes and checkpoints; says how many steps and what went wrong."""
    steps, wrong = 0, []
    try:
        with Ledger.open(root) as ledger, ledger.writer(run, writer=writer, attempt=1, seal_rows=200) as mine:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                steps += 1
                mine.append(steps, [row(i, row_id=f"{writer}-{steps}-{i}") for i in range(ROWS)])
                mine.event("step_stats", {"loss": 1.0})
                if steps % 50 == 0:
                    mine.flush()
                    ledger.note("check_in", {"writer": writer, "steps": steps}, run)
                time.sleep(0.001)
    except Exception as error:
        wrong.append(f"{type(error).__name__}: {error}")
    report.write_text(json.dumps({"steps": steps, "wrong": wrong}))


def read(root: Path, run: str, seconds: float, report: Path) -> None:
    """Looks again and again; the view must be dense and never shrink."""
    looks, before, wrong = 0, 0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            table: Any = Ledger.open(root).sessions(run)
            if looks % 5 == 0:
                with Ledger.open(root).connect() as connection:
                    connection.execute("SELECT max(session) FROM live").fetchall()
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
            continue
        looks += 1
        if table["session"].to_pylist() != list(range(1, table.num_rows + 1)) or table.num_rows < before:
            wrong.append(f"{table.num_rows} sessions after {before}, or not dense")
        before = table.num_rows
    report.write_text(json.dumps({"looks": looks, "wrong": wrong}))
