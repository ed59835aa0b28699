"""Kill -9 at random moments of append, seal, compaction and resume, with a reader that never stops looking."""

import json
import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from rewards import Ledger
from tests.rewards import kill_child
from tests.rewards.kill_child import ROWS
from tests.rewards.ledger_rows import scratch


def lines_of(path: Path) -> list[list]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def storm(folder: Path, kills: int, seed: int) -> tuple[list[list], dict]:
    """Kills trainings; returns what they acknowledged and what the reader says."""
    rng = random.Random(seed)
    said, stop, report = folder / "said", folder / "stop", folder / "report"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rewards.kill_child"])
    reader = context.Process(target=kill_child.read, args=(folder / "ledger", said, stop, report))
    reader.start()
    for number in range(kills):
        known = lines_of(said)
        positions = [line[1] for line in known if line[0] == "position"]
        position = positions[-1] if positions else None
        child = context.Process(target=kill_child.train, args=(folder / "ledger", said, position, number))
        child.start()
        deadline = time.monotonic() + 60
        while len(lines_of(said)) == len(known) and time.monotonic() < deadline and child.is_alive():
            time.sleep(0.002)
        time.sleep(rng.random() * 0.12)
        child.kill()
        child.join()
    stop.touch()
    reader.join(60)
    return lines_of(said), json.loads(report.read_text())


def check(kills: int, seed: int) -> None:
    with scratch() as folder:
        said, report = storm(folder, kills, seed)
        acknowledged = {(line[1], line[2]) for line in said if line[0] == "row"}
        assert len(acknowledged) > kills, "it did something"
        assert report["wrong"] == [] and report["looks"] > 0
        with Ledger.open(folder / "ledger") as ledger:
            for sealed in (False, True):
                table = ledger.sessions("r", live=False)
                rows = [r for r in table.to_pylist() if r["split"] == "train"]
                stored = Counter((r["attempt"], r["step"]) for r in rows)
                lost = acknowledged - stored.keys()
                partial = {place: count for place, count in stored.items() if count != ROWS}
                assert (lost, partial) == (set(), {}), f"seed {seed}"
                assert len({r["row_id"] for r in rows}) == len(rows), "nothing is stored twice"
                live = ledger.sessions("r").to_pylist()
                assert Counter(r["step"] for r in live if r["session"] is not None).most_common(1)[0][1] == ROWS
                found = ledger.verify()
                assert found.ok, found.problems
                if not sealed:
                    ledger.seal()
            assert ledger.sizes()["hot_rows"] == 0


def test_no_kill_loses_halves_or_doubles_a_row() -> None:
    check(kills=10, seed=1)


@pytest.mark.slow
def test_200_kills_lose_halve_and_double_no_row() -> None:
    check(kills=200, seed=2)
