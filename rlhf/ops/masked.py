"""Reductions over the elements that count: `mask` is True where an element counts.

Elements that do not count never reach a result, not even as 0 * inf. A sum over nothing is 0, because the loop divides
it by a denominator that it has counted itself; a mean over nothing has no value and raises.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_fill(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the mask is True, 0 elsewhere.

    Raises: ValueError when the mask is not boolean or has another shape.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is boolean, True where an element counts; got {mask.dtype}")
    if mask.shape != x.shape:
        raise ValueError(f"mask {tuple(mask.shape)} and values {tuple(x.shape)} differ in shape")
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the elements that count; 0 when none does."""
    return masked_fill(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the elements that count.

    Raises: ValueError when no element counts.
    """
    count = mask.sum()
    if int(count) == 0:
        raise ValueError("mean over an empty mask")
    return masked_sum(x, mask) / count


def sequence_sum(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over the tokens of each row.

    Shapes: returns x_B; 0 for a row without a counted token.
    """
    return masked_fill(x_BT, mask_BT).sum(dim=1)


def sequence_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the tokens of each row.

    Shapes: returns x_B.
    Raises: ValueError naming the rows without a counted token.
    """
    count_B = mask_BT.sum(dim=1)
    empty = (count_B == 0).nonzero().flatten().tolist()
    if empty or not len(count_B):
        raise ValueError(f"mean over an empty mask: rows {empty}" if empty else "mean over a batch without rows")
    return sequence_sum(x_BT, mask_BT) / count_B
