"""Configuration of `rlhf reward`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import PairGainSection, Problem
from rlhf.config.sections import EvaluationSection
from rlhf.config.stage import Stage
from rlhf.config.training import TrainSection

RewardLoss = Literal["bradley_terry", "regression", "ordinal", "process"]
Probe = Literal["length", "cut", "mirroring", "hedging", "citations", "sycophancy"]

TAKES: dict[RewardLoss, str] = {
    "bradley_terry": "pair",
    "regression": "scored",
    "ordinal": "scored",
    "process": "stepwise",
}
"""The kind of rows that each loss learns from."""

_SCORED: tuple[RewardLoss, ...] = ("regression", "ordinal")
_OF: dict[str, tuple[RewardLoss, ...]] = {
    "center_rewards_coefficient": ("bradley_terry",),
    "label_noise": ("bradley_terry",),
    "rm_regularizer": ("bradley_terry",),
    "rm_regularizer_weight": ("bradley_terry",),
    "reward_offset": ("bradley_terry",),
    "score_scale": _SCORED,
    "attributes": _SCORED,
    "attribute_weights": _SCORED,
    "huber_delta": ("regression",),
    "step_aggregation": ("process",),
    "step_separator": ("process",),
}


class RewardTrainSection(TrainSection):
    """Reward model."""

    learning_rate: float = Field(1e-4, gt=0, description="Peak of the schedule")
    loss_type: RewardLoss = Field(
        "bradley_terry",
        description="bradley_terry: pairs; regression, ordinal: scored completions; process: stepwise supervision",
    )
    center_rewards_coefficient: float | None = Field(None, gt=0, description="Penalty on (r_chosen + r_rejected)^2")
    label_noise: float = Field(
        0.0, ge=0, lt=0.5, description="Known share of wrong labels; pairs cannot show it, repeated labels can"
    )
    rm_regularizer: Literal["grm_sft", "kl_ref"] | None = Field(
        None, description="grm_sft: text-generation loss on the kept head; kl_ref: KL(reference || policy) on it"
    )
    rm_regularizer_weight: float = Field(0.01, gt=0, description="GRM, Yang et al. 2024")
    reward_offset: Literal["none", "reference"] = Field(
        "none", description="reference: the mean over reference texts is subtracted from every score"
    )
    score_scale: tuple[float, float] | None = Field(
        None, description="Least and greatest score, e.g. [1, 5]; of ordinal the first and the last level"
    )
    attributes: list[str] = Field(
        default=["score"], min_length=1, description="Columns with a score, an output each; a null one is left out"
    )
    attribute_weights: dict[str, float] | None = Field(
        None, description="How several attributes make the reported score; one alone has weight 1"
    )
    huber_delta: float | None = Field(
        None, gt=0, description="Errors beyond this share of the scale count linearly; null: all squared"
    )
    step_aggregation: Literal["min", "product", "last"] = Field(
        "min", description="How the steps' probabilities of being right make the reported score"
    )
    step_separator: str = Field("\n", min_length=1, description="Stands between two steps")
    ensemble_size: int = Field(1, ge=1, description="Heads on the backbone, each on its own bootstrap of the rows")
    ensemble_std_coefficient: float = Field(
        0.0, ge=0, description="The reported score is the heads' mean less this many of their standard deviations"
    )

    @property
    def takes(self) -> str:
        """The kind of rows it learns from."""
        return TAKES[self.loss_type]

    def rules(self) -> Iterator[Problem]:
        """Each knob belongs to the loss; a weight needs a regularizer, a scale its loss, a weighting its attributes."""
        yield from super().rules()
        for key, losses in _OF.items():
            if self.loss_type not in losses and self.changed(key):
                yield key, f"has no effect with `loss_type: {self.loss_type}`: it belongs to {' and '.join(losses)}"
        if self.rm_regularizer is None and self.changed("rm_regularizer_weight"):
            yield "rm_regularizer_weight", "has no effect without rm_regularizer (grm_sft or kl_ref)"
        if self.ensemble_size == 1 and self.changed("ensemble_std_coefficient"):
            yield "ensemble_std_coefficient", "has no effect with `ensemble_size: 1`: one head agrees with itself"
        if self.loss_type in _SCORED:
            yield from self._score_rules()

    def _score_rules(self) -> Iterator[Problem]:
        if self.score_scale is None:
            yield "score_scale", f"`{self.loss_type}` needs the scale of the scores, e.g. [1, 5]"
        elif not self.score_scale[0] < self.score_scale[1]:
            yield "score_scale", f"must ascend, got [{self.score_scale[0]:g}, {self.score_scale[1]:g}]"
        elif self.loss_type == "ordinal" and any(end != round(end) for end in self.score_scale):
            yield "score_scale", "levels are whole numbers; for scores in between use `loss_type: regression`"
        if len(set(self.attributes)) < len(self.attributes):
            yield "attributes", "names one column twice"
        if self.attribute_weights is None:
            if len(self.attributes) > 1:
                yield "attribute_weights", f"say how {', '.join(self.attributes)} make one score, e.g. {{NAME: 1.0}}"
            return
        if len(self.attributes) == 1:
            yield "attribute_weights", f"has no effect with `{self.attributes[0]}` alone"
        elif set(self.attribute_weights) - set(self.attributes):
            other = sorted(set(self.attribute_weights) - set(self.attributes))[0]
            yield f"attribute_weights.{other}", f"is none of the attributes {', '.join(self.attributes)}"
        elif not any(self.attribute_weights.values()):
            yield "attribute_weights", "every weight is 0: there would be no score"


class RewardEvaluationSection(EvaluationSection):
    """Held-out rows, and texts made of them that try to win without being better."""

    probes: bool | list[Probe] = Field(
        True, description="Which exploits are tried on the finished model, as far as rows are held out; true: all"
    )


class RewardConfig(Stage):
    """`rlhf reward`."""

    stage: Literal["reward"] = Field("reward", description="Stage that the file is for")
    train: RewardTrainSection = Field(default_factory=RewardTrainSection, description="How it is trained")
    reward: PairGainSection = Field(default_factory=PairGainSection, description="Gains, margins, soft labels")
    evaluation: RewardEvaluationSection = Field(
        default_factory=RewardEvaluationSection, description="Sampled evaluation and probes"
    )

    @property
    def takes(self) -> str:
        """The kind of rows the stage learns from."""
        return self.train.takes

    def opens_reference(self) -> bool:
        """With the regularizer kl_ref."""
        return self.train.rm_regularizer == "kl_ref"

    def rules(self) -> Iterator[Problem]:
        """kl_ref needs a reference that has logits; margins and soft labels need pairs."""
        yield from super().rules()
        if self.reference.source == "precomputed":
            yield "reference.source", "a cached column has no logits, which kl_ref needs: frozen or adapter_off"
        if self.reference.source == "none" and self.opens_reference():
            yield "reference.source", "`train.rm_regularizer: kl_ref` needs a reference: frozen or adapter_off"
        if self.takes != "pair":
            for key in self.reward.changed("margin_column", "preference_column"):
                yield f"reward.{key}", f"is of pairs; `train.loss_type: {self.train.loss_type}` compares no texts"
            if isinstance(self.evaluation.probes, list) and "sycophancy" in self.evaluation.probes:
                yield "evaluation.probes", "`sycophancy` is tried on pairs; this stage learns from other rows"
