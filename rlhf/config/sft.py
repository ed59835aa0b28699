"""Configuration of `rlhf sft`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import DemonstrationGainSection, Problem
from rewards.errors import ConfigError
from rlhf.config.constraint import KLSection, ReferenceSection
from rlhf.config.kl import DEMONSTRATIONS, KLSettings, refuse
from rlhf.config.stage import Stage
from rlhf.config.training import TrainSection


class SFTTrainSection(TrainSection):
    """SFT."""

    completion_only_loss: bool | None = Field(
        None, description="True: only completions are scored; null: true where a row has a prompt"
    )
    assistant_only_loss: bool = Field(False, description="Conversations: only assistant turns are scored")
    loss_type: Literal["nll", "dft"] = Field(
        "nll", description="dft: each token weighted by its probability, dynamic fine-tuning, Wu et al. 2025"
    )
    packing: bool = Field(
        False,
        description="Rows in bins of up to max_length tokens (best fit decreasing), each row for itself; "
        "per_device_train_batch_size then counts bins",
    )
    neftune_noise_alpha: float | None = Field(
        None, gt=0, description="Noise on the embeddings in training, alpha / sqrt(length width), Jain et al. 2023"
    )

    def rules(self) -> Iterator[Problem]:
        """A bin has a size."""
        yield from super().rules()
        if self.packing and self.max_length is None:
            yield "packing", "needs max_length: it is the size of a bin"


class SFTReferenceSection(ReferenceSection):
    """SFT: full-vocabulary KL(reference || policy) on the demonstration's tokens."""

    kl_coefficient: float = Field(0.0, ge=0, description="lambda; per nat and token. 0: no constraint")
    kl: KLSection | None = Field(None, description="Demonstrations allow estimator `full` only; null: that")

    def settings(self) -> KLSettings:
        """The four choices."""
        return DEMONSTRATIONS if self.kl is None else self.kl.settings(on_policy=False)

    def rules(self) -> Iterator[Problem]:
        """A divergence that holds on demonstrations, from a reference that has logits."""
        yield from super().rules()
        if self.kl is not None and any(self.kl.rules()):
            return
        try:
            refuse(self.settings(), on_policy=False)
        except ConfigError as error:
            yield "kl", str(error)
        if self.kl_coefficient == 0:
            if self.kl is not None:
                yield "kl", "has no effect with `kl_coefficient: 0`"
        elif self.source == "none":
            yield "source", "a kl_coefficient above 0 needs a reference: frozen or adapter_off"
        elif self.source == "precomputed":
            yield "source", "a cached column has no logits, which the full-vocabulary KL needs: frozen or adapter_off"

    def cautions(self) -> Iterator[Problem]:
        """Divergences that hold at each prefix, but not over whole texts."""
        for warning in refuse(self.settings(), on_policy=False):
            yield "kl", warning


class SFTConfig(Stage):
    """`rlhf sft`."""

    stage: Literal["sft"] = Field("sft", description="Stage that the file is for")
    train: SFTTrainSection = Field(default_factory=SFTTrainSection, description="How it is trained")
    reference: SFTReferenceSection = Field(default_factory=SFTReferenceSection, description="The constraint")
    reward: DemonstrationGainSection = Field(default_factory=DemonstrationGainSection, description="Gains")

    def opens_reference(self) -> bool:
        """With a coefficient above 0."""
        return self.reference.kl_coefficient > 0
