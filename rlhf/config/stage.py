"""What the configuration of every stage has."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from rewards.config import Problem, Section
from rlhf.config.constraint import ReferenceSection
from rlhf.config.sections import DataSection, EvaluationSection, LedgerSection, ModelSection, TrackingSection
from rlhf.config.training import TrainSection


class Stage(Section):
    """What all stages have; a stage adds its own train, reference and reward sections."""

    model: ModelSection = Field(default_factory=ModelSection, description="Which model")
    data: DataSection = Field(default_factory=DataSection, description="Which rows")
    train: TrainSection = Field(default_factory=TrainSection, description="How it is trained")
    reference: ReferenceSection = Field(default_factory=ReferenceSection, description="The constraint")
    ledger: LedgerSection = Field(default_factory=LedgerSection, description="Where sessions are recorded")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="Sampled evaluation")
    tracking: TrackingSection = Field(default_factory=TrackingSection, description="Trackers")

    @property
    def takes(self) -> str | None:
        """The kind of rows that the stage learns from, where it has a choice."""
        return None

    def opens_reference(self) -> bool:
        """True when the stage has a use for a reference."""
        return False

    def rules(self) -> Iterator[Problem]:
        """A reference without an adapter needs an adapter."""
        if self.reference.source == "adapter_off" and not self.model.use_peft:
            yield "reference.source", "adapter_off needs `model.use_peft: true`: there is no adapter to switch off"

    def cautions(self) -> Iterator[Problem]:
        """A reference that no term asks for."""
        if not self.opens_reference() and self.reference.source != "none":
            for key in self.reference.changed("source", "reference_model"):
                yield f"reference.{key}", "has no effect: nothing in this stage asks for a reference"
