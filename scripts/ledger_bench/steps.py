"""What recording adds to a training step: the trainer's thread while it hands rows over, and the work behind it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ledger_bench.data import COMPONENTS, WEIGHTS, Texts, sessions
from ledger_bench.figures import Figure
from rewards import Ledger
from rewards.recording import Recorder
from rewards.schema import COMPONENTS_TYPE

ROWS = 128
_CHECKPOINT_EVERY = 50
# experiments/LOG.md: 64 s for the 201 steps of the quickstart's GRPO stage, 0.32 s each with everything around them.
STEP_SECONDS = 0.25
# What a trainer shows to reward functions; it has no log-probabilities for them.
_TAKEN = ("prompt_id", "category", "group_id", "group_size", "policy_version", "baseline_reward", "adjusted_reward")
_COLUMNS = (*_TAKEN, "prompt", "response", "response_tokens", "truncated", "stop_reason")


def measure(folder: Path, step_seconds: float, rng: np.random.Generator, steps: int = 100) -> list[Figure]:
    """After each step the trainer waits, so that every step is a commit."""
    texts = Texts(rng)
    tables = [sessions(rng, step * ROWS, ROWS, ROWS, texts) for step in range(steps)]
    handing, flushing = list[float](), list[float]()
    with Ledger.open(folder / "steps", create=True) as ledger, ledger.writer("grpo", seal_rows=None) as writer:
        work = 0.0
        for step, table in enumerate(tables, start=1):
            rows = _as_recorded(table)
            worked, began = time.process_time(), time.perf_counter()
            ticket = writer.append(step, rows)
            handing.append(time.perf_counter() - began)
            while not ticket.done():  # ticket.wait() would do the background's work in this thread
                time.sleep(0.002)
            if step % _CHECKPOINT_EVERY == 0:
                began = time.perf_counter()
                writer.checkpoint(step)
                flushing.append(time.perf_counter() - began)
            work += time.process_time() - worked
        began = time.perf_counter()
        ledger.seal()
        sealing = time.perf_counter() - began
    share = 100 / step_seconds
    median = statistics.median(handing)
    note = f"{1e3 * median:.2f} ms of {step_seconds:g} s a step; {ROWS} rows with texts as the recorder passes them"
    held = Figure("recording, the trainer's thread", share * median, "%", 1.0, note=note)
    whole = statistics.median(_recorder(folder / "recorder", tables))
    note = f"{1e3 * whole:.2f} ms; from three reward functions that take no time, which the recorder makes rows of"
    called = Figure("recording, Recorder and append", share * whole, "%", note=note)
    note = f"{1e3 * work / steps:.2f} ms of CPU a step, nearly all in another thread; every checkpoint's chain is in it"
    busy = Figure("recording, CPU of all threads", share * work / steps, "%", note=note)
    note = f"every {_CHECKPOINT_EVERY} steps; sealing the run's {ROWS * steps:,} rows at its end: {sealing:.2f} s, once"
    return [held, called, busy, Figure("recording, a checkpoint", 1e3 * statistics.median(flushing), "ms", note=note)]


def _as_recorded(table: pa.Table) -> dict[str, Any]:
    """A dict of columns: lists, and the components in Arrow."""
    rows: dict[str, Any] = {name: table[name].to_pylist() for name in _COLUMNS}
    return rows | {
        "pipeline": "grpo",
        "split": "train",
        "components": pa.array(table["components"].to_pylist(), COMPONENTS_TYPE),
    }


def _recorder(folder: Path, tables: list[pa.Table]) -> list[float]:
    """Seconds a step in the trainer's thread, from the first function's call to the last one's return."""
    scores: dict[str, list[float]] = {}

    def function(name: str) -> Callable[..., list[float]]:
        def score(prompts: Any, completions: Any, **columns: Any) -> list[float]:
            return scores[name]

        score.__name__ = name
        return score

    taken = []
    with Recorder(folder, "grpo", pipeline="grpo") as recorder:
        wrapped = recorder.wrap([function(name) for name in COMPONENTS], WEIGHTS)
        for table in tables:
            parts = table["components"].to_pylist()
            for place, name in enumerate(COMPONENTS):
                scores[name] = [row[place]["raw"] for row in parts]
            columns = {name: table[name].to_pylist() for name in ("category", "prompt_id")}
            columns["completion_ids"] = [[7] * count for count in table["response_tokens"].to_pylist()]
            prompts, completions = table["prompt"].to_pylist(), table["response"].to_pylist()
            began = time.perf_counter()
            for call in wrapped:
                call(prompts=prompts, completions=completions, **columns)
            taken.append(time.perf_counter() - began)
            recorder.flush()
    return taken
