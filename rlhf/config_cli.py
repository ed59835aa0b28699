"""`rlhf config show` (a stage or a pipeline, resolved) and `rlhf config schema` (every key there is)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.config import Knob, Loaded, describe, dump, load, read_yaml, split_overrides
from rewards.errors import ConfigError
from rewards.yaml_nodes import entries
from rlhf.config import RETIRED, STAGES, stage_of
from rlhf.config_tables import known_elsewhere
from rlhf.pipeline import read_pipeline


def add_parser(subparsers: Any) -> None:
    """Adds `config` with `show` and `schema`. The caller parses with parse_known_args and hands `run` the rest."""
    parser = subparsers.add_parser("config", help="show a resolved configuration, or every key there is")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", usage="rlhf config show [STAGE] [--config FILE.yaml] [--json] [key=value ...]")
    show.add_argument("--config", metavar="FILE.yaml", help="of a stage or a pipeline; without one, the defaults")
    show.add_argument("--json", action="store_true", help="one JSON document on stdout")
    schema = actions.add_parser("schema", usage="rlhf config schema [STAGE] [--json]")
    schema.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Runs the action; `rest` holds the stage and the overrides. Raises: ConfigError."""
    rest = list(rest)
    stage = rest.pop(0) if rest and not rest[0].startswith("-") and "=" not in rest[0] else None
    if args.action == "show":
        return _show(_chosen(stage, args.config, split_overrides(rest)), args.json)
    if rest:
        raise ConfigError(f"`rlhf config schema` takes a stage and --json, not `{rest[0]}`")
    return _schema(stage, args.json)


def _chosen(stage: str | None, config: str | None, overrides: list[str]) -> dict[str, tuple[str, Loaded[Any]]]:
    """{name: (stage, configuration)} of what is shown: one stage, or those of a pipeline."""
    path = None if config is None else Path(config)
    if path is not None and "stages" in entries(read_yaml(path)):
        planned = {one.name: (one.stage, one.loaded) for one in read_pipeline(path, overrides).stages}
        if stage is not None and stage not in planned:
            raise ConfigError(f"{path}: has no stage `{stage}`; stages: {', '.join(planned)}")
        return planned if stage is None else {stage: planned[stage]}
    if stage is None:
        if path is None:
            raise ConfigError(f"which stage? `rlhf config show STAGE`; stages: {', '.join(STAGES)}")
        stage = stage_of(path)
    model = _model(stage)
    return {stage: (stage, load(model, path, overrides, retired=RETIRED, known_elsewhere=known_elsewhere(stage)))}


def _model(stage: str) -> type[Any]:
    if stage not in STAGES:
        raise ConfigError(f"`{stage}` is no stage; stages: {', '.join(STAGES)}")
    return STAGES[stage]


def _show(chosen: dict[str, tuple[str, Loaded[Any]]], as_json: bool) -> int:
    if as_json:
        shown = [
            {
                "name": name,
                "stage": stage,
                "path": None if loaded.path is None else str(loaded.path),
                "digest": loaded.digest,
                "warnings": loaded.warnings,
                "config": loaded.resolved,
            }
            for name, (stage, loaded) in chosen.items()
        ]
        print(json.dumps(shown[0] if len(shown) == 1 else {"stages": shown}, indent=1))
        return 0
    for name, (_, loaded) in chosen.items():
        for line in loaded.warnings:
            print(f"warning: {line}", file=sys.stderr)
        if len(chosen) > 1:
            print(f"---\n# {name}")
        print(dump(loaded), end="")
    return 0


def _schema(stage: str | None, as_json: bool) -> int:
    tables = {name: describe(_model(name)) for name in (STAGES if stage is None else [stage])}
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
