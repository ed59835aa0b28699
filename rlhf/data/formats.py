"""Which format the rows have, whether every row keeps to it, and the records they become."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from rewards.errors import ConfigError, DataError
from rlhf.data.importers import best_and_worst, hh_messages, looks_like_hh, split_shared
from rlhf.data.records import FORMATS, Record, is_messages, rows_of
from rlhf.data.responses import scored_responses
from rlhf.data.schemas import EACH_SCORED, ROW_MODELS, Row
from rlhf.data.sources import RawRow


def classify(values: dict[str, Any]) -> str | None:
    """The format that one row's columns speak for; a half of a pair counts as a pair, so that the gap can be named."""
    has = {name for name, value in values.items() if value is not None}
    if has & {"chosen", "rejected"}:
        sides = [values[name] for name in ("chosen", "rejected") if name in has]
        if "prompt" in has:
            whole = isinstance(values["prompt"], str) and any(is_messages(side) for side in sides)
            return "preference_implicit" if whole else "preference"
        return "hh" if all(looks_like_hh(side) for side in sides) else "preference_implicit"
    for name, needed in _BY_COLUMNS:
        if needed <= has:
            return name
    return None


_BY_COLUMNS: tuple[tuple[str, frozenset[str]], ...] = (
    ("scored", frozenset({"prompt", "responses", "scores"})),
    ("scored", frozenset({"prompt", "completions", "scores"})),
    ("stepwise", frozenset({"prompt", "completions", "labels"})),
    ("unpaired_preference", frozenset({"prompt", "completion", "label"})),
    ("prompt_completion", frozenset({"prompt", "completion"})),
    ("messages", frozenset({"messages"})),
    ("sharegpt", frozenset({"conversations"})),
    ("text", frozenset({"text"})),
    ("prompt_only", frozenset({"prompt"})),
)


def detect(rows: Sequence[RawRow]) -> str:
    """The format of the rows of one file: that of its first row, which all others must share.

    Raises: DataError where no format fits, or naming the first row that deviates.
    """
    if not rows:
        raise DataError("no rows: the format of nothing cannot be told")
    name = classify(rows[0].values)
    if name is None:
        columns = ", ".join(f"`{column}`" for column in rows[0].values) or "none"
        raise rows[0].error(
            f"fits no known format (columns {columns}): rename columns with data.datasets[].columns, "
            f"or set data.format to one of {', '.join(FORMATS)}"
        )
    for row in rows[1:]:
        other = classify(row.values)
        if other != name and other is not None and not _is_gap(name, other, row):
            raise row.error(f"looks like {FORMATS[other].label}, but row {rows[0].row} like {FORMATS[name].label}")
    return name


def _is_gap(name: str, other: str, row: RawRow) -> bool:
    """Whether a row that looks like `other` is rather a row of format `name` with a column missing."""
    needed = set(ROW_MODELS[name].model_fields)
    missing = {column for column in needed if row.values.get(column) is None}
    own = {column for column in ROW_MODELS[other].model_fields if row.values.get(column) is not None}
    return bool(missing) and own <= needed


def to_records(
    rows: Sequence[RawRow], name: str | None = None, category_column: str = "category", *, each_response: bool = False
) -> tuple[list[Record], list[str]]:
    """Records of the rows, and the lines that announce how each file was read.

    name: a format of FORMATS for all rows; null detects it file by file. each_response: of scored responses every one
    becomes a record, not the best and the worst of a row.

    Raises: ConfigError for an unknown format; DataError with file and row for a row that does not keep to it.
    """
    if name is not None and name not in FORMATS:
        raise ConfigError(f"data.format `{name}` is not known; known are {', '.join(FORMATS)}")
    records: list[Record] = []
    said: dict[tuple[str, str, bool], list[tuple[str, int]]] = {}
    notes: list[str] = []
    for file_rows in _by_file(rows):
        form = name or detect(file_rows)
        each = each_response and form == "scored"
        found, remarks = _records(file_rows, form, category_column, each)
        records += found
        notes += remarks
        key = (file_rows[0].dataset_id, form, _is_conversational(found[0]))
        said.setdefault(key, []).append((file_rows[0].file, len(file_rows)))
    _unique_ids(records)
    lines = [announce(dataset, files, form, chat, each_response) for (dataset, form, chat), files in said.items()]
    return records, [*lines, *notes]


def announce(
    dataset: str, files: Sequence[tuple[str, int]], name: str, conversational: bool, each_response: bool = False
) -> str:
    """`1,700 rows of pairs.jsonl.gz read as HH transcripts -> prompt, chosen, rejected (conversational)`.

    files: (name, rows) of each file that was read this way.
    """
    form = FORMATS[name]
    yields = "prompt, completion, score (each response)" if each_response and name == "scored" else form.yields
    source = files[0][0] if len(files) == 1 else f"{dataset} ({len(files)} files)"
    return (
        f"{rows_of(sum(count for _, count in files))} of {source} read as {form.label} -> {yields} "
        f"({'conversational' if conversational else 'standard'})"
    )


def _is_conversational(record: Record) -> bool:
    return any(is_messages(text) for text in (record.prompt, record.completion, record.chosen))


def _by_file(rows: Sequence[RawRow]) -> list[list[RawRow]]:
    files: dict[tuple[str, str], list[RawRow]] = {}
    for row in rows:
        files.setdefault((row.dataset_id, row.file), []).append(row)
    return list(files.values())


def _unique_ids(records: Sequence[Record]) -> None:
    seen: dict[str, str] = {}
    for record in records:
        if record.row_id in seen:
            raise DataError(f"{record.ref}: row_id `{record.row_id}` was used before, at {seen[record.row_id]}")
        seen[record.row_id] = record.ref


def _records(
    rows: Sequence[RawRow], form: str, category_column: str, each_response: bool
) -> tuple[list[Record], list[str]]:
    records: list[Record] = []
    joined: list[str] = []
    ties: list[str] = []
    for row in rows:
        values = _validated(row, form, EACH_SCORED if each_response else ROW_MODELS[form])
        fields, used, touched = _each(row, values) if each_response else _fields(row, form, values)
        if touched:
            (ties if form == "scored" else joined).append(row.ref)
        if fields is None:
            continue
        columns = {key: value for key, value in row.values.items() if key not in used}
        category = columns.get(category_column)
        if isinstance(category, float) and not math.isfinite(category):
            raise row.error(f"has {category} in the column `{category_column}`: leave it out where it is not known")
        record = Record(
            row_id=f"{row.file}:{row.row}" if columns.get("row_id") is None else str(columns["row_id"]),
            dataset_id=row.dataset_id,
            ref=row.ref,
            kind=FORMATS[form].kind,
            category=None if category is None else str(category),
            columns=columns,
            **fields,
        )
        records += scored_responses(record, values.responses, values.scores) if each_response else [record]
        if _is_conversational(records[-1]) != _is_conversational(records[0]):
            here, first = ("messages", "text") if _is_conversational(records[-1]) else ("text", "messages")
            raise row.error(
                f"is made of {here}, but {records[0].ref} of {first}: give all rows of a file the same form"
            )
    notes = []
    if joined:
        notes.append(f"{rows_of(len(joined))} with two turns of one speaker in a row, joined to one: {_some(joined)}")
    if ties:
        notes.append(f"{rows_of(len(ties))} dropped because all their scores are equal: {_some(ties)}")
    if not records:
        raise DataError(f"{rows[0].file}: no row is left" + (f" ({notes[0]})" if notes else ""))
    return records, notes


def _some(refs: list[str]) -> str:
    return ", ".join(refs[:5]) + (", ..." if len(refs) > 5 else "")


def _each(row: RawRow, values: Any) -> tuple[dict[str, Any], set[str], bool]:
    if len(values.responses) != len(values.scores):
        raise row.error(f"has {len(values.responses)} responses and {len(values.scores)} scores")
    return {"prompt": values.prompt}, {"prompt", "responses", "completions", "scores"}, False


def _validated(row: RawRow, form: str, model: type[Row]) -> Any:
    values = {key: value for key, value in row.values.items() if value is not None}
    if form == "scored" and "responses" not in values and "completions" in values:
        values["responses"] = values["completions"]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "`" + ".".join(str(part) for part in first["loc"]) + "`" if first["loc"] else ""
        if first["type"] == "missing":
            raise row.error(f"has no {where}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise row.error(f"{where} {message}".strip() if not where else f"has a bad {where}: {message}") from None


def _fields(row: RawRow, form: str, values: Any) -> tuple[dict[str, Any] | None, set[str], bool]:
    """What a record takes from a row, which columns that uses up, and whether the format's note counts the row."""
    try:
        return _BUILD[form](values)
    except ValueError as error:
        raise row.error(str(error)) from None


def _take(*names: str) -> Callable[[Any], tuple[dict[str, Any], set[str], bool]]:
    return lambda values: ({name: getattr(values, name) for name in names}, set(names), False)


def _build_implicit(values: Any) -> tuple[dict[str, Any], set[str], bool]:
    try:
        prompt, chosen, rejected = split_shared(values.chosen, values.rejected)
    except ValueError as error:
        raise ValueError(f"`chosen` and `rejected`: {error}") from None
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}, {"prompt", "chosen", "rejected"}, False


def _build_hh(values: Any) -> tuple[dict[str, Any], set[str], bool]:
    sides, joined = {}, 0
    for name in ("chosen", "rejected"):
        try:
            sides[name], count = hh_messages(getattr(values, name))
        except ValueError as error:
            raise ValueError(f"`{name}` {error}") from None
        if sides[name][-1]["role"] != "assistant":
            raise ValueError(f"`{name}` does not end with a turn of the assistant")
        joined += count
    try:
        prompt, chosen, rejected = split_shared(sides["chosen"], sides["rejected"])
    except ValueError as error:
        raise ValueError(f"`chosen` and `rejected`: {error}") from None
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}, {"chosen", "rejected"}, joined > 0


def _build_scored(values: Any) -> tuple[dict[str, Any] | None, set[str], bool]:
    used = {"prompt", "responses", "completions", "scores"}
    pair = best_and_worst(values.responses, values.scores)
    if pair is None:
        return None, used, True
    return {"prompt": values.prompt, "chosen": pair[0], "rejected": pair[1]}, used, False


def _build_stepwise(values: Any) -> tuple[dict[str, Any], set[str], bool]:
    if len(values.completions) != len(values.labels):
        raise ValueError(f"has {len(values.completions)} steps and {len(values.labels)} labels")
    if not all(step.strip() for step in values.completions):
        raise ValueError(f"has an empty step {next(i for i, s in enumerate(values.completions, 1) if not s.strip())}")
    # Steps and labels stay columns; the completion is what they are together, for whoever reads texts.
    return {"prompt": values.prompt, "completion": "\n".join(values.completions)}, {"prompt"}, False


_BUILD: dict[str, Callable[[Any], tuple[dict[str, Any] | None, set[str], bool]]] = {
    "preference": _take("prompt", "chosen", "rejected"),
    "preference_implicit": _build_implicit,
    "prompt_completion": _take("prompt", "completion"),
    "unpaired_preference": _take("prompt", "completion", "label"),
    "prompt_only": _take("prompt"),
    "messages": lambda values: ({"completion": values.messages}, {"messages"}, False),
    "text": lambda values: ({"completion": values.text}, {"text"}, False),
    "stepwise": _build_stepwise,
    "hh": _build_hh,
    "sharegpt": lambda values: ({"completion": values.conversations}, {"conversations"}, False),
    "scored": _build_scored,
}
