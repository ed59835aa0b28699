"""The frame around the loop: restore, train, evaluate, save, close."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewards.errors import LedgerError, UserError
from rlhf.reference.following import Following
from rlhf.reference.policy import Reference
from rlhf.stages.sharded import shard_stage
from rlhf.stages.work import Run, StageWork
from rlhf.train import checkpoint
from rlhf.train.loop import EarlyStopping, Engine, Hooks, LoopPlan, StepStats, train
from rlhf.train.optim import build_optimizer
from rlhf.train.sharding import gathered

DONE = "run.json"


def prepare(run: Run, work: StageWork, found: Path | None) -> tuple[Engine, EarlyStopping, int]:
    """The engine, early stopping and the step to go on from, restored from `found` where there is one.

    Raises: UserError where the checkpoint does not belong to this configuration.
    """
    train_section = run.config.train
    module = work.module
    if train_section.gradient_checkpointing:
        run.policy.enable_gradient_checkpointing()
    reference = reference_of(work)
    if found is not None and run.start is not None:
        _check_identity(run, work)
        module.load_weights(found)
        _restore_reference(reference, found)
    # Whole weights are read first and cut then; moments are made of what is left of a parameter.
    shell = shard_stage(run, work.module, reference) if train_section.fsdp else None
    optimizer, scheduler = build_optimizer(module, train_section, work.total_steps)
    stopping = EarlyStopping()
    start_step = 0
    if found is not None and run.start is not None:
        work.load_state_dict(checkpoint.restore(Engine(run.accelerator, module, optimizer, scheduler), found))
        stopping = EarlyStopping(**run.start["stopping"])
        start_step = run.start["step"]
    _say_whether_it_moves(run, work, reference)
    # What is sharded must not be wrapped for DDP as well, but computes in the same precision.
    model = run.accelerator.prepare_model(module, evaluation_mode=shell is not None)
    # Once: what evaluates or samples leaves every module in the mode in which it was.
    model.train()
    return Engine(run.accelerator, model, optimizer, scheduler, shell), stopping, start_step


def _restore_reference(reference: Reference | None, found: Path) -> None:
    state = checkpoint.load_reference(found)
    if reference is not None and state is not None:
        reference.load_state_dict(state)
    elif isinstance(reference, Following):
        raise UserError(
            f"{found}: holds no weights of a reference; resume with the reference.source that the run started with"
        )


def reference_of(work: StageWork) -> Reference | None:
    """The stage's reference, where it has one."""
    reference: Reference | None = getattr(work, "reference", None)
    return reference


def _say_whether_it_moves(run: Run, work: StageWork, reference: Reference | None) -> None:
    if isinstance(reference, Following) and reference.every > work.total_steps:
        run.say(
            [
                f"reference.source synced: the reference never moves, its first step to do so would be "
                f"{reference.every} of {work.total_steps} (reference.ref_model_sync_steps)"
            ]
        )


def drive(run: Run, work: StageWork, engine: Engine, stopping: EarlyStopping, start_step: int) -> dict[str, Any]:
    """Trains, evaluates and saves; returns what run.json holds."""
    run.reporter.total = work.total_steps
    hooks = _hooks(run, work, engine, stopping)
    plan = _plan(run, work)
    try:
        with run.reporter:
            if run.start is None or run.forked:
                work.begin()
            last = train(engine, work, plan, hooks, start_step=start_step, stopping=stopping)
            outcome = work.finish(last)
    except LedgerError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        work.abandon()
        error.step = work.step_now  # type: ignore[attr-defined]
        raise
    return _close(run, work, engine, last, outcome)


def _check_identity(run: Run, work: StageWork) -> None:
    assert run.start is not None
    now = _identity(work)
    for key, value in run.start["identity"].items():
        if now.get(key) != value:
            raise UserError(
                f"{run.output_dir}: the {key} is not the one this run started with "
                f"({str(value)[:12]} then, {str(now.get(key))[:12]} now); restore it or start a new run"
            )


def _identity(work: StageWork) -> dict[str, Any]:
    """The stage's, with the start of a reference that moves."""
    reference = reference_of(work)
    return work.identity() if reference is None else {**work.identity(), "reference": reference.origin}


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
        watch=section.metric_for_best_model if section.early_stopping_patience else None,
        greater_is_better=section.greater_is_better,
        patience=section.early_stopping_patience,
    )


def _hooks(run: Run, work: StageWork, engine: Engine, stopping: EarlyStopping) -> Hooks:
    reference = reference_of(work)

    def stepped(step: int) -> None:
        moved = reference.moved(step) if isinstance(reference, Following) else None
        if moved is not None:
            run.recorder.event("reference_synced", moved, step=step)

    def save(step: int) -> None:
        position = run.recorder.checkpoint(step, run.output_dir / f"checkpoint-{step}")
        with gathered(work.module, engine.shell) as module:
            checkpoint.save(
                engine,
                run.output_dir,
                step,
                write_model=lambda folder: module.save(folder, run.tokenizer),
                stage_state=work.state_dict(),
                reference=reference.state_dict() if reference is not None else None,
                state={
                    "ledger": position,
                    "identity": _identity(work),
                    "stopping": asdict(stopping),
                    "config": run.loaded.resolved,
                    "config_digest": run.loaded.digest,
                },
                keep=run.config.train.save_total_limit,
            )

    def log(stats: StepStats) -> None:
        figures = {
            "loss": stats.loss,
            "grad_norm": stats.grad_norm,
            "learning_rate": stats.learning_rate,
            **stats.metrics,
        }
        run.reporter.step(stats.step, figures)
        if run.config.tracking.report_to != "none" and stats.step % run.config.train.logging_steps == 0:
            run.accelerator.log(figures, step=stats.step)

    def evaluated(step: int, values: dict[str, float]) -> None:
        run.reporter.line(f"{run.stage} eval step={step} " + " ".join(f"{k}={v:.4g}" for k, v in values.items()))
        if run.config.tracking.report_to != "none":
            run.accelerator.log(values, step=step)

    return Hooks(stepped, save, log, evaluated)


def _close(run: Run, work: StageWork, engine: Engine, last: int, outcome: dict[str, Any]) -> dict[str, Any]:
    status = "completed" if last >= work.total_steps else "stopped early"
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
    with gathered(work.module, engine.shell) as module:
        if run.accelerator.is_main_process:
            aside = run.output_dir / ".writing-model"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            module.save(aside, run.tokenizer)
            checkpoint.publish(aside, run.output_dir / "model")
    if run.accelerator.is_main_process:
        assert run.recorder.ledger is not None
        summary["ledger"] = {"path": str(run.recorder.ledger.path), "head": run.recorder.ledger.head()}
        (run.output_dir / DONE).write_text(json.dumps(summary, indent=1, sort_keys=True))
    run.accelerator.wait_for_everyone()
    return summary
