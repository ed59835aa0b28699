"""Runs the arms of a fork one after the other; an arm that is finished is not run again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rewards.errors import ConfigError
from rlhf.fork.plan import Forking, begin_folder
from rlhf.launch import set_up_process


def run_fork(forking: Forking, *, progress: str = "auto") -> list[dict[str, Any]]:
    """Runs what is not finished; one dict an arm, in the order in which they ran.

    Both arms of a pair follow each other, so that what a fork was stopped in the middle of is whole pairs.
    Raises: UserError for arms of another fork in its folder, or where an arm cannot start.
    """
    begin_folder(forking)
    arms = [(seed, arm) for seed in forking.seeds for arm in forking.arms]
    configs = {key: forking.config_of(*key) for key in arms}
    done = {key: _finished(configs[key]) for key in arms}
    outcomes: list[dict[str, Any]] = []
    inputs: Any = None
    for n, (seed, name) in enumerate(arms, start=1):
        loaded = configs[seed, name]
        finished = done[seed, name]
        result = finished
        if result is None:
            if inputs is None:
                from rlhf.stages.inputs import read_inputs

                inputs = read_inputs(forking.stage, loaded.config)
                set_up_process()
            result = _run_arm(forking, seed, name, loaded, inputs, progress)
        if progress != "none" and int(os.environ.get("RANK", "0")) == 0:
            how = "was finished already" if finished else result["status"]
            print(f"fork: arm {n} of {len(arms)}, {result['run_id']}: {how}", file=sys.stderr)
        outcomes.append(
            {
                "run_id": result["run_id"],
                "seed": seed,
                "arm": name,
                "status": result["status"],
                "steps": result["steps"],
                "output_dir": loaded.config.train.output_dir,
                "was_finished": finished is not None,
            }
        )
    return outcomes


def _run_arm(forking: Forking, seed: int, name: str, loaded: Any, inputs: Any, progress: str) -> dict[str, Any]:
    from rlhf.fork.arm import Arm, ForkedGRPO
    from rlhf.stages.run import run_stage
    from rlhf.stages.work import Origin

    arm = Arm.of(forking, seed, name)
    result = run_stage(
        forking.stage,
        lambda run: ForkedGRPO(run, arm),
        loaded,
        inputs,
        resume=True,
        progress=progress,  # type: ignore[arg-type]
        origin=Origin(forking.checkpoint, name, forking.record_of(seed, name)),
    )
    if int(os.environ.get("RANK", "0")) == 0:
        # Nothing goes on from a finished arm; the moments in its checkpoints are twice the size of its model.
        for old in Path(loaded.config.train.output_dir).glob("checkpoint-*"):
            shutil.rmtree(old)
    return result


def _finished(loaded: Any) -> dict[str, Any] | None:
    path = Path(loaded.config.train.output_dir) / "run.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    if found["config_digest"] != loaded.digest:
        raise ConfigError(f"{path}: the arm was finished with another configuration; restore it, or use another --out")
    return found
