"""The reference section: where the reference policy comes from, and the KL penalty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import Problem, Section
from rewards.errors import ConfigError
from rlhf.config.kl import Estimator, KLSettings, Level, Place, Preset, Ratio, resolve

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
