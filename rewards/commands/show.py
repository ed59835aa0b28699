"""`rewards show`: the runs of a ledger, one run with its attempts, or one row with all that is known of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewards.commands.arguments import About, Commands, add_command, add_json, row_key, whole_number
from rewards.commands.lookup import chosen_runs, only_run
from rewards.commands.output import line, moment, print_items, print_json, print_table, say, size
from rewards.counted import counted
from rewards.errors import UserError

if TYPE_CHECKING:
    from rewards.ledger import Ledger

ABOUT = About(
    "the runs of a ledger, one run with its attempts, or one session with all that is known of it",
    "  rewards show LEDGER                              runs, events and sizes\n"
    "  rewards show LEDGER --run demo/grpo              its attempts; with --all those that a resume superseded too\n"
    "  rewards show LEDGER --run demo/grpo --session 65 the session, its texts, the notes on it\n"
    "  rewards show LEDGER --run demo/grpo --row 1/0/66 any row: also of the eval split, or superseded",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "show", run, ABOUT)
    parser.add_argument("--run", help="only this run; needed with --session where the ledger has several")
    row = parser.add_mutually_exclusive_group()
    row.add_argument("--session", type=whole_number, metavar="N", help="number of the session in the run's live view")
    row.add_argument("--row", type=row_key, metavar="ATTEMPT/WRITER/SEQ", help="or any row by its key")
    parser.add_argument("--all", action="store_true", help="attempts and rows that a resume superseded, too")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what was asked for."""
    from rewards.ledger import Ledger

    if args.all and (args.session is not None or args.row is not None):
        raise UserError("--all is about attempts; a superseded row is shown by --row ATTEMPT/WRITER/SEQ")
    with Ledger.open(args.ledger) as ledger:
        if args.session is None and args.row is None:
            _show_runs(args, ledger)
        else:
            _show_row(args, ledger)
    return 0


def _show_row(args: argparse.Namespace, ledger: Ledger) -> None:
    from rewards.commands.session import print_row, with_record
    from rewards.places import Key, find_row, find_session

    run_id = only_run(args.run, ledger.runs())
    row = find_session(ledger, run_id, args.session) if args.row is None else find_row(ledger, Key(run_id, *args.row))
    known = with_record(ledger, row)
    if args.json:
        print_json(known)
    else:
        print_row(known)


def _show_runs(args: argparse.Namespace, ledger: Ledger) -> None:
    from rewards.commands.overview import overview

    runs = overview(ledger, chosen_runs(args.run, ledger.runs()))
    sizes = ledger.sizes()
    if args.json:
        print_json({"runs": runs, "sizes": sizes})
        return
    if not runs:
        say("the ledger holds no run yet")
        return
    sessions = counted(sum(entry["sessions"] for entry in runs), "session")
    print(f"{line(args.ledger)}: {counted(len(runs), 'run')}, {sessions}; times are UTC\n")
    _print_runs(runs)
    if args.all or args.run is not None:
        for entry in runs:
            _print_attempts(entry, args.all)
    _print_events(runs)
    if args.run is None:
        _print_sizes(sizes)


def _print_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    heads = ["run", "status", "steps", "sessions", "eval", "superseded", "attempts", "started"]
    rows = [
        [
            run["run_id"],
            run["status"],
            *(f"{run[key]:,}" for key in ("steps", "sessions", "eval", "superseded", "attempts")),
            moment(run["started"]),
        ]
        for run in runs
    ]
    print_table(heads, rows, heads[2:7])


def _print_attempts(run: Mapping[str, Any], everything: bool) -> None:
    """Attempts that count, or all: those off the path to the newest one step back."""
    listed = [attempt for attempt in run["history"] if everything or attempt["on_path"]]
    heads = ["attempt", "continues", "arm", "writers", "sessions", "eval", "superseded", "status", "started"]
    rows = [
        [
            f"{attempt['attempt']:,}",
            _parent(attempt, run["run_id"]),
            attempt["arm"] or "",
            *(f"{attempt[key]:,}" for key in ("writers", "sessions", "eval", "superseded")),
            attempt["status"] or "no end",
            moment(attempt["started"]),
        ]
        for attempt in listed
    ]
    if not any(row[2] for row in rows):
        heads.pop(2)
        rows = [row[:2] + row[3:] for row in rows]
    print(f"\nattempts of {line(run['run_id'])}")
    right = ("attempt", "writers", "sessions", "eval", "superseded")
    print_table(heads, rows, right, [i for i, attempt in enumerate(listed) if not attempt["on_path"]])
    hidden = len(run["history"]) - len(listed)
    if hidden:
        print(f"{counted(hidden, 'attempt')} of which nothing counts; --all shows more")


def _parent(attempt: Mapping[str, Any], run_id: str) -> str:
    parent = attempt["parent"]
    if parent is None:
        return ""
    whose = (
        f"{parent['attempt']:,}" if parent["run_id"] == run_id else f"fork of {parent['run_id']} {parent['attempt']:,}"
    )
    return f"{whose}, step {attempt['resume_step']:,}"


def _print_events(runs: Sequence[Mapping[str, Any]]) -> None:
    totals: dict[str, int] = {}
    for run in runs:
        for kind, count in run["events"].items():
            totals[kind] = totals.get(kind, 0) + count
    if totals:
        print()
        print_items("events", [f"{count:,} {kind}" for kind, count in sorted(totals.items())])


def _print_sizes(sizes: Mapping[str, Any]) -> None:
    parts = {"ledger.db": "ledger_bytes", "tails": "tail_bytes", "sessions": "session_bytes", "texts": "text_bytes"}
    total = sum(sizes[key] for key in parts.values())
    print_items(f"on disk: {size(total)}", [f"{name} {size(sizes[key])}" for name, key in parts.items()])
    sealed = f"{sizes['sealed_rows']:,} sealed in {counted(sizes['files'], 'file')}"
    print(f"rows: {sizes['hot_rows']:,} hot, {sealed}")
