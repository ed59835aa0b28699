"""`rlhf plan CONFIG`: the expected peak memory of each stage, and the largest batch that fits a budget."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.config import Loaded, load, read_yaml, split_overrides
from rewards.errors import ConfigError
from rewards.yaml_nodes import entries
from rlhf.config import RETIRED, STAGES, stage_of
from rlhf.config_tables import known_elsewhere
from rlhf.launch import set_up_process
from rlhf.pipeline import read_pipeline

_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")

ADVICE = {
    "weights": "model.dtype=bfloat16, or a smaller model",
    "optimizer moments": "model.use_peft=true: an adapter has few moments",
    "gradients": "model.use_peft=true: an adapter has few gradients",
    "reference and other copies": "reference.source=precomputed where the stage has it, or an adapter with adapter_off",
    "activations": "train.per_device_train_batch_size (and gradient_accumulation_steps in turn), "
    "train.gradient_checkpointing=true, train.max_length",
    "temporary": "train.per_device_train_batch_size",
    "caches and distributions of sampling": "train.per_device_train_batch_size, train.max_completion_length",
}


def add_parser(subparsers: Any) -> None:
    """Adds `plan`. The caller parses with parse_known_args and hands `run` the rest."""
    text = "expected peak memory of each stage, and the largest batch that fits"
    parser = subparsers.add_parser(
        "plan", help=text, description=text, epilog="key=value overrides the configuration; exit 1: does not fit"
    )
    parser.add_argument("config", metavar="FILE.yaml", help="of a stage or a pipeline")
    parser.add_argument("--budget", metavar="AMOUNT", help="e.g. 8GB or 7.5GiB: exit 1 where a stage needs more")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Plans and prints; 1 where a stage does not fit the budget. Raises: ConfigError."""
    budget = None if args.budget is None else amount(args.budget)
    stages = _stages(Path(args.config), split_overrides(list(rest)))
    set_up_process()
    from rlhf.plan.stage import follow, plan_stage

    plans = [plan_stage(planned, budget) for planned in follow(stages)]
    if args.json:
        print(json.dumps({"budget_bytes": budget, "stages": [_document(plan, budget) for plan in plans]}, indent=1))
    else:
        for plan in plans:
            _print(plan, budget)
    return int(budget is not None and any(plan.peak.total > budget for plan in plans))


def amount(text: str) -> float:
    """Bytes of an amount with a unit. Raises: ConfigError for anything else."""
    found = _AMOUNT.fullmatch(text.strip())
    unit = None if found is None else _UNITS.get(found.group(2).lower())
    if found is None or unit is None or float(found.group(1)) == 0:
        raise ConfigError(f"--budget: `{text}` is no amount of memory; write it as 8GB, 7.5GiB or 900MB")
    return float(found.group(1)) * unit


def _stages(path: Path, overrides: list[str]) -> list[tuple[str, str, Loaded[Any]]]:
    if "stages" in entries(read_yaml(path)):
        return [(one.name, one.stage, one.loaded) for one in read_pipeline(path, overrides).stages]
    stage = stage_of(path)
    loaded = load(STAGES[stage], path, overrides, retired=RETIRED, known_elsewhere=known_elsewhere(stage))
    return [(stage, stage, loaded)]


def _document(plan: Any, budget: float | None) -> dict[str, Any]:
    return {
        "name": plan.name,
        "stage": plan.stage,
        "peak_bytes": round(plan.peak.total),
        "moment": plan.peak.name,
        "terms_bytes": {name: round(value) for name, value in plan.peak.terms.items()},
        "per_device_train_batch_size": plan.batch,
        "fits": None if budget is None else plan.peak.total <= budget,
        "largest_per_device_train_batch_size": plan.largest_batch,
        "heaviest_batch": vars(plan.heaviest),
        "assumptions": list(plan.assumptions),
    }


def _print(plan: Any, budget: float | None) -> None:
    size = plan.heaviest
    print(f"{plan.name} ({plan.stage}), {plan.batch} rows a micro-batch: most where {plan.peak.name}")
    terms = {name: value for name, value in plan.peak.terms.items() if value > 0}
    for name, value in terms.items():
        print(f"  {name:38}{_shown(value):>10}")
    print(f"  {'peak':38}{_shown(plan.peak.total):>10}")
    if budget is not None:
        fits = plan.peak.total <= budget
        print(f"  {'budget':38}{_shown(budget):>10}  {'fits' if fits else 'DOES NOT FIT'}")
        print(f"  largest per_device_train_batch_size that fits: {plan.largest_batch or 'none, not even 1'}")
        if not fits:
            first = max((name for name in terms if name in ADVICE), key=lambda name: terms[name])
            print(f"  lower first: {first}: {ADVICE[first]}")
    print(f"  its largest micro-batch: {size.texts} texts, {size.whole:,} tokens ({size.tokens:,} computed)")
    for line in plan.assumptions:
        print(f"  assumed: {line}")
    print()


def _shown(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
