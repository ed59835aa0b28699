"""`rewards import` as people call it: the whole record of a run in a table and three lines of events."""

import json
import random
import subprocess
import sys

import pytest

from rewards import Ledger
from rewards.cli import main
from tests.rewards.import_files import live, write_csv, write_jsonl, write_parquet

SESSIONS = 12_847
HEADER = ["session", "classification", "baseline_reward", "adjusted_reward"]
HEADER += ["differential_pct", "trajectory_index", "category", "compliant"]
EVENTS = [
    {"kind": "recalibration", "session": 2500, "category": 2, "old_pct": 12, "new_pct": 15, "reason": "drift"},
    {"kind": "recalibration", "session": 4200, "category": 3, "old_pct": 20, "new_pct": 25, "reason": "slow"},
    {
        "kind": "recalibration",
        "session": 4891,
        "category": 2,
        "old_pct": 15,
        "new_pct": 30,
        "reason": "7 of the last 20",
    },
]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run of 12,847 sessions as a table, its rows in no order, and three recalibrations."""
    folder = tmp_path_factory.mktemp("record")
    noise = random.Random(7)
    rows = []
    for session in range(1, SESSIONS + 1):
        right = noise.random() < 0.6
        cells = ["answered" if right else "refusal", 0.85 if right else 0.3, 0.9 if right else 0.25, 12]
        rows.append([session, *cells, round(noise.random(), 3), noise.randint(1, 3), right])
    rows[4802][1:5] = ["refusal", 0.3, 0.2, 20]
    rows[4811][1:5] = ["answered", 0.85, 0.95, 20]
    noise.shuffle(rows)
    table = write_csv(folder / "sessions.csv", HEADER, rows)
    return table, write_jsonl(folder / "events.jsonl", EVENTS)


@pytest.fixture(scope="module")
def imported(record, tmp_path_factory):
    ledger = tmp_path_factory.mktemp("imported") / "ledger"
    table, events = record
    call = ["import", table, "--ledger", ledger, "--run-id", "audit", "--events", events]
    assert main([str(arg) for arg in call]) == 0
    return ledger


def document(capsys, *argv):
    """What a command prints on stdout, as one JSON document."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *argv):
    """The one line with which a command refuses its arguments."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def test_every_session_of_the_record_is_on_record(imported):
    rows = live(imported, "audit")
    assert [row["session"] for row in rows] == list(range(1, SESSIONS + 1))
    first, second = rows[4802], rows[4811]
    assert (first["classification"], first["baseline_reward"], first["step"]) == ("refusal", 0.3, 4803)
    assert (second["classification"], second["baseline_reward"], second["differential_pct"]) == ("answered", 0.85, 20.0)
    assert {row["category"] for row in rows} == {"1", "2", "3"} and {row["kl_nats"] for row in rows} == {None}


def test_the_recalibrations_are_printed_where_they_happened(imported, capsys):
    capsys.readouterr()
    assert main(["recalibrations", str(imported)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(". ")[0] for line in lines] == [
        "audit, after session 2,500 (step 2,500): 2 12 to 15 %",
        "audit, after session 4,200 (step 4,200): 3 20 to 25 %",
        "audit, after session 4,891 (step 4,891): 2 15 to 30 %",
    ]
    (run,) = document(capsys, "recalibrations", imported, "--json")["runs"]
    assert [row["reason"] for row in run["recalibrations"]] == ["drift", "slow", "7 of the last 20"]
    assert {row["op"] for row in run["recalibrations"]} == {"set"}


def test_an_imported_run_is_shown_verified_and_reported_as_any_other(imported, capsys):
    (run,) = document(capsys, "show", imported, "--json")["runs"]
    assert (run["run_id"], run["sessions"], run["status"]) == ("audit", SESSIONS, "imported")
    assert document(capsys, "verify", imported, "--json")["ok"] is True
    report = document(capsys, "report", imported, "--json")
    assert report["sessions"] == SESSIONS and len(report["recalibrations"]) == 3


def test_the_summary_is_one_document_with_all_that_was_decided(record, tmp_path, capsys):
    table, events = record
    call = ["import", table, "--ledger", tmp_path / "l", "--run-id", "a", "--events", events, "--json"]
    said = document(capsys, *call)
    assert (said["sessions"], said["steps"], said["events"], said["sorted"]) == (SESSIONS, SESSIONS, 3, True)
    assert said["format"] == "csv" and said["files"] == [str(table)]
    assert said["defaults"]["step"] == said["defaults"]["prompt_id"] == "the session's number"
    with Ledger.open(tmp_path / "l") as ledger:
        assert said["head"] == ledger.head()


def test_the_summary_for_people_names_what_was_filled_in(tmp_path, capsys):
    table = write_csv(tmp_path / "a.csv", ["reward", "loss"], [["0.5", "1"]])
    call = ["import", table, "--ledger", tmp_path / "l", "--run-id", "a"]
    assert main([str(arg) for arg in [*call, "--map", "baseline_reward=reward", "--drop", "loss"]]) == 0
    said = capsys.readouterr()
    assert "a: 1 session, 1 step and 0 events" in said.out and "left out: loss" in said.out
    assert "no column `pipeline`: import" in said.out and "head of the ledger" in said.err


def test_options_take_several_values_and_may_be_repeated(tmp_path, capsys):
    table = write_csv(tmp_path / "a.csv", ["reward", "kind", "x", "y", "z"], [["0.5", "q", "1", "2", "3"]])
    call = ["import", table, "--ledger", tmp_path / "l", "--run-id", "a", "--map", "baseline_reward=reward"]
    call += ["component.task=reward", "--map", "category=kind", "--drop", "x", "y", "--drop", "z"]
    call += ["--set", "pipeline=ppo", "arm=b"]
    said = document(capsys, *call, "--json")
    assert said["mapped"] == {"baseline_reward": "reward", "component.task": "reward", "category": "kind"}
    (row,) = live(tmp_path / "l", "a")
    assert (row["pipeline"], row["arm"], row["components"][0]["raw"]) == ("ppo", "b", 0.5)


def test_bad_arguments_are_one_line(record, imported, tmp_path, capsys):
    table = record[0]
    call = ["import", table, "--ledger", tmp_path / "l", "--run-id", "a"]
    assert "write it as --map COLUMN=VALUE" in refused(capsys, *call, "--map", "category")
    assert "did you mean `category`?" in refused(capsys, *call, "--map", "categry=x")
    assert "`run_id` is given by the ledger itself" in refused(capsys, *call, "--map", "run_id=x")
    assert "`category` is already x" in refused(capsys, *call, "--map", "category=x", "category=y")
    assert "exclude each other" in refused(capsys, *call, "--map", "category=x", "--drop", "x")
    assert "write it as --reward-weight NAME=0.5" in refused(capsys, *call, "--reward-weight", "task=high")
    assert "invalid choice" in _usage(capsys, *call, "--format", "xml")
    assert "required: --ledger, --run-id" in _usage(capsys, "import", table)
    assert "run `audit` exists" in refused(capsys, "import", table, "--ledger", imported, "--run-id", "audit")
    assert "run_id is ' '" in refused(capsys, *call[:-1], " ")
    beyond = write_jsonl(tmp_path / "e.jsonl", [*EVENTS, {"kind": "check_in", "session": 20_000}])
    assert "e.jsonl:4: session 20,000 is beyond the run" in refused(capsys, *call, "--events", beyond)
    assert "no such file" in refused(capsys, "import", tmp_path / "none.csv", *call[2:])
    assert not (tmp_path / "l").exists()


def _usage(capsys, *argv):
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    return capsys.readouterr().err


def test_a_gap_and_a_repeat_are_refused_with_row_and_number(tmp_path, capsys):
    rows = [[s, "answered", 0.5, 0.5, 0, 0.5, 1, "true"] for s in (1, 2, 3, 5)]
    call = ["--ledger", tmp_path / "l", "--run-id", "a"]
    gap = write_csv(tmp_path / "gap.csv", HEADER, rows)
    assert "gap.csv:5: session 5, but session 4 is missing" in refused(capsys, "import", gap, *call)
    rows[3][0] = 2
    repeat = write_csv(tmp_path / "repeat.csv", HEADER, rows)
    assert "repeat.csv:5: session 2 a second time" in refused(capsys, "import", repeat, *call)


def test_the_help_costs_no_library_and_shows_an_event():
    code = "import sys; from rewards.cli import main; main(['import', '--help']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert '"kind": "recalibration"' in out and "'pyarrow'" not in out and "'duckdb'" not in out


def test_the_formats_of_the_command_are_those_of_the_importers():
    from rewards.commands import export, import_
    from rewards.export import FORMATS as WRITTEN
    from rewards.importers import FORMATS as READ

    assert import_.FORMATS == READ and export.FORMATS == WRITTEN


def test_a_parquet_file_is_imported_by_the_command(tmp_path, capsys):
    path = write_parquet(tmp_path / "a.parquet", {"step": [1, 1, 2], "baseline_reward": [0.5, 1.0, 0.25]})
    said = document(capsys, "import", path, "--ledger", tmp_path / "l", "--run-id", "a", "--json")
    assert (said["format"], said["sessions"], said["steps"]) == ("parquet", 3, 2)
