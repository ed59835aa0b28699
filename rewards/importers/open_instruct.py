"""open-instruct's saved rollouts: `RUN_rollouts_000000.jsonl`, shards of 10,000 samples or so, one object a line.

Keys: step, sample_idx, prompt_idx, prompt_tokens, response_tokens (ids), reward, advantage, finish_reason, dataset,
ground_truth, request_info, logprobs.

A resumed process appends to the same shards and counts from shard 0 again, so the steps it repeats are there twice,
unmarked: of two copies of a step the later in its shard is the newer, and of two in different shards the one in the
lower (each resume having begun at a later step than the one before). The newest copy counts; the rest is imported as
the superseded part of a first attempt.

Source: allenai/open-instruct, open_instruct/rl_utils.py at 00feb3a5 (`RolloutRecord`, `_save_rollouts`) and
open_instruct/data_loader.py (`DataPreparationActor`: its state has no count of what was written).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rewards.errors import DataError
from rewards.importers.place import Chunk
from rewards.importers.readers import ROWS, json_objects
from rewards.importers.source import Source

MARKS = ("step", "sample_idx", "prompt_idx", "prompt_tokens", "response_tokens", "reward", "advantage")
NAME = re.compile(r"(?P<run>.+?)(?P<filtered>_filtered)?_rollouts_(?P<shard>\d+)\.jsonl(\.gz)?")


class _Sample(NamedTuple):
    """What the ledger takes of one line."""

    step: int
    sample: int
    copy: tuple[int, int]  # how new: shards count down, copies within a shard up
    place: str
    values: dict[str, Any]


class OpenInstructSource(Source):
    """The rollouts of a run, in the order of their steps."""

    limits = (
        "no reward components, no KL, no attempts",
        "no texts: token ids only, of which the counts and an id of the prompt are taken",
        "groups without variance of the reward are not in these files, though they were scored",
        "`logp_nats` is the sampler's own figure, over all tokens of the response, those of tools included",
        "`ground_truth` and `request_info` have no place in the ledger and are not taken",
    )

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(_shards(files), "jsonl")
        left = len(files) - len(self.files)
        if left:
            self.notes["left"] = (
                f"{left} files are not shards of rollouts (filtered groups, metadata, log-probabilities)"
            )
        self._live: list[_Sample] | None = None
        self._older: list[_Sample] = []
        self._resume_step: int | None = None

    def chunks(self) -> Iterator[Chunk]:
        """The newest copy of every step."""
        yield from _chunks(self._samples())

    @property
    def resume_step(self) -> int | None:
        """The step before the first that is there more than once; None for a run that was never resumed."""
        self._samples()
        return self._resume_step

    def superseded(self) -> Iterator[Chunk]:
        """The older copies."""
        self._samples()
        yield from _chunks(self._older)

    def _samples(self) -> list[_Sample]:
        if self._live is None:
            found = [sample for shard, path in enumerate(self.files) for sample in _read(path, shard)]
            newest: dict[int, tuple[int, int]] = {}
            for sample in found:
                newest[sample.step] = max(newest.get(sample.step, sample.copy), sample.copy)
            found.sort(key=lambda sample: (sample.step, sample.copy, sample.sample))
            self._live = [sample for sample in found if sample.copy == newest[sample.step]]
            self._older = [sample for sample in found if sample.copy != newest[sample.step]]
            if self._older:
                self._resume_step = self._older[0].step - 1
                steps = len({sample.step for sample in self._older})
                self.notes["resumed"] = (
                    f"{steps:,} steps are there more than once, from step {self._older[0].step:,} on: the run was "
                    f"resumed; the newest copy counts, {len(self._older):,} older rows are kept as superseded"
                )
        return self._live


def _shards(files: Sequence[Path]) -> list[Path]:
    """The shards of rollouts, in their order.

    Raises: DataError for shards of several runs.
    """
    names = [(path, NAME.fullmatch(path.name)) for path in files]
    shards = [(path, match) for path, match in names if match and not match["filtered"]]
    if not shards:
        if len(files) == 1 and not names[0][1]:
            return list(files)  # renamed; its lines say what it is
        raise DataError(f"{files[0].parent}: no shard of rollouts, RUN_rollouts_000000.jsonl")
    runs = sorted({match["run"] for _, match in shards})
    if len(runs) > 1:
        raise DataError(f"{shards[0][0].parent}: rollouts of several runs ({', '.join(runs)}): import one, with a glob")
    return [path for path, _ in sorted(shards, key=lambda shard: int(shard[1]["shard"]))]


def _read(path: Path, shard: int) -> Iterator[_Sample]:
    last: dict[int, int] = {}
    copies: Counter[int] = Counter()
    for line, row in json_objects(path):
        place = f"{path}:{line}"
        for name in MARKS:
            if name not in row:
                raise DataError(f"{place}: no `{name}`; open-instruct's rollouts have {', '.join(MARKS)}")
        step, sample = _whole(place, row, "step"), _whole(place, row, "sample_idx")
        if sample <= last.get(step, -1):
            copies[step] += 1
        last[step] = sample
        yield _Sample(step, sample, (-shard, copies[step]), place, _values(place, row, step))


def _whole(place: str, row: dict[str, Any], name: str) -> int:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{place}: `{name}` is {value!r}, not a whole number from 0")
    return value


def _values(place: str, row: dict[str, Any], step: int) -> dict[str, Any]:
    for name in ("prompt_tokens", "response_tokens"):
        if not isinstance(row[name], list):
            raise DataError(f"{place}: `{name}` is {type(row[name]).__name__}, not a list of token ids")
    prompt, dataset, finish = row["prompt_tokens"], row.get("dataset"), row.get("finish_reason")
    return {
        "prompt_id": hashlib.sha256(repr(prompt).encode()).hexdigest()[:16],
        "group_id": f"{step}/{_whole(place, row, 'prompt_idx')}",
        "dataset_id": ",".join(map(str, dataset)) if isinstance(dataset, list) else dataset,
        "baseline_reward": row["reward"],
        "adjusted_reward": row["reward"],
        "advantage": row["advantage"],
        "logp_nats": _sum(row.get("logprobs")),
        "prompt_tokens": len(prompt),
        "response_tokens": len(row["response_tokens"]),
        "stop_reason": finish,
        "truncated": None if finish is None else finish == "length",
    }


def _sum(values: Any) -> float | None:
    """Of log-probabilities; None where one is missing."""
    if not isinstance(values, list) or any(value is None for value in values):
        return None
    return math.fsum(values)


def _chunks(samples: Sequence[_Sample]) -> Iterator[Chunk]:
    for start in range(0, len(samples), ROWS):
        part = samples[start : start + ROWS]
        columns: dict[str, Any] = {name: [sample.values[name] for sample in part] for name in part[0].values}
        columns["step"] = [sample.step for sample in part]
        columns["pipeline"] = ["grpo"] * len(part)
        yield Chunk(columns, len(part), lambda row, part=part: part[row].place)  # type: ignore[misc]
