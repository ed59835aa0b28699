"""Configuration of `rlhf grpo`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rewards.config import Problem, RewardSection
from rewards.errors import ConfigError
from rlhf.config.constraint import KLSection, ReferenceSection
from rlhf.config.kl import ControllerKind, refuse
from rlhf.config.sections import OnlineDataSection
from rlhf.config.stage import Stage
from rlhf.config.training import TrainSection


class GRPOTrainSection(TrainSection):
    """GRPO."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak of the schedule")
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = Field(
        "dapo", description="What token losses are divided by: their sequence, all tokens, or the greatest length"
    )
    num_generations: int = Field(8, ge=2, description="Completions of a prompt: a group")
    max_completion_length: int = Field(512, gt=0, description="Tokens after which a completion is cut")
    max_length: int | None = Field(
        None, gt=1, description="Longest prompt and completion together; null: whatever the prompts need"
    )
    temperature: float = Field(1.0, gt=0, description="Of sampling; log-probabilities are those of this temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus that completions are sampled from; 1: everything")
    epsilon: float = Field(0.2, gt=0, description="The ratio pi / pi_old is clipped to 1 - epsilon from below")
    epsilon_high: float | None = Field(None, gt=0, description="... and to 1 + epsilon_high; null: epsilon")
    num_iterations: int = Field(1, ge=1, description="Optimizer steps on one set of rollouts")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Whose standard deviation advantages are divided by"
    )
    mask_truncated_completions: bool = Field(False, description="Completions that were cut take no part in the loss")
    max_sessions: int | None = Field(
        None, gt=0, description="The run ends with exactly this many sessions; the last group may be smaller"
    )

    def rules(self) -> Iterator[Problem]:
        """Clipping can act, and lengths and groups fit."""
        yield from super().rules()
        if self.num_iterations == 1:
            for key in self.changed("epsilon", "epsilon_high"):
                yield key, "has no effect with `num_iterations: 1`: the ratio is 1 then and is never clipped"
        if self.max_length is not None and self.max_length <= self.max_completion_length:
            yield "max_length", f"{self.max_length} leaves no prompt beside max_completion_length"
        if self.world_size is not None and self._sessions(self.world_size) % self.num_generations:
            yield "num_generations", f"{self._sessions(self.world_size)} sessions a step are no whole groups of it"

    def cautions(self) -> Iterator[Problem]:
        """A step without whole groups on one rank."""
        yield from super().cautions()
        if self.world_size is None and self._sessions(1) % self.num_generations:
            yield (
                "num_generations",
                f"{self._sessions(1)} sessions a step and rank are no whole groups of {self.num_generations}: "
                f"the number of ranks has to make up for it",
            )

    def _sessions(self, ranks: int) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * ranks


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
    controller: ControllerKind = Field(
        "fixed",
        description="Moves beta once a rollout. adaptive: by kl_gain times the relative error, clipped to 0.2 (Ziegler "
        "et al. 2019); dual: ascent on beta for KL <= kl_target, in its bounds",
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="Divergence that the controller aims at, nats per sequence or per token: see kl.level",
    )
    kl_gain: float = Field(
        0.1, gt=0, description="adaptive: K_beta. dual: step, in units of the starting beta per relative error"
    )
    beta_min: float = Field(0.0, ge=0, description="The controller goes no lower")
    beta_max: float | None = Field(None, gt=0, description="The controller goes no higher; null: no bound")

    def rules(self) -> Iterator[Problem]:
        """A penalty needs a coefficient and a reference that can score new completions; a controller needs a target."""
        yield from super().rules()
        yield from self._controller_rules()
        if self.beta == 0 and self.changed("kl"):
            yield "kl", "has no effect with `beta: 0`"
        if self.beta > 0 and self.source == "none":
            yield "source", "a beta above 0 needs a reference: frozen or adapter_off"
        if self.source == "precomputed":
            yield "source", "completions of online RL are not known in advance: frozen or adapter_off"

    def _controller_rules(self) -> Iterator[Problem]:
        if self.controller == "fixed":
            for key in self.changed("kl_target", "kl_gain", "beta_min", "beta_max"):
                yield key, "has no effect with `controller: fixed`: use adaptive or dual"
            return
        if self.kl_target is None:
            yield "kl_target", f"`controller: {self.controller}` needs one: the divergence to hold, in nats"
        if self.beta == 0:
            yield "controller", f"`{self.controller}` starts from beta, which is 0: set reference.beta above 0"
        elif self.beta < self.beta_min or (self.beta_max is not None and self.beta > self.beta_max):
            yield "beta", f"{self.beta:g} is outside beta_min {self.beta_min:g} to beta_max {self.beta_max}"
        if self.controller == "adaptive" and self.kl_gain >= 5:
            yield "kl_gain", f"{self.kl_gain:g}: one batch could take beta to 0 or below; adaptive needs less than 5"


class GRPOConfig(Stage):
    """`rlhf grpo`."""

    stage: Literal["grpo"] = Field("grpo", description="Stage that the file is for")
    data: OnlineDataSection = Field(default_factory=OnlineDataSection, description="Which prompts")
    train: GRPOTrainSection = Field(default_factory=GRPOTrainSection, description="How it is trained")
    reference: OnlineReferenceSection = Field(default_factory=OnlineReferenceSection, description="The constraint")
    reward: RewardSection = Field(default_factory=RewardSection, description="What is rewarded")

    def opens_reference(self) -> bool:
        """With a beta above 0, or to measure against what is named."""
        return self.reference.beta > 0 or self.reference.source not in (None, "none")

    def rules(self) -> Iterator[Problem]:
        """No differential that standardisation divides out again, and a KL penalty that is one."""
        yield from super().rules()
        if self.train.fsdp:
            yield "train.fsdp", "online RL is not sharded: ranks sample texts of different lengths; use false"
        for key, message in self.reward.cancelled(self.train.scale_rewards):
            yield f"reward.{key}", message
        for key, message in self.reward.unanswered():
            yield f"reward.{key}", message
        if any(self.reference.kl.rules()):
            return
        try:
            self._kl_warnings()
        except ConfigError as error:
            yield "reference.kl", str(error)
            return
        if self.reference.controller != "fixed" and self.train.top_p < 1 and not self._samples_nothing():
            yield (
                "reference.controller",
                f"`{self.reference.controller}` measures the divergence on the policy's own texts, and top_p "
                f"{self.train.top_p:g} samples others: use top_p 1, or reference.kl.estimator `full`",
            )

    def cautions(self) -> Iterator[Problem]:
        """A KL penalty that works with a reservation."""
        yield from super().cautions()
        for message in self._kl_warnings() if self.reference.beta > 0 else []:
            yield "reference.kl", message

    def _samples_nothing(self) -> bool:
        return self.reference.kl.settings().estimator == "full"

    def _kl_warnings(self) -> list[str]:
        return refuse(
            self.reference.kl.settings(),
            scale_rewards=self.train.scale_rewards,
            num_iterations=self.train.num_iterations,
            top_p=self.train.top_p,
        )
