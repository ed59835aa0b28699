"""Parameters, gradients and moments cut over the ranks: torch's `fully_shard` (FSDP2), called directly.

(accelerate's plugin for it silently runs DDP on a CPU.) A sharded module is whole in three places only: while it is
loaded, while `whole` lends it for sampling, and one copy while `gathered` lends it for saving.

A pass through a sharded module is a collective operation: every rank must make as many as the others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from rewards.errors import ConfigError
from rlhf.ops.shards import cut_like, full, own_part


@dataclass(frozen=True)
class Shell:
    """A module's structure without the memory of its parameters; `gathered` fills it to save it."""

    module: nn.Module

    @classmethod
    def of(cls, module: nn.Module) -> Shell:
        """The structure of a module that is not sharded yet."""
        empty = {
            id(p): nn.Parameter(p.detach().new_empty(0), requires_grad=p.requires_grad) for p in module.parameters()
        }
        return cls(copy.deepcopy(module, empty))

    def fill(self, module: nn.Module) -> None:
        """Takes the parameters and buffers of the sharded module, whole; every rank must call it."""
        for own, cut in zip(self.module.parameters(), module.parameters(), strict=True):
            own.data = full(cut.detach())
        for own_buffer, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            own_buffer.data = buffer.detach()

    def empty(self) -> None:
        """Gives the parameters' memory back."""
        for own in self.module.parameters():
            own.data = own.data.new_empty(0)


def shard(module: nn.Module, device_type: str, ranks: int) -> None:
    """Cuts every transformer layer and what is left of `module` over the ranks; `module` is what passes go through.

    Raises: ConfigError when trained parameters differ in type; RuntimeError when one is whole afterwards.
    """
    dtypes = {p.dtype: name for name, p in module.named_parameters() if p.requires_grad}
    if len(dtypes) > 1:
        # Gradients of a layer are summed over the ranks in one buffer.
        shown = " and ".join(f"{name} in {str(dtype).removeprefix('torch.')}" for dtype, name in dtypes.items())
        raise ConfigError(
            f"train.fsdp needs trained parameters of one type, here are {shown}: use model.dtype=float32, and "
            "train.bf16=true to compute in bfloat16"
        )
    mesh = init_device_mesh(device_type, (ranks,))
    for layer in _layers(module):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The root too: an evaluation has no backward pass after which it would be cut again, and a whole one would be stale
    # after the next step.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    whole_ones = [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]
    if whole_ones:
        raise RuntimeError(f"{len(whole_ones)} parameters are not sharded, first {whole_ones[0]}")


@contextmanager
def gathered(module: nn.Module, shell: Shell | None) -> Iterator[Any]:
    """The module, or where it is sharded a whole copy of it to save; every rank must enter."""
    if shell is None:
        yield module
        return
    shell.fill(module)
    try:
        yield shell.module
    finally:
        shell.empty()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside, passes through a sharded module need no other rank: for sampling, whose length differs between ranks.

    Every rank must enter. Nothing is done to a module that is not sharded.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers of the transformer, by the names that transformers keeps together on one device."""
    names: set[str] = set()
    for part in module.modules():
        names.update(getattr(part, "_no_split_modules", None) or ())
    return [part for part in module.modules() if type(part).__name__ in names]


def local_size(module: nn.Module) -> tuple[int, int]:
    """Numbers that this rank holds of the module's parameters, and how many there are."""
    parameters = list(module.parameters())
    own = sum(own_part(p).numel() for p in parameters)
    return own, sum(p.numel() for p in parameters)


def whole_state(value: Any, keep: bool) -> Any:
    """A state dict with whole tensors on the CPU where `keep`, else without them; every rank must call it."""
    if isinstance(value, DTensor):
        gathered_tensor = value.full_tensor()
        return gathered_tensor.cpu() if keep else None
    if isinstance(value, dict):
        return {key: whole_state(part, keep) for key, part in value.items()}
    if isinstance(value, list):
        return [whole_state(part, keep) for part in value]
    return value


def cut_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's saved state with every moment cut as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut = {
        index: {
            name: cut_like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in moments.items()
        }
        for index, moments in state["state"].items()
    }
    return {**state, "state": cut}
