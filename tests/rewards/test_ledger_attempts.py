"""Attempts: resuming counts nothing twice, superseded rows stay, places are taken once, forks take nothing away."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards import Ledger
from rewards.errors import LedgerError
from tests.rewards.ledger_rows import row, rows, scratch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        yield ledger


def steps(ledger: Ledger, run: str = "r", live: bool = True) -> list[tuple[int, int]]:
    table = ledger.sessions(run, live=live)
    return list(zip(table["attempt"].to_pylist(), table["step"].to_pylist(), strict=True))


def train(writer: Any, first: int, last: int, checkpoint_at: int | None = None) -> dict[str, Any]:
    position: dict[str, Any] = {}
    for step in range(first, last + 1):
        writer.append(step, rows(10 * step, 2))
        writer.event("step_stats", {"loss": step}, step=step)
        if step == checkpoint_at:
            position = writer.checkpoint(step)
    writer.flush()
    return position


def test_a_position_is_plain_json_and_says_where_every_writer_is(ledger: Ledger) -> None:
    zero = ledger.writer("r")
    one = ledger.writer("r", writer=1, attempt=1)
    zero.append(1, rows(0, 3))
    one.append(1, rows(3, 2)).wait()
    position = zero.checkpoint(1, path="out/checkpoint-1")
    assert json.loads(json.dumps(position)) == position
    assert (position["run_id"], position["attempt"], position["step"]) == ("r", 1, 1)
    assert [(w, p["seq"]) for w, p in position["positions"].items()] == [("0", 3), ("1", 2)]
    assert position["head"] == ledger.head()
    (event,) = ledger.events("r", kind="checkpoint")
    assert event["payload"]["path"] == "out/checkpoint-1"
    assert event["payload"]["positions"] == position["positions"]
    ledger.close()


def test_resuming_supersedes_what_came_after_the_checkpoint_and_keeps_it_on_record(ledger: Ledger) -> None:
    first = ledger.writer("r")
    position = train(first, 1, 4, checkpoint_at=2)
    with ledger.writer("r", resume=json.loads(json.dumps(position))) as second:
        assert second.attempt == 2
        train(second, 3, 5)
    expected = [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)]
    assert sorted(set(steps(ledger))) == expected
    assert ledger.sessions("r")["session"].to_pylist() == list(range(1, 11))
    audit = ledger.sessions("r", live=False)
    assert audit.num_rows == 14 and audit["session"].null_count == 4
    assert audit.filter(audit["live"]).drop(["live"]).equals(ledger.sessions("r"))
    assert [(e["attempt"], e["step"]) for e in ledger.events("r", kind="step_stats")] == expected
    assert len(ledger.events("r", kind="step_stats", live=False)) == 7
    assert ledger.verify().ok
    first.close()


def test_what_a_zombie_still_writes_is_never_live(ledger: Ledger) -> None:
    zombie = ledger.writer("r")
    position = train(zombie, 1, 2, checkpoint_at=2)
    second = ledger.writer("r", resume=position)
    train(second, 3, 3)
    train(zombie, 3, 6)
    zombie.checkpoint(6)
    train(second, 4, 4)
    assert sorted(set(steps(ledger))) == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert {e["attempt"] for e in ledger.events("r") if e["step"] > 2} == {2}
    assert ledger.runs()[0]["sessions"] == 8 and ledger.runs()[0]["steps"] == 4
    ledger.close()
    assert ledger.verify().ok


def test_numbers_of_rows_and_heads_go_on_where_the_parent_was(ledger: Ledger) -> None:
    first = ledger.writer("r")
    position = train(first, 1, 3, checkpoint_at=2)
    with ledger.writer("r", resume=position) as second:
        train(second, 3, 3)
    table = ledger.sessions("r")
    assert table["seq"].to_pylist() == [1, 2, 3, 4, 5, 6]
    (joined,) = [e for e in ledger.events("r", kind="writer_joined") if e["attempt"] == 2]
    assert joined["payload"]["genesis"] == position["positions"]["0"]["head"]
    first.close()


def test_resuming_twice_from_one_checkpoint_leaves_one_continuation(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        position = train(first, 1, 3, checkpoint_at=1)
    with ledger.writer("r", resume=position) as second:
        train(second, 2, 4)
    with ledger.writer("r", resume=position) as third:
        train(third, 2, 2)
    assert sorted(set(steps(ledger))) == [(1, 1), (3, 2)]


def test_a_later_resume_step_never_brings_superseded_rows_back(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        early = train(first, 1, 5, checkpoint_at=2)
    with ledger.writer("r", resume=early) as second:
        late = train(second, 3, 4, checkpoint_at=4)
    with ledger.writer("r", resume=late) as third:
        train(third, 5, 5)
    assert sorted(set(steps(ledger))) == [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5)]


def test_starting_again_without_a_position_supersedes_everything(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        train(first, 1, 2)
    with ledger.writer("r") as second:
        train(second, 1, 1)
    assert set(steps(ledger)) == {(2, 1)}
    assert len(steps(ledger, live=False)) == 6


def test_an_event_without_a_step_counts_as_of_the_last_step_its_writer_had_seen(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        first.event("attempt_started", {})
        first.append(2, rows(0, 1))
        first.event("check_in", {"note": "kept"})
        position = first.checkpoint(2)
        first.append(3, rows(0, 1))
        first.event("check_in", {"note": "superseded"})
    with ledger.writer("r", resume=position) as second:
        second.event("resumed", {})
        position = second.checkpoint(2)
    with ledger.writer("r", resume=position):
        pass
    kept = [e["kind"] for e in ledger.events("r")]
    assert kept == ["attempt_started", "check_in", "checkpoint", "resumed", "checkpoint"]
    assert [e["payload"] for e in ledger.events("r", kind="check_in")] == [{"note": "kept"}]


def test_train_sessions_at_or_below_the_resume_step_are_refused(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        position = train(first, 1, 2, checkpoint_at=2)
    with ledger.writer("r", resume=position) as second:
        with pytest.raises(LedgerError, match=r"continues after step 2.*count twice"):
            second.append(2, [row(0)])
        second.append(2, [row(0, "eval")])
        second.append(3, [row(0)])


# -- places -----------------------------------------------------------------------------------------------------------


def test_a_place_is_taken_once_by_whichever_process(ledger: Ledger) -> None:
    ledger.writer("r").close()
    code = f"from rewards import Ledger; Ledger.open({str(ledger.path)!r}).writer('r', writer=1, attempt=1)"
    first = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    for writer in (0, 1):
        with pytest.raises(LedgerError, match=f"writer {writer} of attempt 1 of run `r` is taken"):
            ledger.writer("r", writer=writer, attempt=1)


def test_claims_that_race_get_different_attempts(ledger: Ledger) -> None:
    code = f"from rewards import Ledger; print(Ledger.open({str(ledger.path)!r}).writer('r').attempt)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert sorted(int(p.communicate()[0]) for p in started) == [1, 2, 3, 4]


def test_joining_needs_an_attempt_and_must_agree_with_it(ledger: Ledger) -> None:
    with ledger.writer("r", arm="a", pipeline_id="p") as first:
        position = train(first, 1, 1, checkpoint_at=1)
    with pytest.raises(LedgerError, match="writer 1 joins an attempt: pass attempt="):
        ledger.writer("r", writer=1)
    with pytest.raises(LedgerError, match="run `r` has no attempt 7"):
        ledger.writer("r", writer=1, attempt=7)
    with pytest.raises(LedgerError, match="claimed with another arm"):
        ledger.writer("r", writer=1, attempt=1, arm="b")
    with pytest.raises(LedgerError, match="claimed with another resume"):
        ledger.writer("r", writer=1, attempt=1, resume=position)
    with ledger.writer("r", resume=position) as second:
        joined = ledger.writer("r", writer=1, attempt=second.attempt, resume=position, arm="a")
        joined.append(2, rows(0, 1))
        joined.close()
    assert ledger.sessions("r")["arm"].to_pylist() == ["a"] * 3, "a resumed attempt keeps its arm"
    assert ledger.sessions("r")["pipeline_id"].to_pylist() == ["p"] * 3


def test_two_writers_resume_each_in_its_own_chain(ledger: Ledger) -> None:
    zero, one = ledger.writer("r"), ledger.writer("r", writer=1, attempt=1)
    for step in (1, 2):
        zero.append(step, rows(0, 2))
        one.append(step, rows(0, 3)).wait()
        if step == 1:
            position = zero.checkpoint(1)
    ledger.close()
    zero = ledger.writer("r", resume=position)
    one = ledger.writer("r", writer=1, attempt=zero.attempt)
    three = ledger.writer("r", writer=3, attempt=zero.attempt)
    for writer in (three, one, zero):
        writer.append(2, rows(0, 1))
    ledger.close()
    table = ledger.sessions("r")
    places = [table[name].to_pylist() for name in ("step", "writer", "seq", "attempt")]
    assert list(zip(*places, strict=True)) == [
        *[(1, 0, 1, 1), (1, 0, 2, 1), (1, 1, 1, 1), (1, 1, 2, 1), (1, 1, 3, 1)],
        *[(2, 0, 3, 2), (2, 1, 4, 2), (2, 3, 1, 2)],
    ]
    assert ledger.verify().ok


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run_id": "other"}, "belongs to run `other`"),
        ({"attempt": 9}, "holds no attempt 9"),
        ({"event_head": "00" * 32}, "replaced by an older copy"),
        ({"positions": {"0": {"seq": 2, "head": "00" * 32}}}, "pass it unchanged"),
        ({"positions": {"0": {"seq": 9, "head": "00" * 32}}}, "pass it unchanged"),
        ({"positions": {"4": {"seq": 0, "head": "00" * 32}}}, "pass it unchanged"),
        ({"positions": 3}, "not a position"),
        ({"step": "x"}, "not a position"),
    ],
)
def test_a_position_that_does_not_fit_the_ledger_is_refused(ledger: Ledger, change: Any, said: str) -> None:
    with ledger.writer("r") as first:
        position = train(first, 1, 1, checkpoint_at=1)
    with pytest.raises(LedgerError, match=said):
        ledger.writer("r", resume=position | change)
    assert ledger.runs()[0]["attempts"] == 1, "a refused claim leaves no attempt"


def test_a_checkpoint_before_any_row_can_be_resumed(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        position = first.checkpoint(0)
        train(first, 1, 1)
    with ledger.writer("r", resume=position) as second:
        again = second.checkpoint(0)
    with ledger.writer("r", resume=again) as third:
        train(third, 1, 1)
    assert set(steps(ledger)) == {(3, 1)} and ledger.verify().ok


# -- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["position", "step"])
def test_a_fork_starts_at_its_parents_checkpoint_and_takes_nothing_from_it(ledger: Ledger, how: str) -> None:
    with ledger.writer("r") as first:
        position = train(first, 1, 3, checkpoint_at=2)
    fork_of: Any = position if how == "position" else ("r", 1, 2)
    with ledger.writer("f", fork_of=fork_of, arm="without") as fork:
        assert fork.attempt == 1
        again = train(fork, 3, 4, checkpoint_at=3)
    assert sorted(set(steps(ledger))) == [(1, 1), (1, 2), (1, 3)], "the parent is as it was"
    assert sorted(set(steps(ledger, "f"))) == [(1, 3), (1, 4)]
    assert ledger.sessions("f")["session"].to_pylist() == [1, 2, 3, 4]
    assert ledger.sessions("f")["arm"].to_pylist() == ["without"] * 4
    with ledger.writer("f", resume=again) as resumed:
        train(resumed, 4, 4)
    assert sorted(set(steps(ledger, "f"))) == [(1, 3), (2, 4)]
    (joined,) = ledger.events("f", kind="writer_joined", live=False)[:1]
    assert joined["payload"]["genesis"] == position["positions"]["0"]["head"]
    assert ledger.verify().ok


def test_a_fork_outlives_the_supersession_of_its_parents_rows(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        early = train(first, 1, 1, checkpoint_at=1)
        late = train(first, 2, 3, checkpoint_at=3)
    with ledger.writer("f", fork_of=late) as fork:
        train(fork, 4, 4)
    with ledger.writer("r", resume=early) as second:
        train(second, 2, 2)
    assert set(steps(ledger, "f")) == {(1, 4)}
    assert sorted(set(steps(ledger))) == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("fork_of", "said"),
    [
        (("q", 1, 1), "holds no attempt 1 of run `q`"),
        (("r", 2, 1), "holds no attempt 2 of run `r`"),
        (("r", 1, 9), "has recorded nothing at step 9"),
        (("r", 1), "neither a position nor"),
        (("r", 1, True), "neither a position nor"),
        ("r", "neither a position nor"),
    ],
)
def test_a_fork_of_what_is_not_there_is_refused(ledger: Ledger, fork_of: Any, said: str) -> None:
    with ledger.writer("r") as first:
        train(first, 1, 2)
    with pytest.raises(LedgerError, match=said):
        ledger.writer("f", fork_of=fork_of)


def test_a_fork_needs_a_run_of_its_own(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        position = train(first, 1, 2, checkpoint_at=2)
    with pytest.raises(LedgerError, match="needs another run id"):
        ledger.writer("r", fork_of=position)
    with pytest.raises(LedgerError, match="exclude each other"):
        ledger.writer("f", fork_of=position, resume=position)
    with pytest.raises(LedgerError, match="a fork takes it as fork_of="):
        ledger.writer("f", resume=position)
