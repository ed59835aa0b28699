"""Who may not count: a process that was thought dead, a position that was changed, a process that was forked."""

import os
from collections.abc import Iterator

import pytest

from rewards import Ledger, LedgerError
from tests.rewards.ledger_rows import rows, scratch


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as opened:
        yield opened


def live_steps(ledger: Ledger, run: str = "r") -> list[tuple[int, int]]:
    table = ledger.sessions(run)
    return list(zip(table["attempt"].to_pylist(), table["step"].to_pylist(), strict=True))


def test_what_a_process_thought_dead_writes_counts_at_no_step(ledger: Ledger) -> None:
    old = ledger.writer("r")
    second = ledger.writer("r", writer=1, attempt=1)
    for step in (1, 2):
        old.append(step, rows(step, 2))
        second.append(step, rows(step, 1))
    second.flush()
    position = old.checkpoint(2)
    late = ledger.writer("r", writer=2, attempt=1)  # joins after the checkpoint: it knows nothing of the resume
    new = ledger.writer("r", resume=position)
    new.append(3, rows(3, 2)).wait()
    before = ledger.sessions("r")
    for step in (1, 2, 3, 9):
        old.append(step, rows(50, 3)).wait()
        second.append(step, rows(60, 1, split="eval")).wait()
        late.append(step, rows(70, 1)).wait()
    assert ledger.sessions("r").equals(before)
    assert live_steps(ledger) == [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 2), (2, 3), (2, 3)]
    assert ledger.sessions("r", live=False)["live"].to_pylist().count(False) == 4 * 5
    assert ledger.runs()[0]["sessions"] == 8
    with ledger.connect() as connection:
        assert connection.execute("SELECT count(*), max(session) FROM live").fetchone() == (8, 8)
    assert ledger.verify().ok
    for writer in (old, second, late, new):
        writer.close()
    assert ledger.sessions("r").equals(before) and ledger.verify().ok


def test_rows_of_the_checkpoints_own_step_that_came_after_it_do_not_count_after_a_resume(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        first.append(1, rows(0, 2))
        position = first.checkpoint(1)
        first.append(1, rows(2, 2))
    assert len(live_steps(ledger)) == 4, "nothing continued it"
    with ledger.writer("r", resume=position) as again:
        again.append(2, rows(4, 1))
    assert live_steps(ledger) == [(1, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize("change", [{"step": 1}, {"step": 0}, {"step": 5}, {"positions": {}}])
def test_a_position_that_was_changed_is_refused(ledger: Ledger, change: dict[str, object]) -> None:
    with ledger.writer("r") as writer:
        writer.append(1, rows(0, 2))
        writer.append(2, rows(2, 2))
        position = writer.checkpoint(2)
    with pytest.raises(LedgerError, match="pass it unchanged"):
        ledger.writer("r", resume=position | change)
    assert ledger.runs()[0]["attempts"] == 1


def test_a_fork_at_a_step_before_the_first_is_refused(ledger: Ledger) -> None:
    ledger.writer("r").append(1, rows(0, 1)).wait()
    with pytest.raises(LedgerError, match="steps count from 0"):
        ledger.writer("s", fork_of=("r", 1, -5))


def test_a_process_forked_after_a_seal_is_told_so_and_loses_nothing(ledger: Ledger) -> None:
    with ledger.writer("r") as writer:
        writer.append(1, rows(0, 2))
    reader, sender = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            with Ledger.open(ledger.path) as here, here.writer("child") as mine:
                mine.append(1, rows(0, 3)).wait()
            Ledger.open(ledger.path).sessions("r")
        except LedgerError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(sender, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    os.close(sender)
    assert "forked" in said and "spawn" in said, said
    assert ledger.sessions("child").num_rows == 3 and ledger.verify().ok


def test_a_reader_that_saw_an_empty_tail_shows_nothing_of_what_was_sealed_since(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewards import reading

    writer = ledger.writer("r")
    body = reading.Body

    def later(*given: object, **named: object) -> object:
        """The tables are opened after the tails were read: in between everything is written and sealed."""
        if not writer.closed:
            writer.append(1, rows(0, 3))
            writer.close()
        return body(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "Body", later)
    assert ledger.sessions("r").num_rows == 0
    assert ledger.sessions("r").num_rows == 3
