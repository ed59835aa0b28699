"""`rewards recalibrations`: every change of a schedule, and what was withheld."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rewards.commands.arguments import About, Commands, add_command, add_json
from rewards.commands.lookup import chosen_runs
from rewards.commands.output import line, print_json, say

if TYPE_CHECKING:
    from rewards.ledger import Ledger

ABOUT = About(
    "every change of a schedule, and what was withheld",
    "Each change stands with what the record supports about its effect, as `rewards analyze` says it; with --json as\n"
    "its entries do.",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "recalibrations", run, ABOUT)
    parser.add_argument("--run", help="only this run")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the changes of all runs, each with what the record supports about it."""
    from rewards.ledger import Ledger

    with Ledger.open(args.ledger) as ledger:
        found = [_changes(ledger, run_id) for run_id in chosen_runs(args.run, ledger.runs())]
    document = [entry for entry in found if entry is not None]
    if args.json:
        print_json({"runs": document})
        return 0
    for entry in document:
        for row in entry["recalibrations"]:
            print(f"{_place(entry['run'], row)}: {_change(row)}. {line(row['verdict'])}")
        for row in entry["withheld"]:
            print(f"{_place(entry['run'], row)}: {_change(row)} withheld: {line(row['withheld_because'])}")
    if not document:
        say("no recalibration and no withheld trigger on record")
    return 0


def _changes(ledger: Ledger, run_id: str) -> dict[str, Any] | None:
    from rewards.analysis import recalibration_effect, recalibrations
    from rewards.analysis.analyze import plain
    from rewards.analysis.data import RunData

    if not recalibrations.of_kind(ledger.events(run_id), "recalibration", "trigger_evaluated"):
        return None
    with RunData.read(ledger, run_id) as data:
        withheld = recalibrations.withheld_table(data.steps, data.events)
        applied = plain(recalibration_effect.section(data))
    return {"run": run_id, "recalibrations": applied, "withheld": withheld}


def _place(run_id: str, row: dict[str, Any]) -> str:
    after = f", after session {row['session']:,} (step {row['step']:,})" if row["session"] is not None else ""
    return line(f"{run_id}{after}")


def _change(row: dict[str, Any]) -> str:
    component = f" on {row['component']}" if row["component"] else ""
    return line(f"{row['category']}{component} {row['old_pct']} to {row['new_pct']} %")
