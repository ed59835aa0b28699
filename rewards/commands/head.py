"""`rewards head`: one hash of everything."""

from __future__ import annotations

import argparse

from rewards.commands.arguments import About, Commands, add_command, add_json
from rewards.commands.output import print_json

ABOUT = About(
    "the ledger's head: one hash of everything in it",
    "Keep it where the ledger's owner cannot change it; `rewards verify LEDGER --anchor HEAD` then shows that nothing\n"
    "recorded until now was rewritten or cut.",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    add_json(add_command(commands, "head", run, ABOUT))


def run(args: argparse.Namespace) -> int:
    """Prints the head."""
    from rewards.ledger import Ledger

    with Ledger.open(args.ledger) as ledger:
        head = ledger.head()
    if args.json:
        print_json({"head": head})
    else:
        print(head)
    return 0
