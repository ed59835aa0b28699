"""Killed in the middle: no acknowledged row is lost, no session counts twice, and the chains are whole."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rewards import Ledger

ROOT = Path(__file__).resolve().parents[2]


def run_and_kill(path: Path, position: dict[str, Any] | None, after: float, pace: float) -> list[str]:
    """Starts a training process and kills it `after` seconds from its first durable step; its whole lines."""
    command = [sys.executable, "-m", "tests.rewards.ledger_child", str(path), json.dumps(position), str(pace)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    return [line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]


def crash_and_resume(path: Path, times: int, pace: float, seed: int) -> None:
    chance = random.Random(seed)
    position: dict[str, Any] | None = None
    acknowledged: set[tuple[int, int]] = set()
    for attempt in range(1, times + 1):
        lines = run_and_kill(path, position, chance.uniform(0, 0.3), pace)
        for line in lines:
            what, _, rest = line.partition(" ")
            if what == "position":
                position = json.loads(rest)
            else:
                number, step = map(int, rest.split())
                assert number == attempt
                acknowledged.add((number, step))
        ledger = Ledger.open(path)
        stored = ledger.sessions("r", live=False, texts=True).to_pylist()
        counts: dict[tuple[int, int], int] = {}
        for r in stored:
            counts[r["attempt"], r["step"]] = counts.get((r["attempt"], r["step"]), 0) + 1
            assert r["prompt"] == f"step {r['step']}" and r["advantage"] == r["step"]
        assert set(counts.values()) == {8}, "a batch is there as a whole or not at all"
        assert acknowledged <= set(counts), "no acknowledged row is lost"
        events = ledger.events("r", kind="step_stats", live=False)
        assert acknowledged <= {(e["attempt"], e["step"]) for e in events}
        live = ledger.sessions("r")
        steps = live["step"].to_pylist()
        assert steps == [s for s in range(1, max(steps) + 1) for _ in range(8)], "no session counts twice, none misses"
        assert live["session"].to_pylist() == list(range(1, len(steps) + 1))
        verification = ledger.verify(None if position is None else position["head"])
        assert verification.ok, verification.first_bad


def test_a_killed_writer_loses_no_acknowledged_row(tmp_path: Path) -> None:
    crash_and_resume(tmp_path / "ledger", times=3, pace=0.0, seed=0)
    assert Ledger.open(tmp_path / "ledger").runs()[0]["attempts"] == 3


@pytest.mark.slow
def test_many_kills_lose_no_acknowledged_row(tmp_path: Path) -> None:
    crash_and_resume(tmp_path / "ledger", times=25, pace=0.0, seed=1)
    assert Ledger.open(tmp_path / "ledger").runs()[0]["attempts"] == 25


def test_a_reader_follows_a_writer_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    command = [sys.executable, "-m", "tests.rewards.ledger_child", str(path), "null", "0.005"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        seen, durable = 0, 0
        while durable < 12:
            line = process.stdout.readline()
            if line.startswith("durable"):
                durable = int(line.split()[2])
                ledger = Ledger.open(path)
                table = ledger.sessions("r")
                steps = table["step"].to_pylist()
                assert len(steps) >= max(seen, 8 * durable), "what is durable shows, and nothing goes away"
                assert steps == [s for s in range(1, max(steps) + 1) for _ in range(8)], "whole steps"
                seen = len(steps)
                assert ledger.verify().ok
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
