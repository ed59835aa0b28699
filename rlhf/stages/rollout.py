"""One step of online RL before the gradient: prompts, completions, rewards, schedule, advantages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object

from rewards.compose import Component, Composer, RewardFault
from rewards.functions import resolve
from rewards.pivots import Pivot, measure_pivots
from rewards.signal import RewardSignal, Session, StepSignal
from rlhf.config import GRPOConfig
from rlhf.data.gates import check_categories
from rlhf.data.mixture import Mixture
from rlhf.data.tokenise import PromptSample
from rlhf.evaluation.answers import Answer, Judged, answer, judge, prompt_text, sample_seed
from rlhf.models.policy import Policy
from rlhf.stages.model_reward import model_rewards
from rlhf.stages.offline import prompt_id
from rlhf.stages.work import Run
from rlhf.train.record import SharedStop


@dataclass
class Rollout:
    """The sessions of a step: this rank's answers with their place in the gathered list, and what they became.

    Shapes: signal and lengths (response tokens) have one entry a session of all ranks; clipped counts the raw values
    that a component's explicit clip changed.
    """

    step: int
    answers: list[Answer]
    index: list[int]
    signal: StepSignal
    lengths: list[int]
    clipped: dict[str, int]
    columns: list[dict[str, Any]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Figures of all sessions of the step, under TRL's names where it has them."""
        rows = self.signal.rows
        return {
            "reward": _mean([row["adjusted_reward"] for row in rows]),
            "baseline_reward": _mean([row["baseline_reward"] for row in rows]),
            "reward_std": _mean([row["norm_std"] for row in rows]),
            "frac_reward_zero_std": self.signal.zero_std,
            "completions/mean_length": math.fsum(self.lengths) / len(self.lengths),
            "leverage": self.signal.leverage,
            "sessions": len(rows),
            **{f"clipped/{name}": count for name, count in self.clipped.items()},
        }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


class Sampler:
    """Samples and scores; its state (schedule, triggers, trajectory) lives in `signal`."""

    def __init__(self, run: Run, policy: Policy, samples: list[PromptSample]) -> None:
        self.run, self.policy, self.samples = run, policy, samples
        config: GRPOConfig = run.config  # type: ignore[assignment]
        self.train, self.section = config.train, config.reward
        self.seed = config.train.seed
        self.composer = Composer.from_config(self.section, model_rewards(run))
        self.classifier: Callable[..., Any] | None = None
        if self.section.classifier is not None:
            self.classifier = resolve(self.section.classifier)
        self.mixture = Mixture([s.record.category for s in samples], config.data.mixture, config.train.seed)
        self.signal = RewardSignal(self.section, self.composer.scorers, config.train.scale_rewards, config.train.seed)
        named = [category for category, _ in self.signal.schedule.entries]
        run.say(check_categories([s.record for s in samples], named, "reward.differentials or reward.triggers"))
        self.groups = run.global_batch // self.train.num_generations
        self.unjudged: tuple[list[Answer], list[str], list[list[Component]]] = ([], [], [])

    def reseed(self, seed: int) -> None:
        """Other prompts and samples from the next rollout on; rows, pivots and evaluations keep the run's seed."""
        self.seed = self.mixture.seed = seed

    def group_sizes(self, rollout: int) -> list[int]:
        """Completions of each group of a rollout (counted from 0); only the run's last group may be smaller."""
        full = [self.train.num_generations] * self.groups
        if self.train.max_sessions is None:
            return full
        left = self.train.max_sessions - rollout * sum(full)
        sizes = [min(size, left - i * self.train.num_generations) for i, size in enumerate(full)]
        return [size for size in sizes if size > 0]

    def sample(self, step: int, rollout: int) -> tuple[list[Answer], list[str]]:
        """This rank's answers of a step, and the group of each."""
        sizes = self.group_sizes(rollout)
        chosen = self.mixture.choose(step, self.groups)[: len(sizes)]
        mine = np.array_split(np.arange(len(sizes)), self.run.accelerator.num_processes)[
            self.run.accelerator.process_index
        ]
        seeds = [[sample_seed(self.seed, step, g, k) for k in range(sizes[g])] for g in mine]
        answers = self._answer(self.policy, [self.samples[chosen[g]] for g in mine], seeds)
        return answers, [f"{step}-{g}" for g in mine for _ in range(sizes[g])]

    def _answer(self, policy: Policy, samples: list[PromptSample], seeds: list[list[int]]) -> list[Answer]:
        # In the precision that the policy is trained in: what samples is what the gradient is taken of.
        with self.run.accelerator.autocast():
            return answer(
                policy,
                self.run.tokenizer,
                samples,
                seeds,
                max_new_tokens=self.train.max_completion_length,
                temperature=self.train.temperature,
                top_p=self.train.top_p,
            )

    def score(self, step: int, answers: list[Answer], groups: list[str], penalty: list[float]) -> Rollout:
        """Judges this rank's answers, gathers all sessions of the step, applies the schedule to them.

        Raises: SharedStop on all ranks where a reward function fails on one.
        """
        judged = self._judge(answers, groups)
        own = [
            Session(
                group_id=group,
                category=j.answer.record.category,
                components=j.components,
                text=j.answer.text,
                classification=j.classification,
                compliant=j.compliant,
                penalty=p,
            )
            for j, group, p in zip(judged, groups, penalty, strict=True)
        ]
        lengths = [len(a.ids) for a in answers]
        everything, first = own, 0
        accelerator = self.run.accelerator
        if accelerator.num_processes > 1:
            first = sum(gather_object([len(own)])[: accelerator.process_index])
            everything, lengths = gather_object(own), gather_object(lengths)
        signal = self.signal.apply(step, everything)
        index = list(range(first, first + len(own)))
        self.unjudged = ([], [], [])
        columns = [
            {**session_columns(self.run, a, step), **signal.rows[i]} for a, i in zip(answers, index, strict=True)
        ]
        return Rollout(step, answers, index, signal, lengths, self._clipped(everything), columns)

    def _clipped(self, sessions: list[Session]) -> dict[str, int]:
        return {
            part.name: sum(raw is not None and not part.clip[0] <= raw <= part.clip[1] for raw in raws)
            for i, part in enumerate(self.composer.scorers)
            if part.clip is not None
            for raws in [[s.components[i].raw for s in sessions]]
        }

    def _judge(self, answers: list[Answer], groups: list[str]) -> list[Judged]:
        """Verdicts on this rank's answers; where a reward function fails on one rank, all of them stop."""
        self.unjudged = (answers, groups, [])
        fault: RewardFault | None = None
        try:
            judged = judge(answers, self.composer, self.classifier, self.section.compliant_when)
            self.unjudged = (answers, groups, [j.components for j in judged])
        except RewardFault as error:
            self.unjudged = (answers, groups, error.components)
            fault = error
        if self.run.accelerator.num_processes == 1:
            failures = [str(fault)] if fault is not None else []
        else:
            failures = gather_object([str(fault)] if fault is not None else [])
        if failures:
            rows = tuple(a.record.row_id for a in answers) if fault is not None else ()
            if self.run.accelerator.num_processes > 1:
                rows = tuple(gather_object(list(rows)))
            raise SharedStop(failures[0], rows) from fault
        return judged

    def record_unjudged(self, step: int) -> None:
        """Records answers whose scoring failed, with the verdicts that were reached."""
        answers, groups, components = self.unjudged
        rows = [
            {
                **session_columns(self.run, found, step),
                "group_id": group,
                "components": stored(components[i] if i < len(components) else []),
            }
            for i, (found, group) in enumerate(zip(answers, groups, strict=True))
        ]
        self.run.recorder.rows(step, rows)

    def measure_pivots(self, reference: Policy) -> list[Pivot]:
        """Samples the reference policy and measures the pivots that are awaited.

        The samples are recorded with split `eval` at step 0. One answer a prompt where there are enough prompts.
        """
        awaiting = self.signal.schedule.awaiting
        if not awaiting:
            return []
        chosen: list[PromptSample] = []
        for category in sorted({key[0] for key in awaiting}):
            pool = [s for s in self.samples if s.record.category == category]
            rounds = -(-self.section.pivot_samples // max(1, len(pool)))
            chosen += (pool * rounds)[: self.section.pivot_samples]
        answers = self._answer(
            reference, chosen, [[sample_seed(self.train.seed, "pivot", i)] for i in range(len(chosen))]
        )
        judged = judge(answers, self.composer, self.classifier, self.section.compliant_when)
        if self.run.accelerator.is_main_process:
            self.run.recorder.rows(0, [pivot_row(self.run, j) for j in judged])
        pivots = measure_pivots(awaiting, [j.answer.record.category for j in judged], [j.components for j in judged])
        if self.run.accelerator.num_processes > 1:
            # A reward function need not say the same twice; the schedule must be the same on every rank.
            broadcast_object_list(pivots)
        for pivot in pivots:
            self.run.recorder.event("pivot_set", pivot.payload(), step=0)
        self.signal.set_pivots(pivots)
        return pivots


def stored(components: list[Component]) -> list[dict[str, Any]]:
    """Components as the ledger keeps them where no schedule has acted."""
    return [{**asdict(part), "differential_pct": None, "pivot": None} for part in components]


def session_columns(run: Run, found: Answer, step: int) -> dict[str, Any]:
    """Identity, text and lengths of a completion's row."""
    prompt = prompt_text(found.record)
    return {
        "pipeline": run.stage,
        "split": "train",
        "dataset_id": found.record.dataset_id,
        "row_id": found.record.row_id,
        "prompt_id": prompt_id(prompt),
        "category": found.record.category,
        "sample_seed": found.seed,
        "prompt_tokens": len(found.sample.prompt_ids),
        "response_tokens": len(found.ids),
        "stop_reason": "stop" if found.finished else "length",
        "truncated": not found.finished,
        "prompt": prompt,
        "response": found.text,
    }


def pivot_row(run: Run, judged: Judged) -> dict[str, Any]:
    """The row of a sample behind a pivot."""
    return {
        **session_columns(run, judged.answer, 0),
        "split": "eval",
        "group_id": "pivot",
        "policy_version": 0,
        "classification": judged.classification,
        "compliant": judged.compliant,
        "components": stored(judged.components),
    }
