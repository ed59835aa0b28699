"""Which format the files of an import are in: by their names and the fields of the first row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rewards.errors import DataError, UserError
from rewards.importers import open_instruct, trl, verl
from rewards.importers.files import SUFFIXES, kind_of
from rewards.importers.open_instruct import OpenInstructSource
from rewards.importers.readers import json_objects, open_parquet
from rewards.importers.source import Source
from rewards.importers.trl import TrlSource
from rewards.importers.verl import VerlSource

FORMATS = ("auto", "csv", "jsonl", "parquet", "trl", "verl", "open-instruct")


def detect(files: Sequence[Path]) -> str:
    """The format of the files.

    Raises: DataError for names that say no format, or several.
    """
    kinds = {kind_of(path): path for path in reversed(files)}
    if None in kinds:
        raise DataError(f"{kinds[None]}: not a file that can be read; known are {', '.join(SUFFIXES)}, or say --format")
    if len(kinds) > 1:
        raise DataError(f"{' and '.join(sorted(map(str, kinds)))} files in one import; import one format at a time")
    kind = str(next(iter(kinds)))
    if kind == "jsonl":
        if any(open_instruct.NAME.fullmatch(path.name) for path in files):
            return "open-instruct"
        first = next((row for _, row in json_objects(files[0])), {})
        if first.keys() >= set(open_instruct.MARKS):
            return "open-instruct"
        return "verl" if first.keys() >= set(verl.MARKS) else kind
    if kind == "parquet" and set(open_parquet(files[0]).schema_arrow.names) >= set(trl.MARKS):
        return "trl"
    return kind


def make_source(
    files: Sequence[Path], form: str, weights: Mapping[str, float] | None = None, reserved: Collection[str] = ()
) -> Source:
    """The reader for a format.

    weights: of TRL's reward functions. reserved: fields that the user maps or drops.
    Raises: UserError for weights that the format has no use for.
    """
    if weights and form != "trl":
        raise UserError(f"--reward-weight is for TRL's completions, and the files are {form}")
    if form == "trl":
        return TrlSource(files, weights, reserved)
    if form == "verl":
        return VerlSource(files, reserved)
    return OpenInstructSource(files) if form == "open-instruct" else Source(files, form)
