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
    """Dicts, as reward functions give them. After each step the trainer waits, so that every step is a commit."""
    texts = Texts(rng)
    prepared = [
        as_dicts(sessions(rng, step * ROWS, ROWS, ROWS, texts).drop_columns("step")) for step in range(1, steps + 1)
    ]
    handing, flushing = list[float](), list[float]()
    with Ledger.open(folder / "steps", create=True) as ledger, ledger.writer("grpo", seal_rows=None) as writer:
        worked = time.process_time()
        for step, rows in enumerate(prepared, start=1):
            began = time.perf_counter()
            ticket = writer.append(step, rows)
            handing.append(time.perf_counter() - began)
            while not ticket.done():  # ticket.wait() would do the background's work in this thread
                time.sleep(0.002)
            if step % _CHECKPOINT_EVERY == 0:
                began = time.perf_counter()
                writer.checkpoint(step)
                flushing.append(time.perf_counter() - began)
        work = (time.process_time() - worked) / steps
        began = time.perf_counter()
        ledger.seal()
        sealing = time.perf_counter() - began
    median = statistics.median(handing)
    note = f"{1e3 * median:.2f} ms of {step_seconds:g} s a step; {ROWS} rows with texts as dicts"
    held = Figure("recording, the trainer's thread", 100 * median / step_seconds, "%", 1.0, note=note)
    note = f"{1e3 * work:.2f} ms of CPU a step in all threads, chain and checkpoints every {_CHECKPOINT_EVERY} included"
    busy = Figure("recording, all CPU", 100 * work / step_seconds, "%", 1.0, note=note)
    note = f"every {_CHECKPOINT_EVERY} steps; sealing the run's {ROWS * steps:,} rows at its end: {sealing:.2f} s, once"
    return [held, busy, Figure("recording, a checkpoint", 1e3 * statistics.median(flushing), "ms", note=note)]
