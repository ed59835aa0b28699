"""Sections that every stage has: model, data, ledger, evaluation, tracking."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.config import RewardFunction, Section


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


