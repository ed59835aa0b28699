"""`rewards trigger`: what a k-of-n trigger does by chance, and how soon it answers, before a run is started."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rewards.commands.arguments import About, Commands, add_json, whole_number
from rewards.commands.output import print_json, print_table
from rewards.counted import counted
from rewards.errors import UserError

ABOUT = About(
    "what a k-of-n trigger does by chance, and how soon it answers",
    "The trigger fires when k of the last n sessions match. Its false alarms over a whole run are computed exactly,\n"
    "for independent sessions, not from the chance of one window.\n\n"
    "  rewards trigger --base-rate .02 --k 7 --n 20 --sessions 12847\n"
    "  rewards trigger --observed 0/300 --k 7 --n 20 --sessions 12847 --phrases 5",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "trigger",
        help=ABOUT.text,
        description=ABOUT.text,
        epilog=ABOUT.more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rate = parser.add_mutually_exclusive_group(required=True)
    rate.add_argument("--base-rate", type=float, metavar="P", help="share of sessions that match while all is well")
    rate.add_argument("--observed", metavar="HITS/SESSIONS", help="or what was seen: its upper 95 %% limit is taken")
    parser.add_argument("--k", type=whole_number, required=True, help="matches that fire the trigger")
    parser.add_argument("--n", type=whole_number, required=True, help="sessions of the window (up to 24)")
    parser.add_argument("--sessions", type=whole_number, required=True, metavar="N", help="length of the run")
    parser.add_argument("--phrases", type=whole_number, default=1, metavar="M", help="phrases watched; default 1")
    parser.add_argument(
        "--alpha", type=float, default=0.05, metavar="A", help="false alarms allowed in a run, all phrases; default .05"
    )
    add_json(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Prints the design."""
    from rewards.analysis.trigger_report import Design, report, upper_limit

    if args.observed is None:
        rate, source = args.base_rate, "given"
    else:
        hits, sessions = _observed(args.observed)
        rate, source = upper_limit(hits, sessions), f"upper 95 % limit of {hits:,} in {counted(sessions, 'session')}"
    try:
        design = Design(rate, args.k, args.n, args.sessions, args.phrases, args.alpha)
    except ValueError as error:
        raise UserError(str(error)) from error
    found = report(design, source)
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _observed(text: str) -> tuple[int, int]:
    hits, slash, sessions = text.partition("/")
    try:
        counts = whole_number(hits), whole_number(sessions)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--observed {text}: write it as HITS/SESSIONS, such as 0/300") from error
    if not slash or not 0 <= counts[0] <= counts[1] or counts[1] == 0:
        raise UserError(f"--observed {text}: needs 0 <= HITS <= SESSIONS and at least one session")
    return counts


def _print(found: Mapping[str, Any]) -> None:
    rate = f"{100 * found['base_rate']:.3g} %"
    print(
        f"{found['k']} of {found['n']} at a base rate of {rate} ({found['base_rate_source']}), "
        f"{counted(found['sessions'], 'session')}, {counted(found['phrases'], 'phrase')}\n"
    )
    print(f"one full window:          {found['pointwise']:.3g}")
    print(f"some time in the run:     {found['run_false_alarm']:.3g}")
    if found["phrases"] > 1:
        print(f"any of {found['phrases']:,} phrases:".ljust(26) + f"at most {found['run_false_alarm_phrases']:.3g}")
    if found["delays"]:
        print("\nSessions until it fires once the rate is higher, from an empty window:\n")
        rows = [
            [f"{100 * d['rate']:.3g} %", f"{d['mean']:,.1f}", _count(d["median"]), _count(d["p95"])]
            for d in found["delays"]
        ]
        print_table(("rate", "mean", "median", "95 %"), rows, right=("rate", "mean", "median", "95 %"))
    print("\n" + "\n".join([found["verdict"], *found["caveats"]]))


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
