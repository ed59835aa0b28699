"""`rewards ...`: read a ledger: report, verify, head, show, recalibrations.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input. With --json, stdout holds one JSON document; what is
said about the work goes to stderr.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rewards.errors import LedgerError, UserError

if TYPE_CHECKING:
    from rewards.ledger import Ledger

Command = Callable[[argparse.Namespace, "Ledger"], int]


class Parser(argparse.ArgumentParser):
    """Bad usage is one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        """Says the line and exits with 2."""
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what it had to say
        return int(stop.code or 0)
    from rewards.ledger import Ledger

    try:
        with Ledger.open(args.ledger) as ledger:
            code: int = args.command(args, ledger)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        return unwritten(error)
    return code


def unwritten(error: OSError) -> int:
    """The exit code where output found no place: 0 when its reader has seen enough, else one line and 2.

    Raises: the error itself where it is of another kind.
    """
    if not isinstance(error, BrokenPipeError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error
    if error.filename is None:  # it was stdout: what is still in its buffer must not be tried again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 0
    print(f"error: {error.filename or 'output'}: {error.strerror}; make room and try again", file=sys.stderr)
    return 2


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="rewards", description="Read a reward ledger.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("ledger", metavar="LEDGER", type=Path, help="folder of the ledger")
        sub.set_defaults(command=command)
        return sub

    report = add("report", _report, "one HTML page and one JSON document about a run")
    report.add_argument("--run", help="run to report; default: the newest online-RL run, else the newest run")
    report.add_argument("--out", metavar="FILE.html", type=Path, help="write the page here")
    report.add_argument(
        "--json", metavar="FILE.json", nargs="?", const="-", help="write the document here; without a file, to stdout"
    )
    verify = add("verify", _verify, "recompute every hash from the stored rows")
    verify.add_argument("--anchor", metavar="HEAD", help="a head kept elsewhere, which must occur in the ledger")
    head = add("head", _head, "the ledger's head: one hash of everything in it")
    show = add("show", _show, "the runs of a ledger, or one session with all that is known of it")
    show.add_argument("--run", help="the run of the session; needed where the ledger has several")
    show.add_argument("--session", type=int, metavar="N", help="number of the session in the run's live view")
    changes = add("recalibrations", _recalibrations, "every change of a schedule, and what was withheld")
    changes.add_argument("--run", help="only this run")
    for sub in (verify, head, show, changes):
        sub.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _report(args: argparse.Namespace, ledger: Ledger) -> int:
    from rewards.report import build_report, dumps, write_html, write_json

    if args.out is None and args.json is None:
        raise UserError("nothing to write: give --out report.html, --json report.json, or both")
    report = build_report(ledger, args.run)
    said = [f"run {report.data['run']}: {report.data['sessions']:,} sessions"]
    if args.out is not None:
        said.append(f"page: {write_html(report, args.out)}")
    if args.json == "-":
        print(dumps(report.data), end="")
    elif args.json is not None:
        said.append(f"document: {write_json(report, args.json)}")
    _note("\n".join(said))
    if not report.data["ledger"]["verified"]:
        _note(f"error: the ledger does not verify: {report.data['ledger']['first_bad']}")
        return 1
    return 0


def _verify(args: argparse.Namespace, ledger: Ledger) -> int:
    found = ledger.verify(args.anchor)
    if args.json:
        _print_json({"ok": found.ok, "first_bad": found.first_bad, "head": found.head, "heads": found.heads})
    elif found.ok:
        print(f"ok: {len(found.heads)} chains fit their rows; head {found.head}")
    else:
        print(f"does not verify: {found.first_bad}")
    return 0 if found.ok else 1


def _head(args: argparse.Namespace, ledger: Ledger) -> int:
    head = ledger.head()
    if args.json:
        _print_json({"head": head})
    else:
        print(head)
    return 0


def _show(args: argparse.Namespace, ledger: Ledger) -> int:
    runs = ledger.runs()
    if args.session is None:
        chosen = [run for run in runs if args.run in (None, run["run_id"])]
        if args.run is not None and not chosen:
            raise LedgerError(_unknown(args.run, runs))
        if args.json:
            _print_json({"runs": chosen})
            return 0
        for run in chosen:
            attempts = "1 attempt" if run["attempts"] == 1 else f"{run['attempts']} attempts"
            print(f"{run['run_id']}: {run['sessions']:,} sessions, {run['steps']:,} steps, {attempts}, {run['status']}")
        if not chosen:
            _note("the ledger holds no run yet")
        return 0
    row = _session(ledger, _only_run(args.run, runs), args.session)
    if args.json:
        _print_json(row)
        return 0
    for name, value in row.items():
        if name == "components":
            for part in value or []:
                print(f"component {part['name']}: " + ", ".join(f"{k}={v}" for k, v in part.items() if k != "name"))
        elif value is not None:
            print(f"{name}: {value}")
    return 0


def _session(ledger: Ledger, run: str, number: int) -> dict[str, Any]:
    import pyarrow.compute as pc

    table = ledger.sessions(run, live=True, texts=True)
    # A number that int64 does not hold is none that arrow compares.
    found = table.filter(pc.equal(table["session"], number)).to_pylist() if abs(number) < 2**63 else []
    if not found:
        last = pc.max(table["session"]).as_py()
        raise LedgerError(f"run `{run}` has no session {number}: its sessions are 1 to {last or 0:,}")
    row: dict[str, Any] = found[0]
    return row


def _recalibrations(args: argparse.Namespace, ledger: Ledger) -> int:
    import numpy as np
    import pyarrow.compute as pc

    from rewards.analysis import recalibrations

    runs = ledger.runs()
    if args.run is not None and args.run not in [run["run_id"] for run in runs]:
        raise LedgerError(_unknown(args.run, runs))
    document = []
    for run in [run["run_id"] for run in runs if args.run in (None, run["run_id"])]:
        events = ledger.events(run)
        if not recalibrations.of_kind(events, "recalibration", "trigger_evaluated"):
            continue
        table = ledger.sessions(run, texts=True)
        table = table.filter(pc.equal(table["split"], "train"))
        steps = np.asarray(table["step"].to_numpy(), dtype=np.int64)
        applied = recalibrations.recalibration_table(table, steps, events)
        held = recalibrations.withheld_table(steps, events)
        document.append({"run": run, "recalibrations": applied, "withheld": held})
    if args.json:
        _print_json({"runs": document})
        return 0
    for entry_of_run in document:
        for row in entry_of_run["recalibrations"]:
            print(f"{_place(entry_of_run['run'], row)}: {_change(row)}. {row['statement']}")
        for row in entry_of_run["withheld"]:
            print(f"{_place(entry_of_run['run'], row)}: {_change(row)} withheld: {row['withheld_because']}")
    if not document:
        _note("no recalibration and no withheld trigger on record")
    return 0


def _place(run: str, row: dict[str, Any]) -> str:
    return f"{run}, after session {row['session']:,} (step {row['step']:,})" if row["session"] is not None else run


def _change(row: dict[str, Any]) -> str:
    component = f" on {row['component']}" if row["component"] else ""
    return f"{row['category']}{component} {row['old_pct']} to {row['new_pct']} %"


def _only_run(name: str | None, runs: Sequence[dict[str, Any]]) -> str:
    if name is None and len(runs) != 1:
        raise LedgerError(f"name the run with --run; the ledger holds: {_names(runs)}")
    if name is not None and name not in [run["run_id"] for run in runs]:
        raise LedgerError(_unknown(name, runs))
    return name if name is not None else str(runs[0]["run_id"])


def _unknown(name: str, runs: Sequence[dict[str, Any]]) -> str:
    return f"no run `{name}` in this ledger; it holds: {_names(runs)}"


def _names(runs: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"`{run['run_id']}`" for run in runs) or "no run yet"


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    entry()
