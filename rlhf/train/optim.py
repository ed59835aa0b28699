"""Optimiser and learning-rate schedule from a configuration."""

from __future__ import annotations

import math

import torch
from transformers import get_scheduler

from rlhf.config import TrainSection


def build_optimizer(
    model: torch.nn.Module, train: TrainSection, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW (Loshchilov & Hutter 2019) with weight decay on matrices only, and the named schedule."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        fused=True,  # one pass over each parameter instead of a dozen: a fifth of the time on a processor
    )
    warmup = train.warmup_steps
    warmup_steps = math.ceil(warmup * total_steps) if 0 < warmup < 1 else int(warmup)
    scheduler = get_scheduler(train.lr_scheduler_type, optimizer, warmup_steps, total_steps)
    return optimizer, scheduler


def total_steps(train: TrainSection, rows: int, global_batch: int) -> int:
    """Optimizer steps of a run over `rows` rows: max_steps, or what num_train_epochs comes to."""
    if train.max_steps > 0:
        return train.max_steps
    return max(1, math.ceil(train.num_train_epochs * rows / global_batch))
