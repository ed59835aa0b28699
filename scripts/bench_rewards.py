"""Times what readers of a ledger wait for: importing `rewards`, recording, one step's leverage, the report of a run.

`python scripts/bench_rewards.py [--sessions 12847] [--json]`: medians of five, a table on stdout, or one JSON document.
Recording is compared with a raw write and fdatasync of as many bytes in the same process and folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rewards import Ledger  # noqa: E402
from rewards.leverage import leverages  # noqa: E402
from tests.rewards import simulated  # noqa: E402

REPEATS = 5


def median_s(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time in seconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def import_s() -> float:
    """Seconds that `import rewards` adds to a bare interpreter."""

    def start(code: str) -> float:
        return median_s(lambda: subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT))

    return start("import rewards") - start("pass")


def leverage_s() -> float:
    """Seconds for all categories of a step of 64 sessions."""
    rng = np.random.default_rng(0)
    rows = [
        {"category": "abcdef"[i // 8 % 6], "group_id": i // 8, "compliant": bool(rng.random() < 0.5)}
        | dict.fromkeys(("advantage", "advantage_unadjusted"), float(rng.normal()))
        for i in range(64)
    ]
    return median_s(lambda: leverages(rows, np.random.default_rng(0)), 50)


def record_s(folder: Path, commits: int = 200) -> tuple[float, float]:
    """Seconds to have 256 rows with 300-byte texts durable, and for a raw write and fdatasync of as many bytes."""
    text = "x" * 300
    row = {"pipeline": "grpo", "split": "train", "prompt_id": "p", "baseline_reward": 0.5, "response": text}
    ours, raw = [], []
    payload = os.urandom(256 * 512)
    with Ledger.open(folder / "append", create=True) as ledger, ledger.writer("bench") as writer:
        handle = os.open(folder / "raw", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for step in range(1, commits + 1):
            rows = [row] * 256
            began = time.perf_counter()
            writer.append(step, rows).wait()
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            os.write(handle, payload)
            os.fdatasync(handle)
            raw.append(time.perf_counter() - began)
        os.close(handle)
    return statistics.median(ours), statistics.median(raw)


def report_s(folder: Path, sessions: int) -> tuple[float, int]:
    """Seconds of the whole `rewards report` process for a simulated run, and the page's bytes."""
    with Ledger.open(folder / "ledger", create=True) as ledger:
        simulated.fill(ledger, simulated.grpo_rows(sessions=sessions))
    command = [sys.executable, "-m", "rewards.cli", "report", str(folder / "ledger"), "--out", str(folder / "r.html")]
    seconds = median_s(lambda: subprocess.run(command, check=True, cwd=ROOT, stderr=subprocess.DEVNULL), 3)
    return seconds, (folder / "r.html").stat().st_size


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=12_847)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        append, raw = record_s(Path(name))
        report, size = report_s(Path(name), args.sessions)
    figures = {
        "load_average": os.getloadavg()[0],
        "import_rewards_ms": 1e3 * import_s(),
        "append_256_rows_durable_ms": 1e3 * append,
        "raw_write_fdatasync_ms": 1e3 * raw,
        "leverage_64_sessions_ms": 1e3 * leverage_s(),
        "report_s": report,
        "report_sessions": args.sessions,
        "report_bytes": size,
    }
    if args.json:
        print(json.dumps(figures, indent=1))
        return
    for key, value in figures.items():
        print(f"{key:30} {value:,.4g}" if isinstance(value, float) else f"{key:30} {value:,}")


if __name__ == "__main__":
    main()
