"""A run as a file, and the file as a run again: the same live view."""

import json
import math
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards import Ledger
from rewards.cli import main
from rewards.errors import LedgerError, UserError
from rewards.export import Export, events_file, export_run, form_of
from rewards.schema import COLUMNS
from tests.rewards.import_files import take_in
from tests.rewards.ledger_rows import RECALIBRATION, rows, scratch

RUN = "demo/grpo"
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


@pytest.fixture
def folder():
    with scratch() as path:
        yield path


def full_row(i, **more):
    """A row with a value of every type, and with the values that are hard to write down."""
    components = [
        {"name": "task", "raw": i / 7, "weight": 1.0, "role": "optimised", "status": "ok", "latency_ms": 0.1},
        {"name": "my.value", "raw": None, "value": math.inf, "status": "na"},
    ]
    return {
        "pipeline": "grpo",
        "split": "train",
        "prompt_id": f"p,{i}",
        "time": datetime(2026, 1, 31, 12, 0, i % 60, 123456, tzinfo=UTC),
        "category": 'quoted "text",\nover two lines',
        "compliant": None if i % 3 else i % 2 == 0,
        "baseline_reward": 0.1 + i,
        "adjusted_reward": -0.0 if i % 2 else math.nan,
        "advantage": 1 / 3,
        "sample_seed": 2**60 + i,
        "response_tokens": i,
        "components": components[: 1 + i % 2],
        "prompt": "" if i % 2 else "Ein Prüfstein",
        "response": f"answer {i}",
        **more,
    }


def fill(path):
    """Twenty sessions of five steps, resumed after the third; evaluation rows at steps 0 and 2; events."""
    with Ledger.open(path, create=True) as ledger:
        with ledger.writer(RUN, pipeline_id="demo") as writer:
            writer.append(0, [full_row(i, split="eval") for i in range(2)])
            for step in (1, 2, 3):
                writer.append(step, [full_row(4 * step + i) for i in range(4)])
            writer.event("recalibration", RECALIBRATION, 2)
            position = writer.checkpoint(3)
            writer.append(4, [full_row(100 + i) for i in range(4)])
        with ledger.writer(RUN, resume=position) as writer:
            writer.append(4, [full_row(16 + i) for i in range(4)])
            writer.append(5, [full_row(20 + i, components=None) for i in range(4)])
            writer.event("check_in", {"note": "fine", "share": math.nan}, 5)
    return path


def comparable(ledger, run):
    """The live view without what a ledger gives itself; text, so that NaN equals NaN and -0.0 is not 0.0."""
    with Ledger.open(ledger) as opened:
        table = opened.sessions(run, texts=True).drop_columns(["run_id", "attempt", "writer", "seq"])
    return [repr(row) for row in table.to_pylist()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exported_run_imported_again_has_the_same_live_view(folder, suffix):
    fill(folder / "ledger")
    out = folder / f"run{suffix}"
    with Ledger.open(folder / "ledger") as ledger:
        summary = export_run(ledger, Export(RUN, out, texts=True, events=True))
    assert (summary["rows"], summary["sessions"], summary["damaged"]) == (22, 20, [])
    said = take_in(folder / "again", out, run=RUN, events=folder / "run.events.jsonl")
    assert (said["sessions"], said["evaluation_rows"]) == (20, 2)
    assert comparable(folder / "again", RUN) == comparable(folder / "ledger", RUN)


def test_a_file_that_another_engine_wrote_from_the_ledger_is_imported_as_it_is(folder):
    fill(folder / "ledger")
    texts = "l.*, t.prompt, t.response, t.rejected FROM live l LEFT JOIN texts t USING (run_id, attempt, writer, seq)"
    with Ledger.open(folder / "ledger") as ledger, ledger.connect() as connection:
        connection.sql(f"SELECT {texts}").write_parquet(str(folder / "run.parquet"))
    assert take_in(folder / "again", folder / "run.parquet", run=RUN)["sessions"] == 20
    assert comparable(folder / "again", RUN) == comparable(folder / "ledger", RUN)


def test_the_columns_are_the_session_and_those_of_the_ledger_with_their_types(folder):
    fill(folder / "ledger")
    with Ledger.open(folder / "ledger") as ledger:
        export_run(ledger, Export(RUN, folder / "run.parquet"))
        shown = ledger.sessions(RUN)
    found = pq.read_schema(folder / "run.parquet")
    assert found.names == ["session", *(column.name for column in COLUMNS)]
    assert {name: str(found.field(name).type) for name in found.names} == {
        name: str(shown.schema.field(name).type).replace("list<item", "list<element") for name in found.names
    }
    assert pq.read_table(folder / "run.parquet")["session"].to_pylist() == [*range(1, 21), None, None]


def test_all_shows_superseded_rows_which_an_import_refuses(folder):
    fill(folder / "ledger")
    with Ledger.open(folder / "ledger") as ledger:
        summary = export_run(ledger, Export(RUN, folder / "all.csv", every=True))
    assert (summary["rows"], summary["sessions"]) == (26, 20)
    with pytest.raises(UserError, match=r"all\.csv:\d+: a superseded row, which would count"):
        take_in(folder / "again", folder / "all.csv")


def test_json_lines_leave_nulls_out_and_name_what_is_not_finite(folder):
    fill(folder / "ledger")
    with Ledger.open(folder / "ledger") as ledger:
        export_run(ledger, Export(RUN, folder / "run.jsonl"))
    lines = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    first = lines[0]
    assert next(iter(first)) == "session" and "kl_nats" not in first and "prompt" not in first
    assert first["adjusted_reward"] == "NaN" and first["time"] == "2026-01-31T12:00:04.123456+00:00"
    assert lines[1]["components"][1] == {"name": "my.value", "value": "Infinity", "status": "na"}


def test_a_table_has_a_column_for_every_key_a_component_has_anywhere(folder):
    fill(folder / "ledger")
    with Ledger.open(folder / "ledger") as ledger:
        export_run(ledger, Export(RUN, folder / "run.csv"))
    header = (folder / "run.csv").read_text().splitlines()[0].replace('"', "").split(",")
    flat = [name for name in header if name.startswith("component.")]
    assert flat == [
        *("component.task", "component.task.weight", "component.task.role", "component.task.status"),
        *("component.task.latency_ms", "component.my.value.value", "component.my.value.status"),
    ]


def test_a_row_with_two_components_of_one_name_is_no_row_of_a_table(folder):
    with Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("a") as writer:
            writer.append(1, rows(0, 1, components=[{"name": "task", "raw": 1.0}, {"name": "task", "raw": 2.0}]))
        with pytest.raises(UserError, match="two components `task`, which CSV cannot hold"):
            export_run(ledger, Export("a", folder / "a.csv"))
        export_run(ledger, Export("a", folder / "a.jsonl"))
    assert not (folder / "a.csv").exists()


def test_a_file_takes_its_name_only_when_it_is_whole(folder, monkeypatch):
    fill(folder / "ledger")
    out = folder / "run.parquet"
    out.write_text("the file of yesterday")
    with Ledger.open(folder / "ledger") as ledger:
        with monkeypatch.context() as patched:
            patched.setattr("rewards.export._Stream.check", lambda *_: (_ for _ in ()).throw(LedgerError("not whole")))
            with pytest.raises(LedgerError, match="not whole"):
                export_run(ledger, Export(RUN, out))
        assert out.read_text() == "the file of yesterday"
        export_run(ledger, Export(RUN, out))
    assert pq.read_metadata(out).num_rows == 22
    assert sorted(path.name for path in folder.iterdir()) == ["ledger", "run.parquet"]


def test_a_run_without_sessions_gives_an_empty_file(folder):
    with Ledger.open(folder / "ledger", create=True) as ledger:
        ledger.writer("a").close()
        for suffix in SUFFIXES:
            assert export_run(ledger, Export("a", folder / f"a{suffix}"))["rows"] == 0
    assert pq.read_table(folder / "a.parquet").num_rows == 0 and (folder / "a.jsonl").read_text() == ""


def test_events_go_with_the_run_and_keep_what_speaks_of_them(folder):
    fill(folder / "ledger")
    ledger = str(folder / "ledger")
    assert (
        main(["annotate", ledger, "--session", "7", "--annotator", "ana", "--label", "odd", "--note", "seems--"]) == 0
    )
    with Ledger.open(folder / "ledger") as opened:
        number = opened.events(RUN, kind="annotation")[0]["seq"]
    assert main(["review", ledger, str(number), "--annotator", "ben", "--verdict", "disagree"]) == 0
    assert main(["export", ledger, str(folder / "run.parquet"), "--events"]) == 0
    summary = take_in(folder / "again", folder / "run.parquet", run="again", events=folder / "run.events.jsonl")
    assert summary["events"] == 4 and summary["foreign_events"] == 1
    with Ledger.open(folder / "again") as opened:
        kinds = {event["kind"]: event for event in opened.events("again")}
    assert kinds["recalibration"]["step"] == 2
    assert kinds["recalibration"]["payload"].items() >= RECALIBRATION.items()
    assert math.isnan(kinds["check_in"]["payload"]["share"]) and "recorded_at" in kinds["check_in"]["payload"]
    note = kinds["annotation"]
    assert (note["payload"]["session"], note["payload"]["note"], note["step"]) == (7, "seems--", 2)
    assert "row" not in note["payload"] and kinds["review"]["payload"]["reviews"] == note["seq"]


def test_a_damaged_ledger_is_exported_only_as_far_as_it_is_asked_for(folder, capsys):
    fill(folder / "ledger")
    with Ledger.open(folder / "ledger") as ledger:
        ledger.seal()
    sealed = sorted((folder / "ledger" / "sessions").rglob("*.parquet"), key=lambda path: path.stat().st_size)
    sealed[-1].unlink()
    out = folder / "run.jsonl"
    assert main(["export", str(folder / "ledger"), str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--salvage" in said and not out.exists()
    assert main(["export", str(folder / "ledger"), str(out), "--salvage"]) == 1
    assert sealed[-1].name in capsys.readouterr().err and out.exists()


def test_the_command_says_what_it_wrote(folder, capsys):
    fill(folder / "ledger")
    assert main(["export", str(folder / "ledger"), str(folder / "run.csv.gz"), "--events"]) == 0
    said = capsys.readouterr()
    assert f"{RUN}: 20 sessions, 22 rows in {folder / 'run.csv.gz'}" in said.out and "run.events.jsonl" in said.out
    assert main(["export", str(folder / "ledger"), str(folder / "run.x"), "--format", "jsonl", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["format"], summary["rows"], summary["events_file"]) == ("jsonl", 22, None)


def test_bad_arguments_are_one_line(folder, capsys):
    fill(folder / "ledger")
    with Ledger.open(folder / "ledger") as ledger:
        ledger.writer("other").close()
    for more, said in (
        (["run.parquet"], "name the run with --run"),
        (["run.parquet", "--run", "x"], "no run `x`"),
        (["run.txt", "--run", RUN], "the name says no format"),
        ([".", "--run", RUN, "--format", "csv"], "a folder"),
        (["none/run.csv", "--run", RUN], "run.csv: cannot be written: No such file or directory"),
    ):
        capsys.readouterr()
        assert main(["export", str(folder / "ledger"), str(folder / more[0]), *more[1:]]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_names_of_files_say_their_format(tmp_path):
    assert [form_of(tmp_path / f"A{suffix}".upper()) for suffix in SUFFIXES] == [
        "parquet",
        "csv",
        "csv",
        "jsonl",
        "jsonl",
    ]
    assert events_file(tmp_path / "a.b.csv.gz").name == "a.b.events.jsonl"
    assert pa.types.is_int64(Export("a", tmp_path).schema.field("session").type)
