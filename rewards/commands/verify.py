"""`rewards verify`: recomputes every hash from the stored rows."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from rewards.commands.arguments import About, Commands, add_command, add_json
from rewards.commands.output import line, print_json
from rewards.counted import counted

if TYPE_CHECKING:
    from rewards.verify import Verification

ABOUT = About(
    "recompute every hash from the stored rows",
    "Exit code 1 when something does not fit. Without --anchor, a chain rewritten with all its later hashes, or cut\n"
    "after the last checkpoint, cannot be told from one that is whole. A redacted text is no fault: its hash stays.",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "verify", run, ABOUT)
    parser.add_argument("--anchor", metavar="HEAD", help="a head kept elsewhere, which must occur in the ledger")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Verifies; 0 when all fits, else 1."""
    from rewards.ledger import Ledger

    with Ledger.open(args.ledger) as ledger:
        found = ledger.verify(args.anchor)
    if args.json:
        print_json(
            {
                "ok": found.ok,
                "first_bad": found.first_bad,
                "problems": list(found.problems),
                "head": found.head,
                "heads": found.heads,
            }
        )
    else:
        _print(found, args.anchor)
    return 0 if found.ok else 1


def _print(found: Verification, anchor: str | None) -> None:
    """A line a chain: what fits and what does not; then whatever is no single chain's."""
    rest = list(found.problems)
    for chain in sorted(found.heads):
        problem = next((problem for problem in rest if _is_of(problem, chain)), None)
        if problem is not None:
            rest.remove(problem)
        print(f"fits: {_called(chain)}" if problem is None else f"does not fit: {line(problem)}")
    for problem in rest:
        print(f"does not fit: {line(problem)}")
    chains = counted(len(found.heads), "chain")
    if not found.ok:
        print(f"the ledger does not verify: {counted(len(found.problems), 'problem')}, {chains}")
        return
    if anchor is not None:
        print("fits: the anchor occurs in the history")
    print(f"ok: {chains} verified; head {found.head}")


def _called(chain: str) -> str:
    from rewards.chain import EVENTS_CHAIN

    if chain == EVENTS_CHAIN:
        return "events"
    run, attempt, writer = chain.rsplit("/", 2)
    return line(f"run {run}, attempt {attempt}, writer {writer}")


def _is_of(problem: str, chain: str) -> bool:
    """Whether the first misfit of a chain is what a problem speaks of."""
    from rewards.chain import EVENTS_CHAIN

    of_events = re.search(r"^run [^:]*: event \d+ \(", problem) is not None
    if chain == EVENTS_CHAIN:
        return of_events
    return not of_events and problem.startswith((f"{_called(chain)}:", f"{_called(chain)},"))
