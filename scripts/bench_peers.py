"""Measures our stages against TRL's trainers on identical work, and our step time against the length of sequences.

    python scripts/bench_peers.py dpo --size S --dtype fp32 --threads 2        # or sft, reward; --size M; --dtype bf16
    python scripts/bench_peers.py lengths --size S --dtype fp32 --threads 2
    python scripts/bench_peers.py dpo --quick                                  # one run of six steps: a look, no figure

Both sides load one randomly initialised model, read the same human preference pairs, and are checked to be given the
same tokens with the same masks before anything is timed. Each run has a process of its own; the sides take turns;
figures are medians. Effective tokens per second count what TRL feeds: no padding, the prompt once for each answer.
It asserts no time: it prints a table, or one JSON document, and its exit code is 0; 2 for input that is not there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from peer_bench.machine import hardware  # noqa: E402
from peer_bench.measure import HALF_WARM_UP, LEARNING_RATES, WARM_UP, Failed, Plan, compare, lengths  # noqa: E402
from peer_bench.report import print_comparison, print_lengths  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "hh_harmless" / "pairs.jsonl.gz"
STEPS = {("S", "fp32"): 20, ("S", "bf16"): 60, ("M", "fp32"): 8, ("M", "bf16"): 8}
LENGTHS = (128, 256, 512, 1024, 2048)


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = _arguments()
    missing = _missing(args)
    if missing is not None:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    cache = Path(tempfile.gettempdir()) / "rlhf-bench-peers" / args.size
    with tempfile.TemporaryDirectory(prefix="rlhf-bench-peers-") as name:
        try:
            document = (_lengths if args.what == "lengths" else _compare)(args, cache, Path(name))
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    document["hardware"] = hardware() | ({"gpu": _gpu()} if args.device == "cuda" else {})
    if args.json:
        print(json.dumps(document, indent=1))
    else:
        (print_lengths if args.what == "lengths" else print_comparison)(document)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sft", "reward", "dpo", "lengths"])
    parser.add_argument("--size", choices=["S", "M"], default="S", help="4.7 or 29.6 million parameters")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--pairs", type=int, default=8, help="pairs a step; SFT takes their chosen answers")
    parser.add_argument("--steps", type=int, help="of a run (S: 20, bf16 60; M: 8)")
    parser.add_argument(
        "--warm-up",
        type=int,
        help=f"first steps that are not counted ({WARM_UP}; {HALF_WARM_UP} of 60 or more in bf16)",
    )
    parser.add_argument("--learning-rate", type=float, help="of both sides; default: one that moves the loss")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192, help="lengths: tokens a step")
    parser.add_argument("--data", type=Path, default=DATA, help="HH transcripts, JSON lines")
    parser.add_argument("--no-precomputed", action="store_true", help="dpo: leave TRL's precompute_ref_log_probs out")
    parser.add_argument("--quick", action="store_true", help="one run of six steps: a look, no figure")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.no_precomputed = 1, True
    args.steps = args.steps or (6 if args.quick or args.what == "lengths" else STEPS[args.size, args.dtype])
    long = args.dtype == "bf16" and args.steps >= STEPS["S", "bf16"]
    args.warm_up = args.warm_up or (HALF_WARM_UP if long else WARM_UP)
    if args.steps <= args.warm_up or min(args.repeats, args.pairs, args.threads) < 1 or args.warm_up < WARM_UP:
        parser.error(
            f"--steps must be above --warm-up ({args.warm_up}), that at least {WARM_UP}, and --repeats, --pairs and "
            "--threads at least 1"
        )
    return args


def _missing(args: argparse.Namespace) -> str | None:
    """What is not there, in one line."""
    if not args.data.is_file():
        return f"{args.data}: there is no such file; give preference pairs as HH transcripts with --data PATH"
    if args.what != "lengths" and find_spec("trl") is None:
        return "trl is not installed, and it is what is compared with: pip install 'rlhf-ledger[trl]'"
    if args.device == "cuda" and _gpu() is None:
        return "--device cuda: torch finds no GPU here"
    return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _plan(args: argparse.Namespace, cache: Path, stage: str) -> Plan:
    return Plan(
        stage=stage,
        size=args.size,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
        batch=args.pairs,
        steps=args.steps,
        max_length=args.max_length,
        learning_rate=args.learning_rate or LEARNING_RATES[stage],
        data=args.data.resolve(),
        model=cache,
        warm_up=args.warm_up,
    )


def _shown(plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    plain = {key: value for key, value in vars(plan).items() if not isinstance(value, Path)}
    return {**plain, "repeats": args.repeats, "quick": args.quick}


def _compare(args: argparse.Namespace, cache: Path, folder: Path) -> dict[str, Any]:
    plan = _plan(args, cache, args.what)
    document = compare(
        plan, folder / args.what, args.repeats, precompute=args.what == "dpo" and not args.no_precomputed
    )
    return {"plan": _shown(plan, args), **document}


def _lengths(args: argparse.Namespace, cache: Path, folder: Path) -> dict[str, Any]:
    stages = {}
    for stage in ("sft", "dpo"):
        plan = _plan(args, cache, stage)
        plans = {
            length: replace(
                plan, length=length, max_length=length, batch=args.tokens // length // (1 if stage == "sft" else 2)
            )
            for length in LENGTHS
        }
        stages[stage] = lengths(plans, folder / stage, args.repeats)
    return {"plan": _shown(plan, args) | {"batch": None, "max_length": None, "tokens": args.tokens}, "stages": stages}


if __name__ == "__main__":
    sys.exit(main())
