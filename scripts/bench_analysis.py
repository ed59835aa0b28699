"""Times `rewards analyze` and `rewards report`, each in a process of its own, and their peak memory.

    python scripts/bench_analysis.py                        # the simulated audit, 12,847 sessions
    python scripts/bench_analysis.py --sessions 10000000    # and a ledger of ten million; building it takes minutes

It asserts no time: it prints a table, or one JSON document. The ledger of many sessions holds three components, five
categories, KL and two recalibrations, no texts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from ledger_bench.data import chunks  # noqa: E402

from rewards import Ledger  # noqa: E402
from rewards.audit import write_record  # noqa: E402

ROWS = 256
_RUN = """
import resource, sys, time
from rewards.cli import main
began = time.perf_counter()
code = main(sys.argv[1:])
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def measured(*command: str) -> dict[str, float]:
    """Seconds with the start of the process, seconds inside, and peak GiB."""
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _RUN, *command], capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    inside, peak = done.stderr.split()[-2:]
    return {"seconds": seconds, "inside": float(inside), "peak_gib": int(peak) / 2**20}


def many(folder: Path, sessions: int) -> None:
    """A ledger of that many sessions, in `many` of the folder."""
    path = folder / "many"
    rng = np.random.default_rng(20261127)
    with Ledger.open(path, create=True) as ledger, ledger.writer("grpo") as writer:
        for table in chunks(rng, 0, sessions // ROWS * ROWS, ROWS, 262_144):
            writer.append_table(table, rows_a_commit=ROWS)
            categories = sorted(set(table["category"].to_pylist()))
            last = int(table["step"][-1].as_py())
            if writer_events := _events(sessions, last, categories):
                for kind, payload, step in writer_events:
                    writer.event(kind, payload, step=step)
    with Ledger.open(path) as ledger:
        ledger.seal()


_said: set[int] = set()


def _events(sessions: int, last: int, categories: list[str]) -> list[tuple[str, dict[str, Any], int]]:
    """A recalibration after a third and after two thirds of the run."""
    found = []
    for number in (1, 2):
        if number not in _said and last * ROWS >= number * sessions / 3:
            _said.add(number)
            payload = {"category": categories[0], "op": "add", "old_pct": 5.0 * number, "new_pct": 5.0 * (number + 1)}
            found.append(("recalibration", payload | {"reason": "benchmark"}, last))
    return found


def main() -> None:
    """Builds, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, help="also a ledger of that many sessions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="rewards-bench-") as name:
        folder = Path(name)
        audit = folder / "audit"
        write_record(audit)
        figures["analyze, 12,847 sessions"] = _median(args.repeats, "analyze", str(audit), "--json")
        page = folder / "report.html"
        figures["report, 12,847 sessions"] = _median(args.repeats, "report", str(audit), "--out", str(page))
        figures["report, 12,847 sessions"]["megabytes"] = page.stat().st_size / 1e6
        if args.sessions:
            began = time.perf_counter()
            # In a process of its own: a child's peak memory begins at what its parent holds.
            building = multiprocessing.get_context("spawn").Process(target=many, args=(folder, args.sessions))
            building.start()
            building.join()
            if building.exitcode:
                sys.exit(f"the ledger could not be built (exit code {building.exitcode})")
            path = folder / "many"
            print(f"built in {time.perf_counter() - began:.0f} s", file=sys.stderr)
            label = f"analyze, {args.sessions:,} sessions"
            figures[label] = _median(args.repeats, "analyze", str(path), "--run", "grpo", "--json")
    if args.json:
        print(json.dumps(figures, indent=1))
        return
    for label, found in figures.items():
        more = "".join(f", {key} {value:.2f}" for key, value in found.items() if key == "megabytes")
        print(
            f"{label}: {found['seconds']:.2f} s ({found['inside']:.2f} inside), peak {found['peak_gib']:.2f} GiB{more}"
        )


def _median(repeats: int, *command: str) -> dict[str, float]:
    runs = [measured(*command) for _ in range(repeats)]
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


if __name__ == "__main__":
    main()
