"""Cuts a stage's model over the ranks, and its reference with it."""

from __future__ import annotations

import torch
from torch import nn

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.reference.following import Following
from rlhf.reference.policy import AdapterOff, FrozenCopy, Reference, quiet
from rlhf.stages.work import Run
from rlhf.train.sharding import Shell, local_size, shard


def shard_stage(run: Run, module: nn.Module, reference: Reference | None) -> Shell:
    """Cuts `module` over the ranks; returns what whole copies of it are saved from.

    A frozen copy is cut likewise; a reference that lives in the policy follows it.

    Raises: ConfigError when there is one rank only.
    """
    accelerator = run.accelerator
    ranks = accelerator.num_processes
    if ranks == 1:
        raise ConfigError(
            "train.fsdp cuts the model over the ranks, and there is one; use train.fsdp=false, or start more: "
            "`torchrun --nproc_per_node 2 experiments/train.py ...`"
        )
    shell = Shell.of(module)
    _cut(run, module, ranks)
    if isinstance(reference, FrozenCopy):
        reference.shard_like(reference.policy)
        _cut(run, reference.policy, ranks)
    elif isinstance(reference, Following | AdapterOff):
        reference.shard_like(module)
    own, everything = local_size(module)
    run.say([f"train.fsdp: {everything:,} parameters over {ranks} ranks, {own:,} on this one"])
    return shell


def _cut(run: Run, module: nn.Module, ranks: int) -> None:
    device = run.accelerator.device
    shard(module, device.type, ranks)
    # The first pass must go through the root, and a stage may begin with sampling, which calls what is inside.
    ids_BT = torch.zeros((1, 2), dtype=torch.long, device=device)
    mask_BT = torch.tensor([[False, True]], device=device)
    with quiet(module), run.accelerator.autocast():
        module(TokenBatch(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), mask_BT))
