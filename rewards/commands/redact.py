"""`rewards redact`: takes texts of a row out for good; their hashes stay, so that the ledger still verifies."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from rewards.commands.arguments import About, Commands, add_command, add_json, row_key, whole_number
from rewards.commands.lookup import only_run
from rewards.commands.output import line, print_json, say
from rewards.counted import counted
from rewards.errors import LedgerError, UserError

if TYPE_CHECKING:
    from rewards.ledger import Ledger

ABOUT = About(
    "take texts of a row out for good",
    "The text is null from then on, everywhere; that it was taken out, by whom and why, is on record, and the ledger\n"
    "still verifies. Copies elsewhere (backups, exports, reports) are not reached. The same text in other rows stays:\n"
    "the command says how many hold it.\n\n"
    "  rewards redact LEDGER --run demo/grpo --session 65 --column prompt --reason 'a name' --by ana\n"
    "  rewards redact LEDGER --run demo/grpo --row 1/0/66 --reason 'a name' --by ana --yes",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "redact", run, ABOUT)
    parser.add_argument("--run", help="the run; needed where the ledger has several")
    row = parser.add_mutually_exclusive_group(required=True)
    row.add_argument("--session", type=whole_number, metavar="N", help="number of the session in the run's live view")
    row.add_argument(
        "--row",
        "--eval-row",
        type=row_key,
        metavar="ATTEMPT/WRITER/SEQ",
        help="or any row: one of the eval split, or a superseded one",
    )
    parser.add_argument(
        "--column",
        action="append",
        metavar="TEXT",
        help="which text: prompt, response or rejected; may be repeated; default: all the row has",
    )
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why, for the record")
    parser.add_argument("--by", required=True, metavar="NAME", help="who decided it")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_json(parser, "print what was done as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Asks, takes the texts out and says where the same ones still are."""
    from rewards.ledger import Ledger
    from rewards.places import Key, find_row, find_session, key_of

    for name, value in {"--reason": args.reason, "--by": args.by}.items():
        if not value.strip():
            raise UserError(f"{name} is empty; the record says why a text is gone, and who decided it")
    with Ledger.open(args.ledger) as ledger:
        run_id = only_run(args.run, ledger.runs())
        row = (
            find_session(ledger, run_id, args.session) if args.row is None else find_row(ledger, Key(run_id, *args.row))
        )
        key, columns = key_of(row), _columns(row, args.column)
        gone = [column for column in columns if row[column] is None]
        if gone or not columns:  # says why it cannot, when it has finished what another one may have left undone
            ledger.redact(run_id, *key[1:], gone, reason=args.reason, by=args.by)
        elsewhere = _elsewhere(ledger, row, columns)
        what = f"{', '.join(columns)} of {_called(row)}"
        if not args.yes and not _confirmed(what):
            raise UserError("nothing was taken out")
        done = ledger.redact(run_id, *key[1:], columns, reason=args.reason, by=args.by)
    for column, count in elsewhere.items():
        say(
            f"the same {column} text stands in {counted(count, 'other row')}; each is redacted by itself "
            "(the view `texts` of `rewards sql` finds them)"
        )
    if args.json:
        print_json(done)
    else:
        print(f"taken out: {what}")
        say(f"recorded as event {done['seq']}; the hash of the text stays, so the ledger still verifies")
    return 0


def _columns(row: dict[str, Any], wanted: list[str] | None) -> list[str]:
    """The texts to take out."""
    from rewards.schema import TEXT_COLUMNS

    unknown = [column for column in wanted or () if column not in TEXT_COLUMNS]
    if unknown:
        raise LedgerError(f"`{unknown[0]}` is no text of a session; the texts are {', '.join(TEXT_COLUMNS)}")
    if wanted is None:
        wanted = [column for column in TEXT_COLUMNS if row[column] is not None]
    return [column for column in TEXT_COLUMNS if column in wanted]


def _called(row: dict[str, Any]) -> str:
    from rewards.places import key_of

    number = f"session {row['session']:,}, " if row.get("session") is not None else ""
    return f"{number}row {key_of(row)} of run {line(row['run_id'])}"


def _elsewhere(ledger: Ledger, row: dict[str, Any], columns: list[str]) -> dict[str, int]:
    """How many other rows hold the same text, by column; columns without any are left out."""
    from rewards.places import asked, rows

    counts = ", ".join(f"count(*) FILTER ({column} = ?) - 1 AS {column}" for column in columns)
    texts = [row[column] for column in columns]
    (found,) = asked(ledger, lambda connection: rows(connection, f"SELECT {counts} FROM texts", texts))
    return {column: count for column, count in found.items() if count > 0}


def _confirmed(what: str) -> bool:
    """Whether the person at the terminal says yes.

    Raises: UserError where nobody can be asked.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError(f"{what}: cannot be brought back; say --yes")
    print(f"{what}: cannot be brought back. Take it out? [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"
