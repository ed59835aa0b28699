import json
import re
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from rewards import Ledger
from rewards.cli import main
from tests.rewards import simulated
from tests.rewards.typed import document, printed, refused

RUN = "demo/grpo"


@pytest.fixture(scope="module")
def steps():
    return simulated.grpo_rows(sessions=3205)


@pytest.fixture(scope="module")
def path(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("cli") / "ledger"
    with Ledger.open(folder, create=True) as ledger:
        simulated.fill(ledger, steps)
    return folder


def test_report_writes_both_files_and_says_so_on_stderr(path, tmp_path, capsys):
    page, saved = tmp_path / "report.html", tmp_path / "report.json"
    assert main(["report", str(path), "--out", str(page), "--json", str(saved)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and f"run {RUN}: 3,205 sessions" in said.err and str(page) in said.err
    data = json.loads(saved.read_text())
    assert data["run"] == RUN and data["sessions"] == 3205 and len(data["recalibrations"]) == 1
    assert data["ledger"]["verified"] is True
    with Ledger.open(path) as ledger:
        assert data["ledger"]["head"] == ledger.head()
    assert page.read_text().startswith("<!doctype html>")
    assert [stage["stage"] for stage in data["stages"]] == ["sft", "reward", "dpo", "grpo"]


def test_report_without_a_file_prints_the_document_alone_on_stdout(path, capsys):
    assert document(capsys, "report", path, "--json")["run"] == RUN
    assert document(capsys, "report", path, "--run", "demo/sft", "--json")["sessions"] == 0


def test_a_resumed_record_reports_as_the_uninterrupted_one(path, tmp_path, steps, capsys):
    with Ledger.open(tmp_path / "resumed", create=True) as ledger:
        simulated.fill(ledger, steps, crash_at=35)
    whole, resumed = (document(capsys, "report", folder, "--json") for folder in (path, tmp_path / "resumed"))
    assert resumed["summary"]["attempts"] == {"count": 2, "superseded_sessions": 640}
    assert whole["summary"]["attempts"] == {"count": 1, "superseded_sessions": 0}
    assert whole["ledger"]["head"] != resumed["ledger"]["head"]
    assert _comparable(whole) == _comparable(resumed)


def edit(folder, step):
    """Another baseline reward in one sealed row of a step."""
    with Ledger.open(folder) as ledger:
        ledger.seal()
    for part in (folder / "sessions").glob("*.parquet"):
        table = pq.read_table(part)
        rows = table.to_pylist()
        found = [row for row in rows if row["step"] == step]
        if found:
            found[0]["baseline_reward"] = 9.0
            pq.write_table(table.from_pylist(rows, table.schema), part)


def test_an_edited_row_fails_verification_with_exit_1_and_shows_in_the_report(path, tmp_path, capsys):
    copy = tmp_path / "edited"
    shutil.copytree(path, copy)
    edit(copy, step=7)
    found = document(capsys, "verify", copy, "--json", code=1)
    assert found["ok"] is False and "step 7" in found["first_bad"] and found["problems"] == [found["first_bad"]]
    said = printed(capsys, "verify", copy, code=1)
    assert re.search(
        rf"^does not fit: run {RUN}, attempt 1, writer 0, step 7, .*\(sessions 385 to 448\)", said, re.MULTILINE
    )
    assert "fits: events\n" in said and "does not verify: 1 problem, 2 chains" in said
    assert main(["report", str(copy), "--out", str(tmp_path / "r.html")]) == 1
    assert "does not verify" in capsys.readouterr().err
    assert "The ledger does not verify: " in (tmp_path / "r.html").read_text()


def test_verify_accepts_a_head_kept_elsewhere_and_refuses_another(path, capsys):
    head = document(capsys, "head", path, "--json")["head"]
    assert document(capsys, "verify", path, "--anchor", head, "--json")["head"] == head
    assert document(capsys, "verify", path, "--anchor", "ab" * 32, "--json", code=1)["ok"] is False
    assert "the anchor occurs in the history" in printed(capsys, "verify", path, "--anchor", head)
    assert f"{'ab' * 32} occurs nowhere" in printed(capsys, "verify", path, "--anchor", "ab" * 32, code=1)
    assert printed(capsys, "head", path) == head + "\n"


def test_recalibrations_are_listed_with_their_verdict_and_the_withheld_ones(path, capsys):
    (found,) = document(capsys, "recalibrations", path, "--json")["runs"]
    assert found["run"] == RUN and [row["step"] for row in found["recalibrations"]] == [30]
    assert [row["withheld_because"] for row in found["withheld"]] == ["cooldown"]
    assert main(["recalibrations", str(path)]) == 0
    said = capsys.readouterr().out
    assert "self 0.0 to 15.0 %" in said and "regression to the mean" in said and "withheld: cooldown" in said


def test_bad_usage_is_one_line_and_exit_2(path, tmp_path, capsys):
    assert "no such folder" in refused(capsys, "report", tmp_path / "absent", "--json")
    assert "nothing to write" in refused(capsys, "report", path)
    assert "no run `demo/x`" in refused(capsys, "report", path, "--run", "demo/x", "--json")
    assert "no run `demo/x`" in refused(capsys, "show", path, "--run", "demo/x")
    assert "no run `demo/x`" in refused(capsys, "recalibrations", path, "--run", "demo/x")
    assert "--run" in refused(capsys, "show", path, "--session", 1)
    assert "1 to 3,205" in refused(capsys, "show", path, "--run", RUN, "--session", 99999)
    assert "cannot be written" in refused(capsys, "report", path, "--out", tmp_path / "no" / "r.html")
    assert "invalid choice" in refused(capsys, "reprot", path)
    assert "LEDGER" in refused(capsys, "verify")


@pytest.mark.parametrize(
    "argv",
    [
        ["analyze"],
        ["annotate", "--run", "r", "--session", "1", "--annotator", "a", "--label", "odd"],
        ["annotations"],
        ["export", "out.csv"],
        ["head"],
        ["recalibrations"],
        ["redact", "--run", "r", "--row", "1/0/1", "--reason", "asked", "--by", "a"],
        ["replay", "--weights", "a=1"],
        ["report", "--json"],
        ["review", "1", "--annotator", "a", "--verdict", "agree"],
        ["seal"],
        ["show"],
        ["sql", "select 1"],
        ["verify"],
        ["why", "first", "last"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_folder_that_is_not_there_is_refused_in_words_of_the_command_line(argv, tmp_path, capsys):
    said = refused(capsys, argv[0], tmp_path / "absent", *argv[1:])
    assert f"{tmp_path / 'absent'}: no such folder; check the path" in said
    assert "create=" not in said and "`rewards import`" in said and "`rewards simulate`" in said
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("folder", ["/proc/nobody", "/dev/null/x"])
def test_a_record_is_not_simulated_into_a_folder_that_cannot_be_made(folder, capsys):
    said = refused(capsys, "simulate", folder)
    assert f"{folder}: cannot be made" in said and "name a folder on a disk that can be written" in said
    assert "restore" not in said
    assert "no folder" in refused(capsys, "simulate", "/dev/null")


def test_recalibrations_say_what_analyze_says_of_them(path, capsys):
    (found,) = document(capsys, "recalibrations", path, "--json")["runs"]
    assert found["recalibrations"] == document(capsys, "analyze", path, "--run", RUN, "--json")["recalibrations"]
    (change,) = found["recalibrations"]
    assert "statement" not in change and "detectable" not in change
    assert printed(capsys, "recalibrations", path).count(change["verdict"]) == 1
    assert printed(capsys, "analyze", path, "--run", RUN).count(change["verdict"]) == 1


def test_an_empty_ledger_has_nothing_to_report(tmp_path, capsys):
    Ledger.open(tmp_path / "empty", create=True).close()
    assert "no run yet" in refused(capsys, "report", tmp_path / "empty", "--json")
    assert document(capsys, "show", tmp_path / "empty", "--json")["runs"] == []
    assert document(capsys, "recalibrations", tmp_path / "empty", "--json") == {"runs": []}


def test_the_command_runs_by_itself_and_a_closed_pipe_is_no_error(path):
    command = [sys.executable, "-m", "rewards.cli"]
    done = subprocess.run([*command, "head", str(path)], capture_output=True, text=True, check=True)
    assert len(done.stdout.strip()) == 64
    piped = f"{sys.executable} -m rewards.cli report {path} --json | head -c 10"
    seen = subprocess.run(["bash", "-o", "pipefail", "-c", piped], capture_output=True, text=True, check=False)
    assert seen.returncode == 0 and "Traceback" not in seen.stderr and "BrokenPipe" not in seen.stderr


def test_reports_load_neither_torch_nor_transformers_nor_datasets(path):
    code = (
        "import sys; from rewards.cli import main; assert main(['report', sys.argv[1], '--json']) == 0; "
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_the_page_of_12847_sessions_stays_below_one_and_a_half_megabytes(tmp_path):
    with Ledger.open(tmp_path / "ledger", create=True) as ledger:
        simulated.fill(ledger, simulated.grpo_rows())
    assert main(["report", str(tmp_path / "ledger"), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").stat().st_size <= 1_500_000


def _comparable(value):
    """Without what may differ between equal live views."""
    if isinstance(value, dict):
        return {
            k: _comparable(v) for k, v in value.items() if k not in ("attempts", "head") and not k.startswith("time")
        }
    return [_comparable(inner) for inner in value] if isinstance(value, list) else value
