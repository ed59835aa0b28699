"""Checkpoints: written aside, fsynced, renamed, so that a folder with the final name is always whole.

Layout of `checkpoint-STEP/`: the model as an ordinary `save_pretrained` folder, and `trainer/` with the optimiser, the
schedule, the reference (its identity, and the weights of one that moves), the stage's own state, a random state per
rank and `state.json` (step, ledger position, identities, early stopping, configuration digest). Tensors are whole,
whether or not the run is sharded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rewards.errors import UserError
from rlhf.train.loop import Engine
from rlhf.train.sharding import cut_moments, whole_state

STATE = "trainer/state.json"
REFERENCE = "trainer/reference.pt"


def fsync_tree(folder: Path) -> None:
    """Forces every file and folder below `folder` to disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def publish(aside: Path, final: Path) -> None:
    """Renames a folder that was written aside to its final name, durably."""
    fsync_tree(aside)
    old = final.with_name(f".old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(aside, final)
    shutil.rmtree(old, ignore_errors=True)
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first; those of a later attempt are newer, whatever their steps."""
    found = [p for p in output_dir.glob("checkpoint-*") if (p / STATE).is_file()]
    return sorted(found, key=_age)


def _age(path: Path) -> tuple[int, int]:
    # After a resume from an earlier checkpoint, later steps of the attempt before are still in the folder.
    state = load_state(path)
    return state["ledger"]["attempt"], state["step"]


def find_checkpoint(output_dir: Path, wanted: str | None) -> Path | None:
    """The checkpoint to resume from: the named one, or the newest; None when there is none yet.

    Raises: UserError when the named folder is not a checkpoint.
    """
    if wanted is not None:
        path = Path(wanted)
        if not (path / STATE).is_file():
            raise UserError(
                f"{path}: not a checkpoint ({STATE} is missing); give a checkpoint-STEP folder or use --resume"
            )
        return path
    found = checkpoints(output_dir)
    return found[-1] if found else None


def save(
    engine: Engine,
    output_dir: Path,
    step: int,
    *,
    write_model: Callable[[Path], None],
    stage_state: dict[str, Any],
    reference: dict[str, Any] | None,
    state: dict[str, Any],
    keep: int | None,
) -> Path:
    """Writes `checkpoint-STEP`; every rank calls it. `write_model(folder)` runs on the main rank only."""
    accelerator = engine.accelerator
    final = output_dir / f"checkpoint-{step}"
    aside = output_dir / f".writing-checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "trainer").mkdir(parents=True)
    accelerator.wait_for_everyone()
    rng = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    torch.save(rng, aside / "trainer" / f"rng-{accelerator.process_index}.pt")
    torch.save(stage_state, aside / "trainer" / f"stage-{accelerator.process_index}.pt")
    moments = {
        "optimizer": whole_state(engine.optimizer.state_dict(), accelerator.is_main_process),
        "scheduler": engine.scheduler.state_dict(),
    }
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_model(aside)
        torch.save(moments, aside / "trainer" / "optimizer.pt")
        if reference is not None:
            torch.save(reference, aside / REFERENCE)
        (aside / STATE).write_text(json.dumps({**state, "step": step}, indent=1, sort_keys=True))
        publish(aside, final)
        if keep is not None:
            for old in checkpoints(output_dir)[:-keep]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_state(path: Path) -> dict[str, Any]:
    """The checkpoint's `state.json`."""
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    return state


def load_reference(path: Path) -> dict[str, Any] | None:
    """What `Reference.state_dict` gave when the checkpoint was written; None where it holds nothing of a reference."""
    if not (path / REFERENCE).is_file():
        return None
    state: dict[str, Any] = torch.load(path / REFERENCE, map_location="cpu", weights_only=True)
    return state


def restore(engine: Engine, path: Path) -> dict[str, Any]:
    """Restores optimiser, schedule and random state; returns the stage's own state of this rank.

    Raises: UserError when the checkpoint was written by another number of ranks, or trains other parameters.
    """
    accelerator, folder = engine.accelerator, path / "trainer"
    ranks = len(list(folder.glob("rng-*.pt")))
    if ranks != accelerator.num_processes:
        raise UserError(f"{path}: written by {ranks} ranks, resumed by {accelerator.num_processes}; start as many")
    saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    _restore_optimizer(engine, saved)
    rng = torch.load(folder / f"rng-{accelerator.process_index}.pt", weights_only=True)
    torch.set_rng_state(rng["torch"])
    if "cuda" in rng and torch.cuda.is_available():
        torch.cuda.set_rng_state(rng["cuda"])
    stage: dict[str, Any] = torch.load(folder / f"stage-{accelerator.process_index}.pt", weights_only=True)
    return stage


def _restore_optimizer(engine: Engine, saved: dict[str, Any]) -> None:
    """Moments and place in the schedule; rates, decay and betas are the configuration's, which may have changed."""
    optimizer, scheduler = engine.optimizer, engine.scheduler
    configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(cut_moments(saved["optimizer"], optimizer))
    scheduler.load_state_dict(saved["scheduler"])
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler.base_lrs = [group["initial_lr"] for group in configured]
    rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, own, rate in zip(optimizer.param_groups, configured, rates, strict=True):
        group.update({**own, "lr": rate})
    scheduler._last_lr = rates
