"""What every stage's train section has. Defaults are TRL 1.16's, or the description says how they differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import Problem, Section


class TrainSection(Section):
    """What every stage's training has: length, batch, optimiser, schedule, evaluation, checkpoints."""

    output_dir: str = Field(
        "runs/run",
        min_length=1,
        description="A folder that is not empty stops the run unless --resume or --overwrite. TRL: trainer_output",
    )
    run_name: str | None = Field(None, description="The run's id in the ledger; null: PIPELINE/STAGE")
    seed: int = Field(42, ge=0, lt=2**32, description="Of everything random: data order, initialisation, sampling")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; -1: from num_train_epochs")
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the rows; max_steps goes before it")
    per_device_train_batch_size: int = Field(8, gt=0, description="Rows of a micro-batch on one rank")
    per_device_eval_batch_size: int = Field(8, gt=0, description="The same in evaluation")
    gradient_accumulation_steps: int = Field(1, gt=0, description="Micro-batches of an optimizer step")
    gradient_checkpointing: bool = Field(False, description="TRL: true. Here false: it costs a third of the speed")
    learning_rate: float = Field(2e-5, gt=0, description="Peak of the schedule")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Schedule after the warm-up; `constant` has none"
    )
    warmup_steps: float = Field(0.0, ge=0, description="Steps; a number below 1 is a share of all steps")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, on matrices only")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: memory of the mean gradient")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: memory of the squared gradient")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW: added to the denominator")
    max_grad_norm: float = Field(1.0, ge=0, description="Norm that gradients are clipped to; 0: no clipping")
    bf16: bool = Field(False, description="Compute in bfloat16 over float32 weights. TRL: true where supported")
    fsdp: bool = Field(
        False, description="Cut parameters, gradients and moments over the ranks (FSDP2). TRL: null, which is the same"
    )
    use_cpu: bool = Field(False, description="CPU even where there is a GPU")
    world_size: int | None = Field(None, gt=0, description="Ranks that are expected; another number is an error")
    logging_steps: int = Field(10, gt=0, description="Steps between two lines of progress and trackers")
    eval_strategy: Literal["no", "steps", "epoch"] = Field("no", description="When the held-out rows are evaluated")
    eval_steps: int | None = Field(None, gt=0, description="Steps between evaluations, with eval_strategy `steps`")
    metric_for_best_model: str | None = Field(None, description="Held-out metric watched by early stopping")
    greater_is_better: bool = Field(False, description="TRL: from the metric's name. Here false unless set")
    early_stopping_patience: int | None = Field(None, gt=0, description="Evaluations without improvement")
    save_strategy: Literal["no", "steps", "epoch"] = Field("steps", description="When checkpoints are written")
    save_steps: int = Field(500, gt=0, description="Steps between checkpoints, with save_strategy `steps`")
    save_total_limit: int | None = Field(None, gt=0, description="Checkpoints that are kept, the newest ones")
    resume_from_checkpoint: str | None = Field(None, description="A checkpoint folder; `--resume` takes the newest")
    max_length: int | None = Field(
        1024, gt=1, description="Tokens of prompt and completion; longer rows are cut and counted"
    )

    def rules(self) -> Iterator[Problem]:
        """Schedule, evaluation and early stopping are whole."""
        if self.max_steps == 0:
            yield "max_steps", "expected at least 1, or -1 for num_train_epochs, got 0"
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            yield "warmup_steps", f"expected whole steps, or a share below 1, got {self.warmup_steps:g}"
        if self.lr_scheduler_type == "constant" and self.warmup_steps > 0:
            yield "warmup_steps", "the schedule `constant` has no warm-up: use `constant_with_warmup`"
        if self.eval_strategy == "steps" and self.eval_steps is None:
            yield "eval_strategy", "`steps` needs eval_steps"
        if self.early_stopping_patience is not None:
            if self.eval_strategy == "no":
                yield "early_stopping_patience", "needs evaluations: set eval_strategy"
            if self.metric_for_best_model is None:
                yield "early_stopping_patience", "needs metric_for_best_model, e.g. eval_loss"

    def cautions(self) -> Iterator[Problem]:
        """Knobs that another one has switched off."""
        off = [
            ("num_train_epochs", self.max_steps > 0, f"max_steps is {self.max_steps}"),
            ("eval_steps", self.eval_strategy != "steps", f"eval_strategy is `{self.eval_strategy}`"),
            ("save_steps", self.save_strategy != "steps", f"save_strategy is `{self.save_strategy}`"),
            ("save_total_limit", self.save_strategy == "no", "save_strategy is `no`"),
            ("metric_for_best_model", self.early_stopping_patience is None, "early_stopping_patience is null"),
            ("greater_is_better", self.early_stopping_patience is None, "early_stopping_patience is null"),
        ]
        for key, is_off, why in off:
            if is_off and self.changed(key):
                yield key, f"has no effect: {why}"
