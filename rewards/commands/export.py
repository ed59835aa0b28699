"""`rewards export`: a run as one file, which `rewards import` makes the same live view of."""

from __future__ import annotations

import argparse
from pathlib import Path

from rewards.commands.arguments import About, Commands, add_command, add_json
from rewards.commands.lookup import only_run
from rewards.commands.output import line, print_json, say
from rewards.counted import counted

# As rewards.export has them, which is not loaded for --help; a test compares the two.
FORMATS = ("parquet", "csv", "jsonl")

ABOUT = About(
    "a run as a Parquet, CSV or JSON lines file",
    "The file is written aside and takes its name when it is whole; one of that name is replaced. Columns: `session`,\n"
    "then those of the ledger. CSV flattens components into component.NAME and component.NAME.KEY. Events go to a\n"
    "file beside it: sessions.parquet -> sessions.events.jsonl. `rewards import` takes both.\n\n"
    "  rewards export LEDGER sessions.parquet --run quickstart/grpo --events",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "export", run, ABOUT)
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write: .parquet, .csv[.gz] or .jsonl[.gz]")
    parser.add_argument("--run", help="the run; needed where the ledger has several")
    parser.add_argument("--all", action="store_true", help="superseded rows too, with a column `live`")
    parser.add_argument("--texts", action="store_true", help="prompts and responses too")
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of the file")
    parser.add_argument("--events", action="store_true", help="the run's events too, in a file beside it")
    parser.add_argument(
        "--salvage", action="store_true", help="what can still be read of a damaged ledger; exit 1 if not all"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what is in it."""
    from rewards.export import Export, export_run
    from rewards.ledger import Ledger

    with Ledger.open(args.ledger) as ledger:
        run_id = only_run(args.run, ledger.runs())
        wanted = Export(run_id, args.out, args.format, args.all, args.texts, args.events, args.salvage)
        summary = export_run(ledger, wanted)
    for damage in summary["damaged"]:
        say(f"not read: {damage}")
    if args.json:
        print_json(summary)
    else:
        rows = counted(summary["rows"], "row")
        print(f"{line(run_id)}: {counted(summary['sessions'], 'session')}, {rows} in {line(summary['file'])}")
        if summary["events_file"] is not None:
            print(f"{counted(summary['events'], 'event')} in {line(summary['events_file'])}")
    return 1 if summary["damaged"] else 0
