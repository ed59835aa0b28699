"""Notebooks in py:percent: found, cut into cells, given a run as parameters, executed and written beside the run."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "notebooks"
NEEDED = ("nbformat", "nbclient", "ipykernel", "matplotlib")
INSTALL = "pip install 'rlhf-ledger[notebooks]'"
TIMEOUT_SECONDS = 600  # a cell
STARTUP_SECONDS = 180  # the kernel, on a machine that is busy

_MARKER = re.compile(r"# %%(?P<rest>.*)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Cell:
    """A cell. kind: code or markdown. tags: as the marker names them; `parameters` is replaced."""

    kind: str
    source: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What was written. html: None where there is no page; why: the reason."""

    notebook: Path
    html: Path | None
    why: str | None = None


def names() -> list[str]:
    """The notebooks of this repository."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def find(name: str) -> Path:
    """The file of a notebook, by name or by path.

    Raises: UserError when there is none.
    """
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    if name in names():
        return FOLDER / f"{name}.py"
    if not FOLDER.is_dir():
        raise UserError(f"no notebook `{name}`: they come with the repository, not with the package; give a path")
    raise UserError(f"no notebook `{name}`; there are: {', '.join(names())}")


def read_cells(text: str) -> list[Cell]:
    """The cells of a py:percent file; a module docstring before the first marker becomes the first, as markdown.

    Raises: UserError for other code before the first marker.
    """
    head, *blocks = re.split(r"^(?=# %%)", text, flags=re.MULTILINE)
    cells = []
    if head.strip():
        body = ast.parse(head).body
        docstring = ast.get_docstring(ast.parse(head))
        if docstring is None or len(body) > 1:
            raise UserError("a notebook begins with a docstring or with `# %%`; other code stands in no cell")
        cells.append(Cell("markdown", docstring))
    for block in blocks:
        first, _, source = block.partition("\n")
        found = _MARKER.fullmatch(first)
        rest = found["rest"] if found else ""
        tags = re.search(r"tags=(\[[^\]]*\])", rest)
        named = tuple(ast.literal_eval(tags[1])) if tags else ()
        if "[markdown]" in rest:
            lines = [re.sub(r"^# ?", "", line) for line in source.strip().splitlines()]
            cells.append(Cell("markdown", "\n".join(lines), named))
        else:
            cells.append(Cell("code", source.strip("\n"), named))
    return cells


def with_parameters(cells: list[Cell], values: Mapping[str, str]) -> list[Cell]:
    """The cells with the one tagged `parameters` replaced by these values.

    Raises: UserError when there is none, or when it has no parameter of a name.
    """
    places = [i for i, cell in enumerate(cells) if "parameters" in cell.tags]
    if len(places) != 1:
        raise UserError("a notebook has one cell tagged `parameters`, which names what it reads")
    place = places[0]
    known = parameter_names(cells[place])
    for name in values:
        if name not in known:
            raise UserError(f"this notebook takes no {name}; its parameters are {', '.join(known)}")
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    return [*cells[:place], Cell("code", source, cells[place].tags), *cells[place + 1 :]]


def parameter_names(cell: Cell) -> list[str]:
    """The names that a parameters cell assigns."""
    assigned = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    return [target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)]


def need_packages() -> None:
    """Raises: UserError with the install command when a package that executing needs is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"notebooks need {', '.join(missing)}; install with `{INSTALL}`")


def execute(cells: list[Cell], out: Path, title: str) -> Written:
    """Runs the cells in a kernel of this interpreter and writes the executed notebook; html too where nbconvert is.

    A notebook that fails is written with its error in place.
    Raises: UserError when a cell fails, naming the error and the file.
    """
    need_packages()
    import nbclient
    import nbformat
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook = nbformat.v4.new_notebook(metadata={"title": title, "language_info": {"name": "python"}})
    for number, cell in enumerate(cells):
        make = nbformat.v4.new_code_cell if cell.kind == "code" else nbformat.v4.new_markdown_cell
        # Ids that do not change: two executions of one notebook differ by their results only.
        notebook.cells.append(make(cell.source, id=f"cell-{number}", metadata={"tags": list(cell.tags)}))
    client = nbclient.NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        startup_timeout=STARTUP_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(Path.cwd())}},
    )
    failure: str | None = None
    with tempfile.TemporaryDirectory() as scratch:
        manager = client.create_kernel_manager()
        # Sockets in a folder of our own: the kernel listens on no port, and leaves nothing in the home folder.
        manager.transport, manager.connection_file = "ipc", str(Path(scratch) / "kernel.json")
        try:
            client.execute(env=_kernel_environment(scratch))
        except CellExecutionError as error:
            failure = f"{error.ename}: {error.evalue}"
        except (CellTimeoutError, RuntimeError) as error:  # the kernel died, or did not start
            failure = f"{type(error).__name__}: {error}"
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out)
    if failure is not None:
        told = " ".join(_COLOURS.sub("", failure).split())
        raise UserError(f"{title}: a cell failed with {told[:300]}; {out} shows where")
    return _with_page(notebook, out)


def _kernel_environment(scratch: str) -> dict[str, str]:
    """Ours, without what would keep plots out of the notebook, and with IPython's own files in a folder that goes."""
    ours = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return ours | {"IPYTHONDIR": scratch}


def _with_page(notebook: Any, out: Path) -> Written:
    """The notebook that was written, with a page beside it where nbconvert can make one."""
    if importlib.util.find_spec("nbconvert") is None:
        return Written(out, None, "`pip install nbconvert` for a page beside the notebook")
    from nbconvert import HTMLExporter

    path = out.with_suffix(".html")
    try:
        body, _ = HTMLExporter().from_notebook_node(notebook)
    except Exception as error:  # nbconvert fails in its own ways, and the notebook is there all the same
        return Written(out, None, f"nbconvert failed: {str(error).splitlines()[0] if str(error) else error!r}")
    path.write_text(body, encoding="utf-8")
    return Written(out, path)
