"""The reference section: where the reference policy comes from, and the KL penalty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import Problem, Section
from rewards.errors import ConfigError
from rlhf.config.kl import Divergence, Estimator, KLSettings, Level, Place, Preset, Ratio, resolve

Source = Literal["frozen", "adapter_off", "precomputed", "ema", "synced", "none"]
FOLLOWING = ("ema", "synced")


class KLSection(Section):
    """How the divergence from the reference is measured and where it enters the objective."""

    preset: Preset | None = Field(None, description="A named combination; setting another field beside it is an error")
    estimator: Estimator | None = Field(None, description="k1, k2, k3: from the sampled token; full: the vocabulary")
    place: Place | None = Field(None, description="null beside an estimator: loss")
    level: Level | None = Field(None, description="null beside an estimator: token")
    ratio: Ratio | None = Field(None, description="Weight pi / pi_old of a loss term; null beside an estimator: none")
    divergence: Divergence | None = Field(
        None,
        description="With estimator full: reverse KL(policy || reference), forward KL(reference || policy), js "
        "(Jensen-Shannon), alpha; null: reverse, on demonstrations forward",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Of divergence alpha, (1 - sum p^alpha q^(1 - alpha)) / (alpha (1 - alpha)): near 1 reverse, near "
        "0 forward; null: 1/2",
    )

    def settings(self, *, on_policy: bool = True) -> KLSettings:
        """The choices. Raises: ConfigError when they are not determined."""
        return resolve(
            self.preset,
            estimator=self.estimator,
            place=self.place,
            level=self.level,
            ratio=self.ratio,
            divergence=self.divergence,
            alpha=self.alpha,
            on_policy=on_policy,
        )

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
        description="frozen: a copy; adapter_off: no adapter; precomputed: a cached column; ema, synced: follow the "
        "policy; null: adapter_off with use_peft, else frozen, none where nothing asks for one",
    )
    reference_model: str | None = Field(
        None, description="Folder or hub id of another model as reference; null: the policy as the stage starts"
    )
    cache_dir: str | None = Field(None, description="precomputed: folder of cached columns; null: OUTPUT_DIR/reference")
    ema_decay: float = Field(
        0.99, gt=0, lt=1, description="ema: reference = decay * reference + (1 - decay) * policy after every step"
    )
    ref_model_mixup_alpha: float = Field(
        0.6, gt=0, le=1, description="synced: reference = alpha * policy + (1 - alpha) * reference"
    )
    ref_model_sync_steps: int = Field(512, gt=0, description="synced: optimizer steps from one mixing to the next")

    def rules(self) -> Iterator[Problem]:
        """Knobs of one source beside another."""
        if self.cache_dir is not None and self.source != "precomputed":
            yield "cache_dir", "has no effect without `source: precomputed`"
        homes = {"ema_decay": "ema", "ref_model_mixup_alpha": "synced", "ref_model_sync_steps": "synced"}
        for key in self.changed(*homes):
            if self.source != homes[key]:
                yield key, f"has no effect without `source: {homes[key]}`"
        if self.reference_model is not None and self.source in FOLLOWING:
            yield "reference_model", f"`source: {self.source}` starts as the policy does: use frozen or precomputed"
        if self.reference_model is not None and self.source in ("adapter_off", "none"):
            yield "reference_model", f"has no effect with `source: {self.source}`: use frozen or precomputed"
