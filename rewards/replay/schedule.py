"""What a replay is asked for: the schedule part of a reward section, and the normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from rewards.config import load
from rewards.reward_sections import RewardFunction
from rewards.schedule_rules import DifferentialRule, Pivot, SetPointRule, TriggerRule, repeated_differentials
from rewards.section import Problem, Section

_GIVEN = "is as recorded: a replay gives the recorded values another schedule and calls no function; leave it out"
ELSEWHERE = {name: f"`{name}` {_GIVEN}" for name in ("classifier", "compliant_when", "on_error", "pivot_samples")}
ELSEWHERE |= {
    name: f"`{name}` is no part of a schedule; a file for a replay has `reward` and `train.scale_rewards` only"
    for name in ("model", "data", "reference", "ledger", "evaluation", "tracking")
}


class ReplaySection(Section):
    """The knobs of a reward section that can be given another value afterwards, under the same names."""

    reward_funcs: list[str | RewardFunction] = Field(
        default_factory=list, description="Recorded components that make up the reward; none: as recorded"
    )
    reward_weights: list[float] | None = Field(
        None, description="One per reward function, or per recorded component in their order"
    )
    place: Literal["reward", "advantage"] = Field("reward", description="Where differentials act")
    pivot: Pivot = Field("reference", description="What a differential turns around; reference: as measured then")
    differentials: list[DifferentialRule] = Field(default_factory=list, description="Differentials at the start")
    triggers: list[TriggerRule] = Field(default_factory=list, description="What widens a differential on the way")
    setpoints: list[SetPointRule] = Field(default_factory=list, description="Rates that a differential is to hold")

    def rules(self) -> Iterator[Problem]:
        """One differential per category and component; what needs the record is checked with it."""
        yield from repeated_differentials(self.differentials)
        if self.reward_weights is not None and self.reward_funcs:
            if len(self.reward_weights) != len(self.reward_funcs):
                yield "reward_weights", f"{len(self.reward_weights)} for {len(self.reward_funcs)} reward functions"
            for i, entry in enumerate(self.reward_funcs):
                if isinstance(entry, RewardFunction) and entry.changed("weight"):
                    yield f"reward_funcs.{i}.weight", "weights are given in `reward_weights` too: keep one of the two"


class NormalisationSection(Section):
    """How rewards become advantages."""

    scale_rewards: Literal["group", "batch", "none"] | None = Field(None, description="null: as recorded")


class ScheduleFile(Section):
    """A file for a replay."""

    reward: ReplaySection = Field(default_factory=ReplaySection)
    train: NormalisationSection = Field(default_factory=NormalisationSection)


def read_schedule(path: Path) -> ScheduleFile:
    """The schedule in a file. Keys stand under `reward`, or alone.

    Raises: ConfigError with file, line and nearest name.
    """
    return load(ScheduleFile, path, known_elsewhere=ELSEWHERE).config
