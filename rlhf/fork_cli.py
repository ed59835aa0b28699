"""`rlhf fork RUN_DIR --at EVENT --seeds S`: a recalibration with and without it, from the checkpoint before it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.config import split_overrides
from rewards.errors import ConfigError
from rlhf.fork import ARMS, NULL_ARMS
from rlhf.launch import add_run_arguments, claim_output_dir

if TYPE_CHECKING:
    from rlhf.fork.plan import Forking

HELP = "a recalibration with and without it, from the checkpoint before it, over several seeds"
DESCRIPTION = """Continues a run from its newest checkpoint at or before a recalibration, once with it and once without,
for every seed. A seed decides which prompts are drawn and what is sampled after the checkpoint; the two arms of a seed
share both, and everything else (rows, weights, moments, learning rates, held-out answers) is the run's. Triggers are
held in every arm: the one event is all that differs. The arms are runs of the same ledger. The same command with
--resume goes on with what is not finished, and with more seeds."""


def add_parser(subparsers: Any) -> None:
    """Adds `fork`. The caller parses with parse_known_args and hands `run` the rest."""
    parser = subparsers.add_parser(
        "fork", help=HELP, description=DESCRIPTION, epilog="key=value overrides the configuration of every arm alike"
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="output_dir of a stage that has run, with its checkpoints")
    parser.add_argument(
        "--at", required=True, metavar="EVENT", help="which recalibration: its number, its step (step:N), session:N"
    )
    parser.add_argument(
        "--seeds", required=True, metavar="S", help="how many pairs (8: seeds 1 to 8), or which seeds (1,2,5)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps after the event; without it, to the run's end")
    parser.add_argument(
        "--arms", metavar="A,B", help="with,without (the default), sham; null beside --null-arm, which adds its control"
    )
    parser.add_argument(
        "--null-arm",
        action="store_true",
        help="also a differential on the whole reward, whose effect is known to be none, and its control: both "
        "standardise groups without epsilon",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the arms; without it, RUN_DIR/fork-STEP")
    add_run_arguments(parser)


def run(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Runs the arms and prints what they show. Raises: UserError."""
    from rlhf.fork.plan import plan_fork

    forking = plan_fork(
        Path(args.run_dir),
        args.at,
        seeds=_seeds(args.seeds),
        arms=_arms(args.arms, args.null_arm),
        steps=_steps(args.steps),
        out=None if args.out is None else Path(args.out),
        overrides=split_overrides(list(rest)),
    )
    claim_output_dir(forking.out, resume=args.resume, overwrite=args.overwrite)
    from rlhf.fork.run import run_fork

    outcomes = run_fork(forking, progress=args.progress)
    if int(os.environ.get("RANK", "0")) != 0:
        return 0
    document = _document(forking, outcomes)
    if args.json:
        print(json.dumps(document, indent=1, sort_keys=True))
    else:
        print("\n".join(_lines(document)))
    return 0


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--seeds: `{text}` is neither a number of pairs nor a list of seeds as in 1,2,5")
    numbers = [int(part) for part in parts]
    found = tuple(range(1, numbers[0] + 1)) if len(parts) == 1 else tuple(dict.fromkeys(numbers))
    if not found:
        raise ConfigError("--seeds: 0 pairs are no experiment")
    return found


def _arms(text: str | None, null_arm: bool) -> tuple[str, ...]:
    named = ["with", "without"] if text is None else [part.strip() for part in text.split(",")]
    for name in named:
        if name not in ARMS:
            raise ConfigError(f"--arms: `{name}` is no arm; there are with, without, sham, and null with --null-arm")
        if name in NULL_ARMS and not null_arm:
            raise ConfigError(
                "--arms: a differential on the whole reward cancels exactly under `scale_rewards: group`; as a check "
                "of the design it needs --null-arm"
            )
    wanted = set(named) | (set(NULL_ARMS) if null_arm else set())
    if wanted & {"with", "sham"}:
        wanted.add("without")
    return tuple(name for name in ARMS if name in wanted)


def _steps(steps: int | None) -> int | None:
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps: {steps} steps after the event show nothing of it")
    return steps


def _document(forking: Forking, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    from rewards.analysis import forks
    from rewards.ledger import Ledger

    ledger = Ledger.open(forking.ledger)
    try:
        found = forks.section(ledger, forking.run_id)
        head = ledger.head()
    finally:
        ledger.close()
    mine = [one for one in found["forks"] if one["event"]["step"] == forking.event.step]
    return {
        "run": forking.run_id,
        "event": vars(forking.event),
        "checkpoint": str(forking.checkpoint),
        "output_dir": str(forking.out),
        "ledger": {"path": str(forking.ledger), "head": head},
        "arms": outcomes,
        "forks": mine,
        "why": found["why"],
    }


def _lines(document: dict[str, Any]) -> list[str]:
    from rewards.analysis.fork_words import as_lines

    lines = [line for one in document["forks"] for line in [*as_lines(one), ""]]
    return [*lines, f"arms: {document['output_dir']}", f"ledger: {document['ledger']['path']}"]
