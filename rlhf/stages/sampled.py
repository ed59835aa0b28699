"""Held-out prompts answered before and after a stage: rows with split `eval`, and an evaluation event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object

from rewards.compose import Composer
from rewards.config import RewardSection
from rewards.differential import Schedule
from rewards.errors import ConfigError
from rewards.functions import resolve
from rlhf.data import tokenise
from rlhf.evaluation.answers import Answer, Judged, answer, judge, prompt_text, sample_seed
from rlhf.evaluation.harness import by_category, summarise
from rlhf.models.policy import Policy
from rlhf.stages.model_reward import model_rewards
from rlhf.stages.offline import prompt_id
from rlhf.stages.work import Run
from rlhf.train.sharding import whole


class SampledEvaluation:
    """Answers the held-out prompts at the configured temperature and scores them; does nothing without prompts."""

    def __init__(self, run: Run, policy: Policy) -> None:
        self.run, self.policy = run, policy
        self.section = run.config.evaluation
        self.samples: list[tokenise.PromptSample] = []
        if not run.inputs.eval_prompts:
            return
        self.samples, report = tokenise.prepare_prompts(run.inputs.eval_prompts, run.tokenizer)
        run.say(f"evaluation: {line}" for line in report.lines())
        reward = run.config.reward
        functions = RewardSection() if not isinstance(reward, RewardSection) else reward
        if self.section.eval_reward_funcs:
            # What only answers are scored with may be observed throughout: there is no reward to make.
            functions = RewardSection.model_construct(reward_funcs=self.section.eval_reward_funcs)
        if not functions.optimised():
            raise ConfigError(
                "evaluation.prompts are answered and nothing scores the answers: name a function in "
                "evaluation.eval_reward_funcs, at least one with the role `optimised`"
            )
        self.composer = Composer.from_config(functions, model_rewards(run))
        classifier = self.section.eval_classifier or getattr(reward, "classifier", None)
        self.classifier: Callable[..., Any] | None = resolve(classifier) if classifier else None
        self.compliant_when = self.section.eval_compliant_when or getattr(reward, "compliant_when", {})

    def before(self) -> None:
        """Before the first step, where evaluation.before asks for it."""
        if self.section.before:
            self._evaluate("before", 0)

    def during(self, step: int) -> dict[str, Any]:
        """In the course of training; returns the figures."""
        return self._evaluate("step", step)

    def after(self, step: int) -> dict[str, Any]:
        """After the last step; returns the figures."""
        return {"held_out_answers": self._evaluate("after", step)} if self.samples else {}

    def _answers(self, samples: list[tokenise.PromptSample], seed: int) -> list[Answer]:
        with whole(self.policy):
            return answer(
                self.policy,
                self.run.tokenizer,
                samples,
                # The same seeds before and after: the two sets of answers are paired by prompt and by draw.
                [[sample_seed(seed, "heldout", s.row_id)] for s in samples],
                max_new_tokens=self.section.eval_max_completion_length,
                temperature=self.section.eval_temperature,
            )

    def _evaluate(self, when: str, step: int) -> dict[str, Any]:
        if not self.samples:
            return {}
        accelerator, seed = self.run.accelerator, self.run.config.train.seed
        mine = self.samples[accelerator.process_index :: accelerator.num_processes]
        with accelerator.autocast():
            answers = self._answers(mine, seed)
        judged = judge(answers, self.composer, self.classifier, self.compliant_when) if answers else []
        self.run.recorder.evaluation_rows(step, [eval_row(self.run, j, when, step) for j in judged])
        everything = gather_object(judged) if accelerator.num_processes > 1 else judged
        # A function that looks for sentences counts them: the share of answers with any is the figure people read.
        counts = {part.name for part in self.composer.scorers if part.phrases is not None}
        figures = {"metrics": summarise(everything, counts), "by_category": by_category(everything, counts)}
        self.run.recorder.evaluation(
            {
                "suite": "heldout_answers",
                "when": when,
                "n": len(everything),
                "temperature": self.section.eval_temperature,
                "dataset": self.section.prompts,
                **figures,
            },
            step,
        )
        return figures


def eval_row(run: Run, judged: Judged, when: str, step: int) -> dict[str, Any]:
    """The ledger's row of an evaluated answer."""
    found = judged.answer
    prompt = prompt_text(found.record)
    # Outside training no schedule acts: the components are stored as they were scored.
    plain = Schedule().adjusted(judged.components, found.record.category)
    return {
        "pipeline": run.stage,
        "split": "eval",
        "dataset_id": found.record.dataset_id,
        "row_id": found.record.row_id,
        "prompt_id": prompt_id(prompt),
        "group_id": f"heldout-{when}-{found.record.row_id}",
        "sample_seed": found.seed,
        "policy_version": step,
        "category": found.record.category,
        "classification": judged.classification,
        "compliant": judged.compliant,
        "baseline_reward": plain.adjusted,
        "adjusted_reward": plain.adjusted,
        "components": plain.rows(judged.components),
        "prompt_tokens": len(found.sample.prompt_ids),
        "response_tokens": len(found.ids),
        "truncated": not found.finished,
        "stop_reason": "stop" if found.finished else "length",
        "prompt": prompt,
        "response": found.text,
    }
