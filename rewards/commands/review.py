"""`rewards review`: what somebody thinks of a note, beside the note."""

from __future__ import annotations

import argparse

from rewards.annotations import VERDICTS
from rewards.commands.annotate import read_note
from rewards.commands.arguments import About, Commands, add_command, add_json, whole_number
from rewards.commands.output import print_json

ABOUT = About(
    "what somebody thinks of a note, beside the note",
    "A review changes nothing and closes nothing: the note stays, and so does every other review of it, whether they\n"
    "agree or not. `rewards annotations LEDGER` shows them side by side.\n\n"
    '  rewards review LEDGER 17 --annotator ben --verdict disagree --note "steps 40 to 44 say otherwise"',
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "review", run, ABOUT)
    parser.verbatim = ("--note",)
    parser.add_argument(
        "event", metavar="EVENT", type=whole_number, help="number of the note, as `annotations` lists it"
    )
    parser.add_argument("--annotator", required=True, metavar="NAME", help="who says it")
    verdict = parser.add_mutually_exclusive_group(required=True)
    verdict.add_argument("--verdict", choices=VERDICTS, help="agree, disagree or unclear")
    verdict.add_argument("--label", help="or a word of your own; the note then counts as unsettled")
    parser.add_argument("--note", metavar="TEXT|-", help="why; - reads it from stdin, to the letter")
    add_json(parser, "print the event as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Adds the review and prints its number."""
    from rewards.annotations import review
    from rewards.ledger import Ledger

    note = read_note(args.note)
    verdict = args.verdict if args.verdict is not None else args.label
    with Ledger.open(args.ledger) as ledger:
        event = review(ledger, args.event, annotator=args.annotator, verdict=verdict, note=note)
    if args.json:
        print_json(event)
    else:
        print(event["seq"])
    return 0
