"""`rewards compare`: did anything get worse from an old set of answers to a new one, to the same prompts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rewards.commands.arguments import About, Commands, add_json, whole_number
from rewards.commands.output import line, print_json, print_table, say
from rewards.counted import counted
from rewards.errors import UserError

ABOUT = About(
    "did anything get worse from an old set of answers to a new one, to the same prompts",
    "Answers are paired by prompt_id. A regression is a mean whose interval leaves out 0, a category that is worse\n"
    "after the adjustment for how many there are, or a worse mean of the worst 5 %; without any change about one\n"
    "comparison in ten is called one. Exit 0 no regression found, 1 a regression, 2 nothing to compare.\n"
    "A file has one row an answer: prompt_id, numbers, and where known category, split and step (.json, .jsonl, .csv,\n"
    ".parquet). Of the eval rows of a run those of its last step are taken.\n\n"
    "  rewards compare LEDGER:demo/dpo LEDGER:demo/grpo --metric compliant\n"
    "  rewards compare LEDGER LEDGER --run-a demo/grpo --run-b demo/grpo --step-a 0 --step-b 60 --split eval\n"
    "  rewards compare old.jsonl new.jsonl --metric accuracy --json",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "compare",
        help=ABOUT.text,
        description=ABOUT.text,
        epilog=ABOUT.more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="the old: LEDGER, LEDGER:RUN or an evaluation file")
    parser.add_argument("b", metavar="B", help="the new, likewise")
    parser.add_argument("--metric", help="column or component; default: baseline_reward, or a file's only number")
    parser.add_argument("--run-a", metavar="RUN", help="run of A; default: the newest online-RL run, else the newest")
    parser.add_argument("--run-b", metavar="RUN", help="run of B, likewise")
    parser.add_argument("--step-a", metavar="S", type=whole_number, help="of A only what was scored for this step")
    parser.add_argument("--step-b", metavar="S", type=whole_number, help="of B, likewise")
    parser.add_argument(
        "--split", choices=("train", "eval"), help="default: eval where both sides have such rows, else train"
    )
    parser.add_argument(
        "--less-is-better",
        action="store_true",
        help="a rise is the regression; taken by itself for a component with a negative weight",
    )
    parser.add_argument(
        "--limits",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="what a value can be, for the e-process; default: 0 1 where all are",
    )
    add_json(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Compares and prints; 1 when there is a regression."""
    from rewards.analysis.compare import compare
    from rewards.analysis.outcomes import Place, read_sides

    if args.limits is not None and not args.limits[0] < args.limits[1]:
        raise UserError(f"--limits {args.limits[0]:g} {args.limits[1]:g}: give the lower one first")
    places = Place.read(args.a, args.run_a, args.step_a), Place.read(args.b, args.run_b, args.step_b)
    old, new, metric = read_sides(*places, args.metric, args.split)
    less = args.less_is_better
    weights = [side.weight for side in (old, new) if side.weight]
    if not less and weights and all(weight < 0 for weight in weights):
        less = True
        say(f"the weight of `{metric}` is negative: less of it is better")
    limits = None if args.limits is None else (args.limits[0], args.limits[1])
    found = compare(old, new, metric, less_is_better=less, limits=limits)
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 1 if found["regression"] else 0


def _print(found: Mapping[str, Any]) -> None:
    for name in ("a", "b"):
        print(f"{name.upper()}  {_side(found[name])}")
    paired = f"{counted(found['prompts'], 'prompt')} with {counted(found['pairs'], 'pair')} of answers"
    alone = f"{counted(found['unpaired_a'], 'prompt')} only in A, {found['unpaired_b']:,} only in B"
    print(f"\n{line(found['metric'])} ({found['better']} is better): {paired}; {alone}\n")
    rows = [("mean", found["difference"]), ("worst 5 %", found["tails"]["cvar_5"])]
    table = [[name, *_cells(row), _p(row["p"]), ""] for name, row in rows]
    for row in found["slices"]:
        name = "(no category)" if row["category"] is None else row["category"]
        table.append([name, *_cells(row), _p(row["p"]), _p(row["p_adjusted"]), row["verdict"]])
    heads = ("", "prompts", "B - A", "95 % interval", "finds from", "p", "adjusted p", "")
    print_table(heads, [[*cells, *[""] * (len(heads) - len(cells))] for cells in table], right=heads[1:7])
    for name, section in (("worst 5 %", found["tails"]["cvar_5"]), ("McNemar", found["mcnemar"])):
        if section["why"] is not None:
            say(f"{name}: {section['why']}")
    _print_more(found)
    print(f"\n{line(found['verdict'])}")


def _print_more(found: Mapping[str, Any]) -> None:
    table, monitored = found["mcnemar"], found["eprocess"]
    if table["p"] is not None:
        changed = f"{counted(table['worse'], 'prompt')} changed for the worse, {table['better']:,} for the better"
        print(f"\nMcNemar: {changed}; mid-p {_p(table['p'])}, exact {_p(table['exact_p'])}")
    banded = [row for row in found["tails"]["quantiles"] if row["low"] is not None]
    moved = [row for row in banded if not row["low"] <= 0 <= row["high"]]
    if moved:
        told = ", ".join(f"{100 * row['q']:.0f} %: {row['estimate']:+.3g}" for row in moved)
        print(f"\nQuantiles that moved (joint 95 % band): {told}")
    if monitored["why"] is not None:
        say(f"e-process: {monitored['why']}")
    elif monitored["alarm_at"] is not None:
        print(f"\nE-process: alarm (E >= 20) at prompt {monitored['alarm_at'] + 1:,} of {monitored['n']:,}, in order")
    else:
        print(f"\nE-process: no alarm; largest E {monitored['max_e']:.3g} over {counted(monitored['n'], 'prompt')}")


def _side(side: Mapping[str, Any]) -> str:
    parts = [line(side["source"])]
    parts += [f"run {line(side['run'])}"] if side["run"] is not None else []
    parts += [f"{side['split']} rows"] if side["split"] is not None else []
    parts += [f"step {side['step']:,}"] if side["step"] is not None else []
    parts.append(counted(side["answers"], "answer"))
    parts += [f"{side['missing']:,} without a value left out"] if side["missing"] else []
    return ", ".join(parts)


def _cells(row: Mapping[str, Any]) -> list[str]:
    interval = "" if row["low"] is None else f"{row['low']:+.3g} to {row['high']:+.3g}"
    estimate = "" if row["estimate"] is None else f"{row['estimate']:+.3g}"
    return [f"{row['n']:,}", estimate, interval, "" if row["mde"] is None else f"{row['mde']:.3g}"]


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
