"""Measures the reward ledger and says what holds: `python scripts/bench_ledger.py [--quick] [--json]`.

The whole benchmark makes 10,000 commits and 10 million rows and takes about ten minutes; --quick makes 1,000 and 1
million and ends within 45 s on two quiet cores. What is compared is measured interleaved in one run, on one file
system. It asserts no time: it prints a table with pass or FAIL, or one JSON document, and its exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ledger_bench import appends, bodies, steps  # noqa: E402
from ledger_bench.figures import Figure, machine, print_table  # noqa: E402


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 commits and 1 million rows")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--step-seconds", type=float, default=steps.STEP_SECONDS, help="of a training step")
    parser.add_argument("--folder", type=Path, help="where the ledgers are made (default: the system's temporary one)")
    args = parser.parse_args()
    commits, rows = (1_000, 1_000_000) if args.quick else (10_000, 10_000_000)
    rows -= rows % bodies.ROWS
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        where = machine(folder)
        figures = _measure(folder, commits, rows, args.step_seconds)
    document = {
        "size": "quick" if args.quick else "full",
        "commits": commits,
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": where,
        "figures": [figure.document() for figure in figures],
    }
    if args.json:
        print(json.dumps(document, indent=1))
        return
    label = "QUICK: " if args.quick else ""
    print(f"{label}{commits:,} commits, {rows:,} rows, {document['seconds']:.1f} s in all")
    print(", ".join(f"{key} {value}" for key, value in where.items()), end="\n\n")
    print_table(figures)
    failed = [figure.name for figure in figures if figure.holds is False]
    print(f"\n{len(failed)} of {sum(f.must is not None for f in figures)} fail" + "".join(f"\n  {n}" for n in failed))


def _measure(folder: Path, commits: int, rows: int, step_seconds: float) -> list[Figure]:
    def seed(number: int) -> np.random.Generator:
        return np.random.default_rng([20261120, number])

    parts: dict[str, Callable[[], list[Figure]]] = {
        "appending": lambda: appends.measure(folder, commits, seed(1)),
        "a training step": lambda: steps.measure(folder, step_seconds, seed(2)),
        "importing": lambda: bodies.bulk_import(folder, rows, seed(3)),
        "a resumed run": lambda: bodies.resumed_ledger(folder, rows, seed(4)),
        "sizes": lambda: bodies.bytes_a_session(folder),
        "queries": lambda: bodies.queries(folder, rows),
        "hashing": lambda: bodies.hashing(min(rows, 1_000_000) // 2, seed(5)),
        "verifying": lambda: bodies.verification(folder),
        "import time": bodies.import_time,
    }
    figures = []
    for name, measure in parts.items():
        began = time.perf_counter()
        figures += measure()
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    main()
