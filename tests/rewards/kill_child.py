"""A training that is killed again and again, and a reader beside it. Imported once by a server that forks the children.

What is acknowledged goes to a file, line by line: the line is written after `wait` has returned.
"""

import json
import os
import random
import time
from pathlib import Path

# Everything is loaded before the first child is forked, so that a child trains within milliseconds.
import deltalake  # noqa: F401
import duckdb  # noqa: F401
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401

from rewards import query, sealer  # noqa: F401
from rewards.ledger import Ledger
from tests.rewards.ledger_rows import row

ROWS = 4


def say(path: Path, *what: object) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, (json.dumps(what) + "\n").encode())
    os.close(handle)


def train(root: Path, said: Path, position: dict | None, seed: int) -> None:
    """Appends, seals all the time, compacts now and then, checkpoints, until it is killed."""
    rng = random.Random(seed)
    ledger = Ledger.open(root, create=True)
    writer = ledger.writer("r", resume=position, seal_rows=12)
    step = position["step"] if position else 0
    say(said, "attempt", writer.attempt, None if position is None else position["attempt"], step)
    while True:
        step += 1
        rows = [row(i, prompt=f"{writer.attempt}-{step}", row_id=f"{writer.attempt}-{step}-{i}") for i in range(ROWS)]
        writer.append(step, rows, durable=rng.random() < 0.5).wait()
        say(said, "row", writer.attempt, step)
        if rng.random() < 0.3:
            writer.append(step, [row(9, "eval", row_id=f"e{writer.attempt}-{step}")])
        if rng.random() < 0.25:
            say(said, "position", writer.checkpoint(step))
        if rng.random() < 0.15:
            ledger.seal()
        time.sleep(rng.random() * 0.004)


def read(root: Path, said: Path, stop: Path, report: Path) -> None:
    """Looks at the live view until told to stop; says what went wrong and how often it looked."""
    looks, before, wrong = 0, frozenset(), []
    while not stop.exists():
        lines = [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
        floors: dict[int, int] = {}
        for line in lines:
            if line[0] == "position":
                floors[line[1]["attempt"]] = line[1]["step"]
        if not any(line[0] == "row" for line in lines):
            time.sleep(0.01)
            continue
        try:
            ledger = Ledger.open(root)
            table = ledger.sessions("r").select(["session", "step", "row_id"]).to_pylist()
            if looks % 5 == 0:
                with ledger.connect() as connection:
                    connection.execute("SELECT count(*) FROM live").fetchall()
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
            continue
        looks += 1
        train = [r for r in table if r["session"] is not None]
        if [r["session"] for r in train] != list(range(1, len(train) + 1)) or len(train) % ROWS:
            wrong.append(f"{len(train)} sessions that are not dense or not whole commits")
        here = frozenset(r["row_id"] for r in train)
        if len(here) != len(train):
            wrong.append("a session twice")
        # An attempt's rows up to its newest checkpoint stay, whatever is killed: the next attempt goes on from there.
        places = {name: [int(part) for part in name.split("-")] for name in before - here}
        lost = [name for name, (attempt, step, _) in places.items() if step <= floors.get(attempt, 0)]
        if lost:
            wrong.append(f"the view went backwards: {sorted(lost)[:3]}")
        before = here
    report.write_text(json.dumps({"looks": looks, "wrong": wrong}))
