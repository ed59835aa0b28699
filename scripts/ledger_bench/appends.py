"""Commits of 256 rows with texts, to durable, each beside a raw write and fdatasync of as many bytes."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ledger_bench.data import Texts, as_columns, as_dicts, sessions
from ledger_bench.figures import Figure
from rewards import Ledger

ROWS = 256
_AHEAD = 30  # commits whose rows are made at a time, outside what is timed
FORMS: dict[str, Callable[[pa.Table], Any]] = {"Arrow table": lambda table: table, "columns": as_columns}
FORMS["dicts"] = as_dicts


def measure(folder: Path, commits: int, rng: np.random.Generator) -> list[Figure]:
    """Leaves a sealed ledger with texts in `folder / "appended"`."""
    texts = Texts(rng)
    size = _bytes_a_commit(folder, rng, texts)
    payload = rng.bytes(size)
    ours, raw, sealing = np.zeros(commits), np.zeros(commits), np.zeros(commits, bool)
    names = list(FORMS)
    handle = os.open(folder / "raw", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    with Ledger.open(folder / "appended", create=True) as ledger, ledger.writer("grpo") as writer:
        ready: list[Any] = []
        for commit in range(commits):
            if not ready:
                count = min(_AHEAD, commits - commit)
                table = sessions(rng, commit * ROWS, count * ROWS, ROWS, texts).drop_columns("step").combine_chunks()
                made = (table.slice(i * ROWS, ROWS) for i in range(count))
                ready = [FORMS[names[(commit + i) % len(names)]](rows) for i, rows in enumerate(made)]
            rows = ready.pop(0)
            began = time.perf_counter()
            writer.append(commit + 1, rows).wait()
            ours[commit] = time.perf_counter() - began
            began = time.perf_counter()
            os.write(handle, payload)
            os.fdatasync(handle)
            raw[commit] = time.perf_counter() - began
            sealing[commit] = _is_sealing(folder / "appended" / "seal.lock")
        writer.checkpoint(commits)
    os.close(handle)
    (folder / "raw").unlink()
    return _figures(1e3 * ours, 1e3 * raw, sealing, size)


def _is_sealing(lock: Path) -> bool:
    if not lock.exists():
        return False
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _bytes_a_commit(folder: Path, rng: np.random.Generator, texts: Texts) -> int:
    """What a commit adds to the tail: the bytes of its two values, without SQLite's pages around them."""
    with Ledger.open(folder / "probe", create=True) as ledger, ledger.writer("probe", seal_rows=None) as writer:
        for step in range(1, 9):
            table = sessions(rng, step * ROWS, ROWS, ROWS, texts).drop_columns("step")
            writer.append(step, table).wait()
        (tail,) = (folder / "probe" / "tails").glob("*.db")
        connection = sqlite3.connect(f"file:{tail}?mode=ro", uri=True)
        ((size,),) = connection.execute("SELECT avg(length(rows) + length(texts)) FROM batches").fetchall()
        connection.close()
    return int(size)


def _figures(
    ours: np.ndarray[Any, Any], raw: np.ndarray[Any, Any], sealing: np.ndarray[Any, Any], size: int
) -> list[Figure]:
    floor = statistics.median(raw)
    note = (
        f"{size:,} bytes: the two values that a commit stores; mean {raw.mean():.2f}, p99 {np.quantile(raw, 0.99):.1f}"
    )
    figures = [Figure("raw write + fdatasync, median", floor, "ms", note=note)]
    for place, name in enumerate(FORMS):
        mine = ours[place :: len(FORMS)]
        median = statistics.median(mine)
        note = f"median {median:.2f} ms, mean {mine.mean():.2f}, p99 {np.quantile(mine, 0.99):.1f}"
        figures.append(Figure(f"append 256 rows, {name}, over raw", median / floor, "x", 2.0, note=note))
    early, late = (np.flatnonzero(~sealing[100:])[:100] + 100, np.flatnonzero(~sealing)[-100:])
    ratio = statistics.median(ours[late]) / statistics.median(ours[early])
    drift = statistics.median(raw[late]) / statistics.median(raw[early])
    note = f"last 100 of {len(ours):,} commits over 100 from commit 100 on; the raw write's own ratio: {drift:.2f}"
    figures.append(Figure("append, growth", ratio, "x", 1.2, note=note))
    if sealing.any():
        note = f"median of the {sealing.sum()} commits beside which rows were being sealed; all forms"
        figures.append(Figure("append while sealing", statistics.median(ours[sealing]), "ms", note=note))
    return figures
