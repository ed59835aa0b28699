"""Rows in other shapes than dicts: columns, Arrow tables, and tables that bring their own steps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rewards import Ledger, LedgerError
from rewards.schema import COMPONENTS_TYPE
from rewards.writer import Writer
from tests.rewards.ledger_rows import rows, scratch


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as opened:
        yield opened


@pytest.fixture
def writer(ledger: Ledger) -> Writer:
    return ledger.writer("r")


def columns(count: int = 4) -> dict[str, Any]:
    return {
        "pipeline": "grpo",
        "split": "train",
        "prompt_id": [f"p{i}" for i in range(count)],
        "baseline_reward": np.arange(count) / 4,
        "advantage": np.arange(count, dtype=np.float32),
        "group_size": np.full(count, 8),
        "compliant": np.arange(count) % 2 == 0,
        "components": [[{"name": "task", "raw": i / 4, "weight": 1.0}] for i in range(count)],
        "response": [f"answer {i}" for i in range(count)],
    }


def as_dicts(given: dict[str, Any], count: int = 4) -> list[dict[str, Any]]:
    def cell(values: Any, i: int) -> Any:
        return values if isinstance(values, str) else values[i]

    return [{name: cell(values, i) for name, values in given.items()} for i in range(count)]


def as_table(given: dict[str, Any], count: int = 4) -> pa.Table:
    arrays = {}
    for name, values in given.items():
        values = [values] * count if isinstance(values, str) else values
        arrays[name] = pa.array(values, COMPONENTS_TYPE if name == "components" else None)
    return pa.table(arrays)


def content(ledger: Ledger, run: str) -> list[dict[str, Any]]:
    table = ledger.sessions(run, texts=True)
    return table.drop_columns(["run_id", "time"]).to_pylist()


def test_dicts_columns_and_arrow_tables_are_the_same_rows(ledger: Ledger) -> None:
    forms = {"dicts": as_dicts(columns()), "columns": columns(), "table": as_table(columns())}
    forms["batch"] = forms["table"].to_batches()[0]
    for run, form in forms.items():
        with ledger.writer(run) as writer:
            writer.append(3, form)
    expected = content(ledger, "dicts")
    assert len(expected) == 4 and expected[2]["components"][0]["raw"] == 0.5 and expected[3]["response"] == "answer 3"
    for run in forms:
        assert content(ledger, run) == expected, run
    assert ledger.verify().ok


def test_arrow_types_that_mean_the_same_are_taken_and_others_are_not(ledger: Ledger, writer: Writer) -> None:
    table = as_table(columns()).cast(
        pa.schema(
            [
                (n, pa.large_string() if n == "prompt_id" else pa.float32() if n == "baseline_reward" else t)
                for n, t in zip(as_table(columns()).schema.names, as_table(columns()).schema.types, strict=True)
            ]
        )
    )
    table = table.set_column(0, "pipeline", table["pipeline"].dictionary_encode())
    writer.append(1, table)
    writer.close()
    assert content(ledger, "r")[1]["baseline_reward"] == 0.25
    with ledger.writer("s") as other, pytest.raises(LedgerError, match="`group_size` is double, not a whole number"):
        other.append(1, as_table({**columns(), "group_size": [1.5] * 4}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"advantage": [1.0]}, "different lengths.*`advantage` 1"),
        ({"advantage": np.ones((4, 2))}, r"shape \(4, 2\)"),
        ({"split": ["train", "eval", "test", "train"]}, "row 2: column `split` is 'test'"),
        ({"prompt_id": ["a", None, "b", "c"]}, "row 1: column `prompt_id` is missing"),
        ({"colour": "red"}, "unknown column `colour`"),
        ({"seq": [1, 2, 3, 4]}, "`seq` is filled by the ledger"),
        ({"components": 3.0}, "`components` is float"),
        ({"components": [[{"raw": 1.0}]] * 4}, "`components`.*`name` is missing"),
        ({"components": [[{"name": "a", "role": "boss"}]] * 4}, "`role` is 'boss'"),
    ],
)
def test_columns_that_do_not_fit_are_refused(ledger: Ledger, writer: Writer, change: dict[str, Any], said: str) -> None:
    with pytest.raises(LedgerError, match=said):
        writer.append(1, {**columns(), **change})
    writer.close()
    assert ledger.sessions("r").num_rows == 0


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("split", ["train", "eval", "test", "train"], "row 2: column `split` is 'test'"),
        ("prompt_id", ["a", None, "b", "c"], "row 1: column `prompt_id` is missing"),
        ("colour", ["red"] * 4, "unknown column `colour`"),
    ],
)
def test_tables_that_do_not_fit_are_refused(writer: Writer, name: str, values: list[Any], said: str) -> None:
    with pytest.raises(LedgerError, match=said):
        writer.append(1, as_table({**columns(), name: values}))


def test_a_table_without_a_component_name_or_with_a_strange_role_is_refused(writer: Writer) -> None:
    for entry, said in (({"raw": 1.0}, "`name` is missing"), ({"name": "a", "role": "boss"}, "`role` is 'boss'")):
        with pytest.raises(LedgerError, match=f"components.*{said}"):
            writer.append(1, as_table({**columns(), "components": [[entry]] * 4}))


def test_an_array_that_is_changed_afterwards_changes_nothing(ledger: Ledger, writer: Writer) -> None:
    given = columns()
    writer.append(1, given)
    given["baseline_reward"][:] = 99.0
    writer.close()
    assert [r["baseline_reward"] for r in content(ledger, "r")] == [0.0, 0.25, 0.5, 0.75]


def test_nan_in_an_array_is_not_null(ledger: Ledger, writer: Writer) -> None:
    writer.append(1, {**columns(), "baseline_reward": np.array([np.nan, 1.0, 2.0, 3.0])})
    writer.close()
    assert str(content(ledger, "r")[0]["baseline_reward"]) == "nan"


# -- many rows at once -------------------------------------------------------------------------------------------------


def stepped(steps: list[int]) -> pa.Table:
    return as_table(columns(len(steps)), len(steps)).append_column("step", pa.array(steps))


def test_a_table_with_its_own_steps_is_numbered_in_its_order(ledger: Ledger, writer: Writer) -> None:
    steps = [1, 1, 2, 5, 5, 5, 6, 9, 9, 9]
    writer.append_table(stepped(steps), rows_a_commit=4)
    table = ledger.sessions("r")
    assert table["session"].to_pylist() == list(range(1, 11)) and table["step"].to_pylist() == steps
    assert ledger.runs()[0]["steps"] == 9 and ledger.verify().ok
    writer.close()
    assert ledger.sessions("r").equals(table) and ledger.verify().ok


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ([[1, 3, 2]], "row 2: column `step` is 2; steps count from 0 and do not go backwards"),
        ([[-1, 0]], "row 0: column `step` is -1"),
        ([[5, 6], [5, 7]], "step 5 comes after step 6"),
    ],
)
def test_steps_must_not_go_backwards(ledger: Ledger, writer: Writer, tables: list[list[int]], said: str) -> None:
    for steps in tables[:-1]:
        writer.append_table(stepped(steps))
    before = ledger.sessions("r").num_rows
    with pytest.raises(LedgerError, match=said):
        writer.append_table(stepped(tables[-1]))
    assert ledger.sessions("r").num_rows == before


def test_a_misfit_late_in_a_table_leaves_nothing_of_it(ledger: Ledger, writer: Writer) -> None:
    table = stepped([1] * 10)
    prompts = pa.array([*[f"p{i}" for i in range(9)], None])
    table = table.set_column(table.schema.get_field_index("prompt_id"), "prompt_id", prompts)
    with pytest.raises(LedgerError, match="row 9: column `prompt_id` is missing"):
        writer.append_table(table, rows_a_commit=4)
    assert ledger.sessions("r").num_rows == 0


def test_tables_with_steps_are_for_one_writer_and_need_rows_and_steps(ledger: Ledger, writer: Writer) -> None:
    second = ledger.writer("r", writer=1, attempt=1)
    with pytest.raises(LedgerError, match="only writer"):
        second.append_table(stepped([1]))
    with pytest.raises(LedgerError, match="`step` is missing"):
        writer.append_table(as_table(columns()))
    with pytest.raises(LedgerError, match="no rows"):
        writer.append_table(stepped([1]).slice(0, 0))


def test_a_resumed_attempt_takes_no_table_of_steps_that_are_on_record(ledger: Ledger) -> None:
    with ledger.writer("r") as first:
        first.append(1, rows(0, 2))
        position = first.checkpoint(4)
    with ledger.writer("r", resume=position) as again:
        with pytest.raises(LedgerError, match="continues after step 4"):
            again.append_table(stepped([4, 5]))
        again.append_table(stepped([5, 6]))
    assert ledger.sessions("r")["step"].to_pylist() == [1, 1, 5, 6]


def test_a_buffer_that_the_trainer_uses_again_changes_neither_rows_nor_heads(ledger: Ledger) -> None:
    with ledger.writer("r") as writer:
        buffer = np.ones(4)
        for step in range(1, 5):
            buffer[:] = step
            table = as_table({**columns(), "baseline_reward": [0.0] * 4})
            table = table.set_column(
                table.schema.get_field_index("baseline_reward"), "baseline_reward", pa.array(buffer)
            )
            writer.append(step, table, durable=step % 2 == 0)
            buffer[:] = -1
    assert ledger.sessions("r")["baseline_reward"].to_pylist() == [float(s) for s in (1, 2, 3, 4) for _ in range(4)]
    assert ledger.verify().ok


@pytest.mark.parametrize("as_dict", [True, False])
def test_bytes_that_are_no_text_are_refused_before_they_are_stored(ledger: Ledger, as_dict: bool) -> None:
    offsets = np.arange(0, 10, 2, dtype=np.int32)
    bad = pa.Array.from_buffers(pa.string(), 4, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff\xfe" * 4)])
    table = as_table(columns()).append_column("category", bad)
    rows = {n: c.combine_chunks() for n, c in zip(table.schema.names, table.columns, strict=True)} if as_dict else table
    with ledger.writer("r") as writer, pytest.raises(LedgerError, match="not valid"):
        writer.append(1, rows)
    assert ledger.sessions("r").num_rows == 0 and ledger.verify().ok


def test_a_column_that_is_there_twice_or_of_a_strange_kind_is_named(writer: Writer) -> None:
    table = as_table(columns())
    with pytest.raises(LedgerError, match="column `pipeline` is there twice"):
        writer.append(1, pa.Table.from_arrays([*table.columns, table["pipeline"]], [*table.schema.names, "pipeline"]))
    with pytest.raises(LedgerError, match="column `advantage` is set; give a list"):
        writer.append(1, {**columns(), "advantage": {1.0, 2.0, 3.0, 4.0}})


def test_numbers_that_no_column_holds_are_refused_in_one_line(writer: Writer) -> None:
    with pytest.raises(LedgerError, match=r"row 0: column `baseline_reward`.*does not fit"):
        writer.append(1, [{"pipeline": "a", "split": "train", "prompt_id": "p", "baseline_reward": 10**400}])
    with pytest.raises(LedgerError, match="step is"):
        writer.append(2**63, columns())
    writer.append(1, columns()).wait()


@pytest.mark.parametrize("name", ["a b", "a:b", "~x", "é#?", "[x]*", "it's"])
def test_a_ledger_may_have_any_name(tmp_path: Any, name: str) -> None:
    (tmp_path / "a b").mkdir()
    with Ledger.open(tmp_path / name, create=True) as ledger:
        with ledger.writer("r") as writer:
            writer.append(1, columns())
        assert ledger.seal()["rows"] == 0 and ledger.sizes()["sealed_rows"] == 4
        assert ledger.sessions("r").num_rows == 4 and ledger.verify().ok
        with ledger.connect() as connection:
            assert connection.execute("SELECT count(*) FROM live").fetchone() == (4,)


@pytest.mark.parametrize("name", ["50%advantage", "a%20b", "a\\b"])
def test_a_path_that_the_delta_library_would_take_for_another_is_refused(tmp_path: Any, name: str) -> None:
    with pytest.raises(LedgerError, match="use another folder"):
        Ledger.open(tmp_path / name, create=True)
    assert not (tmp_path / name).exists()
    with Ledger.open(tmp_path / "fine", create=True) as ledger, ledger.writer("r") as writer:
        writer.append(1, columns())
    (tmp_path / "fine").rename(tmp_path / name)
    with pytest.raises(LedgerError, match="move the ledger"):
        Ledger.open(tmp_path / name).sessions("r")


def test_a_change_of_the_working_folder_leads_nowhere_else(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with Ledger.open("ledger", create=True) as ledger:
        writer = ledger.writer("r")
        writer.append(1, columns())
        monkeypatch.chdir(tmp_path / "other")
        assert writer.checkpoint(1)["positions"]["0"]["seq"] == 4
        writer.close()
        assert ledger.sessions("r").num_rows == 4 and ledger.verify().ok
    assert not list((tmp_path / "other").iterdir())


def test_rows_may_bring_their_time_or_leave_it_to_the_ledger(ledger: Ledger, writer: Writer) -> None:
    given = as_dicts(columns())
    given[1]["time"] = 1_000_000
    writer.append(1, given)
    writer.close()
    times = [t.timestamp() for t in ledger.sessions("r")["time"].to_pylist()]
    assert times[1] == 1.0 and all(t > 1e9 for t in (times[0], times[2], times[3])) and ledger.verify().ok
