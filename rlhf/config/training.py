"""The train section of every stage. Defaults are TRL 1.16's, or the description says how they differ."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rewards.config import Section


class TrainSection(Section):
    """What every stage's training has: length, batch, optimiser, schedule, evaluation, checkpoints."""

    output_dir: str = Field(
        "runs/run", description="A folder that is not empty stops the run unless --resume or --overwrite"
    )
    run_name: str | None = Field(None, description="The run's id in the ledger; null: PIPELINE/STAGE")
    seed: int = 42
    max_steps: int = Field(-1, description="Optimizer steps; -1: from num_train_epochs")
    num_train_epochs: float = Field(3.0, gt=0)
    per_device_train_batch_size: int = Field(8, gt=0)
    per_device_eval_batch_size: int = Field(8, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    gradient_checkpointing: bool = Field(False, description="TRL: true. Here false: it costs a third of the speed")
    learning_rate: float = Field(2e-5, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: float = Field(0, ge=0, description="Steps; a number below 1 is a share of max_steps")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = Field(1.0, ge=0, description="0: no clipping")
    bf16: bool = Field(False, description="Compute in bfloat16 over float32 weights. TRL: true where supported")
    use_cpu: bool = False
    world_size: int | None = Field(None, description="Ranks that are expected; another number is an error")
    logging_steps: int = Field(10, gt=0)
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    eval_steps: int | None = Field(None, gt=0)
    metric_for_best_model: str | None = Field(None, description="Held-out metric watched by early stopping")
    greater_is_better: bool = False
    early_stopping_patience: int | None = Field(None, gt=0, description="Evaluations without improvement")
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    save_steps: int = Field(500, gt=0)
    save_total_limit: int | None = Field(None, gt=0)
    resume_from_checkpoint: str | None = Field(None, description="A checkpoint folder; `--resume` takes the newest")
    max_length: int | None = Field(
        1024, gt=1, description="Tokens of prompt and completion; longer rows are cut and counted"
    )

    @model_validator(mode="after")
    def _evaluation_is_whole(self) -> TrainSection:
        if self.eval_strategy == "steps" and self.eval_steps is None:
            raise ValueError("eval_strategy is `steps`: set eval_steps")
        if self.early_stopping_patience is not None:
            if self.eval_strategy == "no":
                raise ValueError("early_stopping_patience needs evaluations: set eval_strategy")
            if self.metric_for_best_model is None:
                raise ValueError("early_stopping_patience needs metric_for_best_model, e.g. eval_loss")
        return self


class SFTTrainSection(TrainSection):
    """SFT."""

    learning_rate: float = Field(2e-5, gt=0)
    completion_only_loss: bool | None = Field(
        None, description="True: only completions are scored; null: true where a row has a prompt"
    )
    assistant_only_loss: bool = Field(False, description="Conversations: only assistant turns are scored")


class RewardTrainSection(TrainSection):
    """Reward model."""

    learning_rate: float = Field(1e-4, gt=0)
    center_rewards_coefficient: float | None = Field(None, gt=0, description="Penalty on (r_chosen + r_rejected)^2")
    rm_regularizer: Literal["grm_sft", "kl_ref"] | None = Field(
        None, description="grm_sft: text-generation loss on the kept head; kl_ref: KL(reference || policy) on it"
    )
    rm_regularizer_weight: float = Field(0.01, gt=0, description="GRM, Yang et al. 2024")
    reward_offset: Literal["none", "reference"] = Field(
        "none", description="reference: the mean over reference texts is subtracted from every score"
    )


class DPOTrainSection(TrainSection):
    """DPO."""

    learning_rate: float = Field(1e-6, gt=0)
    loss_type: list[Literal["sigmoid"]] = Field(default_factory=lambda: ["sigmoid"])
    beta: float = Field(0.1, gt=0, description="Inverse temperature of the implicit reward, per nat of log-ratio")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Probability that a label is flipped (cDPO)")


class GRPOTrainSection(TrainSection):
    """GRPO."""

    learning_rate: float = Field(1e-6, gt=0)
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = "dapo"
    num_generations: int = Field(8, ge=2)
    max_completion_length: int = Field(256, gt=0)
    max_length: int | None = Field(None, gt=1, description="Online RL: longest prompt plus max_completion_length")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = Field(None, gt=0, description="null: epsilon")
    num_iterations: int = Field(1, ge=1, description="Optimizer steps on one set of rollouts")
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = False
    max_sessions: int | None = Field(
        None, gt=0, description="The run ends with exactly this many sessions; the last group may be smaller"
    )


