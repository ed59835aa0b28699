"""`rlhf config show` and `rlhf config schema`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.config import Knob, describe, dump, load, split_overrides
from rewards.errors import ConfigError
from rlhf.config import RETIRED, STAGES, stage_of
from rlhf.config_tables import known_elsewhere


def add_parser(subparsers: Any) -> None:
    """Adds `config` with `show` and `schema`. The caller parses with parse_known_args and hands `run` the rest."""
    parser = subparsers.add_parser("config", help="show a resolved configuration, or every key there is")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", usage="rlhf config show STAGE [--config FILE.yaml] [--json] [key=value ...]")
    show.add_argument("--config", metavar="FILE.yaml")
    show.add_argument("--json", action="store_true", help="one JSON document on stdout")
    schema = actions.add_parser("schema", usage="rlhf config schema [STAGE] [--json]")
    schema.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Runs the action; `rest` holds the stage and the overrides. Raises: ConfigError."""
    rest = list(rest)
    stage = rest.pop(0) if rest and not rest[0].startswith("-") and "=" not in rest[0] else None
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"`{stage}` is no stage; stages: {', '.join(STAGES)}")
    if args.action == "show":
        return _show(stage, args, split_overrides(rest))
    if rest:
        raise ConfigError(f"`rlhf config schema` takes a stage and --json, not `{rest[0]}`")
    return _schema(stage, args.json)


def _show(stage: str | None, args: argparse.Namespace, overrides: list[str]) -> int:
    path = None if args.config is None else Path(args.config)
    if stage is None:
        if path is None:
            raise ConfigError(f"which stage? `rlhf config show STAGE`; stages: {', '.join(STAGES)}")
        stage = stage_of(path)
    loaded = load(STAGES[stage], path, overrides, retired=RETIRED, known_elsewhere=known_elsewhere(stage))
    if args.json:
        shown = {"stage": stage, "path": args.config, "digest": loaded.digest, "warnings": loaded.warnings}
        print(json.dumps({**shown, "config": loaded.resolved}, indent=1))
        return 0
    for line in loaded.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(dump(loaded), end="")
    return 0


def _schema(stage: str | None, as_json: bool) -> int:
    tables = {name: describe(model) for name, model in STAGES.items() if stage in (None, name)}
    if as_json:
        print(json.dumps({name: [_entry(knob) for knob in knobs] for name, knobs in tables.items()}, indent=1))
        return 0
    for name, knobs in tables.items():
        print(f"# rlhf {name}")
        for knob in knobs:
            default = "required" if knob.default is ... else f"default {json.dumps(knob.default)}"
            print(f"{knob.path}: {knob.type}; {default}" + (f"\n    {knob.description}" if knob.description else ""))
    return 0


def _entry(knob: Knob) -> dict[str, Any]:
    required = knob.default is ...
    return {**knob._asdict(), "default": None if required else knob.default, "required": required}
