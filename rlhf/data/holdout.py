"""What is trained on and what is held out: by prompt, so that no prompt is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewards.errors import DataError
from rlhf.data.formats import to_records
from rlhf.data.records import Record, for_stage, prompt_key, prompt_of, rows_of
from rlhf.data.sources import read_rows

if TYPE_CHECKING:
    from rlhf.config import DataSection


@dataclass(frozen=True)
class Splits:
    """Both sides of a data set, and what is to be said about how it was read."""

    train: list[Record]
    held_out: list[Record]
    lines: list[str]


def load(data: DataSection, stage: str, seed: int = 42, kind: str | None = None) -> Splits:
    """Everything from the configuration to records: read, recognise, convert for the stage, hold out.

    stage: sft, reward, dpo, kto or grpo; kind: the rows it takes, where it has a choice. With dataset_test_split that
    split is held out as it is, and prompts that it shares with the training split are counted; without one,
    holdout_fraction of the prompts.

    Raises: ConfigError, DataError.
    """
    train, lines = load_records(data, stage, data.dataset_train_split, seed, kind)
    if data.dataset_test_split is None:
        train, held_out = split_by_prompt(train, data.holdout_fraction, seed)
        if held_out:
            lines.append(f"held out by prompt: {rows_of(len(held_out))}; trained on: {rows_of(len(train))}")
        return Splits(train, held_out, lines)
    held_out, more = load_records(data, stage, data.dataset_test_split, seed, kind)
    known = {prompt_key(prompt_of(record)) for record in train}
    shared = [record.ref for record in held_out if prompt_key(prompt_of(record)) in known]
    if shared:
        more.append(
            f"{len(shared):,} of {len(held_out):,} rows of split `{data.dataset_test_split}` have a prompt that is in "
            f"the training split too, first {shared[0]}: scores on them are not held-out scores"
        )
    return Splits(train, held_out, [*lines, *more])


def load_records(
    data: DataSection, stage: str, split: str | None = None, seed: int = 42, kind: str | None = None
) -> tuple[list[Record], list[str]]:
    """Records of one split as the stage uses them, and the lines that announce them."""
    rows = read_rows(data, split, seed)
    records, lines = to_records(rows, data.format, data.category_column, each_response=kind == "scored")
    fitting, more = for_stage(records, stage, kind)
    return fitting, [*lines, *more]


def split_by_prompt(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Train and held-out records. A prompt is held out when its hash with the seed falls below `fraction`.

    The hash speaks only of the prompt: stages of one pipeline that read different files with the same prompts hold
    out the same ones, and growing a file moves no prompt. The held-out share is therefore near `fraction`, not equal.
    fraction = 0 holds nothing out.

    Raises: DataError where one side would be empty.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"holdout fraction {fraction} is not in [0, 1)")
    if not records:
        raise DataError("no rows to split")
    sides: tuple[list[Record], list[Record]] = ([], [])
    prompts: set[str] = set()
    for record in records:
        key = prompt_key(prompt_of(record))
        prompts.add(key)
        sides[_share(key, seed) < fraction].append(record)
    train, held_out = sides
    if fraction > 0 and not (train and held_out):
        side = "held out" if train else "left to train on"
        raise DataError(
            f"data.holdout_fraction {fraction} of {len(prompts)} different prompts: nothing is {side}; "
            "change holdout_fraction (0 holds nothing out) or give a data.dataset_test_split"
        )
    return train, held_out


def _share(key: str, seed: int) -> float:
    """A number in [0, 1) that looks random and depends on the prompt and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
