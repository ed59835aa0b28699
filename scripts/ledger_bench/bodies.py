"""Large ledgers: import from Parquet, bytes a session, queries in fresh processes, verification."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ledger_bench.ask import QUERIES
from ledger_bench.data import audited, chunks, sessions
from ledger_bench.figures import Figure
from rewards import Ledger
from rewards.chain import ChainHasher, genesis

ROOT = Path(__file__).resolve().parents[2]
ROWS = 256
_CHUNK = 262_144
_SECONDS = {"per 100-session bin": 1.0, "by category": 0.5, "live view after a resume": 0.5}
_PEAK_GIB = 1.5


def bulk_import(folder: Path, rows: int, rng: np.random.Generator) -> list[Figure]:
    """`rewards import` of Parquet files without texts, in a process of its own that has loaded its libraries."""
    wide = min(rows, max(200_000, rows // 10))
    tables = {
        "12 columns": (audited(rng, start, min(_CHUNK, rows - start), ROWS) for start in range(0, rows, _CHUNK)),
        "with components": chunks(rng, 0, wide, ROWS, _CHUNK),
    }
    figures = []
    for (name, parts), count, must in zip(tables.items(), (rows, wide), (500_000, None), strict=True):
        seconds, started, columns = _imported(folder, parts, count)
        note = (
            f"{count:,} rows of {columns} columns to durable and sealed: {seconds:.2f} s; with the start {started:.2f}"
        )
        figures.append(Figure(f"rewards import, {name}", count / seconds, "rows/s", must, False, note))
    return figures


# pyarrow loads pandas with the first list it is given, where there is one.
_IMPORT = """
import sys, time
import deltalake, duckdb, pyarrow, pyarrow.dataset, pyarrow.parquet
import rewards.cli, rewards.commands.import_, rewards.importers.run, rewards.query, rewards.sealer
pyarrow.array([1])
began = time.perf_counter()
code = rewards.cli.main(sys.argv[1:])
print(time.perf_counter() - began, file=sys.stderr)
sys.exit(code)
"""


def _imported(folder: Path, parts: Iterator[pa.Table], rows: int) -> tuple[float, float, int]:
    """Seconds of the command, the same with the process's start, and the file's columns."""
    source, ledger = folder / "sessions.parquet", folder / "imported"
    first = next(parts)
    with pq.ParquetWriter(source, first.schema) as file:
        file.write_table(first)
        for part in parts:
            file.write_table(part)
    command = ["import", str(source), "--ledger", str(ledger), "--run-id", "bulk", "--json"]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _IMPORT, *command], cwd=ROOT, capture_output=True, text=True)
    started = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    seconds = float(done.stderr.split()[-1])
    assert json.loads(done.stdout)["rows"] == rows
    source.unlink()
    shutil.rmtree(ledger)
    return seconds, started, len(first.schema)


def resumed_ledger(folder: Path, rows: int, rng: np.random.Generator) -> list[Figure]:
    """A sealed ledger of commits of 256 rows in `resumed`: `rows` live ones and 2 % that a resume superseded."""
    steps = rows // ROWS
    stop, lost = int(0.6 * steps), max(1, int(0.02 * steps))
    seconds = 0.0
    with Ledger.open(folder / "resumed", create=True) as ledger:
        position: dict[str, Any] | None = None
        for first, last in ((0, stop + lost), (stop, steps)):
            with ledger.writer("grpo", resume=position) as writer:
                for table in chunks(rng, first * ROWS, (last - first) * ROWS, ROWS, _CHUNK):
                    began = time.perf_counter()
                    writer.append_table(table, rows_a_commit=ROWS)
                    seconds += time.perf_counter() - began
                position = writer.checkpoint(stop)
        ledger.seal()
    rate = (rows + lost * ROWS) / seconds
    note = "for comparison; to durable, while earlier rows are being sealed"
    return [Figure("append_table, commits of 256", rate, "rows/s", note=note)]


def bytes_a_session(folder: Path) -> list[Figure]:
    """After sealing and vacuum."""
    figures = []
    for name, must, what in (("resumed", 140, "no text"), ("appended", 450, "300-byte text")):
        with Ledger.open(folder / name) as ledger:
            ledger.seal()
            sizes = ledger.sizes()
        rows = sizes["sealed_rows"]
        assert sizes["hot_rows"] == 0
        stored = sizes["session_bytes"] + sizes["text_bytes"]
        whole = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        note = f"Parquet of {rows:,} rows; the whole folder: {whole / rows:.0f}"
        if name == "appended":
            note += f"; rows alone {sizes['session_bytes'] / rows:.0f}; a 100-byte prompt for 8 responses is in it"
        figures.append(Figure(f"bytes a session, {what}", stored / rows, "bytes", must, note=note))
    return figures


def queries(folder: Path, rows: int, repeats: int = 3) -> list[Figure]:
    """Each in fresh processes; what must hold is connecting and asking together, the median."""
    figures, peaks = [], []
    for name, must in _SECONDS.items():
        runs = [_ask(folder / "resumed", name) for _ in range(repeats)]
        together = [run["connect_s"] + run["query_s"] for run in runs]
        asked, connected = (statistics.median(run[key] for run in runs) for key in ("query_s", "connect_s"))
        peaks += [run["peak_bytes"] / 2**30 for run in runs]
        note = f"best {min(together):.3f}; connect {connected:.3f}, query {asked:.3f}"
        figures.append(Figure(f"query {name}", statistics.median(together), "s", must, note=note))
        if name == "live view after a resume":
            assert runs[0]["first"][:3] == [str(rows)] * 3, runs[0]
    note = "the largest of all these processes"
    return [*figures, Figure("query, peak memory", max(peaks), "GiB", _PEAK_GIB, note=note)]


def _ask(ledger: Path, name: str) -> dict[str, Any]:
    assert name in QUERIES
    command = [sys.executable, str(Path(__file__).with_name("ask.py")), str(ledger), name]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def hashing(rows: int, rng: np.random.Generator) -> list[Figure]:
    """The chain alone: commits of 256 rows in memory."""
    table = sessions(rng, 0, rows // ROWS * ROWS, ROWS).combine_chunks()
    columns = {name: table[name].chunk(0) for name in table.schema.names}
    began, worked = time.perf_counter(), time.process_time()
    hasher = ChainHasher(("grpo", 1, 0), columns)
    head = genesis("grpo", 1, 0)
    for start in range(0, table.num_rows, ROWS):
        head = hasher.commit(head, start, start + 1, start, start + ROWS)
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    note = f"{len(columns)} columns, three components; {table.num_rows / work:,.0f} a second of CPU"
    return [Figure("verify, hashing alone", table.num_rows / seconds, "rows/s", 1_000_000, False, note)]


def verification(folder: Path) -> list[Figure]:
    """`Ledger.verify` of the two ledgers, sealed; the limit is for rows without texts."""
    figures = []
    for name, what, must in (("resumed", "no text", 300_000), ("appended", "300-byte text", None)):
        with Ledger.open(folder / name) as ledger:
            rows = ledger.sizes()["sealed_rows"]
            began, worked = time.perf_counter(), time.process_time()
            assert ledger.verify().ok
            seconds, work = time.perf_counter() - began, time.process_time() - worked
        note = f"{rows:,} rows in {seconds:.1f} s, {work:.1f} s of CPU"
        if must is None:
            note += "; every text is read and hashed too; the limit is for rows without"
        figures.append(Figure(f"verify in all, {what}", rows / seconds, "rows/s", must, False, note))
    return figures


def import_time(repeats: int = 5) -> list[Figure]:
    """What `import rewards` adds to a bare interpreter."""

    def start(code: str) -> float:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    return [Figure("import rewards", start("import rewards") - start("pass"), "s", 0.3)]
