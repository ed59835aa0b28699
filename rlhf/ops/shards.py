"""Tensors that are cut over ranks, and whole."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor; where it is cut, every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part, in the memory of the tensor and without gradient; all of it where it is not cut."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def cut_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor that every rank has whole, cut as the parameter is; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
