"""What a row becomes: one frozen record, whatever format its file had."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rewards.errors import DataError

Message = dict[str, Any]
Text = str | list[Message]
Kind = Literal["demonstration", "pair", "prompt", "labelled", "stepwise", "scored"]


@dataclass(frozen=True)
class Format:
    """A row format: how people call it, what a record of it holds, which kind of record it gives."""

    label: str
    yields: str
    kind: Kind


FORMATS: dict[str, Format] = {
    "preference": Format("preferences", "prompt, chosen, rejected", "pair"),
    "preference_implicit": Format(
        "preferences whose prompt is what both sides begin with", "prompt, chosen, rejected", "pair"
    ),
    "prompt_completion": Format("prompts with completions", "prompt, completion", "demonstration"),
    "unpaired_preference": Format("labelled completions", "prompt, completion, label", "labelled"),
    "prompt_only": Format("prompts", "prompt", "prompt"),
    "messages": Format("conversations", "messages", "demonstration"),
    "text": Format("plain text", "text", "demonstration"),
    "stepwise": Format("stepwise supervision", "prompt, completions, labels", "stepwise"),
    "hh": Format("HH transcripts", "prompt, chosen, rejected", "pair"),
    "sharegpt": Format("ShareGPT conversations", "messages", "demonstration"),
    "scored": Format("scored responses", "prompt, chosen (highest score), rejected (lowest score)", "pair"),
}

KIND_LABEL: dict[Kind, str] = {
    "demonstration": "demonstrations",
    "pair": "pairs (chosen, rejected)",
    "prompt": "prompts",
    "labelled": "labelled completions",
    "stepwise": "stepwise supervision",
    "scored": "scored completions (prompt, completion and columns of scores, or prompt, responses, scores)",
}


@dataclass(frozen=True)
class Record:
    """One row, ready for a stage.

    row_id: the column `row_id`, or FILE:ROW. ref: where it came from, FILE:LINE, for messages. prompt: None for plain
    text and whole conversations, whose text is then in `completion`. label: only with labelled completions. columns:
    all other columns of the row, as reward functions receive them (the category is among them too).
    """

    row_id: str
    dataset_id: str
    ref: str
    kind: Kind
    prompt: Text | None = None
    completion: Text | None = None
    chosen: Text | None = None
    rejected: Text | None = None
    label: bool | None = None
    category: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


def rows_of(count: int) -> str:
    """`1 row`, `1,700 rows`."""
    return "1 row" if count == 1 else f"{count:,} rows"


def is_messages(text: Text | None) -> bool:
    """Whether `text` is a conversation rather than a string."""
    return isinstance(text, list)


def plain(text: Text) -> str:
    """The words of a text: a string as it is; messages as `role: content` lines, a lone user turn as its content."""
    if isinstance(text, str):
        return text
    if len(text) == 1 and text[0]["role"] == "user":
        return str(text[0].get("content") or "")
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in text)


def prompt_of(record: Record) -> Text:
    """The record's prompt; for a conversation what precedes its first answer; for plain text the text itself."""
    if record.prompt is not None:
        return record.prompt
    text = record.completion
    if isinstance(text, list):
        first = next((i for i, message in enumerate(text) if message["role"] == "assistant"), len(text))
        return text[: max(first, 1)]
    return text or ""


def prompt_key(text: Text) -> str:
    """Digest of a prompt that does not see case, spacing or Unicode compatibility forms."""
    words = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", plain(text))).strip().casefold()
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()


_TAKES: dict[str, Kind] = {
    "sft": "demonstration",
    "reward": "pair",
    "dpo": "pair",
    "kto": "labelled",
    "grpo": "prompt",
}


def for_stage(records: Sequence[Record], stage: str, kind: str | None = None) -> tuple[list[Record], list[str]]:
    """The records as the stage uses them, and a line for every conversion. kind: what it takes, where it has a choice.

    SFT takes demonstrations, and the chosen side of pairs; reward and dpo take pairs; kto takes labelled completions,
    and pairs as two of them; grpo takes the prompt of anything that has one.

    Raises: DataError saying what was found and what the stage takes.
    """
    wanted: Kind = _TAKES[stage] if kind is None else kind  # type: ignore[assignment]
    out: list[Record] = []
    converted: dict[str, int] = {}
    for record in records:
        fitting = [record] if record.kind == wanted else _convert(record, wanted)
        if not fitting:
            raise DataError(
                f"{record.ref}: {stage} takes {KIND_LABEL[wanted]}, found {_found(record)}: "
                f"{_ADVICE.get((record.kind, wanted), '')}choose other data, or name the format with data.format"
            )
        if fitting[0] is not record:
            said = f"{record.dataset_id}: {KIND_LABEL[record.kind]} -> {_SAID[wanted]}"
            converted[said] = converted.get(said, 0) + 1
        out += fitting
    return out, [f"{rows_of(count)} of {said}" for said, count in converted.items()]


_SAID = {
    "demonstration": "demonstrations (the chosen side)",
    "prompt": "prompts (the answers are not used)",
    "scored": "scored completions",
    "labelled": "labelled completions, two a pair (chosen: desirable, rejected: undesirable)",
}
_ADVICE: dict[tuple[str, str], str] = {
    (
        "labelled",
        "demonstration",
    ): "to train on all completions whatever their label set data.format=prompt_completion; else ",
    ("demonstration", "labelled"): "a column `label` says of each completion whether it is desirable; add one, or ",
}


def _found(record: Record) -> str:
    if record.kind == "demonstration" and record.prompt is None and isinstance(record.completion, str):
        return "plain text, which has no prompt"
    return KIND_LABEL[record.kind]


def _convert(record: Record, wanted: Kind) -> list[Record]:
    """What the stage takes of a record of another kind; nothing where it can take nothing."""
    if wanted == "demonstration" and record.kind == "pair":
        return [replace(record, kind=wanted, completion=record.chosen, chosen=None, rejected=None)]
    if wanted == "labelled" and record.kind == "pair":
        return [_side(record, "chosen", True), _side(record, "rejected", False)]
    if wanted == "scored" and record.kind == "demonstration" and record.prompt is not None:
        return [replace(record, kind=wanted)]
    if wanted != "prompt":
        return []
    prompt = record.prompt
    if prompt is None and isinstance(record.completion, list):
        # A conversation asks for its last answer; one without a last answer asks as it stands.
        turns = record.completion
        prompt = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    if prompt is None:
        return []  # an empty prompt is one: the gates drop and count it
    sides = {"chosen": record.chosen, "rejected": record.rejected} if record.kind == "pair" else {}
    return [
        Record(
            record.row_id,
            record.dataset_id,
            record.ref,
            "prompt",
            prompt=prompt,
            category=record.category,
            columns={**record.columns, **sides},
        )
    ]


def _side(record: Record, side: Literal["chosen", "rejected"], label: bool) -> Record:
    """One side of a pair on its own, under the name that the sides of a pair have elsewhere too."""
    text = record.chosen if side == "chosen" else record.rejected
    return replace(
        record,
        row_id=f"{record.row_id}#{side}",
        kind="labelled",
        completion=text,
        chosen=None,
        rejected=None,
        label=label,
    )
