"""What recording adds to a training step: the trainer's thread while it hands rows over, and the work behind it."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from ledger_bench.data import Texts, as_dicts, sessions
from ledger_bench.figures import Figure
from rewards import Ledger

ROWS = 128
_CHECKPOINT_EVERY = 50
# experiments/LOG.md: 64 s for the 201 steps of the quickstart's GRPO stage, 0.32 s each with everything around them.
STEP_SECONDS = 0.25


def measure(folder: Path, step_seconds: float, rng: np.random.Generator, steps: int = 100) -> list[Figure]:
    """Dicts, as reward functions give them. Between steps the trainer waits, so that every step is a commit."""
    texts = Texts(rng)
    handing: list[float] = []
    spent = 0.0
    flushed: list[float] = []
    with Ledger.open(folder / "steps", create=True) as ledger, ledger.writer("grpo") as writer:
        for step in range(1, steps + 1):
            rows = as_dicts(sessions(rng, step * ROWS, ROWS, ROWS, texts).drop_columns("step"))
            worked = time.process_time()
            began = time.perf_counter()
            ticket = writer.append(step, rows)
            handing.append(time.perf_counter() - began)
            if step % _CHECKPOINT_EVERY == 0:
                began = time.perf_counter()
                writer.checkpoint(step)
                flushed.append(time.perf_counter() - began)
            ticket.wait()  # not part of what a trainer does: the work of the writing thread belongs to this step
            spent += time.process_time() - worked
    median, work = statistics.median(handing), spent / steps
    note = f"{1e3 * median:.2f} ms of {step_seconds:g} s a step; {ROWS} rows with texts as dicts"
    held = Figure("recording, the trainer's thread", 100 * median / step_seconds, "%", 1.0, note=note)
    note = f"{1e3 * work:.2f} ms of CPU in all threads, checkpoints every {_CHECKPOINT_EVERY} steps included"
    busy = Figure("recording, all CPU", 100 * work / step_seconds, "%", 1.0, note=note)
    checkpoint = Figure("recording, a checkpoint", 1e3 * statistics.median(flushed), "ms", note="flush and record")
    return [held, busy, checkpoint]
