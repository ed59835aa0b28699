"""The notebooks: what a py:percent file becomes, and what the four of this repository say about a small ledger."""

import importlib.util
import json
from pathlib import Path

import pytest

from rewards import Ledger
from rewards.audit import RUN, write_record
from rewards.errors import UserError
from rlhf import notebook
from rlhf.cli import main
from tests.rewards.ledger_rows import rows, scratch

NAMES = ["comparing_runs", "convergence", "overoptimization", "recalibration_effects"]
SESSIONS = 3000

executes = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in notebook.NEEDED), reason="the extra `notebooks` is missing"
)


@pytest.fixture(scope="module")
def ledgers():
    with scratch() as root:
        for seed in (1, 2):
            write_record(root / f"run-{seed}" / "ledger", seed=seed, sessions=SESSIONS)
        yield root / "run-1" / "ledger", root / "run-2" / "ledger"


@pytest.fixture(scope="module")
def poor(tmp_path_factory):
    """Ten sessions without texts, KL, components or recalibrations; and the same again in another run."""
    path = tmp_path_factory.mktemp("poor") / "ledger"
    with Ledger.open(path, create=True) as ledger:
        for run in ("a", "b"):
            with ledger.writer(run) as writer:
                writer.event("attempt_started", {"stage": "grpo", "pipeline": "grpo", "config_digest": "0"})
                kept = ("pipeline", "split", "prompt_id", "category", "baseline_reward", "adjusted_reward")
                for step in range(5):
                    plain = [{name: row[name] for name in kept} for row in rows(step * 2, 2)]
                    writer.append(step=step + 1, rows=plain)
    return path


def one_line(capsys, *argv, code=2):
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[-1].startswith("error: "), said
    return said.err.splitlines()[-1]


# -- py:percent --------------------------------------------------------------------------------------------------------


def test_a_file_becomes_its_docstring_and_its_cells_in_their_order():
    text = '"""# Title\n\nWhat it shows.\n"""\n\n# %%\nimport os\n\n'
    text += "# %% [markdown]\n# ## Part\n#\n# - a # b\n\n# %%\nx = 1\n"
    assert notebook.read_cells(text) == [
        notebook.Cell("markdown", "# Title\n\nWhat it shows."),
        notebook.Cell("code", "import os"),
        notebook.Cell("markdown", "## Part\n\n- a # b"),
        notebook.Cell("code", "x = 1"),
    ]


def test_the_tagged_cell_alone_is_replaced_by_the_parameters():
    cells = notebook.read_cells('# %% tags=["parameters"]\nLEDGER = "x"\nRUN = ""\n# %%\nprint(LEDGER)\n')
    filled = notebook.with_parameters(cells, {"LEDGER": "it's", "RUN": "a/b"})
    assert filled[0].source == "LEDGER = \"it's\"\nRUN = 'a/b'"
    assert filled[1:] == cells[1:]


def test_a_parameter_that_the_notebook_does_not_read_is_refused():
    cells = notebook.read_cells('# %% tags=["parameters"]\nLEDGER = "x"\n')
    with pytest.raises(UserError, match="takes no AGAINST; its parameters are LEDGER"):
        notebook.with_parameters(cells, {"AGAINST": "y"})
    with pytest.raises(UserError, match="one cell tagged `parameters`"):
        notebook.with_parameters(notebook.read_cells("# %%\nx = 1\n"), {})


def test_code_before_the_first_marker_is_refused():
    with pytest.raises(UserError, match="stands in no cell"):
        notebook.read_cells("import os\n# %%\nx = 1\n")


def test_the_four_notebooks_are_there_and_each_names_what_it_reads():
    assert notebook.names() == NAMES
    for name in NAMES:
        cells = notebook.read_cells(notebook.find(name).read_text())
        assert cells[0].kind == "markdown" and cells[0].source.startswith("# ")
        (parameters,) = [cell for cell in cells if "parameters" in cell.tags]
        assert notebook.parameter_names(parameters)[:2] == ["LEDGER", "RUN"]
        assert len(cells) >= 8


# -- the command -------------------------------------------------------------------------------------------------------


def test_an_unknown_notebook_run_or_ledger_is_one_line(ledgers, tmp_path, capsys):
    first, _ = ledgers
    assert "no notebook `phases`; there are: comparing_runs" in one_line(capsys, "notebook", "phases", "--run", first)
    assert f"it holds: {RUN}" in one_line(capsys, "notebook", "convergence", "--run", f"{first}:other")
    assert "no such ledger" in one_line(capsys, "notebook", "convergence", "--run", tmp_path / "none")
    assert "takes no AGAINST" in one_line(capsys, "notebook", "convergence", "--run", first, "--against", first)
    assert "--against" in one_line(capsys, "notebook", "comparing_runs", "--run", first)


def test_a_missing_package_is_one_line_with_the_install_command(ledgers, capsys, monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nbclient" else known(name))
    line = one_line(capsys, "notebook", "convergence", "--run", ledgers[0])
    assert "nbclient" in line and "pip install 'rlhf-ledger[notebooks]'" in line


@executes
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_on_a_small_ledger_and_its_copy_lies_beside_the_run(name, ledgers, capsys):
    against = ["--against", str(ledgers[1])] if name == "comparing_runs" else []
    assert main(["notebook", name, "--run", f"{ledgers[0]}:{RUN}", *against, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    path = Path(shown["notebook"])
    assert path == ledgers[0].parent / "notebooks" / f"{name}-audit-grpo.ipynb"
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "no warning in any cell"
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    (parameters,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert f"RUN = '{RUN}'" in "".join(parameters["source"])
    printed = "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")
    expected = {
        "comparing_runs": "prompts in common",
        "convergence": "Too fast a transition: between",
        "overoptimization": "gold components: gold",
        "recalibration_effects": "this run cannot support it",
    }
    assert expected[name] in printed


@executes
def test_a_notebook_that_fails_is_kept_with_its_error_and_said_in_one_line(ledgers, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text('"""# Mine"""\n\n# %% tags=["parameters"]\nLEDGER = ""\nRUN = ""\n\n# %%\nraise ValueError(RUN)\n')
    line = one_line(capsys, "notebook", path, "--run", ledgers[0], "--out", tmp_path / "out")
    assert f"mine: a cell failed with ValueError: {RUN}" in line
    kept = json.loads((tmp_path / "out" / "mine-audit-grpo.ipynb").read_text())
    assert kept["cells"][-1]["outputs"][-1]["ename"] == "ValueError"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_reads_its_run_from_the_environment_and_says_what_a_poor_record_cannot_show(
    name, poor, capsys, monkeypatch
):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    for variable, value in {"LEDGER": poor, "RUN": "b", "AGAINST": f"{poor}:a"}.items():
        monkeypatch.setenv(variable, str(value))
    space = {"__name__": "notebook"}
    with plt.rc_context():
        for cell in notebook.read_cells(notebook.find(name).read_text()):
            if cell.kind == "code":
                exec(compile(cell.source, name, "exec"), space)
    said = capsys.readouterr().out
    expected = {
        "comparing_runs": "10 prompts in common",
        "convergence": "No phases: ",
        "overoptimization": "missing: no KL to the reference is on record",
        "recalibration_effects": "No recalibration is on record",
    }
    assert expected[name] in said
