"""Sections that every stage has: model, data, ledger, evaluation, tracking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import Problem, RewardFunction, Section


class ModelSection(Section):
    """Which model, in which precision, full or LoRA."""

    model_name_or_path: str = Field(
        "tiny",
        description="Folder or hub id of a causal LM; `tiny` is the built-in one, randomly initialised. TRL: none",
    )
    model_revision: str | None = Field(None, description="Hub revision; null: the newest. TRL: main")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="Precision of the weights; `train.bf16` chooses the precision of compute"
    )
    attn_implementation: str | None = Field(None, description="transformers' attention implementation")
    trust_remote_code: bool = Field(False, description="Run model code from the hub")
    use_peft: bool = Field(False, description="Train a LoRA adapter (needs the extra `peft`)")
    lora_r: int = Field(16, gt=0, description="Rank of the adapter")
    lora_alpha: float = Field(32.0, gt=0, description="The adapter's output is scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(
        0.05, ge=0, lt=1, description="Dropout before the adapter; DPO and GRPO switch all dropout off"
    )
    lora_target_modules: list[str] | str | None = Field(None, description="null: peft's default for the model")
    chat_template_path: str | None = Field(None, description="Jinja file that replaces the tokenizer's chat template")
    tiny_hidden_size: int = Field(128, gt=0, description="Built-in model only: width")
    tiny_num_layers: int = Field(3, gt=0, description="Built-in model only: depth")
    tiny_num_heads: int = Field(4, gt=0, description="Built-in model only: attention heads; divides the width")
    tiny_num_kv_heads: int = Field(2, gt=0, description="Built-in model only: key-value heads; divides the heads")
    tiny_vocab_size: int = Field(512, ge=300, description="Built-in model only: pieces of the BPE made from the data")

    def rules(self) -> Iterator[Problem]:
        """Knobs of an adapter need one, knobs of the built-in model need that model."""
        if not self.use_peft:
            for key in self.changed("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
                yield key, "has no effect without `use_peft: true`"
        if self.model_name_or_path != "tiny":
            tiny = [name for name in type(self).model_fields if name.startswith("tiny_")]
            for key in self.changed(*tiny):
                yield key, f"is a knob of the built-in model `tiny`, and the model is `{self.model_name_or_path}`"
        if self.tiny_hidden_size % self.tiny_num_heads:
            yield "tiny_num_heads", f"{self.tiny_num_heads} does not divide tiny_hidden_size {self.tiny_hidden_size}"
        if self.tiny_num_heads % self.tiny_num_kv_heads:
            yield "tiny_num_kv_heads", f"{self.tiny_num_kv_heads} does not divide tiny_num_heads {self.tiny_num_heads}"


class DatasetSource(Section):
    """One source of rows: a hub id, a file, a folder, a glob, or the name of a built-in recipe."""

    path: str = Field(min_length=1, description="Hub id, file, folder, glob, or built-in recipe")
    name: str | None = Field(None, description="Hub configuration")
    data_files: str | list[str] | None = Field(None, description="Files or globs inside path; null: all of them")
    split: str | None = Field(None, description="null: data.dataset_train_split")
    columns: dict[str, str] | None = Field(None, description="Rename: {column in the file: column here}")
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the rows that is used, sampled with train.seed")


class MixturePhase(Section):
    """From which step on a category of prompts takes part, and how often. Entering later than step 1 is an event."""

    category: str = Field(description="Category of prompts")
    weight: float = Field(1.0, ge=0, description="Relative share of the prompts of a step")
    from_step: int = Field(1, ge=1, description="First step of this phase")


class DataSection(Section):
    """Where the rows come from, how they are read, what is held out."""

    dataset_name: str | None = Field(None, description="Hub id, file, folder, glob, or built-in recipe (`wild7`)")
    dataset_config: str | None = Field(None, description="Configuration of a hub data set")
    dataset_train_split: str = Field("train", description="Split that is trained on")
    dataset_test_split: str | None = Field(
        None, description="TRL: `test`. Here null: without one, `holdout_fraction` of the prompts is held out"
    )
    datasets: list[DatasetSource] | None = Field(None, description="Several sources; instead of dataset_name")
    format: str | None = Field(None, description="Overrides the detected format; see `rlhf.data.records.FORMATS`")
    holdout_fraction: float = Field(0.05, ge=0, lt=1, description="Held out by prompt: no prompt is on both sides")
    category_column: str = Field("category", description="Column that names the slice a prompt belongs to")
    max_rows: int | None = Field(None, gt=0, description="At most this many rows, after shuffling with train.seed")
    recipe_split: str | None = Field(None, description="Built-in recipe: demonstrations, pairs or prompts")

    def rules(self) -> Iterator[Problem]:
        """One way to name the rows, one way to hold some out."""
        if self.datasets is not None:
            for key in self.changed("dataset_name", "dataset_config"):
                yield key, "is for a single source: with `datasets`, give it there as path or name"
            if not self.datasets:
                yield "datasets", "the list is empty"
        if self.dataset_test_split is not None and self.changed("holdout_fraction"):
            yield "holdout_fraction", "has no effect beside dataset_test_split, which is what is held out"


class OnlineDataSection(DataSection):
    """Online RL: which category of prompts takes part when."""

    mixture: list[MixturePhase] | None = Field(
        None, description="Weights and entry points of the categories; null: all rows, in epochs"
    )

    def rules(self) -> Iterator[Problem]:
        """The first step has prompts; no two phases of a category begin together."""
        yield from super().rules()
        phases = [(phase.category, phase.from_step) for phase in self.mixture or []]
        for i, phase in enumerate(phases):
            if phase in phases[:i]:
                yield f"mixture.{i}", f"a second phase of category `{phase[0]}` from step {phase[1]}"
        if self.mixture is not None and not any(p.from_step == 1 and p.weight > 0 for p in self.mixture):
            yield "mixture", "no category has a weight above 0 at step 1"


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
    eval_recipe_split: str | None = Field(None, description="Built-in recipe: the split that the prompts come from")
    num_samples: int = Field(300, gt=0, description="Prompts that are answered, spread over the categories")
    eval_max_completion_length: int = Field(
        48, gt=0, description="Tokens after which an answer is cut. TRL: none of its own"
    )
    eval_temperature: float = Field(1.0, gt=0, description="Greedy decoding hides rare content: 1 by default")
    before: bool = Field(False, description="Also answer them before the first step")
    eval_reward_funcs: list[str | RewardFunction] = Field(
        default_factory=list, description="What scores the answers; empty: online RL takes reward.reward_funcs"
    )
    eval_classifier: str | None = Field(None, description="As reward.classifier")
    eval_compliant_when: dict[str, list[str]] = Field(default_factory=dict, description="As reward.compliant_when")

    def rules(self) -> Iterator[Problem]:
        """Classes need a classifier."""
        if self.eval_compliant_when and self.eval_classifier is None:
            yield "eval_compliant_when", "has no effect without `eval_classifier`: nothing says what class an answer is"

    def cautions(self) -> Iterator[Problem]:
        """Nothing is sampled without prompts."""
        if self.prompts is None:
            # A reward model's offset samples with these two even without prompts of its own; probes sample nothing.
            sampling = {"prompts", "eval_temperature", "eval_max_completion_length", "probes"}
            for key in self.changed(*(name for name in type(self).model_fields if name not in sampling)):
                yield key, "has no effect: prompts is null, so nothing is sampled"


class TrackingSection(Section):
    """Trackers beside the ledger, which always records."""

    report_to: Literal["none", "tensorboard", "trackio", "mlflow", "wandb"] = Field(
        "none", description="Where metrics go too"
    )
    project: str = Field("rlhf", description="Project in the tracker. TRL: huggingface")
