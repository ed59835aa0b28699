"""The frame around the loop: restore, train, evaluate, save, close."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewards.errors import LedgerError, UserError
from rlhf.stages.work import Run, StageWork
from rlhf.train import checkpoint
from rlhf.train.loop import EarlyStopping, Engine, Hooks, LoopPlan, StepStats, train
from rlhf.train.optim import build_optimizer

DONE = "run.json"


def prepare(run: Run, work: StageWork, found: Path | None) -> tuple[Engine, EarlyStopping, int]:
    """The engine, early stopping and the step to go on from, restored from `found` where there is one.

    Raises: UserError where the checkpoint does not belong to this configuration.
    """
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
        work.load_state_dict(checkpoint.restore(Engine(run.accelerator, module, optimizer, scheduler), found))
        stopping = EarlyStopping(**run.start["stopping"])
        start_step = run.start["step"]
    engine = Engine(run.accelerator, run.accelerator.prepare_model(module), optimizer, scheduler)
    return engine, stopping, start_step


def drive(run: Run, work: StageWork, engine: Engine, stopping: EarlyStopping, start_step: int) -> dict[str, Any]:
    """Trains, evaluates and saves; returns what run.json holds."""
    run.reporter.total = work.total_steps
    hooks = _hooks(run, work, engine, stopping)
    plan = _plan(run, work)
    try:
        with run.reporter:
            if run.start is None:
                work.begin()
            last = train(engine, work, plan, hooks, start_step=start_step, stopping=stopping)
            outcome = work.finish(last)
    except LedgerError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        work.abandon()
        error.step = work.step_now  # type: ignore[attr-defined]
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
        watch=section.metric_for_best_model if section.early_stopping_patience else None,
        greater_is_better=section.greater_is_better,
        patience=section.early_stopping_patience,
    )


def _hooks(run: Run, work: StageWork, engine: Engine, stopping: EarlyStopping) -> Hooks:
    def save(step: int) -> None:
        position = run.recorder.checkpoint(step, run.output_dir / f"checkpoint-{step}")
        checkpoint.save(
            engine,
            run.output_dir,
            step,
            write_model=lambda folder: work.module.save(folder, run.tokenizer),
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

    return Hooks(save, log, evaluated)


def _close(run: Run, work: StageWork, last: int, outcome: dict[str, Any]) -> dict[str, Any]:
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
    if run.accelerator.is_main_process:
        aside = run.output_dir / ".writing-model"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        work.module.save(aside, run.tokenizer)
        checkpoint.publish(aside, run.output_dir / "model")
        assert run.recorder.ledger is not None
        summary["ledger"] = {"path": str(run.recorder.ledger.path), "head": run.recorder.ledger.head()}
        (run.output_dir / DONE).write_text(json.dumps(summary, indent=1, sort_keys=True))
    run.accelerator.wait_for_everyone()
    return summary
