"""One optimizer step of a stage on a shallow model, with every tensor counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rewards.config import Loaded
from rlhf.models.load import load_policy
from rlhf.plan.live import Live
from rlhf.plan.sizes import Size, size_of
from rlhf.stages.drive import prepare
from rlhf.stages.inputs import Inputs
from rlhf.stages.registry import WORKS
from rlhf.stages.run import open_accelerator
from rlhf.stages.work import Run, StageWork
from rlhf.train.loop import Engine, optimizer_step
from rlhf.train.progress import Reporter
from rlhf.train.record import Recorder


@dataclass(frozen=True)
class Trial:
    """What one step took. Units: bytes.

    weights: of the policy; gradients: of what is trained; moments: of the optimiser; standing: what the stage keeps
    beside these (a reference, an embedding's noise); sampling: most before the forward pass; forward: what it leaves
    for the backward pass; transient: most above that, until the backward pass is through the last layers; late: most
    after that, above what stands, gradients included.
    """

    size: Size
    weights: int
    gradients: int
    moments: int
    standing: int
    sampling: int
    forward: int
    transient: int
    late: int


def open_work(stage: str, loaded: Loaded[Any], inputs: Inputs, folder: Path) -> tuple[Run, StageWork]:
    """The stage's pieces on the model that the configuration names; nothing is recorded."""
    run = _open(stage, loaded, inputs, folder)
    return run, WORKS[stage](run)


def _open(stage: str, loaded: Loaded[Any], inputs: Inputs, folder: Path) -> Run:
    config = loaded.config
    accelerator = open_accelerator(config, folder)
    torch.manual_seed(config.train.seed)
    policy, tokenizer = load_policy(config.model, seed=config.train.seed)
    policy.to(accelerator.device)
    recorder = Recorder(folder / "ledger", stage, accelerator, pipeline_id=None, resume=None)
    reporter = Reporter(stage, 0, "none", main=True, every=1)
    return Run(stage, loaded, inputs, stage, folder, accelerator, recorder, policy, tokenizer, reporter)


def run_trial(stage: str, loaded: Loaded[Any], inputs: Inputs, layers: int, folder: Path) -> Trial:
    """Counts a step that has one before it, since the first step has no moments yet.

    layers: of the model that the configuration names.
    """
    run = _open(stage, loaded, inputs, folder)
    run.policy.shortcuts()  # found out once per model, whatever the batch
    weights = _bytes(run.policy.parameters()) + _bytes(run.policy.buffers())
    live = Live(run.accelerator.device)
    live.own(run.policy)
    with live:
        work = WORKS[stage](run)
        engine, _, _ = prepare(run, work, None)
        standing = live.live
        # Rollouts are made anew after so many steps.
        steps = getattr(run.config.train, "num_iterations", 1)
        for step in range(1, steps + 1):
            optimizer_step(engine, work, step, run.config.train.max_grad_norm)
        engine.optimizer.zero_grad(set_to_none=True)
        moments = _bytes(t for state in engine.optimizer.state.values() for t in state.values())
        gradients = _bytes(p for p in work.module.parameters() if p.requires_grad)
        return _counted(live, run, engine, work, steps + 1, layers, (weights, gradients, moments, standing))


def _counted(
    live: Live, run: Run, engine: Engine, work: StageWork, step: int, layers: int, known: tuple[int, int, int, int]
) -> Trial:
    weights, gradients, moments, standing = known
    before = live.live
    seen: dict[str, Any] = {}

    def batches(step: int) -> list[Any]:
        live.mark()
        found = make(step)
        seen["batches"], seen["sampling"] = found, live.mark() - before
        return found

    def backward(loss: torch.Tensor, **options: Any) -> None:
        seen.setdefault("forward", live.live - before)
        seen.setdefault("ahead", live.mark() - before)
        go(loss, **options)

    def through(_: torch.Tensor) -> None:
        seen.setdefault("early", live.mark() - before)

    make, go = work.batches, engine.accelerator.backward
    handles = [p.register_post_accumulate_grad_hook(through) for p in _before_last(work.module, layers)]
    work.batches, engine.accelerator.backward = batches, backward  # type: ignore[method-assign]
    try:
        optimizer_step(engine, work, step, run.config.train.max_grad_norm)
    finally:
        work.batches, engine.accelerator.backward = make, go  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()
    late = live.mark() - before
    early = max(seen["ahead"], seen.get("early", late))
    size = size_of(seen["batches"][0].tokens)
    if not work.module.shortcuts()[0]:
        size = size.padded()
    return Trial(
        size, weights, gradients, moments, standing, seen["sampling"], seen["forward"], early - seen["forward"], late
    )


def _before_last(module: torch.nn.Module, layers: int) -> list[torch.nn.Parameter]:
    """Trained parameters of the last layer but one: once one has its gradient, the backward pass is past the last."""
    for part in module.modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == layers:
            return [p for p in part[layers - 2].parameters() if p.requires_grad]
    return []


def _bytes(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


def with_values(loaded: Loaded[Any], changes: dict[str, dict[str, Any]]) -> Loaded[Any]:
    """The configuration with some values replaced, section by section; nothing is checked again."""
    sections = {name: getattr(loaded.config, name).model_copy(update=values) for name, values in changes.items()}
    return replace(loaded, config=loaded.config.model_copy(update=sections))
