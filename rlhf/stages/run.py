"""What every stage stands on, and the frame around the loop: open, restore, train, save, close."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rewards.config import Loaded
from rewards.errors import ConfigError, UserError
from rlhf.config import StageConfig
from rlhf.models.load import load_policy
from rlhf.models.policy import Policy
from rlhf.stages.inputs import Inputs
from rlhf.train import checkpoint
from rlhf.train.loop import EarlyStopping, Hooks, LoopPlan, StepStats, Work, train
from rlhf.train.optim import build_optimizer
from rlhf.train.progress import Mode, Reporter
from rlhf.train.record import Recorder

DONE = "run.json"


@dataclass
class Run:
    """One stage of training: configuration, pieces and where it writes."""

    stage: str
    loaded: Loaded[Any]
    inputs: Inputs
    run_id: str
    output_dir: Path
    accelerator: Accelerator
    recorder: Recorder
    policy: Policy
    tokenizer: Any
    reporter: Reporter
    start: dict[str, Any] | None = None
    """state.json of the checkpoint that the run resumes from."""

    @property
    def config(self) -> StageConfig:
        """The resolved configuration."""
        return self.loaded.config

    def say(self, lines: Iterable[str]) -> None:
        """Lines for people, on the main rank."""
        for line in lines:
            self.reporter.line(f"{self.stage}: {line}")

    def record_evaluation(self, suite: str, step: int, metrics: dict[str, Any]) -> None:
        """An evaluation event on held-out rows; the newest of a stage is what it ended with."""
        n = next(iter(metrics.values()))["n"]
        payload = {"suite": suite, "when": "step", "n": n, "metrics": metrics, "by_category": {}}
        self.recorder.event("evaluation", payload, step=step)

    @property
    def rank_batch(self) -> int:
        """Rows of one rank's share of a step."""
        return self.config.train.per_device_train_batch_size * self.config.train.gradient_accumulation_steps

    @property
    def global_batch(self) -> int:
        """Rows of a step over all ranks."""
        return self.rank_batch * self.accelerator.num_processes


class StageWork(Work, Protocol):
    """What a stage adds to the loop's contract. step_now: the step that is under way, 0 before the first."""

    module: Policy
    total_steps: int
    steps_per_epoch: int
    step_now: int

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond the model: plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""

    def identity(self) -> dict[str, Any]:
        """Identity of the reference and of the data, compared on resume."""

    def begin(self) -> None:
        """Called once before the first step of a fresh run (not on resume)."""

    def finish(self, step: int) -> dict[str, Any]:
        """Called after the last step; what it returns goes into run.json."""

    def abandon(self) -> None:
        """Called when the run stops in the middle of a step: records what was scored."""


def open_accelerator(config: StageConfig, output_dir: Path) -> Accelerator:
    """One Accelerator a stage, with gradient_accumulation_steps=1: the loop divides by global denominators itself."""
    # Stages of a pipeline share the process and may differ in precision, which accelerate keeps in a singleton.
    AcceleratorState._reset_state()
    tracker = config.tracking.report_to
    accelerator = Accelerator(
        cpu=config.train.use_cpu or not torch.cuda.is_available(),
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


def run_stage(
    stage: str,
    make_work: Callable[[Run], StageWork],
    loaded: Loaded[Any],
    inputs: Inputs,
    *,
    resume: bool = False,
    progress: Mode = "auto",
) -> dict[str, Any]:
    """Runs one stage from configuration to saved model; returns what run.json holds.

    Raises: UserError for input that cannot be used, RunStopped when the run stopped itself.
    """
    config: StageConfig = loaded.config
    output_dir = Path(config.train.output_dir)
    accelerator = open_accelerator(config, output_dir)
    found = checkpoint.find_checkpoint(output_dir, config.train.resume_from_checkpoint) if resume else None
    if config.train.resume_from_checkpoint is not None and found is None:
        found = checkpoint.find_checkpoint(output_dir, config.train.resume_from_checkpoint)
    start = checkpoint.load_state(found) if found is not None else None
    torch.manual_seed(config.train.seed + accelerator.process_index)
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
    policy, tokenizer = load_policy(config.model, texts=inputs.texts, seed=config.train.seed)
    policy.to(accelerator.device)
    run_id = config.train.run_name or stage
    path = Path(config.ledger.path) if config.ledger.path else output_dir / "ledger"
    recorder = Recorder(
        path,
        run_id,
        accelerator,
        pipeline_id=config.ledger.pipeline_id,
        resume=start["ledger"] if start else None,
    )
    try:
        reporter = Reporter(stage, 0, progress, main=accelerator.is_main_process, every=config.train.logging_steps)
        run = Run(stage, loaded, inputs, run_id, output_dir, accelerator, recorder, policy, tokenizer, reporter, start)
        _announce(run, found)
        work = make_work(run)
        return _drive(run, work, found)
    finally:
        recorder.close()
        accelerator.end_training()


def _announce(run: Run, found: Path | None) -> None:
    from rlhf import environment

    config = run.config
    run.say([*run.loaded.warnings, *run.inputs.lines])
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
            "threads": torch.get_num_threads(),
            "device": str(run.accelerator.device),
            "statement": config.ledger.statement,
        },
        step=run.start["step"] if run.start else 0,
    )
    if run.start is not None:
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
        from rewards.config import dump

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


def _drive(run: Run, work: StageWork, found: Path | None) -> dict[str, Any]:
    train_section = run.config.train
    module = work.module
    if train_section.gradient_checkpointing:
        run.policy.enable_gradient_checkpointing()
    optimizer, scheduler = build_optimizer(module, train_section, work.total_steps)
    stopping = EarlyStopping()
    start_step = 0
    if found is not None and run.start is not None:
        _check_identity(run, work)
        module.load_weights(found)
        work.load_state_dict(checkpoint.restore(run.accelerator, found, optimizer, scheduler))
        stopping = EarlyStopping(**run.start["stopping"])
        start_step = run.start["step"]
    model = run.accelerator.prepare_model(module)
    run.reporter.total = work.total_steps
    hooks = _hooks(run, work, optimizer, scheduler, stopping)
    plan = _plan(run, work)
    try:
        with run.reporter:
            if run.start is None:
                work.begin()
            last = train(
                run.accelerator, model, optimizer, scheduler, work, plan, hooks, start_step=start_step, stopping=stopping
            )
            outcome = work.finish(last)
    except Exception as error:
        work.abandon()
        stop = {
            "reason": str(error) or type(error).__name__,
            "exit_code": getattr(error, "exit_code", 1),
            "rows": list(getattr(error, "rows", ())),
        }
        run.recorder.event("stopped", stop, step=work.step_now)
        run.recorder.flush()
        raise
    return _close(run, work, last, outcome)


def _check_identity(run: Run, work: StageWork) -> None:
    assert run.start is not None
    now = work.identity()
    for key, value in run.start["identity"].items():
        if now.get(key) != value:
            raise UserError(
                f"{run.output_dir}: the {key} is not the one this run started with "
                f"({str(value)[:12]} then, {str(now.get(key))[:12]} now); restore it or start a new run"
            )


def _plan(run: Run, work: StageWork) -> LoopPlan:
    section = run.config.train
    epoch = max(1, work.steps_per_epoch)
    every = {"no": None, "steps": section.eval_steps, "epoch": epoch}[section.eval_strategy]
    save = {"no": None, "steps": section.save_steps, "epoch": epoch}[section.save_strategy]
    return LoopPlan(
        total_steps=work.total_steps,
        max_grad_norm=section.max_grad_norm,
        eval_every=every,
        save_every=save,
        log_every=section.logging_steps,
        watch=section.metric_for_best_model if section.early_stopping_patience else None,
        greater_is_better=section.greater_is_better,
        patience=section.early_stopping_patience,
    )


def _hooks(run: Run, work: StageWork, optimizer: Any, scheduler: Any, stopping: EarlyStopping) -> Hooks:
    def save(step: int) -> None:
        position = run.recorder.checkpoint(step)
        checkpoint.save(
            run.accelerator,
            run.output_dir,
            step,
            write_model=lambda folder: work.module.save(folder, run.tokenizer),
            optimizer=optimizer,
            scheduler=scheduler,
            stage_state=work.state_dict(),
            state={
                "ledger": position,
                "identity": work.identity(),
                "stopping": asdict(stopping),
                "config": run.loaded.resolved,
                "config_digest": run.loaded.digest,
            },
            keep=run.config.train.save_total_limit,
        )

    def log(stats: StepStats) -> None:
        figures = {"loss": stats.loss, "grad_norm": stats.grad_norm, "learning_rate": stats.learning_rate, **stats.metrics}
        run.reporter.step(stats.step, figures)
        if run.config.tracking.report_to != "none" and stats.step % run.config.train.logging_steps == 0:
            run.accelerator.log(figures, step=stats.step)

    def evaluated(step: int, values: dict[str, float]) -> None:
        run.reporter.line(f"{run.stage} eval step={step} " + " ".join(f"{k}={v:.4g}" for k, v in values.items()))
        if run.config.tracking.report_to != "none":
            run.accelerator.log(values, step=step)

    return Hooks(save, log, evaluated)


def _close(run: Run, work: StageWork, last: int, outcome: dict[str, Any]) -> dict[str, Any]:
    status = "completed" if last == work.total_steps else "stopped early"
    run.recorder.event("attempt_ended", {"status": status, "steps": last}, step=last)
    run.recorder.flush()
    run.accelerator.wait_for_everyone()
    summary: dict[str, Any] = {
        "run_id": run.run_id,
        "stage": run.stage,
        "status": status,
        "steps": last,
        "config_digest": run.loaded.digest,
        "model": str(run.output_dir / "model"),
        "outcome": outcome,
    }
    if run.accelerator.is_main_process:
        aside = run.output_dir / ".writing-model"
        aside.mkdir(exist_ok=True)
        work.module.save(aside, run.tokenizer)
        checkpoint.publish(aside, run.output_dir / "model")
        assert run.recorder.ledger is not None
        summary["ledger"] = {"path": str(run.recorder.ledger.path), "head": run.recorder.ledger.head()}
        (run.output_dir / DONE).write_text(json.dumps(summary, indent=1, sort_keys=True))
    run.accelerator.wait_for_everyone()
    return summary
