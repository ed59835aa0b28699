"""The reference section: where the reference policy comes from, and the KL penalty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.config import Section


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


