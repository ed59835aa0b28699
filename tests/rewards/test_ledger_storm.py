"""Two writers, a process that seals and compacts, and a reader; the first two are killed at random moments."""

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rewards import Ledger
from tests.rewards.ledger_files import orphans
from tests.rewards.ledger_rows import scratch
from tests.rewards.storm_child import ROWS

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A process that is asked to train or to seal, and does so in forks."""

    def __init__(self, path: Path, what: str) -> None:
        command = [sys.executable, "-m", "tests.rewards.storm_child", str(path)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.what = what
        self.lines: queue.Queue[str] = queue.Queue()
        self.pid: int | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def start(self, rest: str = "") -> None:
        assert self.process.stdin is not None and self.pid is None
        self.process.stdin.write(f"{self.what} {rest}\n")
        line = self.lines.get(timeout=60)
        assert line.startswith("started"), line
        self.pid = int(line.split()[1])

    def kill(self) -> list[str]:
        """Kills the fork; what it had said."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        self.pid = None
        said: list[str] = []
        while not said or said[-1] != "ended\n":
            said.append(self.lines.get(timeout=60))
        return said[:-1]

    def close(self) -> None:
        if self.pid is not None:
            self.kill()
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


@contextmanager
def reading(path: Path) -> Iterator[dict[str, Any]]:
    """A reader beside; what it found is there at the end."""
    command = [sys.executable, "-m", "tests.rewards.storm_reader", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = {}
    try:
        yield found
    finally:
        out, _ = process.communicate("")
        found |= json.loads(out)


class Record:
    """What was acknowledged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.durable: set[tuple[int, int, int]] = set()
        self.positions: list[dict[str, Any]] = []

    def take(self, said: list[str]) -> None:
        for line in said:
            what, _, rest = line.partition(" ")
            assert what in ("durable", "position"), line
            if what == "position":
                self.positions.append(json.loads(rest))
            else:
                attempt, writer, step = map(int, rest.split())
                self.durable.add((attempt, writer, step))

    def check(self, verify: bool) -> None:
        if not (self.path / "ledger.db").exists() or not Ledger.open(self.path, create=True).runs():
            assert not self.durable
            return
        ledger = Ledger.open(self.path)
        table = ledger.sessions("r", live=False, texts=verify)
        names = ("attempt", "writer", "step")
        counts = Counter(zip(*(table[name].to_pylist() for name in names), strict=True))
        assert set(counts.values()) <= {ROWS}, "a batch is there as a whole, once, or not at all"
        assert self.durable <= set(counts), "no acknowledged row is lost"
        live = table.filter(table["live"])
        steps = live["step"].to_pylist()
        assert sorted(set(steps)) == list(range(1, max(steps, default=0) + 1)), "no live step is missing"
        assert live["session"].to_pylist() == list(range(1, len(steps) + 1))
        assert ledger.runs()[0]["sessions"] >= len(steps) and ledger.sizes()["tail_bytes"] > 0  # read later
        if verify:
            assert table["prompt"].to_pylist() == [f"step {step}" for step in table["step"].to_pylist()]
            verification = ledger.verify(self.positions[-1]["head"] if self.positions else None)
            assert verification.problems == ()


def kill_often(kills: int, seed: int, check_every: int) -> dict[str, Any]:
    chance = random.Random(seed)
    with scratch() as folder:
        path = folder / "ledger"
        record = Record(path)
        trainer, sealer = Child(path, "train"), Child(path, "seal")
        found: dict[str, Any] = {}
        done, rounds = Counter[str](), 0
        try:
            with reading(path) as found:
                while done.total() < kills:
                    if trainer.pid is None:
                        trainer.start(json.dumps(chance.choice(record.positions[-3:]) if record.positions else None))
                    if sealer.pid is None:
                        sealer.start()
                    time.sleep(chance.choice((0.03, 0.1, 0.4)) * chance.uniform(0.2, 1.8))
                    for child in chance.choice(([trainer], [trainer], [sealer], [trainer, sealer])):
                        said = child.kill()
                        done[child.what] += 1
                        if child is trainer:
                            record.take(said)
                        else:
                            assert said == [], said
                    rounds += 1
                    if rounds % check_every == 0:
                        record.check(verify=rounds % (4 * check_every) == 0)
        finally:
            trainer.close()
            sealer.close()
        record.check(verify=True)
        Ledger.open(path).seal()
        record.check(verify=True)
        assert Ledger.open(path).sizes()["hot_rows"] == 0 and orphans(path) == set()
        return found | {"kills": dict(done), "acknowledged": len(record.durable) * ROWS, "seed": seed}


def test_kills_of_trainer_and_sealer_lose_nothing_and_the_reader_never_goes_backwards() -> None:
    found = kill_often(kills=8, seed=0, check_every=1)
    assert found["errors"] == [] and found["polls"] > 0, found


@pytest.mark.slow
def test_two_hundred_kills_of_trainer_and_sealer_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = kill_often(kills=200, seed=int(os.environ.get("LEDGER_KILL_SEED", "1")), check_every=4)
    with capsys.disabled():
        print(f"\n{found}")
    assert found["errors"] == [] and found["polls"] > 20, found
