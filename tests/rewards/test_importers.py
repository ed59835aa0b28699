"""Reading files into a run: values, components, numbers, order, and what is refused at which place."""

import gzip
import math
import random
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Ledger
from rewards.errors import DataError, LedgerError, UserError
from rewards.importers import files, readers, run, work
from rewards.importers.components import flat_components, flat_name, full, nested_components, split_name
from rewards.importers.convert import Misfit, to_column
from rewards.importers.events import read_events
from rewards.schema import BY_NAME, COMPONENTS_TYPE
from tests.rewards.import_files import RUN, column, live, take_in, write_csv, write_jsonl, write_parquet
from tests.rewards.ledger_rows import scratch

FLOAT, SINGLE = BY_NAME["baseline_reward"], BY_NAME["advantage"]
WHOLE, TRUTH, TIME = BY_NAME["response_tokens"], BY_NAME["compliant"], BY_NAME["time"]
TEXT, ID = BY_NAME["category"], BY_NAME["prompt_id"]
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def ledger():
    with scratch() as folder:
        yield folder / "ledger"


def refused(ledger, *given, **more):
    with pytest.raises(UserError) as error:
        take_in(ledger, *given, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "given", "values"),
    [
        (FLOAT, [1, 2.5, None], [1.0, 2.5, None]),
        (FLOAT, pa.array([1, None], pa.int8()), [1.0, None]),
        (FLOAT, pa.array(["1.5"]).cast(pa.decimal128(5, 2)), [1.5]),
        (FLOAT, ["Infinity", 1.0, "-Infinity", None], [math.inf, 1.0, -math.inf, None]),
        (WHOLE, pa.array([3.0, None]), [3, None]),
        (TRUTH, [1, 0, None], [True, False, None]),
        (TRUTH, pa.array([1.0, None]), [True, None]),
        (TIME, ["2026-01-31T13:00:00+01:00"], [NOON]),
        (TIME, [1769860800000000], [NOON]),
        (TIME, pa.array([NOON], pa.timestamp("ns", "Europe/Berlin")), [NOON]),
        (TEXT, [2, 3], ["2", "3"]),
        (TEXT, pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (TEXT, pa.array(["a"], pa.large_string()), ["a"]),
        (ID, ["a", 7], ["a", "7"]),
        (FLOAT, [None, None], [None, None]),
    ],
)
def test_a_value_that_means_the_same_is_taken(wanted, given, values):
    array = to_column(wanted, given)
    assert array.type == wanted.type and array.to_pylist() == values


@pytest.mark.parametrize(
    ("wanted", "given", "row", "said"),
    [
        (FLOAT, [1.0, "0.5"], 1, "'0.5' is not a number"),
        (FLOAT, [True], 0, "not a number"),
        (FLOAT, [2**53 + 1], 0, "not a number"),
        (SINGLE, [1.0, 1e300], 1, "1e+300 is not a number"),
        (WHOLE, [1, 2, 2.5], 2, "2.5 is not a whole number of 32 bits"),
        (WHOLE, [2**31], 0, "is not a whole number of 32 bits"),
        (WHOLE, [2**70], 0, "does not fit"),
        (WHOLE, [math.nan], 0, "nan is not a whole number"),
        (TRUTH, [0, 2], 1, "2 is not true or false"),
        (TRUTH, ["true"], 0, "'true' is text, not true or false"),
        (TIME, ["2026-01-31T12:00:00"], 0, "with its zone"),
        (TIME, pa.array([datetime(2026, 1, 31)]), 0, "a time without a zone"),
        (TEXT, [None, 1.5], 1, "1.5 is double, not text"),
        (TEXT, ["a", {"b": 1}], 1, "nested"),
        (TEXT, ["\ud800"], 0, "does not fit"),
    ],
)
def test_a_value_that_would_have_to_be_guessed_or_rounded_is_refused_at_its_row(wanted, given, row, said):
    with pytest.raises(Misfit, match=said.replace("+", r"\+")) as error:
        to_column(wanted, given)
    assert error.value.row == row


@pytest.mark.parametrize(
    ("wanted", "cell", "value"),
    [
        (FLOAT, "-1.5e3", -1500.0),
        (FLOAT, "inf", math.inf),
        (WHOLE, "12", 12),
        (TRUTH, "True", True),
        (TRUTH, "false", False),
        (TRUTH, "1", True),
        (TRUTH, "0.0", False),
        (WHOLE, "12.0", 12),
        (TIME, "2026-01-31 12:00:00Z", NOON),
        (TEXT, "12", "12"),
    ],
)
def test_the_cells_of_a_table_are_read_as_what_their_column_is(wanted, cell, value):
    assert to_column(wanted, pa.array([cell, None]), parse=True).to_pylist() == [value, None]


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5).map(str), st.sampled_from(["x", "1.5", ""])), min_size=1))
def test_the_first_value_that_does_not_fit_is_named(cells):
    wrong = [i for i, cell in enumerate(cells) if cell in ("x", "1.5", "")]
    if wrong:
        with pytest.raises(Misfit) as error:
            to_column(WHOLE, pa.array(cells, pa.string()), parse=True)
        assert error.value.row == wrong[0]
    else:
        expected = [None if cell is None else int(cell) for cell in cells]
        assert to_column(WHOLE, pa.array(cells, pa.string()), parse=True).to_pylist() == expected


@pytest.mark.parametrize(
    ("wanted", "cell"), [(WHOLE, "0x1F"), (WHOLE, "9007199254740993.0"), (TRUTH, "2"), (TRUTH, "yes")]
)
def test_a_cell_that_only_looks_like_one_is_refused(wanted, cell):
    with pytest.raises(Misfit, match=f"'{cell}' is not"):
        to_column(wanted, pa.array(["1", cell]), parse=True)


def test_nan_is_a_value_and_null_is_none(ledger, tmp_path):
    write_csv(tmp_path / "a.csv", ["baseline_reward", "adjusted_reward"], [["nan", ""], ["0.5", "0.5"]])
    take_in(ledger, tmp_path / "a.csv")
    first = live(ledger)[0]
    assert math.isnan(first["baseline_reward"]) and first["adjusted_reward"] is None


def test_an_empty_cell_is_null_and_a_quoted_empty_one_is_empty_text(ledger, tmp_path):
    (tmp_path / "a.csv").write_text('session,response,prompt\n1,"",\n2,,""\n')
    take_in(ledger, tmp_path / "a.csv")
    assert column(ledger, "response") == ["", None] and column(ledger, "prompt") == [None, ""]


def test_conversations_become_text(ledger, tmp_path):
    one = [{"role": "user", "content": "Hi"}]
    two = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": one}, {"prompt": two}])
    take_in(ledger, tmp_path / "a.jsonl")
    said = '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]'
    assert column(ledger, "prompt") == ["Hi", said]


# -- components ------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("a.rwvlue"), min_size=1), st.sampled_from(["raw", "value", "weight", "status"]))
def test_the_name_of_a_flat_column_gives_function_and_key_back(function, key):
    assert split_name(flat_name(function, key)) == (function, key)


def test_a_flat_column_is_the_raw_value_unless_it_ends_with_a_key():
    assert split_name("component.task") == ("task", "raw")
    assert split_name("component.task.weight") == ("task", "weight")
    assert split_name("component.my.task") == ("my.task", "raw")
    assert split_name("category") is None and split_name("component.") is None


def test_flat_columns_become_the_components_of_the_rows_that_have_them():
    columns = {
        "component.task": [1.0, None, None, 0.5],
        "component.task.weight": [2.0, None, None, 2.0],
        "component.length": [None, -0.1, None, 0.2],
        "component.length.status": [None, "ok", None, "na"],
    }
    task = {"name": "task", "weight": 2.0, "status": None}
    length = {"name": "length", "weight": None}
    assert flat_components(columns, 4).to_pylist() == [
        [task | {"raw": 1.0}],
        [length | {"raw": -0.1, "status": "ok"}],
        None,
        [task | {"raw": 0.5}, length | {"raw": 0.2, "status": "na"}],
    ]


def test_lists_of_objects_keep_nan_words_nulls_and_empty_lists():
    given = [[{"name": "a", "raw": 1}, {"name": "b", "raw": "NaN"}], None, [], [{"name": "a", "role": "gold"}]]
    found = full(nested_components(given))
    assert found.type == COMPONENTS_TYPE
    rows = found.to_pylist()
    assert [None if row is None else [entry["name"] for entry in row] for row in rows] == [["a", "b"], None, [], ["a"]]
    assert rows[0][0]["raw"] == 1.0 and math.isnan(rows[0][1]["raw"]) and rows[3][0]["role"] == "gold"


@pytest.mark.parametrize(
    ("rows", "row", "said"),
    [
        ([None, [{"name": "a"}, {"raw": 1.0}]], 1, "entry 1, key `name`: is empty"),
        ([[{"name": "a"}], [{"name": "b", "rwa": 1.0}]], 1, "unknown key `rwa`"),
        ([[{"name": "a", "role": "best"}]], 0, "entry 0, key `role`: 'best' is not one of"),
        ([[{"name": "a", "raw": 1.0}], [{"name": "a", "raw": "high"}]], 1, "'high' is not a number"),
        ([["a"]], 0, "not a list of objects"),
        ([None, "a"], 1, "not a list of objects"),
        ([[None]], 0, "an entry that is null"),
    ],
)
def test_a_wrong_component_is_refused_at_its_row_and_entry(rows, row, said):
    with pytest.raises(Misfit, match=said) as error:
        nested_components(rows)
    assert error.value.row == row


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_natural_order_without_hidden_files(ledger, tmp_path):
    for number in (10, 9, 1):
        write_csv(tmp_path / f"part-{number}.csv", ["row_id"], [[f"r{number}"]])
    (tmp_path / ".part-3.csv").write_text("nonsense")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "README.md").write_text("about")
    take_in(ledger, tmp_path)
    assert column(ledger, "prompt_id") == ["r1", "r9", "r10"]


def test_a_glob_and_several_files_are_one_run(ledger, tmp_path):
    for number in (2, 1):
        write_jsonl(tmp_path / f"{number}.jsonl.gz", [{"row_id": number}])
    write_jsonl(tmp_path / "0.jsonl.gz", [{"row_id": 0}])
    assert take_in(ledger, tmp_path / "0.jsonl.gz", str(tmp_path / "[12].jsonl.gz"))["sessions"] == 3
    assert column(ledger, "row_id") == ["0", "1", "2"]


def test_files_that_cannot_be_meant_are_refused(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["row_id"], [["1"]])
    assert "named twice" in refused(ledger, path, tmp_path / "." / "a.csv")
    assert "no such file" in refused(ledger, tmp_path / "b.csv")
    assert "no file matches" in refused(ledger, str(tmp_path / "*.parquet"))
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt: not a file that can be read" in refused(ledger, tmp_path / "notes.txt")
    write_jsonl(tmp_path / "b.jsonl", [{"row_id": "1"}])
    assert "holds csv and jsonl files" in refused(ledger, tmp_path)
    assert "csv and jsonl files in one import" in refused(ledger, path, tmp_path / "b.jsonl")
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    assert "no data file" in refused(ledger, tmp_path / "empty") and "sub" in refused(ledger, tmp_path / "empty")
    assert not ledger.exists()


def test_a_delta_table_and_a_ledger_are_not_taken_for_folders_of_rows(ledger, tmp_path):
    take_in(ledger, write_csv(tmp_path / "a.csv", ["row_id"], [["1"]]))
    assert "a ledger: use `rewards export`" in refused(ledger, ledger, run="again")
    assert "a Delta table" in refused(ledger, ledger / "sessions", run="again")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["row_id"], [["1"]])
    before = files.fingerprint(path)
    files.check_unchanged([before])
    path.write_text("row_id\n2\n3\n")
    with pytest.raises(DataError, match=r"a\.csv: changed while it was read"):
        files.check_unchanged([before])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "empty; the first line names the columns"),
        (b"category\n", "no rows"),
        (b"category,category\n1,2\n", ":1: the column `category` appears twice"),
        (b"category;step\n1;2\n", ":1: the columns are separated by semicolons"),
        (b'category,step\n"a\nb",1\n\nx\n', ":5: 1 cells, the header has 2"),
        (b'category,step\na,1\n"b,2\nc,3\n', ":3: not a readable table: a quote is opened and never closed"),
        (b"category\n\xff\n", "not UTF-8 text"),
        (b'category,step\n"a\nb",1\n\n"c",x\n', ":5: column `step`: 'x' is not a whole number of 64 bits"),
        (b"category,step\na,1\nb,0.5\n", ":3: column `step`: '0.5' is not"),
        (b"category,step\na,\n", ":2: column `step`: is empty; every row must have it"),
        (b"split\nvalidation\n", ":2: column `split`: 'validation' is not one of train, eval"),
        (b"compliant\ntrue\nyes\n", ":3: column `compliant`: 'yes' is not true or false"),
    ],
)
def test_a_table_that_is_none_is_refused_at_its_line(ledger, tmp_path, text, said):
    (tmp_path / "a.csv").write_bytes(text)
    assert said in refused(ledger, tmp_path / "a.csv") and str(tmp_path / "a.csv") in refused(
        ledger, tmp_path / "a.csv"
    )
    assert not ledger.exists()


def test_a_quote_inside_a_cell_is_no_opened_quote(ledger, tmp_path):
    (tmp_path / "a.csv").write_text('category\n5" pipe\n')
    take_in(ledger, tmp_path / "a.csv")
    assert column(ledger, "category") == ['5" pipe']


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"step": 1}\n{"step": \n', ":2: broken JSON"),
        ("[1]\n", ":1: list, not an object"),
        (
            '{"step": 1, "baseline_reward": 0.5}\n\n{"step": 1, "baseline_reward": "high"}\n',
            ":3: column `baseline_reward`",
        ),
        ('{"step": 1}\n{"step": 2, "rewrd": 1}\n', ":2: `rewrd` is no column of the ledger"),
        ('{"step": 1}\n{"category": "a"}\n', ":2: column `step`: is empty"),
        ("", "no rows"),
        ("[" * 100_000, ":1: broken JSON"),
    ],
)
def test_json_lines_are_refused_at_their_line(ledger, tmp_path, text, said):
    (tmp_path / "a.jsonl").write_text(text)
    assert f"{tmp_path / 'a.jsonl'}" in refused(ledger, tmp_path / "a.jsonl")
    assert said in refused(ledger, tmp_path / "a.jsonl")


def test_damaged_archives_and_parquet_files_are_refused_by_name(ledger, tmp_path):
    whole = gzip.compress(b"category\n" + b"a\n" * 1000)
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-20])
    assert "cut.csv.gz: damaged gzip archive" in refused(ledger, tmp_path / "cut.csv.gz")
    (tmp_path / "none.parquet").write_bytes(b"PAR1nonsense")
    assert "none.parquet: not a readable Parquet file" in refused(ledger, tmp_path / "none.parquet")
    path = write_parquet(tmp_path / "rows.parquet", {"step": [1, 1], "baseline_reward": pa.array([0.5, 1.0])})
    path.write_bytes(path.read_bytes()[:-1])
    assert "not a readable Parquet file" in refused(ledger, path)


def test_a_parquet_value_is_refused_by_its_row(ledger, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"step": [1, 1, 2], "compliant": [1, 0, 3]})
    assert f"{path}: row 3: column `compliant`: 3 is not true or false" in refused(ledger, path)


# -- columns ---------------------------------------------------------------------------------------------------------


def test_a_field_that_is_no_column_is_refused_with_the_nearest_and_with_what_to_do(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["baseline_rewards", "loss", "category"], [["1", "2", "x"]])
    said = refused(ledger, path)
    assert "`baseline_rewards` is no column of the ledger (nearest: `baseline_reward`)" in said
    assert "--map COLUMN=FIELD" in said and "--drop baseline_rewards --drop loss" in said
    summary = take_in(ledger, path, map_={"baseline_reward": "baseline_rewards"}, drop=["loss"])
    assert summary["dropped"] == ["loss"] and column(ledger, "baseline_reward") == [1.0]


def test_one_field_may_give_several_columns_and_a_flat_component(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["reward"], [["0.25"]])
    pairs = {"baseline_reward": "reward", "adjusted_reward": "reward", "component.task": "reward"}
    take_in(ledger, path, map_=pairs)
    (row,) = live(ledger)
    assert row["baseline_reward"] == row["adjusted_reward"] == row["components"][0]["raw"] == 0.25
    assert row["components"][0]["name"] == "task" and row["components"][0]["weight"] is None


def test_options_that_meet_no_field_are_refused(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["category"], [["x"]])
    assert "has no field `categry`; did you mean `category`?" in refused(
        ledger, path, map_={"classification": "categry"}
    )
    assert "--drop los: " in refused(ledger, path, drop=["los"])
    assert "both give `category`" in refused(ledger, path, constants={"category": "y"})
    two = write_csv(tmp_path / "b.csv", ["category", "intent"], [["x", "y"]])
    assert "`category` stands beside --map category=intent" in refused(ledger, two, map_={"category": "intent"})
    assert "--set step=x: 'x' is not a whole number" in refused(ledger, path, constants={"step": "x"})
    assert "--set split=test: 'test' is not one of" in refused(ledger, path, constants={"split": "test"})
    assert "--reward-weight is for TRL" in refused(ledger, path, weights={"a": 1.0})


def test_a_constant_stands_in_every_row(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["category"], [["x"], ["y"]])
    summary = take_in(ledger, path, constants={"pipeline": "ppo", "arm": "b", "sample_seed": "7"})
    assert [(r["pipeline"], r["arm"], r["sample_seed"]) for r in live(ledger)] == [("ppo", "b", 7)] * 2
    assert "pipeline" not in summary["defaults"] and summary["defaults"]["split"] == "train"


def test_what_every_row_must_have_is_filled_in_and_named(ledger, tmp_path):
    summary = take_in(ledger, write_csv(tmp_path / "a.csv", ["category"], [["x"], ["y"]]))
    number = "the session's number"
    assert summary["defaults"] == {
        "pipeline": "import",
        "split": "train",
        "session": "the order of the rows",
        "step": number,
        "prompt_id": number,
    }
    assert [(r["session"], r["step"], r["prompt_id"], r["pipeline"]) for r in live(ledger)] == [
        (1, 1, "1", "import"),
        (2, 2, "2", "import"),
    ]


def test_a_filled_in_column_is_given_by_all_files_or_none(ledger, tmp_path):
    write_csv(tmp_path / "1.csv", ["category"], [["x"]])
    write_csv(tmp_path / "2.csv", ["category", "step"], [["x", "5"]])
    assert "2.csv: gives `step`, rows before it do not" in refused(ledger, tmp_path / "1.csv", tmp_path / "2.csv")
    said = refused(ledger, tmp_path / "2.csv", tmp_path / "1.csv")
    assert "1.csv:2: column `step` is missing, rows before have it" in said


def test_columns_of_another_ledger_are_given_anew_and_its_runs_are_not_mixed(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["run_id", "attempt", "seq", "row_id"], [["old", "3", "9", "a"]])
    assert take_in(ledger, path)["renumbered"] == ["attempt", "run_id", "seq"]
    (row,) = live(ledger)
    assert (row["run_id"], row["attempt"], row["seq"]) == (RUN, 1, 1)
    two = write_csv(tmp_path / "b.csv", ["run_id"], [["old"], ["older"]])
    assert "b.csv:3: holds sessions of the runs `old` and `older`" in refused(ledger, two, run="two")
    every = write_csv(tmp_path / "c.csv", ["live", "row_id"], [["true", "a"], ["false", "b"]])
    assert "c.csv:3: a superseded row" in refused(ledger, every, run="three")


# -- numbers and order -----------------------------------------------------------------------------------------------


def sessions_csv(path, pairs):
    return write_csv(path, ["session", "step", "row_id"], [[s, t, f"r{s}"] for s, t in pairs])


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([(1, 1), (2, 1), (4, 2)], ":4: session 4, but session 3 is missing; numbers must have no gaps"),
        ([(2, 1), (3, 1)], ":2: session 2, but session 1 is missing"),
        ([(1, 1), (2, 1), (1, 2)], ":4: session 1 a second time, first at"),
        ([(0, 1), (1, 1)], ":2: session 0: sessions are numbered from 1"),
        ([(1, 5), (2, 4)], ":3: step 4 of session 2 comes after step 5"),
        ([(2, 4), (1, 5)], ":2: step 4 of session 2 comes after step 5"),
        ([(1, -1)], ":2: step -1: steps count from 0"),
        ([(1, 1), ("", 1)], ":3: column `session` is empty"),
    ],
)
def test_session_numbers_are_dense_and_steps_never_go_backwards(ledger, tmp_path, pairs, said):
    assert said in refused(ledger, sessions_csv(tmp_path / "a.csv", pairs))
    assert not ledger.exists()


def test_rows_are_put_in_the_order_of_their_sessions(ledger, tmp_path):
    pairs = [(s, (s + 3) // 4) for s in range(1, 201)]
    shuffled = list(pairs)
    random.Random(1).shuffle(shuffled)
    assert take_in(ledger, sessions_csv(tmp_path / "a.csv", shuffled))["sorted"] is True
    assert [(r["session"], r["step"], r["row_id"]) for r in live(ledger)] == [(s, t, f"r{s}") for s, t in pairs]
    assert take_in(ledger, sessions_csv(tmp_path / "b.csv", pairs), run="b")["sorted"] is False


def test_a_large_unordered_file_is_sorted_on_disk_with_all_its_columns(ledger, tmp_path):
    n = readers.ROWS + 17
    order = np.random.default_rng(0).permutation(n)
    columns = {
        "session": order + 1,
        "step": order // 100,
        "prompt": pa.array([f"p{i}" for i in order]),
        "time": pa.array(order + 1, pa.timestamp("us", "UTC")),
        "advantage": pa.array(order / 7, pa.float32()),
        "component.task": order / 2,
    }
    take_in(ledger, write_parquet(tmp_path / "a.parquet", columns))
    with Ledger.open(ledger) as opened:
        table = opened.sessions(RUN, texts=True)
    assert np.array_equal(table["session"].to_numpy(), np.arange(1, n + 1))
    assert np.array_equal(table["step"].to_numpy(), np.arange(n) // 100)
    assert table["prompt"].to_pylist() == [f"p{i}" for i in range(n)]
    assert np.array_equal(table["advantage"].to_numpy(), (np.arange(n) / 7).astype("f4"))
    last = table.slice(n - 1).to_pylist()[0]
    assert last["components"][0]["raw"] == (n - 1) / 2 and last["time"].microsecond == n % 1_000_000


def test_evaluation_rows_are_not_numbered_and_may_stand_anywhere(ledger, tmp_path):
    rows = [["train", 1], ["train", 3], ["eval", 0], ["train", 3], ["eval", 2]]
    summary = take_in(ledger, write_csv(tmp_path / "a.csv", ["split", "step"], rows))
    assert summary["sessions"] == 3 and summary["evaluation_rows"] == 2 and summary["steps"] == 3
    found = [(r["session"], r["split"], r["step"], r["prompt_id"]) for r in live(ledger)]
    train = [(1, "train", 1, "1"), (2, "train", 3, "2"), (3, "train", 3, "3")]
    assert found == [*train, (None, "eval", 0, "eval-1"), (None, "eval", 2, "eval-2")]


def test_without_steps_an_evaluation_row_belongs_to_the_session_before_it(ledger, tmp_path):
    rows = [["eval"], ["train"], ["train"], ["eval"]]
    take_in(ledger, write_csv(tmp_path / "a.csv", ["split"], rows))
    assert [(r["split"], r["step"]) for r in live(ledger)] == [("train", 1), ("train", 2), ("eval", 0), ("eval", 2)]


def test_a_numbered_evaluation_row_is_refused(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["session", "split"], [["1", "train"], ["2", "eval"]])
    assert ":3: session 2 is an evaluation row" in refused(ledger, path)


def test_prompts_without_an_id_are_named_after_their_row_or_their_session(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["row_id", "category"], [["q7", "a"], ["", "b"]])
    take_in(ledger, path)
    assert column(ledger, "prompt_id") == ["q7", "2"]


# -- what is on record -----------------------------------------------------------------------------------------------


def test_an_import_is_a_whole_run(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["category"], [["x"], ["y"]])
    take_in(ledger, path)
    said = refused(ledger, path)
    assert f"run `{RUN}` exists (2 sessions, imported)" in said and "choose another --run-id" in said
    with Ledger.open(ledger) as opened, opened.writer("live") as writer:
        writer.append(1, [{"pipeline": "grpo", "split": "train", "prompt_id": "p"}]).wait()
    assert "run `live` exists" in refused(ledger, path, run="live")


def test_the_run_says_where_it_came_from(ledger, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["category", "loss"], [["x", "1"]])
    take_in(ledger, path, drop=["loss"])
    with Ledger.open(ledger) as opened:
        (started,) = opened.events(RUN, kind="attempt_started")
        (ended,) = opened.events(RUN, kind="attempt_ended")
        assert opened.verify().ok
    said = started["payload"]["import"]
    assert said["format"] == "csv" and said["dropped"] == ["loss"] and said["rows"] == 1
    assert said["files"] == [files.fingerprint(path).describe()]
    assert ended["payload"] == {"status": "imported", "steps": 1}


def test_an_import_that_fails_while_it_writes_says_so_and_may_be_repeated(ledger, tmp_path, monkeypatch):
    path = sessions_csv(tmp_path / "a.csv", [(i, i) for i in range(1, 11)])

    def fails(self, staging):
        for i, table in enumerate(tables(self, staging)):
            yield table.slice(0, 4)
            raise OSError(28, f"No space left on device at table {i}")

    tables = run.Import.tables
    with monkeypatch.context() as patched:
        patched.setattr(run.Import, "tables", fails)
        with pytest.raises(OSError, match="No space left"):
            take_in(ledger, path)
    with Ledger.open(ledger) as opened:
        (half,) = opened.runs()
        assert half["status"] == "stopped" and half["sessions"] == 4
    take_in(ledger, path)
    with Ledger.open(ledger) as opened:
        (whole,) = opened.runs()
        assert whole["status"] == "imported" and whole["sessions"] == 10 and whole["attempts"] == 2
        assert opened.sessions(RUN, live=False).num_rows == 14 and opened.verify().ok
    assert column(ledger, "row_id") == [f"r{i}" for i in range(1, 11)]


def test_an_import_that_was_killed_may_be_repeated_and_counts_once(ledger, tmp_path):
    path = sessions_csv(tmp_path / "a.csv", [(i, i) for i in range(1, 11)])
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rewards.importers import Request, import_run, run\n"
        "tables = run.Import.tables\n"
        "def slow(self, staging):\n"
        "    for table in tables(self, staging):\n"
        "        yield table.slice(0, 4)\n"
        "        print('half', flush=True)\n"
        "        time.sleep(600)\n"
        "run.Import.tables = slow\n"
        "import_run(Path(sys.argv[1]), Request(sys.argv[2], [sys.argv[3]]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, ledger, RUN, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "half\n"
        child.kill()
    with Ledger.open(ledger) as opened:
        assert [(r["sessions"], r["status"]) for r in opened.runs()] == [(4, "open")]
    take_in(ledger, path)
    with Ledger.open(ledger) as opened:
        assert [(r["sessions"], r["status"], r["attempts"]) for r in opened.runs()] == [(10, "imported", 2)]
        assert opened.verify().ok


def test_an_import_whose_place_was_taken_says_so(ledger, tmp_path, monkeypatch):
    path = sessions_csv(tmp_path / "a.csv", [(1, 1), (2, 2)])
    other = sessions_csv(tmp_path / "b.csv", [(1, 1)])
    write = run.Import.write

    def overtaken(self, opened, staging):
        write(self, opened, staging)
        monkeypatch.setattr(run.Import, "write", write)
        monkeypatch.setattr(run, "_check_free", lambda *_: None)
        take_in(ledger, other)

    monkeypatch.setattr(run.Import, "write", overtaken)
    with pytest.raises(LedgerError, match="another import of the same name took its place"):
        take_in(ledger, path)


def test_a_file_too_large_to_keep_is_read_again_and_gives_the_same(ledger, tmp_path, monkeypatch):
    path = sessions_csv(tmp_path / "a.csv", [(i, i) for i in range(1, 101)])
    take_in(ledger, path)
    monkeypatch.setattr(work, "_KEPT", 0)
    take_in(ledger, path, run="again")
    assert column(ledger, "row_id") == column(ledger, "row_id", "again")


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"session": 1}, "an event without `kind`"),
        ({"kind": "recalibraton"}, "did you mean `recalibration`?"),
        ({"kind": "recalibration", "category": "2", "old_pct": 1, "new_pct": 2}, "has no `reason`"),
        (
            {"kind": "recalibration", "category": "2", "old_pct": "1", "new_pct": 2, "reason": "r"},
            "not a number of percent",
        ),
        ({"kind": "check_in", "session": 0}, "`session` is 0, not a whole number from 1"),
        ({"kind": "check_in", "step": 1.5}, "`step` is 1.5, not a whole number from 0"),
        ({"kind": "review", "annotator": "a", "label": "agree", "reviews": 7}, "no event above it has that `seq`"),
        ({"kind": "check_in", "payload": [1]}, "`payload` is list, not an object"),
    ],
)
def test_an_event_that_is_none_is_refused_at_its_line(tmp_path, line, said):
    path = write_jsonl(tmp_path / "e.jsonl", [{"kind": "check_in", "note": "fine"}, line])
    with pytest.raises(DataError) as error:
        read_events(path)
    assert said in str(error.value) and str(error.value).startswith(f"{path}:2: ")


def test_an_event_beyond_the_run_is_refused_before_anything_is_written(ledger, tmp_path):
    rows = sessions_csv(tmp_path / "a.csv", [(1, 1), (2, 1)])
    events = write_jsonl(tmp_path / "e.jsonl", [{"kind": "check_in", "session": 3}])
    assert "e.jsonl:1: session 3 is beyond the run, which has 2" in refused(ledger, rows, events=events)
    assert not ledger.exists()


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_event_gets_the_step_of_its_session(ledger, tmp_path, shuffled):
    pairs = [(s, 10 * ((s + 2) // 3)) for s in range(1, 10)]
    rows = sessions_csv(tmp_path / "a.csv", pairs[::-1] if shuffled else pairs)
    events = [
        {"kind": "check_in", "session": 5, "note": "a"},
        {"kind": "check_in", "session": 5, "step": 7},
        {"kind": "check_in", "step": 30},
        {"kind": "recalibration", "session": 9, "category": 2, "old_pct": 12, "new_pct": 15.5, "reason": "r"},
    ]
    take_in(ledger, rows, events=write_jsonl(tmp_path / "e.jsonl", events))
    with Ledger.open(ledger) as opened:
        found = opened.events(RUN)[1:-1]
    assert [event["step"] for event in found] == [20, 7, 30, 30]
    assert found[0]["payload"] == {"session": 5, "note": "a"}
    changed = {"session": 9, "category": "2", "old_pct": 12, "new_pct": 15.5, "reason": "r", "op": "set"}
    assert found[3]["payload"] == changed


def test_a_review_of_the_file_reviews_the_note_of_the_file(ledger, tmp_path):
    note = {"kind": "annotation", "seq": 40, "session": 1, "annotator": "ana", "label": "odd", "note": "seems--"}
    review = {"kind": "review", "seq": 41, "annotator": "ben", "label": "disagree", "reviews": 40}
    events = write_jsonl(tmp_path / "e.jsonl", [note, review])
    take_in(ledger, sessions_csv(tmp_path / "a.csv", [(1, 1)]), events=events)
    with Ledger.open(ledger) as opened:
        (written,) = opened.events(RUN, kind="annotation")
        (answer,) = opened.events(RUN, kind="review")
    assert answer["payload"]["reviews"] == written["seq"] != 40 and written["payload"]["note"] == "seems--"
