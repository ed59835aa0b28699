"""`rewards sql`: what a query may do, and how answers leave."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewards import Ledger
from rewards.cli import main
from tests.rewards.ledger_rows import rows, scratch
from tests.rewards.typed import document, printed, refused


@pytest.fixture(scope="module")
def path():
    with scratch() as folder:
        root = folder / "a ledger's [1]* folder"
        with Ledger.open(root, create=True) as ledger:
            with ledger.writer("r") as writer:
                writer.append(1, rows(0, 4, prompt="a prompt", kl_nats=float("nan"))).wait()
                position = writer.checkpoint(1)
                writer.append(2, rows(4, 4)).wait()
            ledger.seal()
            with ledger.writer("r", resume=position) as writer:
                writer.append(2, rows(8, 4) + rows(20, 1, split="eval")).wait()
        yield root


def asked(capsys, path, query, *more):
    return document(capsys, "sql", path, query, "--json", *more)


def test_live_holds_what_counts_whether_sealed_or_hot(path, capsys):
    assert asked(capsys, path, "select count(*) n, count(session) numbered, max(session) last from live") == [
        {"n": 9, "numbered": 8, "last": 8}
    ]
    assert asked(capsys, path, "select live, count(*) n from sessions group by 1 order by 1") == [
        {"live": False, "n": 4},
        {"live": True, "n": 9},
    ]
    joined = "select prompt, session from live join texts using (run_id, attempt, writer, seq) where session = 3"
    assert asked(capsys, path, joined) == [{"prompt": "a prompt", "session": 3}]
    assert asked(capsys, path, "select kind from events where kind = 'checkpoint'") == [{"kind": "checkpoint"}]
    for view in ("attempts", "blocks", "runs"):
        assert asked(capsys, path, f"select count(*) > 0 as some from {view}") == [{"some": True}]


def test_python_reads_the_same_numbers_as_the_query(path, capsys):
    with Ledger.open(path) as ledger:
        table = ledger.sessions("r").select(["session", "baseline_reward"]).to_pylist()
    query = "select session, baseline_reward from live where split = 'train' order by session"
    assert asked(capsys, path, query) == [row for row in table if row["session"] is not None]


# -- forms of answers --------------------------------------------------------------------------------------------------


def test_what_json_does_not_know_becomes_null_and_is_counted(path, capsys):
    query = "select kl_nats, 'inf'::double i, [1.0, 'nan'::double] l, {'x': '-inf'::float} s from live where session=1"
    assert asked(capsys, path, query) == [{"kl_nats": None, "i": None, "l": [1.0, None], "s": {"x": None}}]
    assert main(["sql", str(path), query, "--json"]) == 0
    assert "4 numbers are NaN or infinite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("null", None),
        ("true", True),
        ("sum(seq)", 45),  # a HUGEINT in DuckDB
        ("9007199254740993::hugeint", 9007199254740993),
        ("0.1", 0.1),
        ("sum(0.1)", 0.9),
        ("12345678901234567890.123456789::decimal(38, 9)", "12345678901234567890.123456789"),
        ("100::decimal(5, 2)", 100.0),
        ("timestamptz '2026-11-20 10:00:00.5+02'", "2026-11-20T08:00:00.500000+00:00"),
        ("timestamp '2026-11-20 10:00'", "2026-11-20T10:00:00"),
        ("date '2026-11-20'", "2026-11-20"),
        ("[1, null, 3]", [1, None, 3]),
        ("{'a': [date '2026-11-20']}", {"a": ["2026-11-20"]}),
        ("map {'x': 1, 'y': 2}", {"x": 1, "y": 2}),
        ("'\\xC3\\xA9'::blob", "w6k="),
        ("'a'::enum ('a', 'b')", "a"),
    ],
)
def test_values_as_json(path, capsys, expression, value):
    (row,) = asked(capsys, path, f"select {expression} as v from live")[:1]
    assert row == {"v": value} and type(row["v"]) is type(value)


def test_columns_of_one_name_are_all_there(path, capsys):
    assert asked(capsys, path, "select 1 as a, 2 as a, 3 as a_1, 4 as a") == [{"a": 1, "a_1": 2, "a_1_1": 3, "a_2": 4}]


def test_an_answer_without_rows_is_an_empty_list(path, capsys):
    assert asked(capsys, path, "select * from live where false") == []
    assert printed(capsys, "sql", path, "select 1 as a where false", "--csv") == "a\n"
    assert printed(capsys, "sql", path, "select 1 as a where false") == "a\n"


def test_csv_reads_back_as_it_was(path, capsys):
    query = "select 'a \"quoted\", line\nbroken' t, null n, 0.1::double d, true b, [1, 2] l, 'nan'::double f"
    text = printed(capsys, "sql", path, query, "--csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert row == {"t": 'a "quoted", line\nbroken', "n": "", "d": "0.1", "b": "true", "l": "[1, 2]", "f": "nan"}


def test_a_table_is_cut_and_says_so_and_the_other_forms_are_whole(path, capsys):
    query = "select range as n from range(100)"
    assert main(["sql", str(path), query]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 41 and "first 40 rows" in said.err
    assert len(asked(capsys, path, query)) == 100
    assert len(printed(capsys, "sql", path, query, "--csv").splitlines()) == 101
    assert asked(capsys, path, query, "--limit", 2) == [{"n": 0}, {"n": 1}]
    assert printed(capsys, "sql", path, query, "--limit", 3, "--csv") == "n\n0\n1\n2\n"
    assert main(["sql", str(path), query, "--limit", "100"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 101 and said.err == ""
    assert "--limit is -1" in refused(capsys, "sql", path, query, "--limit", "-1")


def test_more_rows_than_a_batch_come_out_once_and_in_order(path, capsys):
    found = asked(capsys, path, "select range as n from range(25_001) order by n")
    assert [row["n"] for row in found] == list(range(25_001))


def test_the_query_may_come_from_stdin(path, capsys, monkeypatch):
    query = b"-- how many\nselect count(*) as n\nfrom live;\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(query)))
    assert document(capsys, "sql", path, "-", "--json") == [{"n": 9}]


# -- what a query may do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("selct 1", "syntax error"),
        ("select nope from live", '"nope" not found'),
        ("select * from nowhere", "nowhere does not exist"),
        ("select cast('x' as int)", "Could not convert"),
        ("", "there are 0"),
        ("-- nothing", "there are 0"),
        ("select 1; select 2", "there are 2"),
        ("create table t as select 1", "not CREATE"),
        ("insert into blocks select * from blocks", "not INSERT"),
        ("drop view live", "not DROP"),
        ("set threads = 1", "not SET"),
        ("attach 'x.db'", "not ATTACH"),
        ("install httpfs", "not"),
        ("explain analyze copy (select 1) to 'x'", "not EXPLAIN"),
        ("pivot live on category using count(*)", "name the values"),
        ("from enable_logging(storage='file', storage_path='/tmp/x')", "locked"),
    ],
)
def test_a_query_that_is_none_is_one_line(path, capsys, query, said):
    assert said in refused(capsys, "sql", path, query, "--json")


def test_a_query_reads_the_ledger_and_no_other_file(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text("word\nhush\n")
    quoted = str(path).replace("'", "''")
    for table in (
        "'secret.csv'",
        "read_csv('secret.csv')",
        f"read_text('{tmp_path}/secret.csv')",
        f"read_csv('{quoted}/../secret.csv')",
        "glob('*')",
        "read_parquet('https://example.org/x.parquet')",
        "sniff_csv('secret.csv')",
        "duckdb_secrets()",
    ):
        assert "hush" not in refused(capsys, "sql", path, f"select * from {table}")
    local = rows  # a name that DuckDB would find in the frames of the caller
    assert local and "does not exist" in refused(capsys, "sql", path, "select * from local")


def test_a_query_leaves_every_file_as_it_was(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*.parquet")}
    inside = next((path / "sessions").glob("*.parquet"))
    for target in (inside, path / "new.csv", tmp_path / "new.csv"):
        quoted = str(target).replace("'", "''")
        assert "not COPY" in refused(capsys, "sql", path, f"copy (select 1) to '{quoted}'")
    assert asked(capsys, path, "with t as (select range as i from range(300000)) select count(*) n from t") == [
        {"n": 300000}
    ]
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*.parquet")} == before
    assert list(tmp_path.iterdir()) == []
    assert main(["verify", str(path)]) == 0


def test_a_file_that_a_seal_replaced_under_the_query_is_looked_for_again(path, capsys, monkeypatch):
    part = next((path / "sessions").glob("*.parquet"))
    aside, whole, calls = part.with_name("aside"), Ledger.connect, []

    def connect(ledger):
        if calls:
            aside.rename(part)
        connection = whole(ledger)
        if not calls:
            part.rename(aside)
        calls.append(1)
        return connection

    monkeypatch.setattr(Ledger, "connect", connect)
    assert asked(capsys, path, "select count(category) as n from live") == [{"n": 9}]
    assert len(calls) == 2


def test_a_file_that_is_missing_for_good_is_one_line_that_names_it(path, capsys):
    part = next((path / "sessions").glob("*.parquet"))
    aside = part.rename(part.with_name("aside"))
    try:
        assert part.name in refused(capsys, "sql", path, "select count(category) from live")
        assert part.name in refused(capsys, "show", path, "--session", 1)
    finally:
        aside.rename(part)


def test_a_ledger_is_found_by_a_relative_path_and_through_a_link(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(path)
    (tmp_path / "link").symlink_to(path)
    for name in (".", "../" + path.name, tmp_path / "link"):
        assert asked(capsys, name, "select count(category) n from live") == [{"n": 9}]


# -- the shell ---------------------------------------------------------------------------------------------------------


def test_a_closed_pipe_is_no_error_and_a_full_disk_is_one_line(path):
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "rewards.cli",
        "sql",
        str(path),
        "select range n, repeat('x', 90) t from range(99999)",
    ]
    script = '"$@" --csv | head -n 2'
    seen = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "-", *command], capture_output=True, text=True, check=False, cwd=root
    )
    assert (seen.returncode, seen.stderr, len(seen.stdout.splitlines())) == (0, "", 2)
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*command, "--json"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=root)
        assert done.returncode == 2 and done.stderr.splitlines() == [
            "error: output: No space left on device; make room and try again"
        ]
