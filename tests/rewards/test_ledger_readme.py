"""The page of the ledger: its examples run, its list of columns is the schema's, its links lead somewhere."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewards import Ledger
from rewards.schema import COLUMNS, COMPONENT_COLUMNS
from tests.rewards.ledger_rows import scratch

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "rewards" / "README.md"


@dataclass(frozen=True)
class Example:
    """A fenced block. needs: a library that is not the ledger's own, where it is marked so."""

    language: str
    code: str
    runs: bool
    needs: str | None


def examples() -> list[Example]:
    found = []
    for language, marks, code in re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        needs = re.search(r"needs=(\w+)", marks)
        found.append(Example(language, code, "run" in marks.split(), needs and needs[1]))
    return found


RUNNABLE = [example for example in examples() if example.runs]
PYTHON = [e for e in RUNNABLE if e.language == "python" and e.needs is None]


def by_language(language: str) -> list[Example]:
    return [example for example in RUNNABLE if example.language == language]


@pytest.fixture
def folder():
    with scratch() as memory:
        yield memory


def run(folder: Path, command: list[str]) -> None:
    """In a process of its own, where `rewards` and `python` are this environment's; ends well."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, arguments in {"rewards": "-m rewards.cli ", "python": ""}.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        (folder / "bin" / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_python(folder: Path, parts: list[Example]) -> None:
    (folder / "example.py").write_text("\n".join(part.code for part in parts))
    run(folder, ["python", "example.py"])


def test_the_page_has_examples_of_every_kind():
    assert len(PYTHON) >= 4 and len(by_language("bash")) == 5 and len(by_language("sql")) >= 5
    assert {example.needs for example in RUNNABLE} == {None, "polars", "pandas", "datasets"}


def test_python_and_sql_examples_run(folder):
    run_python(folder, PYTHON)
    with Ledger.open(folder / "runs/ledger") as ledger, ledger.connect() as connection:
        for example in by_language("sql"):
            assert connection.execute(example.code).fetchall(), example.code
        assert connection.execute("SELECT count(*), max(session) FROM live").fetchone() == (320, 320)
    with Ledger.open(folder / "runs/own") as ledger:
        assert ledger.sessions("own")["baseline_reward"].to_pylist() == pytest.approx([1.05, 0.1 / 3])


@pytest.mark.parametrize("example", by_language("bash"), ids=["import", "look", "annotate", "evidence", "recovery"])
def test_shell_examples_run(folder, example):
    run_python(folder, PYTHON[:1])
    run(folder, ["bash", "-euo", "pipefail", "-c", example.code])
    with Ledger.open(folder / "runs/ledger") as ledger:
        assert ledger.verify().ok
        notes = [event["payload"]["note"] for event in ledger.events("adder", kind="annotation")]
        verdicts = [event["payload"]["label"] for event in ledger.events("adder", kind="review")]
        prompt = ledger.sessions("adder", texts=True)["prompt"][64].as_py()
    assert (prompt is None) == ("redact" in example.code)
    assert notes == (["answers before it reads--"] if "annotate" in example.code else [])
    assert verdicts == (["disagree"] if "review" in example.code else [])
    if "import" in example.code.split():
        with Ledger.open(folder / "runs/imported") as ledger:
            assert [(run["run_id"], run["sessions"]) for run in ledger.runs()] == [("audit", 3), ("verl-math", 1)]
            assert ledger.events("audit", kind="recalibration")


@pytest.mark.parametrize("needs", ["polars", "pandas", "datasets"])
def test_examples_of_other_engines_run(needs, folder):
    if importlib.util.find_spec(needs) is None or importlib.util.find_spec(needs).origin is None:
        pytest.skip(f"{needs} is not installed")  # a folder datasets/ without code is not the library
    on_the_ledger = [example for example in PYTHON if "runs/ledger" in example.code]
    run_python(folder, [*on_the_ledger, *(example for example in RUNNABLE if example.needs == needs)])


def test_the_table_of_columns_is_the_schema():
    lines = PAGE.read_text().split("| group | columns |")[1].split("\n\n")[0].splitlines()[2:]
    named = {line.split("|")[1].strip(): re.findall(r"`(\w+)`", line.split("|")[2]) for line in lines}
    components = named.pop("one of `components`")
    assert components == [column.name for column in COMPONENT_COLUMNS]
    assert [name for names in named.values() for name in names] == [column.name for column in COLUMNS]


def test_links_lead_somewhere():
    text = PAGE.read_text()
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) >= 10
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("http"):
            assert (PAGE.parent / link).exists(), link
