"""`verify`: every edit of a ledger's files is found and its commit named; what was handed out must be there."""

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards import Ledger
from rewards.chain import ledger_head
from rewards.errors import LedgerError
from tests.rewards.ledger_rows import RECALIBRATION, row, rows, scratch


@pytest.fixture(scope="module")
def written() -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """A ledger with two attempts of one run, two writers and another run; 3 rows a step and writer."""
    with scratch() as folder:
        with Ledger.open(folder / "ledger", create=True) as ledger:
            zero = ledger.writer("demo/grpo")
            one = ledger.writer("demo/grpo", writer=1, attempt=1)
            for step in (1, 2, 3):
                zero.append(step, rows(step, 3, prompt="what?"))
                zero.event("step_stats", {"loss": 1 / step}, step=step)
                one.append(step, [*rows(step, 2), row(9, "eval")]).wait()
                if step == 2:
                    zero.event("recalibration", RECALIBRATION, step=2)
                    early = zero.checkpoint(2)
            zero.close()
            again = ledger.writer("demo/grpo", resume=early)
            again.append(3, rows(3, 3))
            late = again.checkpoint(3)
            again.append(4, rows(4, 3))
            with ledger.writer("demo/sft") as other:
                other.append(1, rows(0, 2))
        yield folder / "ledger", early, late


@pytest.fixture
def copy(written: tuple[Path, Any, Any]) -> Iterator[Path]:
    with scratch() as folder:
        shutil.copytree(written[0], folder / "copy")
        yield folder / "copy"


def edit(root: Path, file: str, *statements: str) -> None:
    with sqlite3.connect(root / file) as database:
        for statement in statements:
            assert database.execute(statement).rowcount != 0, statement
    database.close()


def first_bad(root: Path) -> str:
    verification = Ledger.open(root).verify()
    assert not verification.ok
    assert verification.first_bad == verification.problems[0]
    return verification.first_bad


def test_an_untouched_ledger_verifies(written: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    ledger = Ledger.open(written[0])
    verification = ledger.verify()
    assert verification.ok and verification.first_bad is None
    assert sorted(verification.heads) == ["demo/grpo/1/0", "demo/grpo/1/1", "demo/grpo/2/0", "demo/sft/1/0", "events"]
    assert verification.head == ledger.head() == ledger_head(verification.heads)


TAIL, SECOND = "tails/000001-000.db", "tails/000001-001.db"
STEP_2 = "run demo/grpo, attempt 1, writer 0, step 2, seq 4 to 6"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET adjusted_reward = adjusted_reward + 1e-15 WHERE seq = 5",
        "UPDATE sessions SET adjusted_reward = NULL WHERE seq = 5",
        "UPDATE sessions SET adjusted_reward = 'NaN' WHERE seq = 5",
        "UPDATE sessions SET adjusted_reward = 'much' WHERE seq = 5",
        "UPDATE sessions SET kl_nats = 0 WHERE seq = 5",
        "UPDATE sessions SET compliant = 1 - compliant WHERE seq = 5",
        "UPDATE sessions SET compliant = 2 WHERE seq = 5",
        "UPDATE sessions SET category = 'other' WHERE seq = 5",
        "UPDATE sessions SET split = 'eval' WHERE seq = 5",
        "UPDATE sessions SET step = 3 WHERE seq = 5",
        "UPDATE sessions SET time = time + 1 WHERE seq = 5",
        "UPDATE sessions SET components = replace(components, 'task', 'risk') WHERE seq = 5",
        "UPDATE sessions SET components = 'gone' WHERE seq = 5",
        "UPDATE sessions SET components = '[{}]' WHERE seq = 5",
        "UPDATE sessions SET components = '[' || components || ']' WHERE seq = 5",
        "UPDATE sessions SET components = '17' WHERE seq = 5",
        "UPDATE sessions SET response_hash = prompt_hash WHERE seq = 5",
        "UPDATE sessions SET response_hash = 'text' WHERE seq = 5",
        "UPDATE texts SET response = 'what was never said' WHERE seq = 5",
        "UPDATE texts SET response = NULL WHERE seq = 5",
        "UPDATE texts SET rejected = 'new' WHERE seq = 5",
        "UPDATE texts SET salt = x'00' WHERE seq = 5",
        "UPDATE texts SET response = x'ff00' WHERE seq = 5",
        "DELETE FROM texts WHERE seq = 5",
        "DELETE FROM sessions WHERE seq = 5",
        "UPDATE blocks SET head = '" + "00" * 32 + "' WHERE step = 2",
        "UPDATE blocks SET head = 'x' WHERE step = 2",
        "UPDATE sessions SET category = CAST(x'ff' AS TEXT) WHERE seq = 5",
        "UPDATE texts SET response = CAST(x'ff' AS TEXT) WHERE seq = 5",
        "UPDATE blocks SET sessions = 2 WHERE step = 2",
    ],
)
def test_an_edit_of_one_row_text_or_block_names_its_commit(copy: Path, statement: str) -> None:
    edit(copy, TAIL, statement)
    assert first_bad(copy).startswith(STEP_2)


def test_the_commit_is_named_by_its_sessions(copy: Path) -> None:
    edit(copy, SECOND, "UPDATE sessions SET advantage = 1 WHERE seq = 4")
    # Live order: step 1: three of writer 0, two of writer 1; step 2: three of writer 0, then these two.
    assert "attempt 1, writer 1, step 2, seq 4 to 6 (sessions 9 to 10)" in first_bad(copy)
    table = Ledger.open(copy).sessions("demo/grpo").to_pylist()
    assert [r["session"] for r in table if (r["writer"], r["step"]) == (1, 2)] == [9, 10, None]


def test_a_shortened_commit_is_found(copy: Path) -> None:
    edit(copy, TAIL, "UPDATE blocks SET count = 2 WHERE step = 2")
    assert first_bad(copy).startswith("run demo/grpo, attempt 1, writer 0, step 2, seq 4 to 5")


def test_a_superseded_commit_is_called_so(copy: Path) -> None:
    edit(copy, TAIL, "UPDATE sessions SET advantage = 1 WHERE seq = 8")
    assert "attempt 1, writer 0, step 3, seq 7 to 9 (superseded)" in first_bad(copy)


def test_reordered_rows_are_found(copy: Path) -> None:
    edit(
        copy,
        TAIL,
        "UPDATE sessions SET seq = 100 WHERE seq = 4",
        "UPDATE sessions SET seq = 4 WHERE seq = 5",
        "UPDATE sessions SET seq = 5 WHERE seq = 100",
        "UPDATE texts SET seq = 100 WHERE seq = 4",
        "UPDATE texts SET seq = 4 WHERE seq = 5",
        "UPDATE texts SET seq = 5 WHERE seq = 100",
    )
    assert first_bad(copy).startswith(STEP_2)


def test_an_inserted_row_is_found(copy: Path) -> None:
    with sqlite3.connect(copy / TAIL) as tail:
        names = [r[1] for r in tail.execute("PRAGMA table_info(sessions)")]
        others = ", ".join(n for n in names if n != "seq")
        tail.execute(f"INSERT INTO sessions (seq, {others}) SELECT 10, {others} FROM sessions WHERE seq = 9")
    assert "writer 0, step 3: row 10 of table sessions belongs to no commit" in first_bad(copy)


def test_an_inserted_text_is_found(copy: Path) -> None:
    edit(copy, TAIL, "INSERT INTO texts SELECT 10, salt, prompt, response, rejected FROM texts WHERE seq = 9")
    assert "row 10 of table texts belongs to no commit" in first_bad(copy)


def test_a_removed_commit_is_found(copy: Path) -> None:
    edit(copy, TAIL, "DELETE FROM sessions WHERE step = 2", "DELETE FROM blocks WHERE step = 2")
    assert "step 3, seq 7 to 9 (superseded): rows 4 to 6 before it are missing" in first_bad(copy)


def test_a_chain_cut_below_a_checkpoint_is_found(copy: Path) -> None:
    for table in ("sessions", "texts"):
        edit(copy, SECOND, f"DELETE FROM {table} WHERE seq > 3")
    edit(copy, SECOND, "DELETE FROM blocks WHERE first_seq > 3")
    found = Ledger.open(copy).verify()
    assert not found.ok and any("writer 1, step 2: rows up to seq 6, on record" in p for p in found.problems)


def test_a_chain_cut_above_the_last_checkpoint_needs_an_anchor(copy: Path) -> None:
    anchor = Ledger.open(copy).head()
    file = "tails/000002-000.db"
    for statement in ("sessions WHERE step = 4", "texts WHERE seq > 9", "blocks WHERE step = 4"):
        edit(copy, file, f"DELETE FROM {statement}")
    ledger = Ledger.open(copy)
    assert ledger.verify().ok, "the documented limit of a chain"
    verification = ledger.verify(anchor)
    assert not verification.ok and "anchor" in (verification.first_bad or "")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE events SET payload = replace(payload, '15.0', '5.0') WHERE kind = 'recalibration'", "step 2: event 6"),
        ("UPDATE events SET step = 9 WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET at_step = 9 WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET attempt = 2 WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET hash = 'x' WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET time = 'x' WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("DELETE FROM events WHERE kind = 'recalibration'", "event 7 (checkpoint) stands where event 6"),
        ("UPDATE events SET payload = '{' WHERE kind = 'attempt_claimed' AND attempt = 2", "attempt 2, writer 0"),
        (
            "UPDATE events SET payload = json_set(payload, '$.resume_step', 3) WHERE kind = 'attempt_claimed' "
            "AND attempt = 2",
            "(attempt_claimed)",
        ),
        ("UPDATE events SET payload = json_set(payload, '$.genesis', 'x') WHERE kind = 'writer_joined'", "event 2"),
        ("DELETE FROM events WHERE kind = 'writer_joined' AND writer = 1", "event 4 (step_stats) stands where event 3"),
    ],
)
def test_an_edited_or_removed_event_is_found(copy: Path, statement: str, said: str) -> None:
    edit(copy, "ledger.db", statement)
    assert said in first_bad(copy)


def test_an_event_chain_rewritten_at_its_end_is_found_by_the_files_it_forgets(copy: Path) -> None:
    edit(copy, "ledger.db", "DELETE FROM events WHERE run_id = 'demo/sft'")
    assert "000003-000.db: holds rows of a writer that never joined" in first_bad(copy)


def test_an_older_ledger_db_never_costs_the_rows_of_a_newer_tail(copy: Path) -> None:
    edit(copy, "ledger.db", "DELETE FROM events WHERE run_id = 'demo/sft'")
    with pytest.raises(LedgerError, match=r"000003-000.db: holds rows of a writer that ledger.db does not know"):
        Ledger.open(copy).writer("demo/dpo")
    assert sqlite3.connect(copy / "tails/000003-000.db").execute("SELECT count(*) FROM sessions").fetchone() == (2,)


def test_a_checkpoint_event_of_a_trainer_is_no_record_of_the_chains() -> None:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("r") as writer:
            writer.event("checkpoint", {"path": "out/checkpoint-1", "step": 1}, step=1)
            with pytest.raises(LedgerError, match=r"call it instead"):
                writer.event("checkpoint", {"heads": {}}, step=1)
        assert ledger.verify().ok and not ledger.verify("00").ok


def test_files_that_changed_places_are_found(copy: Path) -> None:
    (copy / TAIL).rename(copy / "x")
    (copy / SECOND).rename(copy / TAIL)
    (copy / "x").rename(copy / SECOND)
    assert "says it belongs to somebody else" in first_bad(copy)


def test_a_missing_or_damaged_tail_is_found(copy: Path) -> None:
    (copy / SECOND).unlink()
    assert "000001-001.db: cannot read: the file is missing" in first_bad(copy)
    (copy / TAIL).write_bytes(b"x" * 10_000)
    assert "000001-000.db" in first_bad(copy)


def test_the_same_values_in_other_bytes_are_the_same(copy: Path) -> None:
    edit(copy, TAIL, "UPDATE sessions SET components = replace(components, ': ', ' :  ')")
    with sqlite3.connect(copy / TAIL) as tail:
        tail.execute("VACUUM")
    assert Ledger.open(copy).verify().ok


# -- anchors --------------------------------------------------------------------------------------------------------


def test_every_head_that_was_handed_out_is_an_anchor(written: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    root, early, late = written
    ledger = Ledger.open(root)
    for anchor in (ledger.head(), early["head"], late["head"], early["event_head"], early["positions"]["1"]["head"]):
        assert ledger.verify(anchor).ok
        assert ledger.verify(anchor.upper() + "\n").ok
    for anchor in ("", "00" * 32, hashlib.sha256(b"").hexdigest()):
        verification = ledger.verify(anchor)
        assert not verification.ok and "the anchor" in (verification.first_bad or "")


def test_a_head_read_between_checkpoints_is_an_anchor_later() -> None:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        heads = [ledger.head()]
        with ledger.writer("r") as writer:
            other = ledger.writer("s")
            for step in range(1, 6):
                writer.append(step, rows(0, 2)).wait()
                heads.append(ledger.head())
                other.append(step, rows(0, 2)).wait()
                heads.append(ledger.head())
                writer.event("pause", {}).wait()
                heads.append(ledger.head())
        assert len(set(heads)) == len(heads)
        assert all(ledger.verify(head).ok for head in heads[1:])


def test_a_chain_rewritten_with_all_its_hashes_is_found_by_an_anchor(copy: Path) -> None:
    anchor = Ledger.open(copy).head()
    shutil.rmtree(copy)
    with Ledger.open(copy, create=True) as ledger, ledger.writer("demo/grpo") as writer:
        writer.append(1, rows(1, 3))
    assert Ledger.open(copy).verify().ok
    assert not Ledger.open(copy).verify(anchor).ok
