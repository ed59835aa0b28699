"""Commits of 256 rows with texts, to durable, each followed by a raw write and fdatasync of as many bytes."""

from __future__ import annotations

import os
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ledger_bench.data import Texts, as_columns, as_dicts, sessions
from ledger_bench.figures import Figure
from rewards import Ledger
from rewards.writer import Writer

ROWS = 256
_AHEAD = 30  # commits whose values are drawn at a time; their rows are made one commit at a time
_SEALING_COMMITS = 100  # at most, beside a seal

Times = list[tuple[float, float]]  # of commits: ours, raw; in ms


def _fresh(table: pa.Table) -> pa.Table:
    """The rows in buffers of their own: what a trainer makes is no slice of something larger."""
    (batch,) = table.to_batches()
    return pa.Table.from_batches([pa.ipc.read_record_batch(batch.serialize(), batch.schema)])


# What a recorder beside another trainer knows of a session: no KL, no advantage.
RECORDED = ("pipeline", "split", "category", "prompt_id", "group_id", "group_size", "policy_version")
RECORDED += ("baseline_reward", "adjusted_reward", "components", "response_tokens", "prompt", "response")


def _recorded(table: pa.Table) -> pa.Table:
    return table.select(list(RECORDED))


FORMS: dict[str, Callable[[pa.Table], Any]] = {
    "Arrow table": lambda table: _fresh(_recorded(table)),
    "columns": lambda table: as_columns(_recorded(table)),
    "dicts": lambda table: as_dicts(_recorded(table)),
    "Arrow table of a whole GRPO stage": _fresh,
}
_WIDE = "Arrow table of a whole GRPO stage"
_CYCLE = ("Arrow table", "columns", "Arrow table", "dicts", "Arrow table", _WIDE)  # what is held to a limit gets half


class _Bench:
    """A writer whose commits are timed beside raw writes."""

    def __init__(self, folder: Path, writer: Writer, rng: np.random.Generator) -> None:
        self._writer = writer
        self._tables = self._draw(rng)
        self._step = 0
        self._sizes: dict[str, int] = {}
        self._payload = rng.bytes(1 << 20)
        self._handle = os.open(folder / "raw", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def _draw(self, rng: np.random.Generator) -> Iterator[pa.Table]:
        texts = Texts(rng)
        first = 0
        while True:
            table = sessions(rng, first, _AHEAD * ROWS, ROWS, texts).drop_columns("step").combine_chunks()
            yield from (table.slice(start, ROWS) for start in range(0, table.num_rows, ROWS))
            first += table.num_rows

    def measure_sizes(self, folder: Path) -> dict[str, int]:
        """What a commit of each form adds to the tail: its two values, without SQLite's pages around them."""
        for form, make in FORMS.items():
            path = folder / f"probe {form}"
            with Ledger.open(path, create=True) as ledger, ledger.writer("probe", seal_rows=None) as writer:
                for step in range(1, 5):
                    writer.append(step, make(next(self._tables)), durable=True)
                (tail,) = (path / "tails").glob("*.db")
                connection = sqlite3.connect(f"file:{tail}?mode=ro", uri=True)
                ((size,),) = connection.execute("SELECT avg(length(rows) + length(texts)) FROM batches").fetchall()
                connection.close()
            self._sizes[form] = int(size)
        return self._sizes

    def commit(self, form: str, *, durable: bool = True) -> tuple[float, float]:
        """Makes the rows, untimed; then milliseconds of the append and of the raw write."""
        rows = FORMS[form](next(self._tables))
        payload = memoryview(self._payload)[: self._sizes[form]]
        self._step += 1
        began = time.perf_counter()
        if durable:
            self._writer.append(self._step, rows, durable=True)
        else:
            self._writer.append(self._step, rows).wait()
        ours = time.perf_counter() - began
        began = time.perf_counter()
        os.write(self._handle, payload)
        os.fdatasync(self._handle)
        return 1e3 * ours, 1e3 * (time.perf_counter() - began)

    def close(self) -> None:
        os.close(self._handle)


def measure(folder: Path, commits: int, rng: np.random.Generator) -> list[Figure]:
    """Leaves a ledger with texts in `folder / "appended"`; nothing is sealed while the forms are compared."""
    waited = commits // 10
    with Ledger.open(folder / "appended", create=True) as ledger, ledger.writer("grpo", seal_rows=None) as writer:
        bench = _Bench(folder, writer, rng)
        sizes = bench.measure_sizes(folder)
        times: dict[str, Times] = {form: [] for form in FORMS}
        for commit in range(commits - waited):
            form = _CYCLE[commit % len(_CYCLE)]
            times[form].append(bench.commit(form))
        # By themselves: the thread that they wake would be in the way of the others.
        asynchronous = [bench.commit("Arrow table", durable=False) for _ in range(waited)]
        beside = _beside_a_seal(ledger, bench)
        writer.checkpoint(commits)
        bench.close()
    (folder / "raw").unlink()
    figures = [_raw(times["Arrow table"], sizes["Arrow table"])]
    figures += [
        _ratio(f"append 256 rows, {form}, over raw", taken, 2.0 if form == "Arrow table" else None)
        for form, taken in times.items()
    ]
    figures.append(_ratio("append().wait(), Arrow table, over raw", asynchronous, None))
    return [*figures, _growth(times["Arrow table"]), _sealing(beside, times["Arrow table"])]


def _beside_a_seal(ledger: Ledger, bench: _Bench) -> Times:
    """Commits while everything before is sealed in another thread, as a writer does it in the background."""
    thread = threading.Thread(target=ledger.seal)
    taken = []
    thread.start()
    while thread.is_alive() and len(taken) < _SEALING_COMMITS:
        taken.append(bench.commit("Arrow table"))
    thread.join()
    return taken


def _medians(times: Times) -> tuple[float, float]:
    return statistics.median(mine for mine, _ in times), statistics.median(raw for _, raw in times)


def _raw(times: Times, size: int) -> Figure:
    raw = [raw for _, raw in times]
    note = f"{size:,} bytes, the two values of a commit; mean {np.mean(raw):.2f}, p99 {np.quantile(raw, 0.99):.1f}"
    return Figure("raw write + fdatasync, median", statistics.median(raw), "ms", note=note)


def _ratio(name: str, times: Times, must: float | None) -> Figure:
    ours, raw = _medians(times)
    taken = [mine for mine, _ in times]
    note = f"medians {ours:.2f} over {raw:.2f} ms of {len(times):,}, mean {np.mean(taken):.2f}, "
    return Figure(name, ours / raw, "x", must, note=note + f"p99 {np.quantile(taken, 0.99):.1f}; no seal beside it")


def _growth(times: Times) -> Figure:
    (early, raw_early), (late, raw_late) = _medians(times[50:150]), _medians(times[-100:])
    note = (
        f"last 100 of {len(times):,} over 100 from the 51st on; the raw write's own ratio: {raw_late / raw_early:.2f}"
    )
    return Figure("append, Arrow table, growth", late / early, "x", 1.2, note=note)


def _sealing(beside: Times, alone: Times) -> Figure:
    ours, raw = _medians(beside)
    before, _ = _medians(alone)
    note = f"median {ours:.2f} ms of {len(beside)}, {ours / before:.1f} times that without a seal; raw {raw:.2f} ms"
    return Figure("append while a seal runs, over raw", ours / raw, "x", note=note)
