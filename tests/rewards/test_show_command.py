"""`rewards show`: what a ledger holds, what counts of it, and all that is known of a row."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from rewards import Ledger
from rewards.cli import main
from tests.rewards.ledger_rows import rows, scratch
from tests.rewards.typed import document, printed, refused

RUN = "demo/grpo"


@pytest.fixture(scope="module")
def path():
    """A run of three attempts, the second without a live row, and a fork of it; partly sealed."""
    with scratch() as folder:
        root = folder / "ledger"
        with Ledger.open(root, create=True) as ledger:
            with ledger.writer(RUN, pipeline_id="demo") as writer:
                writer.event("attempt_started", {"stage": "grpo"})
                writer.append(1, rows(0, 4, prompt="p", rejected="r")).wait()
                position = writer.checkpoint(1)
                writer.append(2, rows(4, 4)).wait()
            with ledger.writer(RUN, resume=position) as writer:
                writer.append(2, rows(8, 3)).wait()
            ledger.seal()
            with ledger.writer(RUN, resume=position) as writer:
                ledger.writer(RUN, writer=1, attempt=3).append(2, rows(30, 1)).wait()
                writer.append(2, rows(12, 4) + rows(20, 2, split="eval")).wait()
                writer.event("attempt_ended", {"status": "done", "steps": 2})
            with ledger.writer("demo/fork", fork_of=position, arm="wide") as writer:
                writer.append(2, rows(0, 1)).wait()
        yield root


def test_runs_say_what_counts_and_what_does_not(path, capsys):
    runs = {run["run_id"]: run for run in document(capsys, "show", path, "--json")["runs"]}
    assert list(runs) == [RUN, "demo/fork"]
    run = runs[RUN]
    assert (run["sessions"], run["eval"], run["superseded"], run["attempts"], run["steps"]) == (9, 2, 7, 3, 2)
    assert (run["status"], run["pipeline_id"]) == ("done", "demo")
    assert run["events"] == {"attempt_ended": 1, "attempt_started": 1, "checkpoint": 1}
    said = printed(capsys, "show", path)
    assert ["demo/grpo", "done", "2", "9", "2", "7", "3"] in [line.split()[:7] for line in said.splitlines()]
    assert "events: 1 attempt_ended, 1 attempt_started, 1 checkpoint" in said


def test_attempts_say_where_they_continue_and_how_many_rows_of_each_count(path, capsys):
    (run,) = document(capsys, "show", path, "--run", RUN, "--json")["runs"]
    keys = ("attempt", "resume_step", "writers", "sessions", "eval", "superseded", "status", "on_path")
    assert [tuple(attempt[key] for key in keys) for attempt in run["history"]] == [
        (1, None, 1, 4, 0, 4, None, True),
        (2, 1, 1, 0, 0, 3, None, False),
        (3, 1, 2, 5, 2, 0, "done", True),
    ]
    assert [attempt["parent"] for attempt in run["history"]] == [
        None,
        {"run_id": RUN, "attempt": 1},
        {"run_id": RUN, "attempt": 1},
    ]
    (fork,) = document(capsys, "show", path, "--run", "demo/fork", "--json")["runs"]
    (attempt,) = fork["history"]
    assert attempt["parent"] == {"run_id": RUN, "attempt": 1} and attempt["arm"] == "wide" and attempt["on_path"]


def test_all_shows_the_attempts_of_which_nothing_counts(path, capsys):
    def attempts(*argv):
        found = [line.split() for line in printed(capsys, "show", path, *argv).splitlines()]
        return [line[0] for line in found if line and line[0].isdigit() and ":" in line[-1]]

    assert attempts("--run", RUN) == ["1", "3"]
    assert "1 attempt of which nothing counts; --all shows more" in printed(capsys, "show", path, "--run", RUN)
    assert attempts("--run", RUN, "--all") == ["1", "2", "3"]
    assert attempts("--all") == ["1", "2", "3", "1"]
    assert "fork of demo/grpo 1, step 1" in printed(capsys, "show", path, "--all")


def test_what_counts_is_told_of_a_ledger_whose_rows_cannot_be_read(path, tmp_path, capsys):
    copy = shutil.copytree(path, tmp_path / "copy")
    before = document(capsys, "show", copy, "--json")["runs"]
    for part in (copy / "sessions").glob("*.parquet"):
        part.unlink()
    assert document(capsys, "show", copy, "--json")["runs"] == before
    assert document(capsys, "annotations", copy, "--json") == {"annotations": []}


def test_sizes_are_those_of_the_files_and_add_up(path, capsys):
    sizes = document(capsys, "show", path, "--json")["sizes"]
    assert sizes["hot_rows"] + sizes["sealed_rows"] == 9 + 2 + 7 + 1
    assert sizes["session_bytes"] == sum(file.stat().st_size for file in (path / "sessions").glob("*.parquet"))
    said = printed(capsys, "show", path)
    assert f"rows: {sizes['hot_rows']} hot, {sizes['sealed_rows']} sealed" in said and "on disk: " in said


def test_a_session_is_shown_with_its_columns_components_and_texts(path, capsys):
    known = document(capsys, "show", path, "--run", RUN, "--session", 2, "--json")
    assert (known["step"], known["attempt"], known["writer"], known["seq"]) == (1, 1, 0, 2)
    assert (known["prompt"], known["response"], known["rejected"]) == ("p", "answer 1", "r")
    assert [part["name"] for part in known["components"]] == ["task"] and known["live"] is True
    assert known["annotations"] == [] and known["redactions"] == []
    said = printed(capsys, "show", path, "--run", RUN, "--session", 2)
    assert said.startswith(f"{RUN}, session 2 (row 1/0/2): step 1, ")
    assert "response\nanswer 1\n" in said and "component task: raw 0.14285714" in said
    assert "kl_nats" not in said  # null: not known, not shown


def test_a_row_is_found_by_its_key_whether_it_counts_or_not(path, capsys):
    superseded = document(capsys, "show", path, "--run", RUN, "--row", "1/0/5", "--json")
    assert (superseded["live"], superseded["session"], superseded["prompt_id"]) == (False, None, "p4")
    assert "row 1/0/5 (superseded by a resume)" in printed(capsys, "show", path, "--run", RUN, "--row", "1/0/5")
    evaluated = next(row for row in _eval_rows(path))
    key = f"{evaluated['attempt']}/{evaluated['writer']}/{evaluated['seq']}"
    assert f"row {key} (eval)" in printed(capsys, "show", path, "--run", RUN, "--row", key)
    assert "has no row 1/0/99" in refused(capsys, "show", path, "--run", RUN, "--row", "1/0/99")
    assert "has no row" in refused(capsys, "show", path, "--run", RUN, "--row", f"1/0/{10**30}")
    assert "ATTEMPT/WRITER/SEQ" in refused(capsys, "show", path, "--run", RUN, "--row", "65")


def _eval_rows(path):
    with Ledger.open(path) as ledger:
        return [row for row in ledger.sessions(RUN).to_pylist() if row["split"] == "eval"]


def test_every_session_number_finds_the_row_that_the_table_has_there(path, capsys):
    with Ledger.open(path) as ledger:
        table = [row for row in ledger.sessions(RUN, texts=True).to_pylist() if row["session"] is not None]
    assert [row["session"] for row in table] == list(range(1, 10))
    for row in table:
        known = document(capsys, "show", path, "--run", RUN, "--session", row["session"], "--json")
        for name in ("attempt", "writer", "seq", "step", "prompt_id", "baseline_reward", "response", "prompt"):
            assert known[name] == row[name]


def test_a_number_may_be_copied_from_a_report(path, capsys):
    assert "no session 4803: its sessions are 1 to 9" in refused(
        capsys, "show", path, "--run", RUN, "--session", "4,803"
    )
    for wrong in ("1.5", "one", "1,2", "", "9" * 50):
        assert "not a whole number" in refused(capsys, "show", path, "--run", RUN, "--session", wrong)


def test_a_run_must_be_named_where_there_are_several_and_known(path, capsys):
    assert "name the run with --run" in refused(capsys, "show", path, "--session", 1)
    assert "no run `x`" in refused(capsys, "show", path, "--run", "x")
    assert "--all is about attempts" in refused(capsys, "show", path, "--run", RUN, "--session", 1, "--all")


def test_text_that_a_terminal_would_obey_is_shown_and_not_sent(tmp_path, capsys):
    with Ledger.open(tmp_path / "l", create=True) as ledger, ledger.writer("r") as writer:
        odd = rows(0, 1, category="\x1b]0;title\x07 \u202egnp", prompt="clear \x1b[2J\nnext\tline")
        writer.append(1, odd).wait()
    for argv in (("show", "--session", 1), ("sql", "select category from live")):
        said = printed(capsys, argv[0], tmp_path / "l", *argv[1:])
        assert not {"\x1b", "\x07", "\u202e"} & set(said) and "\\x1b" in said
    assert "clear \\x1b[2J\nnext\tline" in printed(capsys, "show", tmp_path / "l", "--session", 1)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("argv", ["show", "show --all", "sql", "annotations"])
def test_lines_fit_the_terminal(path, argv, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("rewards.commands.output.is_terminal", lambda: True)
    name, *options = argv.split()
    said = printed(
        capsys, name, path, *options, *(["select * exclude (components) from live"] if name == "sql" else [])
    )
    assert all(len(line) <= columns for line in said.splitlines())


def test_a_table_on_a_terminal_is_the_one_in_a_file_and_fits(path, capsys):
    wide, narrow = on_terminal(160, "show", path), on_terminal(80, "show", path)
    assert wide.split() == printed(capsys, "show", path).split()
    assert all(len(line) <= 80 for line in narrow.splitlines())


def on_terminal(columns, *argv):
    """What a command prints on a terminal of that width, without its styles."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "rewards.cli", *map(str, argv)]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    process = subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2], env=environment
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    assert process.wait() == 0
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", b"".join(parts).decode())


def test_an_empty_ledger_says_that_it_holds_no_run_yet(tmp_path, capsys):
    Ledger.open(tmp_path / "empty", create=True).close()
    assert document(capsys, "show", tmp_path / "empty", "--json")["runs"] == []
    assert main(["show", str(tmp_path / "empty")]) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err == "the ledger holds no run yet\n"
