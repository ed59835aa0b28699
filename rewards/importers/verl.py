"""verl's dump of rollouts: `rollout_data_dir/12.jsonl`, one file a step, one object a line.

Keys: input, output, gts (the ground truth), score, step; up to v0 of the trainer also what the reward function
returned beside its score, and request_id; from v1 on `uid` as PROMPT_ROLLOUT_TURN.

Source: verl-project/verl, verl/trainer/ppo/ray_trainer.py (v0) and verl/trainer/ppo/v1/trainer_base.py (v1, at
04141f84): `_log_rollout_data`, `_dump_generations`. v1 pads its batches with empty samples and dumps them too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from rewards.errors import DataError
from rewards.importers.components import flat_name
from rewards.importers.place import Chunk
from rewards.importers.readers import json_chunks
from rewards.importers.source import Source
from rewards.importers.trl import text_ids

MARKS = ("input", "output", "score", "step")
_UID = re.compile(r"(.+)_(\d+)_(\d+)")
_KNOWN = {*MARKS, "gts", "uid", "request_id"}


class VerlSource(Source):
    """The rollouts of a run. reserved: fields that the user maps or drops."""

    limits = (
        "no advantage, no KL, no log-probabilities, no token counts, no attempts",
        "no reward components from version 1 of the trainer on; what earlier ones dumped beside the score is taken as "
        "observed components where it is a number",
        "`score` is the reward function's: a KL penalty in the reward is not in it",
        "a resumed run replaces the files of the steps it repeats, unmarked",
        "validation has a folder of its own: import it as its own run, with --set split=eval",
        "`gts`, the ground truth, has no place in the ledger and is not taken",
    )

    def __init__(self, files: Sequence[Path], reserved: Collection[str] = ()) -> None:
        super().__init__(files, "jsonl")
        self._reserved = reserved

    def chunks(self) -> Iterator[Chunk]:
        """The lines of all files, in the order of their steps."""
        padding = 0
        for path in sorted(self.files, key=_step_of):
            for chunk in json_chunks(path):
                missing = [name for name in MARKS if name not in chunk.columns]
                if missing:
                    raise DataError(f"{chunk.at(0)}: no `{missing[0]}`; verl's rollouts have {', '.join(MARKS)}")
                kept, left = _without_padding(chunk)
                padding += left
                if kept.count:
                    yield Chunk(_columns(kept, self._reserved), kept.count, kept.at)
        if padding:
            self.notes["padding"] = f"{padding:,} lines have neither input nor output: padding of a batch, not sessions"


def _step_of(path: Path) -> tuple[int, str]:
    """Files named by their step in its order; the others first, by name."""
    stem = path.name.partition(".")[0]
    return (int(stem), "") if stem.isdigit() else (-1, str(path))


def _without_padding(chunk: Chunk) -> tuple[Chunk, int]:
    inputs, outputs = chunk.columns["input"], chunk.columns["output"]
    kept = [i for i in range(chunk.count) if inputs[i] != "" or outputs[i] != ""]
    if len(kept) == chunk.count:
        return chunk, 0
    columns = {name: [values[i] for i in kept] for name, values in chunk.columns.items()}
    return Chunk(columns, len(kept), lambda row: chunk.at(kept[row])), chunk.count - len(kept)


def _columns(chunk: Chunk, reserved: Collection[str]) -> dict[str, Any]:
    given = chunk.columns
    columns: dict[str, Any] = {
        "step": given["step"],
        "prompt": given["input"],
        "response": given["output"],
        "prompt_id": text_ids([text if isinstance(text, str) else str(text) for text in given["input"]]),
        "baseline_reward": given["score"],
        "adjusted_reward": given["score"],
    }
    if "uid" in given:
        columns |= _groups(given["uid"])
    if "request_id" in given:
        columns["trajectory_id"] = given["request_id"]
    for name, values in given.items():
        if name in _KNOWN:
            continue
        if name not in reserved and all(isinstance(value, int | float | None) for value in values):
            raw = [None if value is None else float(value) for value in values]
            columns[flat_name(name, "raw")] = raw
            columns[flat_name(name, "role")] = [None if value is None else "observed" for value in raw]
        else:
            columns[name] = values  # for the user to map or to drop
    return columns


def _groups(uids: Sequence[Any]) -> dict[str, list[Any]]:
    """Group, conversation and turn from PROMPT_ROLLOUT_TURN; an id of another form is the group's."""
    parts = [_UID.fullmatch(uid) if isinstance(uid, str) else None for uid in uids]
    return {
        "group_id": [match[1] if match else uid for match, uid in zip(parts, uids, strict=True)],
        "trajectory_id": [f"{match[1]}_{match[2]}" if match else None for match in parts],
        "turn": [int(match[3]) if match else None for match in parts],
    }
