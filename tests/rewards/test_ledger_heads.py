"""Heads follow their commits: what holds before they are stored, and who stores them when the writer cannot."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards import Ledger, LedgerError
from rewards.tail import TailWriter
from tests.rewards.ledger_rows import row, rows, scratch

ROOT = Path(__file__).resolve().parents[2]

KILLED = """
import os, signal, sys
from rewards import Ledger
from tests.rewards.ledger_rows import rows
writer = Ledger.open(sys.argv[1], create=True).writer("r")
for step in (1, 2, 3):
    writer.append(step, rows(step, 5, prompt="same"), durable=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as opened:
        yield opened


@pytest.fixture
def killed() -> Iterator[Path]:
    """A ledger whose writer was killed right after its last commit."""
    with scratch() as folder:
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder / "ledger")], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
        yield folder / "ledger"


def stored_heads(root: Path) -> list[str | None]:
    with sqlite3.connect(next((root / "tails").glob("*.db"))) as tail:
        return [head for (head,) in tail.execute("SELECT head FROM blocks ORDER BY first_seq")]


def test_a_head_that_is_not_stored_yet_is_the_one_that_will_be(ledger: Ledger) -> None:
    writer = ledger.writer("r")
    writer.append(1, rows(0, 4, prompt="a"), durable=True)
    writer.append(2, rows(4, 4), durable=True)
    early, found = ledger.head(), ledger.verify()
    assert found.ok and found.head == early
    position = writer.checkpoint(2)
    assert None not in stored_heads(ledger.path)
    writer.close()
    assert ledger.verify(early).ok and ledger.verify(position["head"]).ok


def test_heads_are_stored_when_nothing_else_is_to_be_written(ledger: Ledger) -> None:
    writer = ledger.writer("r")
    writer.append(1, rows(0, 4)).wait()
    deadline = time.monotonic() + 20
    while None in stored_heads(ledger.path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert None not in stored_heads(ledger.path)


def test_commits_of_a_killed_writer_are_whole_and_get_their_heads_from_the_next_seal(killed: Path) -> None:
    assert stored_heads(killed) == [None] * 3, "it was killed before it had time for them"
    ledger = Ledger.open(killed)
    head = ledger.head()
    assert ledger.verify().ok and ledger.sessions("r").num_rows == 15
    ledger.seal()
    assert None not in stored_heads(killed)
    assert ledger.head() == head and ledger.verify().ok


def test_a_run_whose_writer_was_killed_goes_on(killed: Path) -> None:
    with Ledger.open(killed) as ledger:
        with ledger.writer("fork", fork_of=("r", 1, 2)) as fork:
            fork.append(3, rows(0, 2))
        assert ledger.verify().ok


@pytest.mark.parametrize("column", ["rows", "texts"])
def test_a_changed_byte_shows_before_the_head_is_stored(killed: Path, column: str) -> None:
    with sqlite3.connect(next((killed / "tails").glob("*.db"))) as tail:
        (blob,) = tail.execute(f"SELECT {column} FROM batches WHERE first_seq = 6").fetchone()
        at = blob.index(b"answer 3" if column == "texts" else b"p3")
        tail.execute(f"UPDATE batches SET {column} = ? WHERE first_seq = 6", (blob[:at] + b"b" + blob[at + 1 :],))
    found = Ledger.open(killed).verify()
    assert not found.ok and "step 2" in str(found.first_bad), found.first_bad


def test_an_interrupt_comes_after_the_commit_it_would_cut_in_half(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, write = ledger.writer("r"), TailWriter._write
    writer.append(1, [row(9)]).wait()
    writer.checkpoint(1)  # nothing is left to do for the writer's thread: it looks again in a second
    time.sleep(0.1)

    def interrupted(tail: TailWriter, *given: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return write(tail, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(TailWriter, "_write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts without
    try:
        with pytest.raises(KeyboardInterrupt):
            writer.append(1, rows(0, 3), durable=True)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert ledger.sessions("r").num_rows == 4, "the commit is whole"
    writer.append(2, rows(3, 2), durable=True)
    writer.close()
    assert ledger.sessions("r").num_rows == 6 and ledger.verify().ok


def test_a_thread_that_is_not_the_main_one_may_write_durably(ledger: Ledger) -> None:
    writer = ledger.writer("r")
    threads = [threading.Thread(target=lambda s=s: writer.append(s, [row(s)], durable=True)) for s in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ledger.sessions("r")["step"].to_pylist()) == list(range(1, 9)) and ledger.verify().ok


def test_a_durable_append_says_at_once_that_it_failed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ledger.writer("r")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TailWriter, "_write", full)
    with pytest.raises(LedgerError, match=r"No space left.*1 session rows handed over last were not written"):
        writer.append(1, [row(0)], durable=True)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="No space left"):
        writer.append(2, [row(0)])
    with pytest.raises(LedgerError, match="No space left"):
        ledger.close()
    assert ledger.sessions("r").num_rows == 0
