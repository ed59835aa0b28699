"""`verify` and the sealed tables: what a Delta program can do to them, and what it may."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from rewards import Ledger
from tests.rewards import tampering
from tests.rewards.ledger_rows import rows, scratch
from tests.rewards.sample_ledgers import filled, two_attempts
from tests.rewards.tampering import files_of, joined, overwrite, rewrite

KEY = ("demo/grpo", 1, 0)
STEP_2 = "run demo/grpo, attempt 1, writer 0, step 2, seq 4 to 6 (sessions 6 to 8): "


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    with scratch() as folder:
        two_attempts(folder / "ledger")
        Ledger.open(folder / "ledger").seal()
        yield folder / "ledger"


@pytest.fixture
def root(prepared: Path) -> Iterator[Path]:
    with scratch() as folder:
        shutil.copytree(prepared, folder / "copy")
        yield folder / "copy"


def problems(root: Path) -> tuple[str, ...]:
    verification = Ledger.open(root).verify()
    assert not verification.ok
    return verification.problems


def of_chain(root: Path, key: tuple[str, int, int] = KEY) -> Any:
    return pc.field("chain") == joined(root)[key][0]


# -- rows removed, added, moved through the log of the table ----------------------------------------------------------


@pytest.mark.parametrize("table", ["sessions", "texts"])
def test_rows_appended_a_second_time_are_found(root: Path, table: str) -> None:
    stored = DeltaTable(root / table).to_pyarrow_table().filter(of_chain(root))
    write_deltalake(root / table, stored.filter(pc.field("seq") == 5), mode="append")
    assert any(p.startswith(STEP_2) and "stored twice" in p for p in problems(root))


@pytest.mark.parametrize("table", ["sessions", "texts"])
def test_a_row_overwritten_away_is_found(root: Path, table: str) -> None:
    overwrite(root, table, lambda stored: stored.filter(~(of_chain(root) & (pc.field("seq") == 5))))
    assert any(p.startswith(STEP_2) and ("missing" in p or "stored where" in p) for p in problems(root))


def test_a_value_overwritten_is_found(root: Path) -> None:
    def edited(stored: pa.Table) -> pa.Table:
        number = joined(root)[KEY][0]
        place = pc.index(pc.and_(pc.equal(stored["chain"], number), pc.equal(stored["seq"], 5)), True).as_py()
        return tampering.with_value(stored, place, "adjusted_reward")

    overwrite(root, "sessions", edited)
    assert problems(root)[0] == STEP_2 + "its rows or its head are not those that were recorded"


@pytest.mark.parametrize("table", ["sessions", "texts"])
def test_rows_of_a_writer_that_never_joined_are_found(root: Path, table: str) -> None:
    stored = DeltaTable(root / table).to_pyarrow_table().filter(of_chain(root))
    place = stored.schema.get_field_index("chain")
    stranger = stored.set_column(place, "chain", pa.array([99] * stored.num_rows, pa.int64()))
    write_deltalake(root / table, stranger, mode="append")
    assert any(
        p.endswith("holds rows of a writer that never joined, or whose claim was removed") for p in problems(root)
    )


@pytest.mark.parametrize("table", ["sessions", "texts"])
@pytest.mark.parametrize("column", ["chain", "seq"])
def test_rows_without_a_key_are_found(root: Path, table: str, column: str) -> None:
    stored = DeltaTable(root / table).to_pyarrow_table().slice(0, 1)
    place = stored.schema.get_field_index(column)
    write_deltalake(root / table, stored.set_column(place, column, pa.nulls(1, pa.int64())), mode="append")
    assert any("holds rows that name no chain or no seq" in p for p in problems(root))


@pytest.mark.parametrize("seq", [0, 10])
@pytest.mark.parametrize("table", ["sessions", "texts"])
def test_rows_outside_of_a_chain_are_found(root: Path, table: str, seq: int) -> None:
    stored = DeltaTable(root / table).to_pyarrow_table().filter(of_chain(root) & (pc.field("seq") == 9))
    stray = stored.set_column(stored.schema.get_field_index("seq"), "seq", pa.array([seq], pa.int64()))
    write_deltalake(root / table, stray, mode="append")
    assert any(p.startswith("run demo/grpo, attempt 1, writer 0") for p in problems(root))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["sessions", "texts"])
def test_a_missing_or_damaged_file_is_named_with_what_it_held(root: Path, table: str) -> None:
    path = tampering.file_of(root, table, KEY, 5)
    assert path is not None
    whole = path.read_bytes()
    path.unlink()
    found = problems(root)
    assert found[0].startswith(f"{path}: the file is missing; it held 9 rows of run demo/grpo")
    assert any(
        p.startswith("run demo/grpo, attempt 1, writer 0, step 1, seq 1 to 3 (sessions 1 to 3): ") for p in found
    )
    for damaged in (whole[: len(whole) // 2], b"", b"PAR1" + whole[4:-4] + b"XXXX"):
        path.write_bytes(damaged)
        assert problems(root)[0].startswith(f"{path}: the file is damaged")


def test_a_flipped_bit_of_a_file_never_passes_for_other_values(root: Path) -> None:
    for table in ("sessions", "texts"):
        path = tampering.file_of(root, table, KEY, 5)
        assert path is not None
        whole, stored = path.read_bytes(), pq.read_table(path)
        for place in range(11, len(whole), len(whole) // 9):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            if Ledger.open(root).verify().ok:
                assert pq.read_table(path).equals(stored), place
        path.write_bytes(whole)
    assert Ledger.open(root).verify().ok


@pytest.mark.parametrize("edit", ["rows", "run_id", "chain", "seq"])
def test_a_log_that_lies_about_a_file_is_found(root: Path, edit: str) -> None:
    path = tampering.file_of(root, "sessions", KEY, 5)
    assert path is not None
    for entry in sorted((root / "sessions/_delta_log").glob("*.json")):
        lines = [json.loads(line) for line in entry.read_text().splitlines()]
        for line in lines:
            if line.get("add", {}).get("path") == path.name:
                stats = json.loads(line["add"]["stats"])
                if edit == "rows":
                    stats["numRecords"] = 8
                else:
                    wrong = {"run_id": "zzz", "chain": 77, "seq": 700}[edit]
                    stats["minValues"][edit] = stats["maxValues"][edit] = wrong
                line["add"]["stats"] = json.dumps(stats)
        entry.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert any(p.startswith(f"{path}: holds ") for p in problems(root))


def test_a_column_that_is_none_of_the_ledgers_is_found(root: Path) -> None:
    path = tampering.file_of(root, "sessions", KEY, 5)
    assert path is not None
    rewrite(path, lambda stored: stored.append_column("verdict", pa.array(["fine"] * stored.num_rows)))
    assert problems(root) == (f"{path}: holds a column `verdict` that is none of the ledger's",)


def test_a_column_taken_out_of_a_file_is_found(root: Path) -> None:
    path = tampering.file_of(root, "sessions", KEY, 5)
    assert path is not None
    rewrite(path, lambda stored: stored.drop_columns("adjusted_reward"))
    assert problems(root)[0].startswith("run demo/grpo, attempt 1, writer 0, step 1, seq 1 to 3")


def test_numbers_that_reading_would_round_are_found(root: Path) -> None:
    def precise(stored: pa.Table) -> pa.Table:
        place = stored.schema.get_field_index("kl_nats")
        return stored.set_column(place, "kl_nats", pa.nulls(stored.num_rows, pa.float64()))

    path = tampering.file_of(root, "sessions", KEY, 5)
    assert path is not None
    rewrite(path, precise)
    assert problems(root) == (f"{path}: column `kl_nats` is double, not float",)


# -- the same values in other bytes ------------------------------------------------------------------------------------


def reversed_rows(stored: pa.Table) -> pa.Table:
    return stored.take(pa.array(range(stored.num_rows - 1, -1, -1)))


def other_types(stored: pa.Table) -> pa.Table:
    columns = {}
    for name in stored.schema.names:
        column = stored[name].combine_chunks()
        if pa.types.is_string(column.type):
            column = column.dictionary_encode() if name in ("run_id", "category") else column.cast(pa.large_string())
        elif pa.types.is_binary(column.type):
            column = column.cast(pa.large_binary())
        elif name in ("attempt", "group_size"):
            column = column.cast(pa.int64())
        columns[name] = column
    return pa.table(columns)


@pytest.mark.parametrize(
    ("how", "options"),
    [
        (lambda stored: stored, {"compression": "none", "use_dictionary": False}),
        (lambda stored: stored, {"compression": "snappy", "row_group_size": 2, "data_page_version": "2.0"}),
        (reversed_rows, {}),
        (lambda stored: stored.select(sorted(stored.schema.names)), {}),
        (other_types, {}),
    ],
    ids=["plain", "small row groups", "another order of rows", "another order of columns", "other types"],
)
def test_the_same_values_in_other_bytes_are_the_same(
    root: Path, how: Callable[[pa.Table], pa.Table], options: dict[str, Any]
) -> None:
    ledger = Ledger.open(root)
    before = ledger.sessions("demo/grpo", texts=True)
    for table in ("sessions", "texts"):
        for path in files_of(root, table):
            rewrite(path, how, **options)
    assert ledger.verify().problems == ()
    assert ledger.sessions("demo/grpo", texts=True).equals(before)


def test_rows_arranged_by_a_delta_program_are_the_same(root: Path) -> None:
    head = Ledger.open(root).head()
    for table in ("sessions", "texts"):
        assert DeltaTable(root / table).optimize.compact()["numFilesAdded"] == 1
    assert Ledger.open(root).verify(head).ok
    for table in ("sessions", "texts"):
        DeltaTable(root / table).optimize.z_order(["writer", "seq"])
        overwrite(root, table, lambda stored: stored)
    assert Ledger.open(root).verify(head).ok


def test_every_nan_is_one_and_minus_zero_is_zero_in_sealed_files() -> None:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("r", seal_rows=None) as writer:
            writer.append(1, [filled() | {"pivot": float("nan"), "differential_pct": 0.0}])
        ledger.seal()
        for column, value in {"pivot": -float("nan"), "differential_pct": -0.0}.items():
            tampering.set_value(ledger.path, ("r", 1, 0), 1, column, value)
        assert ledger.verify().ok
        tampering.set_value(ledger.path, ("r", 1, 0), 1, "pivot", None)
        assert not ledger.verify().ok


def test_files_whose_rows_lie_between_each_others_are_read_in_order() -> None:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("r", seal_rows=None) as writer:
            for step in range(1, 10):
                writer.append(step, rows(step, 2)).wait()
        ledger.seal()
        for table in ("sessions", "texts"):
            stored = DeltaTable(folder / "ledger" / table).to_pyarrow_table()
            odd = pc.is_in(stored["seq"], pa.array([1, 2, 3, 8, 9, 17]))
            write_deltalake(folder / "ledger" / table, stored.filter(odd), mode="overwrite")
            write_deltalake(folder / "ledger" / table, stored.filter(pc.invert(odd)), mode="append")
        assert ledger.verify().problems == ()


# -- the tables for other engines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("attempts", "live", False),
        ("attempts", "run_id", "other"),
        ("blocks", "live", False),
        ("blocks", "session_offset", 77),
        ("blocks", "block", 5),
    ],
)
def test_an_edit_of_the_tables_for_other_engines_is_found_and_mended_by_a_seal(
    root: Path, table: str, column: str, value: Any
) -> None:
    (path,) = files_of(root, table)

    def edited(stored: pa.Table) -> pa.Table:
        values = stored[column].to_pylist()
        place = next(i for i, old in enumerate(values) if old != value)
        values[place] = value
        return stored.set_column(
            stored.schema.get_field_index(column), column, pa.array(values, stored.schema.field(column).type)
        )

    rewrite(path, edited)
    (said,) = problems(root)
    assert said.startswith(f"{root / table}: this table for other engines is not what the ledger's own records say")
    Ledger.open(root).seal()
    assert Ledger.open(root).verify().ok


def test_tables_for_other_engines_may_be_older_than_the_ledger(root: Path) -> None:
    with Ledger.open(root) as ledger:
        with ledger.writer("demo/new", seal_rows=None) as writer:
            writer.append(1, rows(1, 2))
            again = ledger.writer("demo/grpo", seal_rows=None)
            again.close()
        assert ledger.verify().ok
        for table in ("attempts", "blocks"):
            (path,) = files_of(root, table)
            path.unlink()
            said = f"{path}: the file is missing; `rewards seal` writes the table anew"
            assert said in problems(root)


# -- others at work ----------------------------------------------------------------------------------------------------


def test_verifying_while_others_write_seal_and_redact_raises_no_false_alarm() -> None:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        ledger.writer("first", seal_rows=None).append(1, rows(1, 3, prompt="what?")).wait()
        done = threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for number in range(2):
                    with Ledger.open(folder / "ledger") as mine, mine.writer(f"run {number}", seal_rows=None) as writer:
                        for step in range(1, 4):
                            writer.append(step, rows(step, 3, prompt="what?")).wait()
                            mine.seal()
                        writer.checkpoint(3)
                        mine.redact(f"run {number}", 1, 0, 2, reason="a name", by="ana")
            except BaseException as error:
                failures.append(error)
            finally:
                done.set()

        worker = threading.Thread(target=work)
        worker.start()
        found = []
        while not done.is_set():
            found += ledger.verify().problems
        worker.join()
        assert failures == [] and found == []
        assert ledger.verify().ok
