"""`rewards annotate`: a person's note on a session, a range of sessions or a step."""

from __future__ import annotations

import argparse
from typing import Any

from rewards.commands.arguments import About, Commands, add_command, add_json, read_stdin, whole_number
from rewards.commands.lookup import only_run
from rewards.commands.output import print_json, say
from rewards.errors import UserError

ABOUT = About(
    "a person's note on a session, a range of sessions or a step",
    "A note is added and never changed: unfinished ones are kept to the letter, and one that is superseded stays\n"
    "readable. The command prints the number by which `rewards review` and --supersedes speak of it.\n\n"
    "  rewards annotate LEDGER --run demo/grpo --session 4803 --annotator ana --label too-fast \\\n"
    '      --note "the speed of transition seems--"\n'
    "  rewards annotate LEDGER --run demo/grpo --first 10000 --last 11000 --annotator ben \\\n"
    "      --label collapse --note - < note.txt",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "annotate", run, ABOUT)
    parser.verbatim = ("--note",)
    parser.add_argument("--run", help="the run; needed where the ledger has several")
    parser.add_argument("--session", type=whole_number, metavar="N", help="number of a session in the run's live view")
    parser.add_argument("--first", type=whole_number, metavar="A", help="with --last: from this session")
    parser.add_argument("--last", type=whole_number, metavar="B", help="with --first: to this session")
    parser.add_argument("--step", type=whole_number, metavar="S", help="an optimizer step")
    parser.add_argument("--annotator", required=True, metavar="NAME", help="who says it")
    parser.add_argument("--label", required=True, help="what it is, in a word")
    parser.add_argument("--note", metavar="TEXT|-", help="what there is to say; - reads it from stdin, to the letter")
    parser.add_argument("--confidence", type=float, metavar="P", help="how sure, from 0 to 1")
    parser.add_argument(
        "--supersedes", type=whole_number, metavar="EVENT", help="number of the note in whose place this one stands"
    )
    add_json(parser, "print the event as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Adds the note and prints its number."""
    from rewards.annotations import annotate
    from rewards.ledger import Ledger

    about = _about(args)
    note = read_note(args.note)
    with Ledger.open(args.ledger) as ledger:
        event = annotate(
            ledger,
            only_run(args.run, ledger.runs()),
            about,
            annotator=args.annotator,
            label=args.label,
            note=note,
            confidence=args.confidence,
            supersedes=args.supersedes,
        )
    if args.json:
        print_json(event)
    else:
        print(event["seq"])  # alone on stdout, for scripts
        say(f"recorded as event {event['seq']}: {args.label} by {args.annotator}")
    return 0


def read_note(given: str | None) -> str | None:
    """The note as it was given: the argument, or all of stdin for `-`."""
    return read_stdin() if given == "-" else given


def _about(args: argparse.Namespace) -> dict[str, Any]:
    if (args.first is None) != (args.last is None):
        raise UserError("--first and --last go together: a range of sessions has both ends")
    given = {
        "session": args.session,
        "step": args.step,
        "sessions": None if args.first is None else [args.first, args.last],
    }
    about = {name: value for name, value in given.items() if value is not None}
    if len(about) != 1:
        raise UserError("say what the note is about: --session N, --first A --last B, or --step S (one of them)")
    return about
