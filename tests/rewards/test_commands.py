"""The `rewards` commands on what people hand them: ledgers that are damaged, numbers and paths that cannot be meant."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rewards import Ledger
from rewards.cli import main
from tests.rewards.ledger_rows import rows

NOTE = ["--annotator", "ana", "--label", "odd"]
COMMANDS = [
    ["verify"],
    ["head"],
    ["show"],
    ["show", "--session", "1"],
    ["show", "--row", "1/0/1"],
    ["recalibrations"],
    ["report", "--json"],
    ["sql", "select * from live"],
    ["annotate", "--session", "1", *NOTE],
    ["review", "1", "--annotator", "ben", "--verdict", "agree"],
    ["annotations"],
    ["redact", "--session", "1", "--reason", "r", "--by", "ana", "--yes"],
    ["seal"],
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "ledger"
    with Ledger.open(folder, create=True) as ledger, ledger.writer("demo/grpo") as writer:
        writer.event("attempt_started", {"stage": "grpo", "pipeline": "grpo", "config_digest": "0" * 64})
        for step in (1, 2, 3):
            writer.append(step=step, rows=rows(step * 4, 4)).wait()
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "ledger"))


def one_line(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 2) -> str:
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_a_session_number_that_no_integer_type_holds_is_refused_as_any_other(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "its sessions are 1 to 12" in one_line(capsys, "show", whole, "--session", 10**20)


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_a_report_under_a_file_instead_of_a_folder_is_one_line(
    option: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = one_line(capsys, "report", whole, option, tmp_path / "file" / "report")
    assert "cannot be written: Not a directory" in line


def test_a_damaged_schema_that_sqlite_quotes_in_broken_unicode_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "ledger.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    stored = path.read_bytes()
    assert stored.count(b"CREATE VIEW runs AS SELECT run_id, count(*)") == 1
    path.write_bytes(stored.replace(b"AS SELECT run_id, count(*)", b"AS SELECT run_id\xbd count(*)"))
    for command in COMMANDS:
        line = one_line(capsys, command[0], copy, *command[1:])
        assert "ledger.db" in line and "damaged" in line


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
def test_a_damaged_tail_is_named_by_every_command_that_reads_it(
    damage: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tail,) = (copy / "tails").glob("*.db")
    if damage == "missing":
        tail.unlink()
    else:
        content = {"empty": b"", "cut": tail.read_bytes()[: tail.stat().st_size // 3], "foreign": b"no database" * 999}
        tail.write_bytes(content[damage])
    assert main(["verify", str(copy)]) == 1
    assert tail.name in capsys.readouterr().out
    for command in (["show"], ["report", "--json"]):
        assert tail.name in one_line(capsys, command[0], copy, *command[1:])


def test_a_ledger_without_a_run_verifies_and_has_nothing_to_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger.open(tmp_path / "new", create=True).close()
    assert main(["verify", str(tmp_path / "new")]) == 0
    assert "no run yet" in one_line(capsys, "report", tmp_path / "new", "--json")
    assert "no run yet" in one_line(capsys, "show", tmp_path / "new", "--session", 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_without_room_is_one_line(whole: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rewards.cli", "head", str(whole)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: output: No space left on device; make room and try again"]


def shell(script: str, *argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell that does something to its streams."""
    command = [sys.executable, "-m", "rewards.cli", *map(str, argv)]
    return subprocess.run(
        ["bash", "-c", f'"$@" {script}', "-", *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_streams_that_are_closed_are_no_traceback(whole: Path) -> None:
    done = shell("<&-", "annotate", whole, "--step", 1, *NOTE, "--note", "-")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "stdin is closed" in done.stderr
    done = shell("<&-", "redact", whole, "--session", 1, "--reason", "r", "--by", "ana")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "say --yes" in done.stderr
    done = shell(">&-", "head", whole)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_that_knows_fewer_letters_gets_them_escaped(whole: Path) -> None:
    query = "select 'é' as word"
    done = shell("", "sql", whole, query, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout.split()) == (0, ["word", "\\xe9"])
    done = shell("", "sql", whole, query, "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout) == [{"word": "é"}]


def test_an_interruption_is_one_line_and_not_a_failed_check(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(ledger: Ledger) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "head", interrupted)
    assert "Ctrl-C" in one_line(capsys, "head", whole, code=130)


@pytest.mark.parametrize("command", [parts for parts in COMMANDS if parts[0] != "report"])
def test_every_command_prints_one_json_document(
    command: list[str], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    number = _annotated(copy) if command[0] == "review" else None
    parts = [str(number) if part == "1" and number else part for part in command]
    assert main([parts[0], str(copy), *parts[1:], "--json"]) == 0
    json.loads(capsys.readouterr().out)


def _annotated(path: Path) -> int:
    with Ledger.open(path) as ledger:
        number: int = ledger.note("annotation", {"annotator": "ana", "label": "odd"}, "demo/grpo")["seq"]
    return number


def test_help_loads_nothing_of_weight() -> None:
    code = (
        "import sys; from rewards.cli import build_parser; build_parser(); "
        "heavy = {'numpy', 'pyarrow', 'duckdb', 'deltalake', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_ledger_shows_itself_as_the_call_that_opens_it(whole: Path) -> None:
    with Ledger.open(whole) as ledger:
        assert repr(ledger) == f"Ledger.open({str(whole)!r})"
