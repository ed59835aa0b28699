"""Rows of a stage before torch is loaded: read, recognised, checked, held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from rewards.functions import resolve
from rlhf.config import DataSection, StageConfig
from rlhf.data import gates, holdout
from rlhf.data.records import Record, Text, plain


@dataclass(frozen=True)
class Inputs:
    """What a stage reads: records to train on, held-out records, prompts for sampled evaluation, and what was said."""

    train: list[Record]
    held_out: list[Record]
    eval_prompts: list[Record]
    lines: list[str]
    digest: str

    @property
    def texts(self) -> Iterable[str]:
        """The texts a built-in model's tokenizer is made from; never held-out ones."""
        for record in self.train:
            for text in (record.prompt, record.completion, record.chosen, record.rejected):
                if text:
                    yield plain(text)


def read_inputs(stage: str, config: StageConfig) -> Inputs:
    """Reads everything a stage needs from outside.

    Raises: ConfigError, DataError with the file and row.
    """
    seed = config.train.seed
    _check_functions(config)
    splits = holdout.load(config.data, stage, seed, config.takes)
    # Rows without anything to learn from are dropped and counted at tokenisation; here only: is anything left?
    checks = gates.Gates()
    checks.report(len(gates.check_records(splits.train, checks)))
    if stage == "kto":
        gates.check_labels(splits.train)
    lines = list(splits.lines)
    eval_prompts: list[Record] = []
    evaluation = config.evaluation
    if evaluation.prompts is not None:
        section = DataSection(
            dataset_name=evaluation.prompts,
            recipe_split=evaluation.eval_recipe_split,
            category_column=config.data.category_column,
            max_rows=evaluation.num_samples,
        )
        eval_prompts, more = holdout.load_records(section, "grpo", section.dataset_train_split, seed)
        lines += [f"evaluation: {line}" for line in more]
    return Inputs(splits.train, splits.held_out, eval_prompts, lines, _digest(splits.train))


def _check_functions(config: StageConfig) -> None:
    # An unknown name must be told before minutes of training, not after.
    names = [config.evaluation.eval_classifier, getattr(config.reward, "classifier", None)]
    entries = [*config.evaluation.eval_reward_funcs, *getattr(config.reward, "reward_funcs", [])]
    names += [entry if isinstance(entry, str) else entry.fn for entry in entries]
    for name in names:
        if name is not None and not name.startswith("model:"):
            resolve(name)


def _digest(records: list[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        texts: list[Text | None] = [record.prompt, record.completion, record.chosen, record.rejected]
        row = [record.row_id, record.category, record.columns, *texts]
        row += [record.label] if record.label is not None else []
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
