"""`verify`: edits of a ledger's files are found and their commit named, wherever the rows are stored."""

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from rewards import Ledger
from rewards.chain import ledger_head
from rewards.errors import LedgerError
from tests.rewards import tampering
from tests.rewards.ledger_rows import rows, scratch
from tests.rewards.sample_ledgers import FORMS, Sample, sample, two_attempts
from tests.rewards.tampering import sql, tail_of

TAIL, SECOND = "tails/000001-000.db", "tails/000001-001.db"


@pytest.fixture(scope="module")
def prepared() -> Iterator[dict[str, Sample]]:
    with scratch() as folder:
        yield {form: sample(form, folder / form) for form in FORMS}


@pytest.fixture
def copies(prepared: dict[str, Sample]) -> Iterator[dict[str, Sample]]:
    """Copies of the forms that differ most."""
    with scratch() as folder:
        made = {form: replace(prepared[form], root=folder / form) for form in ("hot", "sealed", "version 1")}
        for form in made:
            shutil.copytree(prepared[form].root, folder / form)
        yield made


@pytest.fixture(params=FORMS)
def stored(request: pytest.FixtureRequest, prepared: dict[str, Sample]) -> Iterator[Sample]:
    """A copy of one form."""
    made = prepared[request.param]
    with scratch() as folder:
        shutil.copytree(made.root, folder / "copy")
        yield replace(made, root=folder / "copy")


@pytest.fixture
def copy(prepared: dict[str, Sample]) -> Iterator[Path]:
    """A copy of the hot form."""
    with scratch() as folder:
        shutil.copytree(prepared["hot"].root, folder / "copy")
        yield folder / "copy"


def problems(root: Path) -> tuple[str, ...]:
    verification = Ledger.open(root).verify()
    assert not verification.ok
    assert verification.first_bad == verification.problems[0]
    return verification.problems


def first_bad(root: Path) -> str:
    return problems(root)[0]


# -- rows --------------------------------------------------------------------------------------------------------------


def test_an_untouched_ledger_verifies(stored: Sample) -> None:
    ledger = Ledger.open(stored.root)
    verification = ledger.verify()
    assert verification.ok and verification.first_bad is None and verification.problems == ()
    expected = ["demo/grpo/1/0", "demo/grpo/1/1", "demo/grpo/2/0", "demo/sft/1/0", "events"]
    if stored.form == "version 1":
        expected = ["alpha/1/0", "alpha/1/1", "alpha/2/0", "beta/1/0", "events"]
    assert sorted(verification.heads) == expected
    assert verification.head == ledger.head() == ledger_head(verification.heads)


def test_the_forms_differ_in_where_their_rows_are(stored: Sample) -> None:
    files = len(tampering.files_of(stored.root, "sessions"))
    assert files == {"hot": 0, "sealed": 4, "compacted": 2, "version 1": 0}[stored.form]
    assert (Ledger.open(stored.root).sizes()["hot_rows"] > 0) == (stored.form in ("hot", "version 1"))


def test_sealing_and_compacting_change_no_head(copies: dict[str, Sample]) -> None:
    for form in ("hot", "version 1"):
        ledger = Ledger.open(copies[form].root)
        before = ledger.verify()
        assert ledger.seal()["rows"] > 0
        after = ledger.verify(before.head)
        assert after.ok and after.heads == before.heads


def test_an_edited_row_names_its_commit_and_its_sessions(stored: Sample) -> None:
    tampering.set_value(stored.root, stored.key, stored.first + 1, "adjusted_reward")
    assert first_bad(stored.root) == f"{stored.name}: its rows or its head are not those that were recorded"
    table = Ledger.open(stored.root).sessions(stored.key[0]).to_pylist()
    low, high = stored.name.split("(sessions ")[1].rstrip(")").split(" to ")
    assert [
        r["session"] for r in table if (r["attempt"], r["writer"]) == (1, 0) and stored.first <= r["seq"] <= stored.last
    ] == list(range(int(low), int(high) + 1))


def test_sessions_are_counted_over_all_writers(copies: dict[str, Sample]) -> None:
    # Live order: step 1: three of writer 0, two of writer 1; step 2: three of writer 0, then these two.
    for form in ("hot", "sealed"):
        tampering.set_value(copies[form].root, ("demo/grpo", 1, 1), 4, "advantage")
        assert "attempt 1, writer 1, step 2, seq 4 to 6 (sessions 9 to 10)" in first_bad(copies[form].root)


def test_a_superseded_commit_is_called_so(stored: Sample) -> None:
    tampering.set_value(stored.root, stored.key, int(stored.superseded.split("seq ")[1].split()[0]), "advantage")
    assert first_bad(stored.root).startswith(stored.superseded)


@pytest.mark.parametrize("column", ["components", "components.name", "components.raw", "components.role", "split"])
def test_the_parts_of_a_row_are_covered(copies: dict[str, Sample], column: str) -> None:
    for made in copies.values():
        tampering.set_value(made.root, made.key, made.first, column, **({"value": "eval"} if column == "split" else {}))
        assert first_bad(made.root).startswith(made.name)


def test_reordered_rows_are_found(stored: Sample) -> None:
    tampering.swap(stored.root, stored.key, stored.first, stored.first + 1)
    assert first_bad(stored.root).startswith(stored.name)


def test_a_removed_row_is_found(stored: Sample) -> None:
    tampering.remove(stored.root, stored.key, stored.first + 1)
    assert any(problem.startswith(stored.name) for problem in problems(stored.root))


def test_a_removed_text_is_found(stored: Sample) -> None:
    tampering.remove(stored.root, stored.key, stored.first + 1, "texts")
    assert any(problem.startswith(stored.name) for problem in problems(stored.root))


def test_a_text_and_its_salt_that_vanished_without_a_redaction_are_found(stored: Sample) -> None:
    salts = ("prompt_salt",) if stored.form == "version 1" else ("prompt_salt", "response_salt")
    for name in ("prompt", "response", *(() if stored.form == "version 1" else salts)):
        tampering.set_value(stored.root, stored.key, stored.first + 1, name, None, table="texts")
    assert any(problem.startswith(stored.name) for problem in problems(stored.root))


def test_a_text_of_which_a_neighbour_with_the_same_text_stays_is_found_when_it_is_edited(stored: Sample) -> None:
    # Equal texts of a commit share a salt: the prompt of the rows of one group.
    tampering.set_value(stored.root, stored.key, stored.first, "prompt", "another question", table="texts")
    assert first_bad(stored.root).startswith(stored.name)


@pytest.mark.parametrize("table", ["sessions", "texts"])
@pytest.mark.parametrize("form", ["hot", "sealed"])  # tables of version 1 have one row a number
def test_a_row_or_text_inserted_into_a_commit_is_found(copies: dict[str, Sample], form: str, table: str) -> None:
    made = copies[form]
    tampering.insert(made.root, made.key, made.first, made.last, table)
    assert any(problem.startswith(made.name) for problem in problems(made.root))


@pytest.mark.parametrize("table", ["sessions", "texts"])
@pytest.mark.parametrize("beyond", [1, 50])
def test_a_row_or_text_inserted_after_the_last_commit_is_found(stored: Sample, table: str, beyond: int) -> None:
    tampering.insert(stored.root, stored.key, stored.after, stored.after + beyond, table)
    where = "run {}, attempt {}, writer {}".format(*stored.key)
    assert any(problem.startswith(where) for problem in problems(stored.root))


def test_a_text_for_a_row_that_was_recorded_without_is_found() -> None:
    for seal in (False, True):
        with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
            with ledger.writer("r", seal_rows=None) as writer:
                writer.append(1, [{**row, "response": text} for row, text in zip(rows(0, 2), ("x", None), strict=True)])
            if seal:
                ledger.seal()
                tampering.insert(ledger.path, ("r", 1, 0), 1, 2, "texts")
            else:
                tampering.set_value(ledger.path, ("r", 1, 0), 2, "response", "y", table="texts")
            assert any("writer 0, step 1, seq 1 to 2 (sessions 1 to 2): " in p for p in problems(ledger.path))


def test_rows_moved_to_another_chain_are_found(copies: dict[str, Sample]) -> None:
    root = copies["sealed"].root
    one, two = (tampering.joined(root)[("demo/grpo", 1, writer)][0] for writer in (0, 1))
    for column, value in {"chain": two, "writer": 1, "block": (two << 36) | 4}.items():
        tampering.set_value(root, ("demo/grpo", 1, 0 if column == "chain" else 1), 4, column, value)
    found = problems(root)
    assert one != two
    assert any("writer 0, step 2, seq 4 to 6" in p for p in found)
    assert any("writer 1, step 2, seq 4 to 6" in p and "stored twice" in p for p in found)


def test_a_commit_replayed_under_new_numbers_is_found(copy: Path) -> None:
    sql(
        copy,
        TAIL,
        "INSERT INTO batches SELECT 10, layout, rows, text_layout, texts, secret FROM batches WHERE first_seq = 4",
        "INSERT INTO blocks SELECT 10, count, sessions, step, time, crc32, head FROM blocks WHERE first_seq = 4",
    )
    assert "step 2, seq 10 to 12 (superseded): its rows or its head are not those" in first_bad(copy)


# -- blocks ------------------------------------------------------------------------------------------------------------

BLOCK_EDITS = [
    "UPDATE blocks SET head = replace(head, substr(head, 1, 1), 'g') WHERE step = 2",
    "UPDATE blocks SET head = 'x' WHERE step = 2",
    f"UPDATE blocks SET head = '{'00' * 32}' WHERE step = 2",
    "UPDATE blocks SET head = CAST(head AS BLOB) WHERE step = 2",
    "UPDATE blocks SET head = upper(head) WHERE step = 2",
    "UPDATE blocks SET sessions = 2 WHERE step = 2",
    "UPDATE blocks SET sessions = 'x' WHERE step = 2",
    "UPDATE blocks SET sessions = 2.5 WHERE step = 2",
    "UPDATE blocks SET time = 'x' WHERE step = 2",
    "UPDATE blocks SET count = 2 WHERE step = 2",
    "UPDATE blocks SET count = 0 WHERE step = 2",
    "UPDATE blocks SET count = 1000000000000 WHERE step = 2",
]


@pytest.mark.parametrize("statement", BLOCK_EDITS)
def test_an_edited_record_of_a_commit_is_found(copies: dict[str, Sample], statement: str) -> None:
    for made in copies.values():
        if made.form == "version 1":
            statement = statement.replace("step = 2", "first_seq = 5")
        sql(made.root, tail_of(made.root, made.key), statement)
        assert any(f"writer 0, step 2, seq {made.first} to " in problem for problem in problems(made.root)), made.form


def test_an_edited_step_or_time_of_a_commit_is_found(copies: dict[str, Sample]) -> None:
    for made in copies.values():
        tail = tail_of(made.root, made.key)
        sql(made.root, tail, f"UPDATE blocks SET step = 9 WHERE first_seq = {made.first}")
        assert "writer 0, step 9, " in first_bad(made.root)
        sql(made.root, tail, f"UPDATE blocks SET step = 2, time = time + 1 WHERE first_seq = {made.first}")
        # Schema version 1 did not hash it.
        assert Ledger.open(made.root).verify().ok if made.form == "version 1" else first_bad(made.root)


def test_a_checksum_that_does_not_fit_is_found(copy: Path) -> None:
    sql(copy, TAIL, "UPDATE blocks SET crc32 = crc32 + 1 WHERE step = 3")
    assert "the bytes of the rows from seq 7 on do not have the checksum" in first_bad(copy)


@pytest.mark.parametrize("first_seq", [0, 2, 10])
def test_an_inserted_commit_is_found(copies: dict[str, Sample], first_seq: int) -> None:
    for form, made in copies.items():
        crc = "" if form == "version 1" else "crc32, "
        names = f"count, sessions, step, time, {crc}head"
        at = first_seq + (made.after - 9 if first_seq > 9 else 0)
        for count in ("count", "0"):
            statement = f"INSERT OR REPLACE INTO blocks SELECT {at}, {names.replace('count', count, 1)} FROM blocks"
            sql(made.root, tail_of(made.root, made.key), f"{statement} WHERE first_seq = 1")
            assert not Ledger.open(made.root).verify().ok, (form, at, count)


def test_a_removed_commit_is_found(copies: dict[str, Sample]) -> None:
    for form, made in copies.items():
        tail = tail_of(made.root, made.key)
        if form == "hot":
            sql(made.root, tail, "DELETE FROM batches WHERE first_seq = 4")
        elif form == "version 1":
            sql(made.root, tail, "DELETE FROM sessions WHERE seq BETWEEN 5 AND 8")
        else:
            for seq in (4, 5, 6):
                tampering.remove(made.root, made.key, seq)
        assert any(problem.startswith(made.name) for problem in problems(made.root))
        sql(made.root, tail, f"DELETE FROM blocks WHERE first_seq = {made.first}")
        named = f"rows {made.first} to {made.last} before it are missing"
        assert any(named in problem for problem in problems(made.root))


def test_a_chain_cut_below_a_checkpoint_is_found(copy: Path) -> None:
    sql(copy, SECOND, "DELETE FROM batches WHERE first_seq > 3", "DELETE FROM blocks WHERE first_seq > 3")
    assert any("writer 1, step 2: rows up to seq 6, on record" in p for p in problems(copy))


def test_a_chain_cut_above_the_last_checkpoint_needs_an_anchor(copies: dict[str, Sample]) -> None:
    for form in ("hot", "sealed"):
        root = copies[form].root
        ledger = Ledger.open(root)
        anchor = ledger.head()
        sql(root, "tails/000002-000.db", "DELETE FROM blocks WHERE step = 4")
        if form == "hot":
            sql(root, "tails/000002-000.db", "DELETE FROM batches WHERE first_seq = 10")
        else:
            number = tampering.joined(root)[("demo/grpo", 2, 0)][0]
            for table in ("sessions", "texts"):
                cut = (pc.field("chain") == number) & (pc.field("seq") > 9)
                tampering.overwrite(root, table, lambda stored, cut=cut: stored.filter(~cut))
            shutil.rmtree(root / "blocks")  # other engines' table says more; so does nothing else
        assert ledger.verify().ok, "the documented limit of a chain"
        verification = ledger.verify(anchor)
        assert not verification.ok and "anchor" in (verification.first_bad or "")


def test_commits_whose_heads_are_not_stored_yet_are_checked_by_what_there_is(copy: Path) -> None:
    """As a writer that was killed leaves them."""
    file, key = "tails/000002-000.db", ("demo/grpo", 2, 0)
    ledger = Ledger.open(copy)
    before = ledger.verify()
    sql(copy, file, "UPDATE blocks SET head = NULL")
    assert ledger.verify(before.head).heads == before.heads and ledger.head() == before.head
    sql(copy, file, "UPDATE blocks SET crc32 = crc32 + 1 WHERE first_seq = 10")
    assert "attempt 2, writer 0, step 4, seq 10 to 12 (sessions" in first_bad(copy)
    with closing(sqlite3.connect(copy / file)) as tail, tail:
        tampering.fix_checksum(tail, 10)

    tampering.set_value(copy, key, 11, "adjusted_reward")  # with a checksum that fits
    assert ledger.verify().ok, "the documented limit"
    assert not ledger.verify(before.head).ok, "and what it takes"
    tampering.set_value(copy, key, 8, "adjusted_reward")
    assert "writer 0, step 3: rows up to seq 9, on record at the checkpoint, are gone or others" in first_bad(copy)


def test_heads_are_stored_when_the_rows_are_sealed(copy: Path) -> None:
    before = Ledger.open(copy).head()
    for file in (TAIL, SECOND, "tails/000002-000.db"):
        sql(copy, file, "UPDATE blocks SET head = NULL")
    Ledger.open(copy).seal()
    assert Ledger.open(copy).verify(before).ok
    with closing(sqlite3.connect(copy / TAIL)) as tail:
        assert tail.execute("SELECT count(*) FROM blocks WHERE head IS NULL").fetchone() == (0,)
    sql(copy, TAIL, "UPDATE blocks SET head = NULL WHERE first_seq = 7")
    assert "step 3, seq 7 to 9 (superseded)" in first_bad(copy), "sealed rows have a head"


# -- events and claims -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE events SET payload = replace(payload, '15.0', '5.0') WHERE kind = 'recalibration'", "step 2: event 6"),
        ("UPDATE events SET run_id = 'x' WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET step = 9 WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET at_step = 9 WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET attempt = 2 WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET writer = 1 WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET hash = 'x' WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET time = time + 1 WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET time = 'x' WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET kind = 'pause' WHERE kind = 'recalibration'", "event 6 (pause)"),
        ("UPDATE events SET kind = CAST(kind AS BLOB) WHERE kind = 'recalibration'", "event 6 (b'recalibration')"),
        ("UPDATE events SET run_id = CAST(run_id AS BLOB) WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("UPDATE events SET payload = CAST(payload AS BLOB) WHERE kind = 'recalibration'", "event 6 (recalibration)"),
        ("DELETE FROM events WHERE kind = 'recalibration'", "event 7 (checkpoint) stands where event 6"),
        ("INSERT INTO events SELECT 50, run_id, attempt, writer, step, at_step, time, kind, payload, hash FROM events "
         "WHERE kind = 'recalibration'", "event 50 (recalibration) stands where event"),
        ("UPDATE events SET payload = '{' WHERE kind = 'attempt_claimed' AND attempt = 2", "attempt 2, writer 0"),
        (
            "UPDATE events SET payload = json_set(payload, '$.resume_step', 3) WHERE kind = 'attempt_claimed' "
            "AND attempt = 2",
            "(attempt_claimed)",
        ),
        ("UPDATE events SET payload = json_set(payload, '$.genesis', 'x') WHERE kind = 'writer_joined'", "event 2"),
        ("DELETE FROM events WHERE kind = 'writer_joined' AND writer = 1", "event 4 (step_stats) stands where event 3"),
    ],
)  # fmt: skip
def test_an_edited_removed_or_inserted_event_is_found(copy: Path, statement: str, said: str) -> None:
    sql(copy, "ledger.db", statement)
    assert said in first_bad(copy)


def test_an_event_hidden_by_a_forged_index_is_found(copy: Path) -> None:
    with closing(sqlite3.connect(copy / "ledger.db")) as ledger:
        ledger.executescript(
            "CREATE TABLE other AS SELECT seq AS rowid_, kind, run_id FROM events WHERE kind != 'recalibration';"
            "CREATE TABLE shadow (seq INTEGER PRIMARY KEY, kind TEXT, run_id TEXT);"
            "INSERT INTO shadow SELECT * FROM other; CREATE INDEX shadowed ON shadow (kind, run_id);"
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master "
            "WHERE name = 'shadowed') WHERE name = 'events_by_kind';"
        )
    assert Ledger.open(copy).events("demo/grpo", "recalibration") == [], "the attack works"
    assert "ledger.db: the file is damaged" in first_bad(copy)


def test_an_event_chain_rewritten_at_its_end_is_found_by_the_files_it_forgets(copies: dict[str, Sample]) -> None:
    for form in ("hot", "sealed"):
        sql(copies[form].root, "ledger.db", "DELETE FROM events WHERE run_id = 'demo/sft'")
        found = problems(copies[form].root)
        assert "000003-000.db: holds rows of a writer that never joined" in found[0]
        assert (form == "hot") or sum(".parquet: holds rows of a writer that never joined" in p for p in found) == 2


def test_an_older_ledger_db_never_costs_the_rows_of_a_newer_tail(copy: Path) -> None:
    sql(copy, "ledger.db", "DELETE FROM events WHERE run_id = 'demo/sft'")
    with pytest.raises(LedgerError, match=r"000003-000.db: holds rows of a writer that ledger.db does not know"):
        Ledger.open(copy).writer("demo/dpo")
    with closing(sqlite3.connect(copy / "tails/000003-000.db")) as tail:
        assert tail.execute("SELECT count(*) FROM batches").fetchone() == (1,)


def test_a_checkpoint_event_of_a_trainer_is_no_record_of_the_chains() -> None:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("r") as writer:
            writer.event("checkpoint", {"path": "out/checkpoint-1", "step": 1}, step=1)
            with pytest.raises(LedgerError, match=r"call it instead"):
                writer.event("checkpoint", {"heads": {}}, step=1)
        assert ledger.verify().ok and not ledger.verify("00").ok


# -- tails -------------------------------------------------------------------------------------------------------------


def test_files_that_changed_places_are_found(stored: Sample) -> None:
    (stored.root / TAIL).rename(stored.root / "x")
    (stored.root / SECOND).rename(stored.root / TAIL)
    (stored.root / "x").rename(stored.root / SECOND)
    assert "says it belongs to somebody else" in first_bad(stored.root)


def test_a_missing_or_damaged_tail_is_found(stored: Sample) -> None:
    (stored.root / SECOND).unlink()
    assert "000001-001.db: cannot read: the file is missing" in first_bad(stored.root)
    (stored.root / TAIL).write_bytes(b"x" * 10_000)
    assert "000001-000.db" in first_bad(stored.root)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE batches SET rows = zeroblob(length(rows)) WHERE first_seq = 4",
        "UPDATE batches SET rows = substr(rows, 1, length(rows) / 2) WHERE first_seq = 4",
        "UPDATE batches SET texts = x'00' WHERE first_seq = 4",
        "UPDATE batches SET texts = NULL WHERE first_seq = 4",
        "UPDATE batches SET rows = 'text' WHERE first_seq = 4",
        "UPDATE batches SET layout = 99 WHERE first_seq = 4",
        "UPDATE batches SET layout = text_layout WHERE first_seq = 4",
        "UPDATE batches SET rows = texts WHERE first_seq = 4",
    ],
)
def test_bytes_that_are_no_rows_are_found_and_the_rest_is_still_checked(copy: Path, statement: str) -> None:
    sql(copy, TAIL, statement)
    assert first_bad(copy).startswith("run demo/grpo, attempt 1, writer 0, step 2, seq 4 to 6 (sessions 6 to 8): ")
    sql(copy, TAIL, "UPDATE batches SET first_seq = 5 WHERE first_seq = 4")
    assert "attempt 1, writer 0" in first_bad(copy)


def test_a_flipped_bit_anywhere_in_a_commit_is_found_and_harms_nobody(copy: Path) -> None:
    with closing(sqlite3.connect(copy / TAIL)) as tail:
        whole = tail.execute("SELECT rows FROM batches WHERE first_seq = 4").fetchone()[0]
    for place in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        with closing(sqlite3.connect(copy / TAIL)) as tail, tail:
            tail.execute("UPDATE batches SET rows = ? WHERE first_seq = 4", (bytes(flipped),))
        assert not Ledger.open(copy).verify().ok
        with closing(sqlite3.connect(copy / TAIL)) as tail, tail:
            tampering.fix_checksum(tail, 4)
        Ledger.open(copy).verify()  # what is between the values may have flipped
        try:
            Ledger.open(copy).sessions("demo/grpo", texts=True)
        except LedgerError as error:
            assert "000001-000.db" in str(error) and "\n" not in str(error)


# -- the same values in other bytes ------------------------------------------------------------------------------------


def test_the_same_values_in_other_bytes_are_the_same(copies: dict[str, Sample]) -> None:
    v1 = copies["version 1"].root
    sql(v1, TAIL, "UPDATE sessions SET components = replace(components, ': ', ' :  ')")
    for root in (v1, copies["hot"].root):
        with closing(sqlite3.connect(root / TAIL)) as tail:
            tail.execute("VACUUM")
        assert Ledger.open(root).verify().ok
    hot = copies["hot"].root
    with closing(sqlite3.connect(hot / TAIL)) as tail, tail:
        tampering.change_batch(tail, 4, "rows", lambda table: table.select(sorted(table.schema.names)))
    tampering.set_value(hot, ("demo/grpo", 1, 0), 5, "kl_nats", None)  # a column without any value
    assert Ledger.open(hot).verify().ok


# -- anchors -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    with scratch() as folder:
        yield folder / "ledger", *two_attempts(folder / "ledger")


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
        other.close()
        assert len(set(heads)) == len(heads)
        assert all(ledger.verify(head).ok for head in heads[1:])


def test_a_chain_rewritten_with_all_its_hashes_is_found_by_an_anchor(copy: Path) -> None:
    anchor = Ledger.open(copy).head()
    shutil.rmtree(copy)
    with Ledger.open(copy, create=True) as ledger, ledger.writer("demo/grpo") as writer:
        writer.append(1, rows(1, 3))
    assert Ledger.open(copy).verify().ok
    assert not Ledger.open(copy).verify(anchor).ok
