"""Configuration of `rlhf dpo`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from rewards.config import PairGainSection, Problem
from rlhf.config.pair_losses import (
    COUPLED,
    KNOBS,
    REFERENCE_FREE,
    RENAMED,
    FDivergence,
    PreferenceLoss,
    misplaced,
    untouched,
)
from rlhf.config.stage import Stage
from rlhf.config.training import TrainSection

BETA = 0.1
"""TRL's default."""


class DPOTrainSection(TrainSection):
    """DPO."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak of the schedule")
    loss_type: list[PreferenceLoss] = Field(
        default=["sigmoid"], min_length=1, description="Losses that are added up; sigmoid: DPO, Rafailov et al. 2023"
    )
    loss_weights: list[float] | None = Field(None, description="One per loss, above 0; null: 1 each")
    beta: float | None = Field(
        None,
        gt=0,
        description="Inverse temperature of the implicit reward, per nat of log-ratio; null: 0.1 where a loss has a "
        "reference, without meaning elsewhere. TRL: 0.1",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Probability that a label is flipped; sigmoid with it is cDPO"
    )
    f_divergence_type: FDivergence = Field(
        "reverse_kl", description="Divergence whose derivative is the score of a log-ratio (f-DPO)"
    )
    f_alpha_divergence_coef: float = Field(
        0.5, description="a in (t^(a-1) - 1) / (a-1): 0 is forward KL, 1 reverse KL; 1 - alpha of the f-DPO paper"
    )
    ld_alpha: float | None = Field(
        None, ge=0, lt=1, description="LD-DPO: weight of a text's tokens beyond the length of the other; null: 1"
    )
    use_weighting: bool = Field(False, description="WPO: a pair counts as much as the policy would write its texts")
    discopop_tau: float = Field(0.05, gt=0, description="discopop: temperature of the mixture")
    cpo_beta: float = Field(0.1, gt=0, description="cpo: beta, per nat of log-probability. TRL: beta")
    cpo_alpha: float = Field(1.0, ge=0, description="cpo: coefficient of the likelihood of the chosen text")
    simpo_beta: float = Field(
        2.0, gt=0, description="simpo, alphapo: beta, per nat of mean log-probability. TRL: beta, 0.1"
    )
    simpo_gamma: float = Field(0.5, ge=0, description="simpo, alphapo: target margin, in units of the reward")
    alphapo_alpha: float = Field(
        0.25, description="alphapo: shape of the reward (1 - p^-alpha) / alpha; 0 is simpo. TRL: alpha, 0"
    )
    orpo_lambda: float = Field(0.1, gt=0, description="orpo: coefficient of the odds ratio. TRL: beta")

    @field_validator("loss_type", mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        for name in value if isinstance(value, list) else ():
            if name in RENAMED:
                raise PydanticCustomError("value_error", "{message}", {"message": RENAMED[name]})
        return value

    @property
    def reference_beta(self) -> float:
        """Beta of the losses that compare with a reference."""
        return BETA if self.beta is None else self.beta

    @property
    def weights(self) -> dict[PreferenceLoss, float]:
        """{loss: its weight in the sum}."""
        return dict(zip(self.loss_type, self.loss_weights or [1.0] * len(self.loss_type), strict=True))

    @property
    def compared(self) -> list[PreferenceLoss]:
        """The losses that compare texts: all but `sft`."""
        return [name for name in self.loss_type if name != "sft"]

    @property
    def reference_free(self) -> bool:
        """True when no loss compares with a reference."""
        return set(self.compared) <= REFERENCE_FREE.keys()

    def set_knobs(self) -> list[str]:
        """Knobs of single losses that were set."""
        own = [name for name in sorted(frozenset().union(*KNOBS.values())) if name in type(self).model_fields]
        return self.changed(*own)

    def rules(self) -> Iterator[Problem]:
        """The losses can be added up, and each knob means something to them."""
        yield from super().rules()
        yield from self._list_rules()
        if not self.compared:
            return
        for knob in self.set_knobs():
            problem = misplaced(knob, self.loss_type)
            if knob == "beta" and self.reference_free:
                own = ", ".join(f"`{name}` has train.{REFERENCE_FREE[name]}" for name in self.compared)
                yield "beta", f"is a strength of losses with a reference: {own}"
            elif problem is not None:
                yield knob, problem
        yield from self._divergence_rules()
        if "robust" in self.loss_type and self.label_smoothing == 0:
            yield "loss_type", "`robust` without label_smoothing, the share of flipped labels, is `sigmoid`"
        coupled = [name for name in self.loss_type if name in COUPLED]
        if coupled and (self.gradient_accumulation_steps > 1 or (self.world_size or 1) > 1):
            yield "loss_type", whole_batch(coupled[0])

    def cautions(self) -> Iterator[Problem]:
        """Label smoothing that only some of several losses take."""
        yield from super().cautions()
        without = untouched("label_smoothing", self.loss_type)
        if self.label_smoothing > 0 and without:
            yield "label_smoothing", f"does not reach `{'`, `'.join(without)}`"

    def _list_rules(self) -> Iterator[Problem]:
        names = self.loss_type
        for i, name in enumerate(names):
            if name in names[:i]:
                yield f"loss_type.{i}", f"`{name}` stands in the list twice"
        if self.loss_weights is not None:
            if len(self.loss_weights) != len(names):
                yield "loss_weights", f"{len(self.loss_weights)} weights for {len(names)} losses"
            for i, weight in enumerate(self.loss_weights):
                if weight <= 0:
                    yield f"loss_weights.{i}", f"must be above 0, got {weight:g}: leave the loss out"
        if not self.compared:
            yield "loss_type", "`sft` alone compares nothing: use `rlhf sft`"
        free = [name for name in self.compared if name in REFERENCE_FREE]
        if free and len(free) < len(self.compared):
            other = next(name for name in self.compared if name not in REFERENCE_FREE)
            yield (
                "loss_type",
                f"`{free[0]}` compares log-probabilities, `{other}` log-ratios to a reference: use one kind",
            )
        for name in ("cpo", "orpo"):
            if name in names and "sft" in names:
                own = "train.cpo_alpha" if name == "cpo" else "train.orpo_lambda, by which the rest is weighted"
                yield "loss_type", f"`{name}` has the likelihood of the chosen text already: see {own}"

    def _divergence_rules(self) -> Iterator[Problem]:
        if self.f_divergence_type != "alpha_divergence":
            for key in self.changed("f_alpha_divergence_coef"):
                yield key, "has no effect without `f_divergence_type: alpha_divergence`"
        elif self.f_alpha_divergence_coef == 1.0:
            yield "f_alpha_divergence_coef", "1 is the reverse KL: use `f_divergence_type: reverse_kl`"


def whole_batch(loss: str) -> str:
    """Why a loss that sorts the batch is refused where the batch is cut."""
    return (
        f"`{loss}` sorts all pairs of a step, which must be one micro-batch on one rank: set "
        "train.per_device_train_batch_size to the whole batch, train.gradient_accumulation_steps=1, and start one rank"
    )


class DPOConfig(Stage):
    """`rlhf dpo`."""

    stage: Literal["dpo"] = Field("dpo", description="Stage that the file is for")
    train: DPOTrainSection = Field(default_factory=DPOTrainSection, description="How it is trained")
    reward: PairGainSection = Field(default_factory=PairGainSection, description="Gains, margins, soft labels")

    def opens_reference(self) -> bool:
        """Where a loss compares with one."""
        return not self.train.reference_free

    def rules(self) -> Iterator[Problem]:
        """A reference exactly where a loss compares with one; gains, margins and soft labels that the losses take."""
        yield from super().rules()
        losses = self.train.loss_type
        if not self.train.compared:
            return
        if self.opens_reference() and self.reference.source == "none":
            name = next(name for name in losses if name not in REFERENCE_FREE)
            yield (
                "reference.source",
                f"`{name}` compares with a reference: frozen, adapter_off or precomputed; without one there are "
                f"{', '.join(REFERENCE_FREE)}",
            )
        if not self.opens_reference():
            for key in self.reference.changed(*type(self.reference).model_fields):
                if (key, self.reference.source) != ("source", "none"):
                    yield f"reference.{key}", f"`{self.train.compared[0]}` compares with no reference: leave it out"
        for key in self.reward.changed("differentials", "margin_column", "preference_column"):
            problem = misplaced(key, losses)
            if problem is not None:
                yield f"reward.{key}", problem
        yield from self._label_rules()

    def _label_rules(self) -> Iterator[Problem]:
        soft = self.reward.preference_column is not None
        if soft and self.train.label_smoothing > 0 and misplaced("preference_column", self.train.loss_type) is None:
            yield "train.label_smoothing", "beside reward.preference_column: each pair says its own probability there"
        if "exo_pair" in self.train.loss_type and not soft and self.train.label_smoothing == 0:
            yield (
                "train.loss_type",
                "`exo_pair` needs labels that are not certain: set train.label_smoothing (the paper: 1e-3) or "
                "reward.preference_column",
            )


__all__ = ["BETA", "DPOConfig", "DPOTrainSection", "PreferenceLoss", "whole_batch"]
