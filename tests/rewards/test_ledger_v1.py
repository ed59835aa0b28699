"""A ledger that schema version 1 wrote: read as it was, written on by this version, then not misread by that one."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rewards import Ledger
from rewards.errors import LedgerError
from rewards.schema import SCHEMA_VERSION
from tests.rewards.ledger_rows import rows, scratch
from tests.rewards.sample_ledgers import FIXTURES, V1, copied_v1

LIVE = len(V1["live"]["alpha"])


@pytest.fixture
def root() -> Iterator[Path]:
    with scratch() as folder:
        yield copied_v1(folder)


def plain(value: Any) -> Any:
    """As the rows stand in the fixture: times and the numbers outside of components as text."""
    return value if value is None or isinstance(value, int | str | list) else str(value)


def shown(root: Path, run: str, live: bool) -> list[dict[str, Any]]:
    table = Ledger.open(root).sessions(run, live=live, texts=True).to_pylist()
    return [{name: plain(value) for name, value in row.items()} for row in table]


def version(root: Path) -> int:
    with closing(sqlite3.connect(root / "ledger.db")) as ledger:
        return int(ledger.execute("PRAGMA user_version").fetchone()[0])


def check_content(root: Path) -> None:
    """Everything that version 1 showed is shown as it was."""
    ledger = Ledger.open(root)
    for run in ("alpha", "beta"):
        for live, name in ((True, "live"), (False, "all")):
            # NaN is in the rows: as JSON it equals itself
            assert json.dumps(shown(root, run, live)) == json.dumps(V1[name][run]), (run, name)
    assert json.dumps(ledger.events(live=False)) == json.dumps(V1["events"])
    superseded = [7]  # of step 5 in attempt 1, which attempt 2 continues after step 3
    assert [e["seq"] for e in ledger.events()] == [e["seq"] for e in V1["events"] if e["seq"] not in superseded]
    assert ledger.runs() == V1["runs"]
    found = ledger.verify()
    assert found.problems == () and found.head == ledger.head() == V1["head"]


def test_a_ledger_of_version_1_is_read_as_it_was_written(root: Path) -> None:
    before = {path.name: path.read_bytes() for path in root.rglob("*.db")}
    check_content(root)
    assert {path.name: path.read_bytes() for path in root.rglob("*.db")} == before, "reading changes nothing"
    assert version(root) == 1 < SCHEMA_VERSION


def test_the_fixture_holds_what_version_1_could_hold() -> None:
    every = V1["all"]["alpha"] + V1["all"]["beta"]
    assert {row["split"] for row in every} == {"train", "eval"}
    assert {row["live"] for row in every} == {True, False}
    assert any(row["response"] for row in every) and any(row["components"] for row in every)
    assert not list((FIXTURES / "ledger_v1").rglob("*-wal")), "somebody opened the fixture itself"


def test_every_head_that_version_1_handed_out_is_an_anchor(root: Path) -> None:
    ledger = Ledger.open(root)
    position = V1["position"]
    for anchor in (V1["head"], position["head"], position["event_head"], position["positions"]["0"]["head"]):
        assert ledger.verify(anchor).ok
    assert not ledger.verify("11" * 32).ok


def test_sealing_it_changes_nothing_that_is_shown(root: Path) -> None:
    done = Ledger.open(root).seal()
    assert done["rows"] == len(V1["all"]["alpha"]) + len(V1["all"]["beta"])
    assert Ledger.open(root).sizes()["hot_rows"] == 0
    check_content(root)
    assert Ledger.open(root).seal()["rows"] == 0


def test_a_run_of_version_1_is_resumed_and_its_rows_are_sealed_with_the_new_ones(root: Path) -> None:
    with Ledger.open(root) as ledger:
        writer = ledger.writer("alpha", resume=V1["position"], seal_rows=None)
        assert (writer.attempt, writer.resume_step) == (3, 6)
        with pytest.raises(LedgerError, match="continues after step 6"):
            writer.append(6, rows(0, 1))
        writer.append(7, rows(700, 2, prompt="new")).wait()
        writer.checkpoint(7)
        writer.close()
        live = shown(root, "alpha", True)
        count = sum(row["session"] is not None for row in live)
        old = [row for row in live if row["attempt"] < 3]
        assert json.dumps(old) == json.dumps(V1["live"]["alpha"])
        assert [row["session"] for row in live if row["attempt"] == 3] == [count - 1, count]
        hot = ledger.verify(V1["head"])
        assert hot.problems == ()

        ledger.seal()
        assert json.dumps(shown(root, "alpha", True)) == json.dumps(live)
        sealed = ledger.verify(V1["head"])
        assert sealed.problems == () and sealed.heads == hot.heads
        assert sorted(sealed.heads) == ["alpha/1/0", "alpha/1/1", "alpha/2/0", "alpha/3/0", "beta/1/0", "events"]
        assert shown(root, "beta", True) == V1["live"]["beta"]


def test_a_fork_and_a_new_run_start_in_it(root: Path) -> None:
    with Ledger.open(root) as ledger:
        for run, start in (("fork", {"fork_of": V1["position"]}), ("step", {"fork_of": ("alpha", 2, 5)}), ("new", {})):
            with ledger.writer(run, **start) as writer:
                writer.append(9, rows(0, 2))
        assert ledger.verify(V1["head"]).problems == ()
        assert ledger.sessions("alpha").num_rows == LIVE


# -- what version 1 would make of it -----------------------------------------------------------------------------------


def old_program_refuses(root: Path) -> bool:
    """The check that version 1 makes before it reads anything."""
    return version(root) > 1


def test_an_old_program_refuses_a_ledger_from_the_first_new_row_on(root: Path) -> None:
    with Ledger.open(root) as ledger:
        ledger.sessions("alpha")
        ledger.verify()
        assert not old_program_refuses(root)
        with pytest.raises(LedgerError, match="no attempt 9"):
            ledger.writer("alpha", writer=1, attempt=9)
        assert not old_program_refuses(root), "nothing was written"
        ledger.writer("gamma").close()
        assert old_program_refuses(root)


def test_an_old_program_refuses_a_ledger_whose_rows_were_sealed_or_taken_out(root: Path) -> None:
    with scratch() as folder:
        other = copied_v1(folder)
        Ledger.open(other).seal()
        assert old_program_refuses(other)
    Ledger.open(root).redact("alpha", 1, 0, 5, ["response"], reason="a name", by="ana")
    assert old_program_refuses(root)
    assert Ledger.open(root).verify(V1["head"]).ok


def test_a_newer_ledger_is_refused_with_advice(root: Path) -> None:
    with closing(sqlite3.connect(root / "ledger.db")) as ledger, ledger:
        ledger.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(LedgerError, match=r"written by a newer version \(schema 3\); upgrade rlhf-ledger"):
        Ledger.open(root)
