"""From a command line to a running stage; configuration, output folder and rows are checked before torch is loaded."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.config import Loaded, load, read_yaml, split_overrides
from rewards.errors import ConfigError, UserError
from rewards.yaml_nodes import entries
from rlhf.config import RETIRED, STAGES, stage_of
from rlhf.config_tables import known_elsewhere


def launch(
    stage: str,
    config_path: str | None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: str = "auto",
) -> dict[str, Any]:
    """Loads a stage's configuration and runs it; returns what run.json holds."""
    path = Path(config_path) if config_path is not None else None
    loaded = load(STAGES[stage], path, overrides, retired=RETIRED, known_elsewhere=known_elsewhere(stage))
    claim_output_dir(Path(loaded.config.train.output_dir), resume=resume, overwrite=overwrite)
    return start(stage, loaded, resume=resume, progress=progress)


def main(argv: Sequence[str] | None = None) -> int:
    """What `experiments/train.py` does: runs a stage or a pipeline; returns the exit code."""
    parser = argparse.ArgumentParser(description="Runs the stage or the pipeline that a configuration describes.")
    parser.add_argument("--config", required=True, metavar="FILE.yaml")
    add_run_arguments(parser)
    args, rest = parser.parse_known_args(argv)
    try:
        options = {"resume": args.resume, "overwrite": args.overwrite, "progress": args.progress}
        if "stages" in entries(read_yaml(Path(args.config))):
            from rlhf.pipeline import run_pipeline

            result = run_pipeline(args.config, split_overrides(rest), **options)
        else:
            result = launch(stage_of(Path(args.config)), args.config, split_overrides(rest), **options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.json and int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result, indent=1, sort_keys=True))
    return 0


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that trains takes."""
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output_dir")
    parser.add_argument("--overwrite", action="store_true", help="rename a non-empty output_dir aside and start anew")
    parser.add_argument("--progress", choices=["auto", "rich", "plain", "none"], default="auto")
    parser.add_argument("--json", action="store_true", help="print the outcome as one JSON document on stdout")


def start(stage: str, loaded: Loaded[Any], *, resume: bool, progress: str) -> dict[str, Any]:
    """Reads the rows, then loads torch and runs the stage."""
    from rlhf.stages.inputs import read_inputs

    inputs = read_inputs(stage, loaded.config)
    from rlhf.stages.registry import WORKS
    from rlhf.stages.run import run_stage

    return run_stage(stage, WORKS[stage], loaded, inputs, resume=resume, progress=progress)  # type: ignore[arg-type]


def claim_output_dir(folder: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """Refuses a folder with content unless it is resumed or renamed aside; returns the new name of a renamed one.

    Raises: ConfigError when the folder holds something and neither flag is given, or both are.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    # Only the first rank looks: the others would see what it has begun to write.
    if int(os.environ.get("RANK", "0")) != 0 or resume:
        return None
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not overwrite:
        raise ConfigError(f"{folder}: not empty; --resume goes on with it, --overwrite renames it aside first")
    aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    n = 1
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-{n}")
        n += 1
    folder.rename(aside)

    print(f"{folder}: the old content is now in {aside}", file=sys.stderr)
    return aside
