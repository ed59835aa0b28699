"""`rewards seal`: moves the hot rows into the Delta tables."""

from __future__ import annotations

import argparse

from rewards.commands.arguments import About, Commands, add_command, add_json
from rewards.commands.output import print_json
from rewards.counted import counted

ABOUT = About(
    "move what is hot into the Delta tables and compact them",
    "Safe while writers run, and harmless where nothing is hot: rows are taken out of the tails only once they are in\n"
    "the tables and on disk.",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "seal", run, ABOUT)
    parser.add_argument(
        "--no-vacuum",
        action="store_true",
        help="keep the files that compaction replaced, for readers that still use them",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Seals and says what moved."""
    from rewards.ledger import Ledger

    with Ledger.open(args.ledger) as ledger:
        done = ledger.seal(vacuum=not args.no_vacuum)
    if args.json:
        print_json(done)
    else:
        rows = f"{counted(done['rows'], 'row')} moved" if done["rows"] else "nothing was hot"
        print(f"{rows}; {counted(done['compacted'], 'file')} put together, {counted(done['deleted'], 'file')} deleted")
    return 0
