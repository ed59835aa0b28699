"""`redact`: the text is gone from every byte of the ledger, its hash stays, and `verify` holds."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rewards import Ledger, redact, seal
from rewards.errors import LedgerError
from rewards.schema import TEXT_COLUMNS
from tests.rewards import tampering
from tests.rewards.ledger_rows import row, scratch
from tests.rewards.sample_ledgers import copied_v1
from tests.rewards.tampering import Key, sql, tail_of

WHY = {"reason": "a name", "by": "ana"}


@dataclass(frozen=True)
class Case:
    """A ledger and a row of it with texts."""

    root: Path
    key: Key = ("r", 1, 0)
    seq: int = 2

    @property
    def place(self) -> tuple[str, int, int, int]:
        return (*self.key, self.seq)

    def row(self) -> dict[str, Any]:
        table = Ledger.open(self.root).sessions(self.key[0], live=False, texts=True).to_pylist()
        (found,) = (r for r in table if (r["run_id"], r["attempt"], r["writer"], r["seq"]) == self.place)
        return found


def texts_of(step: int, number: int) -> dict[str, str]:
    return {name: f"~~{name} {step}.{number}" for name in TEXT_COLUMNS}


def record(ledger: Ledger, steps: int, after_step: Callable[[], object] = lambda: None) -> None:
    """Three rows a step with texts of their own, and one without."""
    with ledger.writer("r", seal_rows=None) as writer:
        for step in range(1, steps + 1):
            some = [row(i, **texts_of(step, i)) for i in range(3)]
            writer.append(step, [*some, {**row(3), "response": None}]).wait()
            after_step()
        writer.checkpoint(steps)


def hot(root: Path) -> Case:
    record(Ledger.open(root, create=True), 2)
    return Case(root)


def sealed(root: Path) -> Case:
    hot(root)
    Ledger.open(root).seal()
    return Case(root)


def compacted(root: Path) -> Case:
    ledger = Ledger.open(root, create=True)
    record(ledger, 9, lambda: ledger.seal(vacuum=False))
    assert len(tampering.files_of(root, "texts")) < 9
    return Case(root)


def partly_sealed(root: Path) -> Case:
    ledger = Ledger.open(root, create=True)
    first = iter([True])
    record(ledger, 4, lambda: next(first, None) and ledger.seal())  # what SQLite has freed still holds the texts
    return Case(root)


def in_both_places(root: Path) -> Case:
    hot(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "drop_rows", _killed)
        with pytest.raises(LedgerError):
            Ledger.open(root).seal()
    with closing(sqlite3.connect(root / tail_of(root, ("r", 1, 0)))) as tail:
        assert tail.execute("SELECT count(*) FROM batches").fetchone() == (2,) and tampering.files_of(root, "texts")
    return Case(root)


def version_1(root: Path) -> Case:
    return Case(copied_v1(root.parent), ("alpha", 1, 0), 5)


def version_1_sealed(root: Path) -> Case:
    case = version_1(root)
    Ledger.open(case.root).seal()
    return case


CASES = [hot, sealed, compacted, partly_sealed, in_both_places, version_1, version_1_sealed]


def _killed(*_: object, **__: object) -> Any:
    raise OSError("killed")


@pytest.fixture(params=CASES, ids=lambda build: build.__name__)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with scratch() as folder:
        yield request.param(folder / "ledger")


SOME = pytest.mark.parametrize("case", [hot, sealed, version_1], indirect=True, ids=lambda build: build.__name__)


def traces(root: Path, text: str) -> list[str]:
    """The files in which a text can be found: as bytes, or once a Parquet file is decoded, with its dictionaries."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        there = text.encode() in path.read_bytes()
        if path.suffix == ".parquet" and path.parent.name == "texts":
            table = pq.read_table(path, partitioning=None, read_dictionary=list(TEXT_COLUMNS))
            for name in TEXT_COLUMNS:
                there |= any(text in chunk.dictionary.to_pylist() for chunk in table[name].chunks)
        if there:
            found.append(str(path.relative_to(root)))
    return found


def redact_row(case: Case, *columns: str) -> dict[str, Any]:
    return Ledger.open(case.root).redact(*case.place, columns, **WHY)


# -- gone --------------------------------------------------------------------------------------------------------------


def test_the_text_is_gone_from_every_byte_and_the_ledger_verifies(case: Case) -> None:
    ledger = Ledger.open(case.root)
    before, head = case.row(), ledger.head()
    assert traces(case.root, before["response"]) != []
    everything = ledger.sessions(case.key[0], live=False, texts=True).to_pylist()

    event = redact_row(case, "response")

    assert traces(case.root, before["response"]) == []
    assert event["kind"] == "text_redacted" and event in ledger.events(case.key[0], "text_redacted")
    place = {"attempt": case.key[1], "writer": case.key[2], "seq": case.seq}
    assert event["payload"] == {**place, "columns": ["response"], **WHY}
    assert case.row() == before | {"response": None}
    after = ledger.sessions(case.key[0], live=False, texts=True).to_pylist()
    assert [a for a, b in zip(after, everything, strict=True) if str(a) != str(b)] == [case.row()]
    assert ledger.verify(head).problems == ()
    ledger.seal()
    assert ledger.verify(head).problems == () and case.row() == before | {"response": None}
    assert traces(case.root, before["response"]) == [] and traces(case.root, before["prompt"]) != []


@SOME
def test_all_texts_of_a_row_may_go_at_once(case: Case) -> None:
    before = case.row()
    event = redact_row(case)
    texts = {name: before[name] for name in TEXT_COLUMNS if before[name] is not None}
    assert event["payload"]["columns"] == list(texts) and len(texts) >= 2
    assert all(traces(case.root, text) == [] for text in texts.values() if text.startswith("~"))
    assert case.row() == before | dict.fromkeys(TEXT_COLUMNS)
    assert Ledger.open(case.root).verify().ok


@SOME
def test_the_other_texts_of_the_row_stay_provable(case: Case) -> None:
    redact_row(case, "response")
    assert Ledger.open(case.root).verify().ok
    tampering.set_value(case.root, case.key, case.seq, "prompt", "never asked", table="texts")
    assert not Ledger.open(case.root).verify().ok


@SOME
def test_one_text_after_the_other(case: Case) -> None:
    before = case.row()
    for name in ("prompt", "response"):
        redact_row(case, name)
        assert Ledger.open(case.root).verify().ok
    assert case.row() == before | {"prompt": None, "response": None}
    assert len(Ledger.open(case.root).events(case.key[0], "text_redacted")) == 2


def test_a_hot_salt_cannot_be_worked_out_once_a_text_of_the_commit_is_gone() -> None:
    with scratch() as folder:
        case = hot(folder / "ledger")
        tail = case.root / tail_of(case.root, case.key)
        with closing(sqlite3.connect(tail)) as database:
            (secret,) = database.execute("SELECT secret FROM batches WHERE first_seq = 1").fetchone()
        redact_row(case, "response")
        assert secret not in tail.read_bytes()


def test_with_the_last_text_of_a_row_of_version_1_goes_its_salt() -> None:
    with scratch() as folder:
        case = version_1(folder / "ledger")
        tail = case.root / tail_of(case.root, case.key)
        with closing(sqlite3.connect(tail)) as database:
            (salt,) = database.execute("SELECT salt FROM texts WHERE seq = 5").fetchone()
        redact_row(case, "response")
        assert salt in tail.read_bytes(), "the prompt of the row is proved with the same salt"
        redact_row(case, "prompt")
        assert salt not in tail.read_bytes() and Ledger.open(case.root).verify().ok


def test_rows_whose_texts_were_all_taken_out_are_sealed() -> None:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("r", seal_rows=None) as writer:
            writer.append(1, [row(0, **texts_of(1, 0))])
        ledger.redact("r", 1, 0, 1, **WHY)
        assert ledger.seal()["rows"] == 1
        assert ledger.verify().ok and ledger.sessions("r", texts=True)["response"].to_pylist() == [None]


def test_a_salt_without_a_text_beside_a_redaction_is_found() -> None:
    with scratch() as folder:
        case = hot(folder / "ledger")
        redact_row(case, "response")
        tampering.set_value(case.root, case.key, 4, "response_salt", b"x" * 16, table="texts")
        assert "texts are stored for row 4, which was recorded without" in (
            Ledger.open(case.root).verify().first_bad or ""
        )


def test_the_writer_goes_on_beside_a_redaction() -> None:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        writer = ledger.writer("r", seal_rows=None)
        case = Case(folder / "ledger")
        for step in range(1, 5):
            writer.append(step, [row(i, **texts_of(step, i)) for i in range(3)]).wait()
            if step == 2:
                redact_row(case, "response", "prompt")
                assert traces(case.root, "~~response 1.1") == []
        position = writer.checkpoint(4)
        writer.append(5, [{**row(1), "group_id": "another layout of columns"}]).wait()
        writer.close()
        again = ledger.writer("r", resume=position)
        again.append(5, [row(1)])
        again.close()
        assert ledger.verify(position["head"]).problems == ()
        ledger.seal()
        assert ledger.verify(position["head"]).problems == ()
        assert case.row()["response"] is None and case.row()["rejected"] == "~~rejected 1.1"


# -- interrupted -------------------------------------------------------------------------------------------------------


def _then_killed(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **more: Any) -> Any:
        function(*args, **more)
        _killed()

    return wrapped


STEPS = ["upgrade", "notes.add", "_redact_hot", "_redact_sealed", "Body.replace", "compaction.vacuum", "replace_texts"]


@pytest.mark.parametrize(
    "builds", [[hot, sealed], pytest.param([in_both_places, version_1, compacted], marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_redaction_is_no_fault_and_is_completed_by_another_one(
    step: str, after: bool, builds: list[Callable[[Path], Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for build in builds:
        with scratch() as folder:
            case = build(folder / "ledger")
            before = case.row()
            with monkeypatch.context() as patch:
                owner: Any = redact
                *path, name = step.split(".")
                for part in path:
                    owner = getattr(owner, part)
                patch.setattr(owner, name, _then_killed(getattr(owner, name)) if after else _killed)
                interrupted = False
                try:
                    redact_row(case, "response")
                except (OSError, LedgerError):
                    interrupted = True
            ledger = Ledger.open(case.root)
            assert ledger.verify().problems == (), build
            if interrupted:
                try:
                    redact_row(case, "response")
                except LedgerError as error:
                    assert "its response was taken out before (event" in str(error)
            assert traces(case.root, before["response"]) == []
            assert case.row() == before | {"response": None} and ledger.verify().ok
            assert len(ledger.events(case.key[0], "text_redacted")) == 1


def test_a_file_beside_the_table_that_may_be_the_last_of_a_row_is_kept_without_the_text() -> None:
    with scratch() as folder:
        case = sealed(folder / "ledger")
        (file,) = tampering.files_of(case.root, "texts")
        beside = file.with_name("part-left-behind.parquet")
        kept = pq.read_table(file, partitioning=None)
        number = tampering.joined(case.root)[case.key][0]
        for seq in (case.seq, 3):  # the second row's number is one that no table and no tail has
            place = tampering._place(kept, number, seq)
            kept = tampering.with_value(kept, place, "seq", seq if seq == case.seq else 4000)
        pq.write_table(kept, beside)
        redact_row(case, "response")
        assert beside.exists() and traces(case.root, "~~response 1.1") == []
        assert "~~response 1.2" in pq.read_table(beside)["response"].to_pylist()


# -- refused -----------------------------------------------------------------------------------------------------------


REFUSED = [
    (("r", 1, 0, 99), (), "run `r`, attempt 1, writer 0: row 99 does not exist"),
    (("r", 1, 0, 0), (), "row 0 does not exist"),
    (("r", 1, 3, 1), (), "run `r` has no writer 3 in an attempt 1"),
    (("r", 7, 0, 1), (), "run `r` has no writer 0 in an attempt 7"),
    (("other", 1, 0, 1), (), "run `other` has no writer 0"),
    (("r", 1, 0, 4), (), "row 4 has no text; it was recorded without any"),
    (("r", 1, 0, 4), ("response",), "row 4 has no response; it was recorded without any"),
    (("r", 1, 0, 2), ("answer",), "`answer` is no text of a session; the texts are prompt, response, rejected"),
]


@pytest.mark.parametrize("build", [hot, sealed], ids=["hot", "sealed"])
def test_what_cannot_be_taken_out_is_said_in_one_line(build: Callable[[Path], Case]) -> None:
    with scratch() as folder:
        ledger = Ledger.open(build(folder / "ledger").root)
        for place, columns, said in REFUSED:
            with pytest.raises(LedgerError) as error:
                ledger.redact(*place, columns, **WHY)
            assert said in str(error.value) and "\n" not in str(error.value)
        for missing in ({"reason": " ", "by": "ana"}, {"reason": "a name", "by": ""}):
            with pytest.raises(LedgerError, match="a redaction needs"):
                ledger.redact("r", 1, 0, 2, **missing)
        assert ledger.events("r", "text_redacted") == [] and ledger.verify().ok


@SOME
def test_a_text_is_taken_out_once(case: Case) -> None:
    event = redact_row(case, "response")
    with pytest.raises(LedgerError, match=rf"its response was taken out before \(event {event['seq']}\)$"):
        redact_row(case, "response")
    assert redact_row(case)["payload"]["columns"][0] == "prompt", "what is left"
    with pytest.raises(LedgerError, match="was taken out before"):
        redact_row(case)
    assert len(Ledger.open(case.root).events(case.key[0], "text_redacted")) == 2


# -- forged ------------------------------------------------------------------------------------------------------------


def test_a_text_that_was_removed_is_not_excused_afterwards() -> None:
    for build in (hot, sealed):
        with scratch() as folder:
            case = build(folder / "ledger")
            ledger = Ledger.open(case.root)
            if build is sealed:
                for name in ("response", "response_salt"):
                    tampering.set_value(case.root, case.key, case.seq, name, None, table="texts")
                with pytest.raises(
                    LedgerError, match="its response is gone, and no redaction is on record; run verify"
                ):
                    redact_row(case, "response")
            else:
                tampering.set_value(case.root, case.key, case.seq, "response", None, table="texts")
                with pytest.raises(LedgerError, match="row 2 has no response"):
                    redact_row(case, "response")
            assert ledger.events("r", "text_redacted") == [] and not ledger.verify().ok


def test_an_event_that_was_forged_is_found() -> None:
    with scratch() as folder:
        case = sealed(folder / "ledger")
        payload = '{"attempt": 1, "writer": 0, "seq": 2, "columns": ["response"], "reason": "x", "by": "x"}'
        sql(
            case.root,
            "ledger.db",
            "INSERT INTO events SELECT seq + 1, run_id, NULL, NULL, NULL, 0, time, 'text_redacted', "
            f"'{payload}', hash FROM events ORDER BY seq DESC LIMIT 1",
        )
        for name in ("response", "response_salt"):
            tampering.set_value(case.root, case.key, case.seq, name, None, table="texts")
        (said,) = Ledger.open(case.root).verify().problems
        assert "(text_redacted) or its hash is not the one that was recorded" in said


@pytest.mark.parametrize(
    "other", [{"seq": 3}, {"columns": ["prompt"]}, {"writer": 1}, {"attempt": 2}, {"columns": 5}, {"seq": [2]}]
)
def test_a_redaction_excuses_no_other_text(other: dict[str, Any]) -> None:
    with scratch() as folder:
        case = sealed(folder / "ledger")
        ledger = Ledger.open(case.root)
        payload = {"attempt": 1, "writer": 0, "seq": 2, "columns": ["response"], **WHY}
        ledger.note("text_redacted", payload | other, "r")
        assert ledger.verify().ok, "nothing is missing"
        for name in ("response", "response_salt"):
            tampering.set_value(case.root, case.key, case.seq, name, None, table="texts")
        assert "the response of row 2 is missing, and no redaction is on record" in (ledger.verify().first_bad or "")
        ledger.note("text_redacted", payload, "r")
        assert ledger.verify().ok, "whoever may write events may say so, by name"
