"""`rlhf config show` and `rlhf config schema`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.config import describe, dump, load, split_overrides
from rewards.errors import ConfigError
from rlhf.config import RETIRED, STAGES
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
        raise ConfigError(f"{stage}: no stage; stages: {', '.join(STAGES)}")
    return _schema(stage, args.json) if args.action == "schema" else _show(stage, args, split_overrides(rest))


def _show(stage: str | None, args: argparse.Namespace, overrides: list[str]) -> int:
    if stage is None:
        raise ConfigError(f"which stage? `rlhf config show STAGE`; stages: {', '.join(STAGES)}")
    path = None if args.config is None else Path(args.config)
    loaded = load(STAGES[stage], path, overrides, retired=RETIRED, known_elsewhere=known_elsewhere(stage))
    for line in loaded.warnings:
        print(f"warning: {line}", file=sys.stderr)
    if args.json:
        print(json.dumps({"stage": stage, "digest": loaded.digest, "config": loaded.resolved}, indent=1))
    else:
        print(dump(loaded), end="")
    return 0


def _schema(stage: str | None, as_json: bool) -> int:
    tables = {name: describe(model) for name, model in STAGES.items() if stage in (None, name)}
    if as_json:
        keys = ("path", "type", "default", "description")
        print(json.dumps({name: [dict(zip(keys, row, strict=True)) for row in rows] for name, rows in tables.items()}))
        return 0
    for name, rows in tables.items():
        print(f"# {name}")
        for path, kind, default, description in rows:
            print(f"{path}: {kind} = {json.dumps(default)}  {description}")
    return 0
