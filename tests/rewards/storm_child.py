"""A process that is asked, line by line, to train into a ledger or to seal it; each time in a fork, to be killed.

Usage: storm_child LEDGER. A line of stdin is `train POSITION` (JSON or null) or `seal`. Prints `started PID`,
what the fork says, and `ended`. A training says `durable ATTEMPT WRITER STEP` and `position POSITION`.
"""

import json
import os
import sys
import time
from pathlib import Path

# Imported before the forks, which then need a tenth of the time.
import deltalake  # noqa: F401
import pyarrow.parquet  # noqa: F401

from rewards import Ledger, compaction
from tests.rewards.ledger_rows import row

ROWS = 4  # a writer and step
SEAL_ROWS = 24  # two or three steps: a seal runs nearly all the time


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def train(path: str, position: str) -> None:
    resume = json.loads(position)
    ledger = Ledger.open(path, create=True)
    zero = ledger.writer("r", resume=resume, seal_rows=SEAL_ROWS)
    one = ledger.writer("r", writer=1, attempt=zero.attempt, seal_rows=SEAL_ROWS)
    step = resume["step"] if resume else 0
    while True:
        step += 1
        tickets = []
        for writer in (zero, one):
            batch = [row(i, prompt=f"step {step}", advantage=step, turn=i) for i in range(ROWS)]
            tickets.append(writer.append(step, batch))
        event = zero.event("step_stats", {"loss": step}, step=step)
        for writer, ticket in zip((zero, one), tickets, strict=True):
            ticket.wait()
            say("durable", zero.attempt, writer.writer, step)
        event.wait()
        if step % 3 == 0:
            one.flush()
            say("position", json.dumps(zero.checkpoint(step)))


def seal(path: str) -> None:
    while True:
        if Path(path, "ledger.db").exists():
            Ledger.open(path, create=True).seal()
        time.sleep(0.03)


def main(path: str) -> None:
    for line in sys.stdin:
        what, _, position = line.strip().partition(" ")
        child = os.fork()
        if child == 0:
            say("started", os.getpid())
            compaction._FEW_FILES = 4
            try:
                if what == "train":
                    train(path, position)
                else:
                    seal(path)
            except BaseException as error:
                say("error", type(error).__name__, " ".join(str(error).split()))
            os._exit(1)
        os.waitpid(child, 0)
        say("ended")


if __name__ == "__main__":
    main(*sys.argv[1:])
