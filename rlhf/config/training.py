"""The train section of every stage. Defaults are TRL 1.16's, or the description says how they differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import Problem, Section

PreferenceLoss = Literal["sigmoid"]


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


class SFTTrainSection(TrainSection):
    """SFT."""

    completion_only_loss: bool | None = Field(
        None, description="True: only completions are scored; null: true where a row has a prompt"
    )
    assistant_only_loss: bool = Field(False, description="Conversations: only assistant turns are scored")


class RewardTrainSection(TrainSection):
    """Reward model."""

    learning_rate: float = Field(1e-4, gt=0, description="Peak of the schedule")
    center_rewards_coefficient: float | None = Field(None, gt=0, description="Penalty on (r_chosen + r_rejected)^2")
    rm_regularizer: Literal["grm_sft", "kl_ref"] | None = Field(
        None, description="grm_sft: text-generation loss on the kept head; kl_ref: KL(reference || policy) on it"
    )
    rm_regularizer_weight: float = Field(0.01, gt=0, description="GRM, Yang et al. 2024")
    reward_offset: Literal["none", "reference"] = Field(
        "none", description="reference: the mean over reference texts is subtracted from every score"
    )

    def rules(self) -> Iterator[Problem]:
        """A weight needs a regularizer."""
        yield from super().rules()
        if self.rm_regularizer is None and self.changed("rm_regularizer_weight"):
            yield "rm_regularizer_weight", "has no effect without rm_regularizer (grm_sft or kl_ref)"


class DPOTrainSection(TrainSection):
    """DPO."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak of the schedule")
    loss_type: list[PreferenceLoss] = Field(
        default=["sigmoid"], min_length=1, description="sigmoid: DPO, Rafailov et al. 2023"
    )
    beta: float = Field(0.1, gt=0, description="Inverse temperature of the implicit reward, per nat of log-ratio")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Probability that a label is flipped (cDPO)")


class GRPOTrainSection(TrainSection):
    """GRPO."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak of the schedule")
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = Field(
        "dapo", description="What token losses are divided by: their sequence, all tokens, or the greatest length"
    )
    num_generations: int = Field(8, ge=2, description="Completions of a prompt: a group")
    max_completion_length: int = Field(512, gt=0, description="Tokens after which a completion is cut")
    max_length: int | None = Field(
        None, gt=1, description="Longest prompt and completion together; null: whatever the prompts need"
    )
    temperature: float = Field(1.0, gt=0, description="Of sampling; log-probabilities are those of this temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus that completions are sampled from; 1: everything")
    epsilon: float = Field(0.2, gt=0, description="The ratio pi / pi_old is clipped to 1 - epsilon from below")
    epsilon_high: float | None = Field(None, gt=0, description="... and to 1 + epsilon_high; null: epsilon")
    num_iterations: int = Field(1, ge=1, description="Optimizer steps on one set of rollouts")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Whose standard deviation advantages are divided by"
    )
    mask_truncated_completions: bool = Field(False, description="Completions that were cut take no part in the loss")
    max_sessions: int | None = Field(
        None, gt=0, description="The run ends with exactly this many sessions; the last group may be smaller"
    )

    def rules(self) -> Iterator[Problem]:
        """Clipping can act, and lengths and groups fit."""
        yield from super().rules()
        if self.num_iterations == 1:
            for key in self.changed("epsilon", "epsilon_high"):
                yield key, "has no effect with `num_iterations: 1`: the ratio is 1 then and is never clipped"
        if self.max_length is not None and self.max_length <= self.max_completion_length:
            yield "max_length", f"{self.max_length} leaves no prompt beside max_completion_length"
        if self.world_size is not None and self._sessions(self.world_size) % self.num_generations:
            yield "num_generations", f"{self._sessions(self.world_size)} sessions a step are no whole groups of it"

    def cautions(self) -> Iterator[Problem]:
        """A step without whole groups on one rank."""
        yield from super().cautions()
        if self.world_size is None and self._sessions(1) % self.num_generations:
            yield (
                "num_generations",
                f"{self._sessions(1)} sessions a step and rank are no whole groups of {self.num_generations}: "
                f"the number of ranks has to make up for it",
            )

    def _sessions(self, ranks: int) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * ranks
