"""`rewards import`: a whole run from files: the ledger's own columns, or the logs of another trainer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rewards.commands.arguments import Commands, add_json, named_numbers
from rewards.commands.output import line, print_json, say
from rewards.counted import counted
from rewards.errors import UserError

# As the importers have them, which are not loaded for --help; a test compares the two.
FORMATS = ("auto", "csv", "jsonl", "parquet", "trl", "verl", "open-instruct")
_TEXT = "a run from files: CSV, JSON lines, Parquet, or the logs of TRL, verl and open-instruct"
_MORE = """\
A CSV, JSON lines or Parquet file uses the ledger's column names, or --map gives them. Every field must become a column:
one that is none is refused, with the nearest name, until --map or --drop says what is meant. Columns that are not given
are null; pipeline, split, prompt_id and step have defaults, which the summary names. A reward function's raw value is
the column component.NAME, its other keys component.NAME.weight and so on. An empty CSV cell is null.

Session numbers must be dense from 1 over the training rows, steps must not go backwards. Nothing is written before the
whole file was read and fits, and a run that exists is refused.

Events: one JSON object a line, with `kind`, `session` or `step`, and its fields:
  {"kind": "recalibration", "session": 2500, "category": "2", "old_pct": 12, "new_pct": 15, "reason": "..."}

examples:
  rewards import sessions.csv --ledger runs/ledger --run-id audit --events events.jsonl
  rewards import 'logs/*.parquet' --ledger runs/ledger --run-id a --map category=intent component.task=rewards/task
  rewards import out/completions --ledger runs/ledger --run-id grpo --reward-weight accuracy=1 format=0.5
"""


def register(commands: Commands) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "import",
        help=_TEXT,
        description=_TEXT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="files, folders or quoted globs")
    parser.add_argument(
        "--ledger", metavar="DIR", type=Path, required=True, help="folder of the ledger; made if missing"
    )
    parser.add_argument("--run-id", metavar="RUN", required=True, help="name of the new run")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="default: by file name and first row")
    pairs: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
    parser.add_argument("--map", metavar="COLUMN=FIELD", help="the ledger's column is the file's field", **pairs)
    parser.add_argument("--set", metavar="COLUMN=VALUE", help="one value for all rows", **pairs)
    parser.add_argument("--drop", metavar="FIELD", help="leave a field of the file out", **pairs)
    parser.add_argument("--events", metavar="FILE.jsonl", type=Path, help="events of the run, one JSON object a line")
    parser.add_argument("--reward-weight", metavar="NAME=W", help="weight of a TRL reward function", **pairs)
    add_json(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Imports and says what was done, and what such files cannot contain."""
    from rewards.importers import Options, Request, import_run, read_pairs

    columns = read_pairs("--map", args.map)
    drop = frozenset(args.drop)
    for column, name in columns.items():
        if name in drop:
            raise UserError(f"--map {column}={name} and --drop {name} exclude each other")
    options = Options(columns, drop, read_pairs("--set", args.set))
    weights = named_numbers(args.reward_weight, "--reward-weight")
    request = Request(args.run_id, args.files, args.format, options, args.events, weights)
    summary = import_run(args.ledger, request)
    if args.json:
        print_json(summary)
        return 0
    _print(summary)
    return 0


def _print(summary: dict[str, Any]) -> None:
    files = summary["files"]
    source = files[0] if len(files) == 1 else f"{len(files)} files from {files[0]} on"
    print(
        f"{line(summary['run'])}: {counted(summary['sessions'], 'session')}, {counted(summary['steps'], 'step')} "
        f"and {counted(summary['events'], 'event')} from {line(source)} ({summary['format']})"
    )
    if summary["evaluation_rows"]:
        print(f"evaluation rows, which are not numbered: {summary['evaluation_rows']:,}")
    for column, text in summary["defaults"].items():
        print(f"no column `{column}`: {text}")
    for said, names in (("left out", summary["dropped"]), ("given anew", summary["renumbered"])):
        if names:
            print(f"{said}: {', '.join(map(line, names))}")
    if summary["sorted"]:
        print("the rows were put in the order of their sessions and steps")
    if summary["foreign_events"]:
        print(f"not taken: {counted(summary['foreign_events'], 'event')} about the attempts of another ledger")
    for note in summary["notes"]:
        print(line(note))
    if summary["cannot_contain"]:
        print(f"what files of {summary['format']} cannot contain:")
        for limit in summary["cannot_contain"]:
            print(f"  - {limit}")
    say(f"head of the ledger: {summary['head']}")
