"""Opens a stage: accelerator, model, ledger, checkpoint; then the frame around the loop takes over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers

from rewards.config import Loaded, dump
from rewards.errors import ConfigError, LedgerError
from rlhf import environment
from rlhf.config import StageConfig
from rlhf.models.load import load_policy
from rlhf.stages.drive import drive, prepare
from rlhf.stages.inputs import Inputs
from rlhf.stages.work import Origin, Run, StageWork
from rlhf.train import checkpoint
from rlhf.train.progress import Mode, Reporter
from rlhf.train.record import Recorder


def open_accelerator(config: StageConfig, output_dir: Path) -> Accelerator:
    """One Accelerator a stage, with gradient_accumulation_steps=1: the loop divides by global denominators itself."""
    cpu = config.train.use_cpu or not torch.cuda.is_available()
    # Stages of a pipeline share the process and may differ in precision and device; accelerate has singletons for both.
    AcceleratorState._reset_state(reset_partial_state=_stands_elsewhere(cpu))
    tracker = config.tracking.report_to
    if tracker != "none" and tracker not in {str(found.value) for found in get_available_trackers()}:
        raise ConfigError(f"tracking.report_to: {tracker} is not installed; `pip install {tracker}`")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if config.train.bf16 else "no",
        gradient_accumulation_steps=1,
        log_with=None if tracker == "none" else tracker,
        project_dir=str(output_dir),
    )
    requested = {"train.world_size": config.train.world_size, "WORLD_SIZE": os.environ.get("WORLD_SIZE")}
    for name, wanted in requested.items():
        if wanted is not None and int(wanted) != accelerator.num_processes:
            raise ConfigError(
                f"{name} asks for {wanted} ranks, {accelerator.num_processes} started; on a CPU use "
                f"`ACCELERATE_USE_CPU=true torchrun --nproc_per_node {wanted} experiments/train.py ...`"
            )
    return accelerator


def _stands_elsewhere(cpu: bool) -> bool:
    """Whether a stage before, in this process alone, was put on another kind of device."""
    if not PartialState._shared_state:
        return False
    state = PartialState()
    return state.num_processes == 1 and (state.device.type == "cpu") != cpu


def run_stage(
    stage: str,
    make_work: Callable[[Run], StageWork],
    loaded: Loaded[Any],
    inputs: Inputs,
    *,
    resume: bool = False,
    progress: Mode = "auto",
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Runs one stage from configuration to saved model; returns what run.json holds.

    origin: of a run that is forked off another; with `resume` it goes on from a checkpoint of its own where it has one.
    Raises: UserError for input that cannot be used, RunStopped when the run stopped itself.
    """
    config: StageConfig = loaded.config
    output_dir = Path(config.train.output_dir)
    accelerator = open_accelerator(config, output_dir)
    named = config.train.resume_from_checkpoint
    found = checkpoint.find_checkpoint(output_dir, named) if resume or named is not None else None
    forked = found is None and origin is not None
    if found is None and origin is not None:
        found = origin.checkpoint
    start = checkpoint.load_state(found) if found is not None else None
    torch.manual_seed(config.train.seed + accelerator.process_index)
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
    policy, tokenizer = load_policy(config.model, texts=inputs.texts, seed=config.train.seed)
    policy.to(accelerator.device)
    run_id = config.train.run_name or stage
    path = Path(config.ledger.path) if config.ledger.path else output_dir / "ledger"
    position = start["ledger"] if start else None
    recorder = Recorder(
        path,
        run_id,
        accelerator,
        pipeline_id=config.ledger.pipeline_id,
        resume=None if forked else position,
        fork_of=position if forked else None,
        arm=origin.arm if origin is not None else None,
    )
    try:
        reporter = Reporter(stage, 0, progress, main=accelerator.is_main_process, every=config.train.logging_steps)
        run = Run(stage, loaded, inputs, run_id, output_dir, accelerator, recorder, policy, tokenizer, reporter, start)
        run.origin, run.forked = origin, forked
        run.say([*loaded.warnings, *inputs.lines])
        work = make_work(run)
        if not work.module.shortcuts()[0]:
            run.say([f"{type(policy.model).__name__} is given padded rows: it takes no flat ones, which are faster"])
        start_from = prepare(run, work, found)
        # From here on the run is on record: what is refused before leaves the ledger as it was.
        recorder.claim()
        _announce(run, found)
        try:
            return drive(run, work, *start_from)
        except LedgerError:
            raise  # what cannot be recorded cannot be recorded either
        except (Exception, KeyboardInterrupt) as error:
            recorder.stopped(error)
            raise
    finally:
        recorder.close()
        # Not `end_training`: it also ends the process group, which the next stage of a pipeline needs.
        for tracker in accelerator.trackers:
            tracker.finish()


def _announce(run: Run, found: Path | None) -> None:
    config = run.config
    run.recorder.event(
        "attempt_started",
        {
            "stage": run.stage,
            "pipeline": run.stage,
            "config": run.loaded.resolved,
            "config_digest": run.loaded.digest,
            "data_digest": run.inputs.digest,
            "resume_step": run.start["step"] if run.start else None,
            "world_size": run.accelerator.num_processes,
            "versions": environment.versions(),
            "code_commit": environment.code_commit(),
            "threads": torch.get_num_threads(),
            "device": str(run.accelerator.device),
            "statement": config.ledger.statement,
            **(run.origin.record if run.origin is not None else {}),
        },
        step=run.start["step"] if run.start else 0,
    )
    if run.start is not None and not run.forked:
        run.recorder.event(
            "resumed",
            {"resume_step": run.start["step"], "from_attempt": run.start["ledger"]["attempt"], "path": str(found)},
            step=run.start["step"],
        )
        if run.start["config_digest"] != run.loaded.digest:
            changed = differences(run.start["config"], run.loaded.resolved)
            run.recorder.event("config_changed", {"keys": changed}, step=run.start["step"])
            run.reporter.line(f"{run.stage}: resumed with another configuration: {', '.join(sorted(changed))}")
    if run.accelerator.is_main_process:
        (run.output_dir / "config.yaml").write_text(dump(run.loaded))
    if config.tracking.report_to != "none":
        run.accelerator.init_trackers(config.tracking.project, config={"digest": run.loaded.digest})


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Keys whose values differ between two resolved configurations: {dotted path: [old, new]}."""
    changed: dict[str, list[Any]] = {}
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed.update(differences(a, b, f"{prefix}{key}."))
        elif a != b:
            changed[f"{prefix}{key}"] = [a, b]
    return changed
