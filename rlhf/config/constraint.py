"""The reference section: where the reference policy comes from, and the KL penalty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import Problem, Section
from rewards.errors import ConfigError
from rlhf.config.kl import DEMONSTRATIONS, Estimator, KLSettings, Level, Place, Preset, Ratio, refuse, resolve

Source = Literal["frozen", "adapter_off", "precomputed", "none"]


class KLSection(Section):
    """How the divergence from the reference is measured and where it enters the objective."""

    preset: Preset | None = Field(
        None, description="A named combination; setting one of the four fields beside it is an error"
    )
    estimator: Estimator | None = Field(None, description="k1, k2, k3: from the sampled token; full: the vocabulary")
    place: Place | None = Field(None, description="null beside an estimator: loss")
    level: Level | None = Field(None, description="null beside an estimator: token")
    ratio: Ratio | None = Field(None, description="Weight pi / pi_old of a loss term; null beside an estimator: none")

    def settings(self) -> KLSettings:
        """The four choices. Raises: ConfigError when they are not determined."""
        return resolve(self.preset, estimator=self.estimator, place=self.place, level=self.level, ratio=self.ratio)

    def rules(self) -> Iterator[Problem]:
        """A preset, or an estimator with what goes with it."""
        try:
            self.settings()
        except ConfigError as error:
            yield "preset" if self.preset is not None else "estimator", str(error)


class ReferenceSection(Section):
    """The shared reference-policy constraint."""

    source: Source | None = Field(
        None,
        description="frozen: a copy; adapter_off: the policy without its adapter; precomputed: a cached column; "
        "null: adapter_off with use_peft, else frozen, and none where nothing asks for a reference",
    )
    reference_model: str | None = Field(
        None, description="Folder or hub id of another model as reference; null: the policy as the stage starts"
    )
    cache_dir: str | None = Field(None, description="precomputed: folder of cached columns; null: OUTPUT_DIR/reference")

    def rules(self) -> Iterator[Problem]:
        """Knobs of one source beside another."""
        if self.cache_dir is not None and self.source != "precomputed":
            yield "cache_dir", "has no effect without `source: precomputed`"
        if self.reference_model is not None and self.source in ("adapter_off", "none"):
            yield "reference_model", f"has no effect with `source: {self.source}`: use frozen or precomputed"


class SFTReferenceSection(ReferenceSection):
    """SFT: full-vocabulary KL(reference || policy) on the demonstration's tokens."""

    kl_coefficient: float = Field(0.0, ge=0, description="lambda; per nat and token. 0: no constraint")
    kl: KLSection | None = Field(None, description="Demonstrations allow estimator `full` only; null: that")

    def settings(self) -> KLSettings:
        """The four choices."""
        return DEMONSTRATIONS if self.kl is None else self.kl.settings()

    def rules(self) -> Iterator[Problem]:
        """The only divergence that holds on demonstrations, from a reference that has logits."""
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


class OnlineReferenceSection(ReferenceSection):
    """Online RL."""

    beta: float = Field(
        0.0,
        ge=0,
        description="Coefficient of the KL penalty; per nat and token, or per nat and sequence: see kl.level. "
        "0: no penalty; a source set here is then only measured against",
    )
    kl: KLSection = Field(
        default_factory=lambda: KLSection(preset="trl_grpo"), description="Form of the penalty; only with beta above 0"
    )

    def rules(self) -> Iterator[Problem]:
        """A penalty needs a coefficient and a reference that can score new completions."""
        yield from super().rules()
        if self.beta == 0 and self.changed("kl"):
            yield "kl", "has no effect with `beta: 0`"
        if self.beta > 0 and self.source == "none":
            yield "source", "a beta above 0 needs a reference: frozen or adapter_off"
        if self.source == "precomputed":
            yield "source", "completions of online RL are not known in advance: frozen or adapter_off"
