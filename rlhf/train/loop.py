"""The only training loop.

A stage hands over what is special about it: `batches` (this rank's micro-batches of a step), `prepare` (quantities that
couple the whole batch), `weights` (denominators, no model involved) and `step` (sums of loss terms). Every loss term is
divided by its own denominator, summed over all micro-batches of all ranks *before* the first backward, so that the
gradient does not depend on how a batch was cut: 1x8, 8x1 accumulation and two ranks agree.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rlhf.batch import to_device
from rlhf.ops.shards import full
from rlhf.train.metrics import Tally, reduce_tallies
from rlhf.train.record import SharedStop
from rlhf.train.sharding import Shell


@dataclass(frozen=True)
class Sum:
    """One loss term of a micro-batch: the sum of its weighted elements, and the coefficient it enters the loss with."""

    total: Tensor
    coefficient: float = 1.0


class Work(Protocol):
    """What a stage gives to the loop."""

    def batches(self, step: int) -> list[Any]:
        """This rank's micro-batches of the step; at least one."""

    def prepare(self, batches: list[Any]) -> Any:
        """Batch-coupled quantities, before the first backward."""

    def weights(self, batch: Any) -> dict[str, float]:
        """Each loss term's share of its denominator; no model involved."""

    def step(self, model: torch.nn.Module, batch: Any, context: Any) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """Loss sums by term, and metrics."""

    def rows(self, batches: list[Any]) -> list[str]:
        """The rows of these micro-batches, for the record of a stop."""

    def after_step(self, stats: StepStats) -> None:
        """Called after each optimizer step: records the sessions of the step."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out metrics."""


@dataclass
class StepStats:
    """What one optimizer step was: loss and gradient norm over the global batch; seconds are wall time."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    tokens: int
    metrics: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopPlan:
    """When the loop ends, evaluates and saves. Steps count from 1; None: never."""

    total_steps: int
    max_grad_norm: float = 1.0
    eval_every: int | None = None
    save_every: int | None = None
    watch: str | None = None
    greater_is_better: bool = False
    patience: int | None = None


@dataclass
class EarlyStopping:
    """Best value of the watched metric so far, and evaluations without improvement; lives in the checkpoint."""

    best: float | None = None
    best_step: int = 0
    waited: int = 0

    def update(self, value: float, step: int, *, greater_is_better: bool) -> None:
        """Takes one evaluation into account."""
        better = self.best is None or (value > self.best if greater_is_better else value < self.best)
        if better:
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1


@dataclass
class Hooks:
    """What happens around steps; each is called on every rank."""

    stepped: Callable[[int], None]
    """The sessions of the step are recorded; nothing was evaluated or saved yet."""
    save: Callable[[int], None]
    log: Callable[[StepStats], None]
    evaluated: Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Engine:
    """What an optimizer step moves: the (wrapped) model, its optimiser and schedule, and the ranks they live on.

    shell: where the parameters are cut over the ranks, what a whole copy of them is saved from.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    shell: Shell | None = None


def global_denominators(accelerator: Accelerator, parts: list[dict[str, float]]) -> dict[str, float]:
    """Each term's denominator over all micro-batches of all ranks.

    Raises: RunStopped when every term is empty: there is nothing to learn from in this step.
    """
    names = sorted({name for part in parts for name in part})
    local = torch.tensor([math.fsum(part.get(name, 0.0) for part in parts) for name in names], dtype=torch.float64)
    total = accelerator.reduce(local.to(accelerator.device), reduction="sum").tolist()
    if not any(value > 0 for value in total):
        reason = "no token or session of this step counts: every mask is empty or every reward is null"
        raise SharedStop(reason)
    return dict(zip(names, total, strict=True))


def train(
    engine: Engine,
    work: Work,
    plan: LoopPlan,
    hooks: Hooks,
    *,
    start_step: int = 0,
    stopping: EarlyStopping | None = None,
) -> int:
    """Trains from `start_step` to the end of the plan; returns the last step.

    Raises: RunStopped, with the rows of the batch, on a non-finite loss or gradient norm on any rank.
    """
    stopping = stopping if stopping is not None else EarlyStopping()
    step = start_step
    # A resumed run that had stopped early has nothing more to do, unless its patience was raised.
    while step < plan.total_steps and not _patience_is_over(plan, stopping):
        step += 1
        stats = optimizer_step(engine, work, step, plan.max_grad_norm)
        work.after_step(stats)
        hooks.stepped(step)
        hooks.log(stats)
        if plan.eval_every and step % plan.eval_every == 0:
            values = work.evaluate(step)
            hooks.evaluated(step, values)
            if plan.watch is not None:
                stopping.update(_watched(values, plan.watch), step, greater_is_better=plan.greater_is_better)
        ends = step == plan.total_steps or _patience_is_over(plan, stopping)
        if plan.save_every and (step % plan.save_every == 0 or ends):
            hooks.save(step)
    return step


def _patience_is_over(plan: LoopPlan, stopping: EarlyStopping) -> bool:
    return plan.patience is not None and stopping.waited >= plan.patience


def optimizer_step(engine: Engine, work: Work, step: int, max_grad_norm: float) -> StepStats:
    """One optimizer step over the global batch."""
    accelerator, model = engine.accelerator, engine.model
    began = time.perf_counter()
    batches = work.batches(step)
    context = work.prepare(batches)
    denominators = global_denominators(accelerator, [work.weights(batch) for batch in batches])
    engine.optimizer.zero_grad(set_to_none=True)
    totals = {name: torch.zeros((), dtype=torch.float64, device=accelerator.device) for name in denominators}
    tallies: dict[str, Tally] = {}
    tokens = 0
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            batch = to_device(batch, accelerator.device)
            sums, metrics = work.step(model, batch, context)
            # A term without a counted element has a denominator of 0 and a sum of 0.
            parts = [term.coefficient * term.total / (denominators[name] or 1.0) for name, term in sums.items()]
            # DDP averages gradients over ranks; the denominators are global already, hence the factor.
            accelerator.backward(torch.stack([part.reshape(()) for part in parts]).sum() * accelerator.num_processes)
        for name, term in sums.items():
            totals[name] += term.total.detach().double()
        for name, tally in metrics.items():
            tallies[name] = tallies[name] + tally if name in tallies else tally
        tokens += int(batch.tokens.attention_BT.sum())
    grad_norm = _clip(engine.optimizer, max_grad_norm)
    terms, metrics_out, tokens = _reduce(accelerator, totals, denominators, tallies, tokens)
    coefficients = {name: term.coefficient for name, term in sums.items()}
    loss = math.fsum(coefficients[name] * value for name, value in terms.items() if name in coefficients)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        rows = work.rows(batches)
        if accelerator.num_processes > 1:
            rows = gather_object(rows)
        shown = f"{', '.join(rows[:8])}{' ...' if len(rows) > 8 else ''}"
        raise SharedStop(f"step {step}: loss {loss}, gradient norm {grad_norm}: not finite; rows {shown}", rows)
    learning_rate = engine.optimizer.param_groups[0]["lr"]
    engine.optimizer.step()
    engine.scheduler.step()
    seconds = time.perf_counter() - began
    return StepStats(step, loss, grad_norm, learning_rate, seconds, tokens, metrics_out, terms)


def _clip(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    limit = max_grad_norm if max_grad_norm > 0 else math.inf
    # error_if_nonfinite stays off: a non-finite norm is recorded first, then stops the run.
    return float(full(torch.nn.utils.clip_grad_norm_(parameters, limit)))


def _reduce(
    accelerator: Accelerator,
    totals: dict[str, Tensor],
    denominators: dict[str, float],
    tallies: dict[str, Tally],
    tokens: int,
) -> tuple[dict[str, float], dict[str, float], int]:
    names = sorted(totals)
    counted = torch.tensor(float(tokens), dtype=torch.float64).to(accelerator.device)
    stacked = torch.stack([*(totals[name] for name in names), counted])
    values = accelerator.reduce(stacked, reduction="sum").tolist()
    terms = {
        name: value / denominators[name]
        for name, value in zip(names, values[:-1], strict=True)
        if denominators[name] > 0
    }
    return terms, reduce_tallies(accelerator, tallies), int(values[-1])


def _watched(values: dict[str, float], name: str) -> float:
    if name not in values:
        raise SharedStop(f"metric_for_best_model is `{name}`, but the evaluation gives {', '.join(sorted(values))}")
    return values[name]
