"""`rewards analyze`: phases, effects of recalibrations, over-optimisation, behaviour, and what cannot be claimed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from rewards.commands.arguments import About, Commands, add_command, add_json
from rewards.commands.output import line, print_json
from rewards.counted import counted

ABOUT = About(
    "what a run's record supports: phases, effects, over-optimisation, behaviour, and what it cannot support",
    """Each effect stands with its interval, n, adjusted p and the smallest effect that could have been found. A section
that the record cannot support says why. An effect here is an excess over the other categories, not a cause: only a
fork of the run with and without the change identifies its total effect (`rlhf fork`).

examples:
  rewards analyze runs/quickstart/ledger
  rewards analyze runs/quickstart/ledger --run quickstart/grpo --json > analysis.json""",
)

Data = Mapping[str, Any]


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "analyze", run, ABOUT)
    parser.add_argument("--run", help="run to analyse; default: the newest online-RL run, else the newest run")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the analysis of one run."""
    from rewards.analysis.analyze import analyze_run
    from rewards.ledger import Ledger
    from rewards.runs import choose_run, pipeline_kinds

    with Ledger.open(args.ledger) as ledger:
        name = args.run or choose_run(ledger.runs(), pipeline_kinds(ledger.events(kind="attempt_started")))
        document = analyze_run(ledger, name)
    if args.json:
        print_json(document)
    else:
        print("\n".join(line(text) for text in told(document)))
    return 0


def told(document: Data) -> Iterator[str]:
    """The analysis in lines: alerts first, then each section's findings or why it has none."""
    yield f"run {document['run']}: {counted(document['sessions'], 'session')}, {counted(document['steps'], 'step')}"
    for alert in document["alerts"]:
        yield f"[{alert['severity']}] {alert['text']}"
    yield from _phases(document)
    for place, found in enumerate(document["recalibrations"], start=1):
        yield f"R{place} {found['category']} {_pct(found['old_pct'])} to {_pct(found['new_pct'])}: {_effect(found)}"
    for name in ("dose_response", "overoptimization", "behaviour", "agreement", "forks"):
        why = document[name].get("why")
        if why:
            yield f"{name.replace('_', ' ')}: {why}"
    for fork in document["forks"].get("forks") or []:
        yield f"fork: {fork['verdict']}"
    for found in document["transitions"]:
        if found.get("fraction") is not None:
            yield f"transition of {found['outcome']}: {found['verdict']}"


def _phases(document: Data) -> Iterator[str]:
    why = document["segmentation"].get("why")
    if why:
        yield f"phases: {why}"
    if document["segmentation"].get("verdict"):
        yield f"phases: {document['segmentation']['verdict']}"
    for place, found in enumerate(document["phases"], start=1):
        mean = found["mean"]
        yield (
            f"phase {place}: sessions {found['first_session']:,} to {found['last_session']:,}, mean "
            f"{_number(mean['value'])} [{_number(mean['low'])}, {_number(mean['high'])}], sd {_number(found['sd'])}"
        )


def _effect(found: Data) -> str:
    excess = found.get("excess") or {}
    if excess.get("estimate") is None:
        return f"no excess effect is given: {excess.get('why') or found.get('why')}"
    return (
        f"excess effect {excess['points']:+.1f} points [{excess['points_low']:+.1f}, {excess['points_high']:+.1f}], "
        f"n {excess['n_treated']:,} and {excess['n_controls']:,}, "
        f"adjusted p {_number(excess.get('p_adjusted'))}, smallest detectable {_number(found.get('mde_points'))} points"
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _pct(value: Any) -> str:
    return "unknown" if value is None else f"{value:g} %"
