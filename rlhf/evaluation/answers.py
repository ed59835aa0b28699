"""A policy's answers to prompts, and what the reward functions say of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.compose import Component, Composer, RewardFault, classify, compliant
from rlhf.data.records import Record, plain
from rlhf.data.tokenise import PromptSample
from rlhf.models.generate import generate
from rlhf.models.policy import Policy


@dataclass(frozen=True)
class Answer:
    """One completion. ids end with the end token where finished; text is without special tokens."""

    sample: PromptSample
    ids: list[int]
    text: str
    finished: bool
    seed: int
    sampler_logps: list[float]

    @property
    def record(self) -> Record:
        """The prompt's record."""
        return self.sample.record

    @property
    def completion(self) -> Any:
        """What a reward function receives: a string, or an assistant's message where the prompt is a conversation."""
        if isinstance(self.record.prompt, list):
            return [{"role": "assistant", "content": self.text}]
        return self.text


@dataclass(frozen=True)
class Judged:
    """An answer with its components, classification and compliance."""

    answer: Answer
    components: list[Component]
    classification: str | None
    compliant: bool | None


def sample_seed(seed: int, *key: int | str) -> int:
    """A 63-bit seed for one completion: a function of the run's seed and what the completion is, nothing else."""
    digest = hashlib.sha256(":".join(map(str, (seed, *key))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def answer(
    policy: Policy,
    tokenizer: Any,
    samples: Sequence[PromptSample],
    seeds: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
) -> list[Answer]:
    """One answer per seed: `seeds[i]` are those of prompt i; answers come prompt by prompt."""
    answers: list[list[Answer]] = [[] for _ in samples]
    # Prompts with as many answers are decoded together; only the last group of a run can differ.
    for count in sorted({len(s) for s in seeds}):
        chosen = [i for i in range(len(samples)) if len(seeds[i]) == count]
        found = generate(
            policy,
            [samples[i].prompt_ids.tolist() for i in chosen],
            num_return=count,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seeds=[seed for i in chosen for seed in seeds[i]],
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode([g.ids for g in found], skip_special_tokens=True)
        for j, (g, text) in enumerate(zip(found, texts, strict=True)):
            i = chosen[j // count]
            answers[i].append(Answer(samples[i], g.ids, text, g.finished, seeds[i][j % count], g.logps))
    return [a for group in answers for a in group]


def columns_of(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The records' columns as reward functions receive them: one list a column, null where a record lacks it."""
    given = {"prompt", "prompts", "completions", "completion_ids"}
    names = sorted({name for record in records for name in record.columns} - given)
    return {name: [record.columns.get(name) for record in records] for name in names}


def judge(
    answers: Sequence[Answer],
    composer: Composer,
    classifier: Callable[..., Any] | None,
    compliant_when: Mapping[str, Sequence[str]],
) -> list[Judged]:
    """Scores and classifies answers.

    Raises: RewardFault where a function fails, as the composer decides.
    """
    prompts = [a.record.prompt for a in answers]
    completions = [a.completion for a in answers]
    columns = {**columns_of([a.record for a in answers]), "completion_ids": [a.ids for a in answers]}
    components = composer.score(prompts, completions, columns)
    classes: Sequence[str | None] = [None] * len(answers)
    if classifier is not None:
        try:
            classes = classify(classifier, prompts, completions, columns)
        except RewardFault as fault:
            fault.components = components  # what was scored before the classifier failed is kept
            raise
    return [
        Judged(a, parts, found, compliant(a.record.category, found, compliant_when))
        for a, parts, found in zip(answers, components, classes, strict=True)
    ]


def prompt_text(record: Record) -> str:
    """The prompt as the ledger keeps it."""
    return plain(record.prompt or "")
