"""`rewards replay`: what another schedule, other weights or another normalisation would have made of the rewards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.commands.arguments import About, Commands, add_command, add_json, named_numbers
from rewards.commands.lookup import chosen_runs
from rewards.commands.output import line, print_json, print_table, say
from rewards.counted import counted
from rewards.errors import UserError

if TYPE_CHECKING:
    from rewards.ledger import Ledger
    from rewards.replay import Record

ABOUT = About(
    "re-score the recorded groups under another schedule, other weights or another normalisation",
    "The file holds the schedule part of a reward section (differentials, place, pivot, triggers, reward_funcs,\n"
    "reward_weights), under `reward:` or alone, and may set train.scale_rewards. It is the whole schedule: a\n"
    "differential that it does not name is 0, and components that `reward_funcs` does not list are no part of the\n"
    "reward. Without a file the differentials stay as the sessions carry them. Values are as recorded; no reward\n"
    "function is called. Triggers act on the recorded responses.\n\n"
    "The answer is exact for the signal that was given; silent on what the model would have become.\n\n"
    "  rewards replay LEDGER --schedule new.yaml --run demo/grpo\n"
    "  rewards replay LEDGER --weights task=1 unsolicited=-2 --scale-rewards batch",
)
SCALES = ("group", "batch", "none")


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "replay", run, ABOUT)
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="YAML with another schedule")
    parser.add_argument("--run", help="the run; default: the newest online run")
    parser.add_argument(
        "--weights", metavar="NAME=W", nargs="+", action="extend", default=[], help="other weights of components"
    )
    parser.add_argument("--scale-rewards", choices=SCALES, help="another normalisation of advantages")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints before and after."""
    from rewards.ledger import Ledger

    if args.schedule is None and not args.weights and args.scale_rewards is None:
        raise UserError("nothing to replay: give --schedule FILE, --weights NAME=W or --scale-rewards")
    weights = _weights(args.weights)
    with Ledger.open(args.ledger) as ledger:
        document = _replayed(ledger, args, weights)
    if args.json:
        print_json(document)
    else:
        _print(document)
    return 0


def _replayed(ledger: Ledger, args: argparse.Namespace, weights: dict[str, float]) -> dict[str, Any]:
    from rewards.replay import PAIRED, make_plan, read_answers, read_run, read_schedule, replay, replay_pairs
    from rewards.runs import choose_run, pipeline_kinds

    file = None if args.schedule is None else read_schedule(args.schedule)
    chosen_runs(args.run, ledger.runs())
    run_id = args.run
    if run_id is None:
        run_id = choose_run(ledger.runs(), pipeline_kinds(ledger.events(kind="attempt_started")))
    record = read_run(ledger, run_id)
    _check_kind(record)
    if record.pipeline in PAIRED:
        if weights or args.scale_rewards is not None:
            raise UserError(
                f"run `{run_id}` ({record.pipeline}) has margins, not weighted components and groups: --weights and "
                f"--scale-rewards apply to online RL only"
            )
        assert file is not None
        return replay_pairs(record, file, args.schedule)
    plan = make_plan(record, file, args.schedule or "", weights, args.scale_rewards)
    return replay(record, plan, read_answers(ledger, run_id) if plan.triggers else ())


def _check_kind(record: Record) -> None:
    if not len(record.scored):
        raise UserError(f"run `{record.run_id}` has no session yet")
    if record.pipeline == "sft":
        raise UserError(
            f"run `{record.run_id}` has demonstrations, whose reward is their loss weight 1 + d whatever they say: "
            f"there is nothing to replay"
        )


def _weights(given: list[str]) -> dict[str, float]:
    from rewards.analysis.columns import LARGEST

    weights = named_numbers(given, "--weights")
    for name, weight in weights.items():
        if LARGEST < abs(weight) < float("inf"):
            raise UserError(f"--weights {name}={weight:g}: beyond {LARGEST:g} nothing can be computed")
    return weights


def _print(document: dict[str, Any]) -> None:
    sizes = f"{counted(document['sessions'], 'session')} in {counted(document['groups'], 'group')}"
    print(f"{line(document['run'])}: {sizes}")
    if document["changed"] is not None:
        _print_counts(document)
        _print_leverage(document)
        for title, found in (document["shares"] or {}).items():
            rows = [[name, *(_percent(ends[end]) for end in ("before", "after"))] for name, ends in found.items()]
            if any(row[1] or row[2] for row in rows):
                print()
                print_table([f"share by {title}", "before", "after"], rows, right=["before", "after"])
        for fired in document["changed"].get("recalibrations", []):
            on = f" on {fired['component']}" if fired["component"] else ""
            print(
                line(
                    f"step {fired['step']:,}: {fired['category']}{on} {fired['old_pct']:g} to {fired['new_pct']:g} %: "
                    f"{fired['reason']}"
                )
            )
    print()
    print(line(document["verdict"]))
    if document["why"]:
        say(line(document["why"]))


def _print_counts(document: dict[str, Any]) -> None:
    changed, flips, signs = document["changed"], document["rank_flips"], document["sign_changes"]
    rows = [["mean adjusted reward", *(_number(changed["mean_adjusted"][end]) for end in ("before", "after"))]]
    if "groups_with_variance" in changed:
        groups = changed["groups_with_variance"]
        rows.append(["groups with variance", f"{groups['before']:,}", f"{groups['after']:,}"])
        scale = changed["scale_rewards"]
        rows.append(["scale_rewards", scale["before"], scale["after"]])
        for name, ends in changed["weights"].items():
            rows.append([f"weight of {name}", *(_number(ends[end]) or "none" for end in ("before", "after"))])
    print()
    print_table(["", "before", "after"], rows, right=["before", "after"])
    print()
    rows = []
    if flips is not None:
        rows.append(["pairs that change their order", f"{flips['flipped']:,}", _percent(flips["share"])])
        rows[-1].append(f"{flips['pairs']:,}")
    rows.append(["sessions that change their sign", f"{signs['changed']:,}", _percent(signs["share"])])
    rows[-1].append(f"{signs['n']:,}")
    print_table(["", "n", "share", "of"], rows, right=["n", "share", "of"])


def _print_leverage(document: dict[str, Any]) -> None:
    rows = []
    for category, ends in (document["leverage"] or {}).items():
        spill = document["spill"][category]
        cells = [_estimate(side[end]) for side in (ends, spill) for end in ("before", "after")]
        if any(cells):
            rows.append([category, *cells])
    if rows:
        heads = ["category", "leverage before", "leverage after", "spill before", "spill after"]
        print()
        print_table(heads, rows, right=heads[1:])


def _estimate(found: dict[str, Any]) -> str:
    if found["estimate"] is None:
        return ""
    interval = "" if found["low"] is None else f" ({found['low']:.3g} to {found['high']:.3g})"
    return f"{found['estimate']:.3g}{interval}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
