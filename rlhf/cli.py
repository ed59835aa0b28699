"""`rlhf ...`: run stages and pipelines, fork runs, show configurations, describe the environment.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input, 3 a run that stopped itself. Configuration, missing-file
and raw-row errors come before torch is loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rewards.cli import Parser

STAGE_HELP = {
    "sft": "supervised fine-tuning on demonstrations",
    "reward": "a reward model from preference pairs",
    "dpo": "direct preference optimisation on pairs",
    "kto": "preference optimisation on completions that are labelled desirable or not",
    "grpo": "online RL with group-relative advantages and reward functions",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from rlhf import config_cli, fork_cli, notebook_cli, plan_cli
    from rlhf.launch import add_run_arguments

    parser = Parser(prog="rlhf", description="Tuning in which every reward can be accounted for.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage, text in STAGE_HELP.items():
        sub = commands.add_parser(stage, help=text, description=text, epilog="key=value overrides the configuration")
        sub.add_argument("--config", metavar="FILE.yaml", help="configuration; without one, the defaults")
        add_run_arguments(sub)
    sub = commands.add_parser("run", help="a pipeline: a chain of stages, outputs feeding inputs")
    sub.add_argument("pipeline", metavar="PIPELINE.yaml")
    add_run_arguments(sub)
    fork_cli.add_parser(commands)
    notebook_cli.add_parser(commands)
    plan_cli.add_parser(commands)
    config_cli.add_parser(commands)
    sub = commands.add_parser("env", help="versions, threads and devices")
    sub.add_argument("--json", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(argv)
    except SystemExit as stop:  # argparse has said what it had to say
        return int(stop.code or 0)
    from rlhf.launch import told

    return told(lambda: _dispatch(args, rest, parser))


def _dispatch(args: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> int:
    if args.command == "config":
        from rlhf import config_cli

        return config_cli.run(args, rest)
    if args.command == "plan":
        from rlhf import plan_cli

        return plan_cli.run(args, rest)
    if args.command == "fork":
        from rlhf import fork_cli

        return fork_cli.run(args, rest)
    if args.command == "notebook":
        from rlhf import notebook_cli

        return notebook_cli.run(args, rest)
    if args.command == "env":
        from rlhf import environment

        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        facts = environment.describe()
        print(json.dumps(facts, indent=1) if args.json else _plain(facts))
        return 0
    from rewards.config import split_overrides

    overrides = split_overrides(rest)
    if args.command == "run":
        from rlhf.pipeline import run_pipeline

        result = run_pipeline(
            args.pipeline, overrides, resume=args.resume, overwrite=args.overwrite, progress=args.progress
        )
    else:
        from rlhf.launch import launch

        result = launch(
            args.command, args.config, overrides, resume=args.resume, overwrite=args.overwrite, progress=args.progress
        )
    if args.json:
        print(json.dumps(result, indent=1, sort_keys=True))
    elif args.command == "run":
        print("\n".join(filter(None, [result.get("outcomes"), "", f"report: {result['report']}"])))
    elif "ledger" in result:  # absent on ranks other than the first
        print(f"model: {result['model']}\nledger: {result['ledger']['path']}")
    return 0


def _plain(facts: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:")
            lines.append(_plain(value, indent + "  "))
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)


def entry() -> None:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
