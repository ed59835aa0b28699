"""The sections of a configuration as frozen models: what every knob is called, what it means, what it defaults to.

Leaf names are TRL's wherever TRL has one. Defaults are TRL 1.16's, or the field's description says how they differ.
No torch here: a configuration error must be shown before torch is loaded.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rewards.config import GainSection, RewardFunction, RewardSection, Section

Optimiser = Literal["adamw_torch"]


class ModelSection(Section):
    """Which model, in which precision, full or LoRA."""

    model_name_or_path: str = Field(
        "tiny", description="Folder or hub id of a causal LM; `tiny` is the built-in model, randomly initialised"
    )
    model_revision: str | None = Field(None, description="Hub revision")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="Precision of the weights; `train.bf16` chooses the precision of compute"
    )
    attn_implementation: str | None = Field(None, description="transformers' attention implementation")
    trust_remote_code: bool = Field(False, description="Run model code from the hub")
    use_peft: bool = Field(False, description="Train a LoRA adapter (needs the extra `peft`)")
    lora_r: int = Field(16, gt=0)
    lora_alpha: float = Field(32, gt=0)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_target_modules: list[str] | str | None = Field(None, description="None: peft's default for the model")
    chat_template: str | None = Field(None, description="Jinja file that replaces the tokenizer's chat template")
    tiny_hidden_size: int = Field(128, gt=0, description="Built-in model only")
    tiny_num_layers: int = Field(3, gt=0, description="Built-in model only")
    tiny_num_heads: int = Field(4, gt=0, description="Built-in model only")
    tiny_num_kv_heads: int = Field(2, gt=0, description="Built-in model only")
    tiny_vocab_size: int = Field(512, ge=300, description="Built-in model only: pieces of the BPE made from the data")


class DatasetSource(Section):
    """One source of rows: a hub id, a file, a folder, a glob, or the name of a built-in recipe."""

    path: str
    name: str | None = Field(None, description="Hub configuration")
    data_files: str | list[str] | None = None
    split: str | None = None
    columns: dict[str, str] | None = Field(None, description="Rename: {column in the file: column here}")
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the rows that is used, sampled with train.seed")


class MixturePhase(Section):
    """From which step on a category of prompts takes part, and how often. Entering later than step 1 is an event."""

    category: str
    weight: float = Field(1.0, ge=0, description="Relative share of the prompts of a step")
    from_step: int = Field(1, ge=1)


class DataSection(Section):
    """Where the rows come from, how they are read, what is held out."""

    dataset_name: str | None = Field(None, description="Hub id, file, folder, glob, or built-in recipe (`wild7`)")
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str | None = Field(
        None, description="TRL: `test`. Here null: without one, `holdout_fraction` of the prompts is held out"
    )
    datasets: list[DatasetSource] | None = Field(None, description="Several sources; instead of dataset_name")
    format: str | None = Field(None, description="Overrides the detected format; see `rlhf.data.records.FORMATS`")
    holdout_fraction: float = Field(0.05, ge=0, lt=1, description="Held out by prompt: no prompt is on both sides")
    category_column: str = Field("category", description="Column that names the slice a prompt belongs to")
    max_rows: int | None = Field(None, gt=0, description="At most this many rows, after shuffling with train.seed")
    recipe_split: str | None = Field(None, description="Built-in recipe: demonstrations, pairs or prompts")
    mixture: list[MixturePhase] | None = Field(None, description="Online RL: category weights and entry points")


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


class KLSection(Section):
    """How the divergence from the reference is measured and where it enters the objective."""

    preset: Literal["trl_grpo", "grpo_paper", "trl_rloo", "sequence_k2"] | None = Field(
        None, description="A named combination; setting one of the four fields beside it is an error"
    )
    estimator: Literal["k1", "k2", "k3", "full"] | None = None
    place: Literal["reward", "loss"] | None = None
    level: Literal["token", "sequence"] | None = None
    ratio: Literal["none", "live", "detached"] | None = None


class ReferenceSection(Section):
    """The shared reference-policy constraint."""

    source: Literal["frozen", "adapter_off", "precomputed", "none"] | None = Field(
        None, description="null: adapter_off with use_peft, else frozen, else none where nothing asks for a reference"
    )
    reference_model: str | None = Field(None, description="Another model as reference; null: the policy's start")
    cache_dir: str | None = Field(None, description="precomputed: folder of cached columns; null: OUTPUT_DIR/reference")


class SFTReferenceSection(ReferenceSection):
    """SFT: full-vocabulary KL(reference || policy) on the demonstration's tokens."""

    kl_coefficient: float = Field(0.0, ge=0, description="lambda; per nat and token")
    kl: KLSection | None = Field(None, description="Demonstrations allow estimator `full` only")


class OnlineReferenceSection(ReferenceSection):
    """Online RL."""

    beta: float = Field(
        0.0, ge=0, description="Coefficient of the KL penalty; per nat and token, or per nat and sequence: see kl.level"
    )
    kl: KLSection = Field(default_factory=lambda: KLSection(preset="trl_grpo"))


class LedgerSection(Section):
    """Where the sessions are recorded."""

    path: str | None = Field(None, description="null: OUTPUT_DIR/ledger")
    pipeline_id: str | None = Field(None, description="Shared by the stages of one pipeline")
    statement: str | None = Field(None, description="What this run is, in a sentence that its report must show")
    record_texts: Literal["online", "always"] = Field(
        "online", description="online: texts of online RL and evaluation; texts of a data set are named by row_id"
    )


class EvaluationSection(Section):
    """Held-out prompts that are answered before and after the stage."""

    prompts: str | None = Field(None, description="A source of prompts; null: no sampled evaluation")
    recipe_split: str | None = None
    num_samples: int = Field(300, gt=0, description="Prompts that are answered, spread over the categories")
    max_completion_length: int = Field(48, gt=0)
    temperature: float = Field(1.0, gt=0, description="Greedy decoding hides rare content: 1 by default")
    before: bool = Field(False, description="Also answer them before the first step")
    reward_funcs: list[str | RewardFunction] = Field(
        default_factory=list, description="What scores the answers; empty: online RL takes reward.reward_funcs"
    )
    classifier: str | None = Field(None, description="As reward.classifier")
    compliant_when: dict[str, list[str]] = Field(default_factory=dict, description="As reward.compliant_when")


class TrackingSection(Section):
    """Trackers beside the ledger, which always records."""

    report_to: Literal["none", "tensorboard", "trackio", "mlflow", "wandb"] = "none"
    project: str = "rlhf"


class _Stage(Section):
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    ledger: LedgerSection = Field(default_factory=LedgerSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    reward: GainSection = Field(default_factory=GainSection)


class SFTConfig(_Stage):
    """`rlhf sft`."""

    train: SFTTrainSection = Field(default_factory=SFTTrainSection)
    reference: SFTReferenceSection = Field(default_factory=SFTReferenceSection)


class RewardConfig(_Stage):
    """`rlhf reward`."""

    train: RewardTrainSection = Field(default_factory=RewardTrainSection)
    reference: ReferenceSection = Field(default_factory=ReferenceSection)


class DPOConfig(_Stage):
    """`rlhf dpo`."""

    train: DPOTrainSection = Field(default_factory=DPOTrainSection)
    reference: ReferenceSection = Field(default_factory=ReferenceSection)


class GRPOConfig(_Stage):
    """`rlhf grpo`."""

    reward: RewardSection = Field(default_factory=RewardSection)  # type: ignore[assignment]
    train: GRPOTrainSection = Field(default_factory=GRPOTrainSection)
    reference: OnlineReferenceSection = Field(default_factory=OnlineReferenceSection)


StageConfig = SFTConfig | RewardConfig | DPOConfig | GRPOConfig
STAGES: dict[str, type[Any]] = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig, "grpo": GRPOConfig}

RETIRED: dict[str, str] = {
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of the steps)",
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "max_prompt_length": "max_length (prompts are never cut on their own)",
    "logging_dir": "tracking.report_to (trackers write under OUTPUT_DIR)",
    "overwrite_output_dir": "the flag --overwrite",
    "no_cuda": "use_cpu",
}
