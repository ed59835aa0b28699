"""`rlhf notebook NAME --run LEDGER[:RUN]`: an executed copy of a notebook beside the run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.errors import ConfigError, UserError
from rlhf import notebook

_MORE = """\
The copy goes into the folder `notebooks` beside the ledger's, or into --out. A notebook is a py:percent file: its cell
tagged `parameters` is replaced by the ledger and the run. A path to such a file serves as NAME, too.

  rlhf notebook convergence --run runs/quickstart/ledger
  rlhf notebook comparing_runs --run runs/b/ledger:demo/grpo --against runs/a/ledger:demo/grpo
"""


def add_parser(subparsers: Any) -> None:
    """Adds `notebook`. The caller parses with parse_known_args and hands `run` the rest."""
    text = "run a notebook on a run and keep the executed copy beside it"
    parser = subparsers.add_parser(
        "notebook",
        help=text,
        description=text,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(notebook.names()) or 'none here'}, or a path")
    parser.add_argument("--run", metavar="LEDGER[:RUN]", required=True, help="default run: the newest online-RL run")
    parser.add_argument("--against", metavar="LEDGER[:RUN]", help="the older run, for a notebook that compares")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the copy")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Executes and writes; 2 where the notebook, the run or a package is missing, or a cell fails."""
    if rest:
        raise ConfigError(f"`rlhf notebook` takes no `{rest[0]}`")
    path = notebook.find(args.name)
    cells = notebook.read_cells(path.read_text(encoding="utf-8"))
    ledger, chosen = _place(args.run)
    values = {"LEDGER": str(ledger), "RUN": chosen}
    if args.against is not None:
        older, other = _place(args.against)
        values |= {"AGAINST": f"{older}:{other}"}
    filled = notebook.with_parameters(cells, values)
    if args.against is None and any("AGAINST" in notebook.parameter_names(c) for c in cells if "parameters" in c.tags):
        raise UserError(f"{path.stem} compares two runs: name the older one with --against LEDGER[:RUN]")
    notebook.need_packages()
    folder = args.out or ledger.parent / "notebooks"
    out = folder / f"{path.stem}-{chosen.replace('/', '-')}.ipynb"
    print(f"{path.stem}: run {chosen} of {ledger}", file=sys.stderr)
    try:
        written = notebook.execute(filled, out, path.stem)
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written: {error.strerror}") from error
    shown = {"notebook": str(written.notebook), "html": None if written.html is None else str(written.html)}
    if args.json:
        print(json.dumps(shown | {"run": chosen, "ledger": str(ledger)}, indent=1))
    else:
        print("\n".join(value for value in shown.values() if value))
    if written.html is None:
        print(f"no HTML: {written.why}", file=sys.stderr)
    return 0


def _place(text: str) -> tuple[Path, str]:
    """The ledger's folder and the run. Raises: UserError when one of them is not there."""
    from rewards.analysis.outcomes import Place
    from rewards.errors import LedgerError
    from rewards.ledger import Ledger
    from rewards.runs import choose_run, pipeline_kinds, unknown_run

    place = Place.read(text)
    with Ledger.open(place.path) as ledger:
        runs = ledger.runs()
        chosen = place.run or choose_run(runs, pipeline_kinds(ledger.events(kind="attempt_started")))
    if chosen not in [one["run_id"] for one in runs]:
        raise LedgerError(f"{place.path}: {unknown_run(chosen, runs)}")
    return place.path.absolute(), chosen
