"""Arguments that commands share."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rewards.errors import UserError

if TYPE_CHECKING:
    from rewards.cli import Parser

Run = Callable[[argparse.Namespace], int]
Commands = Any  # argparse names the type of `add_subparsers()` in its private part only


class About(NamedTuple):
    """What `--help` says. text: one line. more: paragraphs and examples below the options, kept as they are."""

    text: str
    more: str | None = None


def add_command(commands: Commands, name: str, run: Run, about: About) -> Parser:
    """A command that reads or writes one ledger."""
    parser: Parser = commands.add_parser(
        name,
        help=about.text,
        description=about.text,
        epilog=about.more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ledger", metavar="LEDGER", type=Path, help="folder of the ledger")
    parser.set_defaults(command=run)
    return parser


def add_json(parser: argparse._ActionsContainer, what: str = "print one JSON document") -> None:
    """The option that every command has."""
    parser.add_argument("--json", action="store_true", help=what)


def whole_number(text: str) -> int:
    """A number as people copy it from a report: 4803 or 4,803.

    Raises: ArgumentTypeError for anything else.
    """
    if len(text) > 40 or not re.fullmatch(r"\s*([+-]?\d+|\d{1,3}(,\d{3})+)\s*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    return int(text.replace(",", ""))


def row_key(text: str) -> tuple[int, int, int]:
    """ATTEMPT/WRITER/SEQ, as rows are called for good.

    Raises: ArgumentTypeError for anything else.
    """
    if len(text) > 60 or not re.fullmatch(r"\d+/\d+/\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not ATTEMPT/WRITER/SEQ, such as 1/0/66")
    attempt, writer, seq = (int(part) for part in text.split("/"))
    return attempt, writer, seq


def read_stdin() -> str:
    """All of stdin, to the letter: read as bytes, since text streams change the ends of lines.

    Raises: UserError when there is none, or when it is no UTF-8.
    """
    if sys.stdin is None:
        raise UserError("stdin is closed: give the text itself instead of -")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"stdin: byte {error.start:,} is no UTF-8; give UTF-8 text") from error


def named_numbers(given: Iterable[str], option: str) -> dict[str, float]:
    """The numbers of an option that is given as NAME=NUMBER, any number of times.

    Raises: UserError for anything else.
    """
    found = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise UserError(f"{option} {text}: write it as {option} NAME=0.5")
    return found
