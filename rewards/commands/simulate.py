"""`rewards simulate`: the record of an audit, simulated, as a new ledger to try the other commands on."""

from __future__ import annotations

import argparse

from rewards.commands.arguments import About, Commands, add_command, add_json, whole_number
from rewards.commands.output import print_json, say

ABOUT = About(
    "write a simulated record into a new ledger: the figures of an audit, with known causes",
    "No model is trained. The record has 12,847 sessions of online RL with three recalibrations, a phrase that sets\n"
    "off a trigger, a vocabulary that narrows, a transition between sessions 10,000 and 11,000, and notes of people.\n"
    "By construction no recalibration has any effect, so that what an analysis says of them can be checked.\n\n"
    "  rewards simulate runs/audit\n"
    "  rewards report runs/audit --out audit.html",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "simulate", run, ABOUT)
    parser.add_argument("--seed", type=whole_number, default=0, metavar="S", help="default: 0")
    parser.add_argument(
        "--sessions",
        type=whole_number,
        default=12_847,
        metavar="N",
        help="default: 12,847, where the audit's figures hold; other lengths stretch or shrink the same curves",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the record and says that it is simulated."""
    from rewards.audit import write_record

    written = write_record(args.ledger, args.seed, args.sessions)
    if args.json:
        print_json(written)
        return 0
    print(f"{written['path']}: run {written['run']}, {written['sessions']:,} sessions, {written['steps']:,} steps")
    print(written["statement"])
    say(f"head of the ledger: {written['head']}")
    return 0
