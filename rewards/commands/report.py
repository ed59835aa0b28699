"""`rewards report`: one page about a run, and the same as a document, as Markdown and as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from rewards.commands.arguments import About, Commands, add_command
from rewards.commands.output import say
from rewards.counted import counted
from rewards.errors import UserError

ABOUT = About("one HTML page about a run; the same as JSON, its findings as Markdown, its curves as PNG")


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "report", run, ABOUT)
    parser.add_argument("--run", help="run to report; default: the newest online-RL run, else the newest run")
    parser.add_argument("--out", metavar="FILE.html", type=Path, help="write the page here")
    parser.add_argument(
        "--json", metavar="FILE.json", nargs="?", const="-", help="write the document here; without a file, to stdout"
    )
    parser.add_argument("--md", metavar="FILE.md", type=Path, help="write the findings here as Markdown")
    parser.add_argument("--png", metavar="FILE.png", type=Path, help="draw the curves here")


def run(args: argparse.Namespace) -> int:
    """Builds the report and writes what was asked for; 1 when the ledger does not verify."""
    from rewards.ledger import Ledger
    from rewards.report import build_report, dumps, write_html, write_json, write_markdown
    from rewards.report.picture import write_png

    if not any((args.out, args.json, args.md, args.png)):
        raise UserError("nothing to write: give --out report.html, --json report.json, --md or --png, or several")
    with Ledger.open(args.ledger) as ledger:
        report = build_report(ledger, args.run)
    said = [f"run {report.data['run']}: {counted(report.data['sessions'], 'session')}"]
    try:
        if args.out is not None:
            said.append(f"page: {write_html(report, args.out)}")
        if args.md is not None:
            said.append(f"findings: {write_markdown(report, args.md)}")
        if args.json == "-":
            print(dumps(report.data), end="")
        elif args.json is not None:
            said.append(f"document: {write_json(report, args.json)}")
        if args.png is not None:  # last: a run may have no curve
            said.append(f"picture: {write_png(report.data, args.png)}")
    finally:
        if len(said) > 1 or args.json == "-":  # a failure that left nothing behind is one line
            say("\n".join(said))
    if not report.data["ledger"]["verified"]:
        say(f"error: the ledger does not verify: {report.data['ledger']['first_bad']}")
        return 1
    return 0
