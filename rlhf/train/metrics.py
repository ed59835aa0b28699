"""Metrics that come from what the loss already has: sums with counts, so that ranks and micro-batches add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass(frozen=True)
class Tally:
    """A mean in two parts: the sum of values and how many there were."""

    total: Tensor | float
    count: float

    def __add__(self, other: Tally) -> Tally:
        """The tally of both sets of values."""
        return Tally(self.total + other.total, self.count + other.count)


def tally(values: Tensor, mask: Tensor | None = None) -> Tally:
    """Sum and count of the values whose mask is True."""
    values = values.detach().double()
    if mask is None:
        return Tally(values.sum(), float(values.numel()))
    return Tally((values * mask).sum(), float(mask.sum()))


def reduce_tallies(accelerator: Accelerator, tallies: dict[str, Tally]) -> dict[str, float]:
    """Means over all ranks; a metric without values is left out. Every rank must hold the same names."""
    names = sorted(tallies)
    if not names:
        return {}
    flat = [torch.as_tensor(tallies[name].total, dtype=torch.float64).to(accelerator.device) for name in names]
    flat += [torch.tensor(tallies[name].count, dtype=torch.float64).to(accelerator.device) for name in names]
    values = accelerator.reduce(torch.stack(flat), reduction="sum").tolist()
    half = len(names)
    return {name: values[i] / values[half + i] for i, name in enumerate(names) if values[half + i] > 0}
