"""What a row of each format must hold: one pydantic model per format, strict about presence and form."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rlhf.data.importers import drop_nulls, sharegpt_messages
from rlhf.data.records import Message, Text, is_messages


def _text(value: object) -> Text:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _messages(value)
    raise ValueError(f"must be text or a list of messages, found {type(value).__name__}")


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of at least one message with `role` and `content`")
    messages = drop_nulls(value)
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} has no `role`")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise ValueError(f"message {number} has no text `content`")
    return messages


AnyText = Annotated[Any, BeforeValidator(_text)]
Messages = Annotated[Any, BeforeValidator(_messages)]


class Row(BaseModel):
    """Columns that the format does not name are left to the record's `columns`."""

    model_config = ConfigDict(extra="ignore")


class _Preference(Row):
    prompt: AnyText
    chosen: AnyText
    rejected: AnyText

    @model_validator(mode="after")
    def _one_form(self) -> _Preference:
        _same_form(self, "prompt", "chosen", "rejected")
        return self


class _Implicit(Row):
    chosen: AnyText
    rejected: AnyText


class _Transcripts(Row):
    chosen: str
    rejected: str


class _Completion(Row):
    prompt: AnyText
    completion: AnyText

    @model_validator(mode="after")
    def _one_form(self) -> _Completion:
        _same_form(self, "prompt", "completion")
        return self


class _Labelled(_Completion):
    label: bool


class _Prompt(Row):
    prompt: AnyText


class _Conversation(Row):
    messages: Messages


class _ShareGPT(Row):
    conversations: Annotated[Any, BeforeValidator(sharegpt_messages)]


class _PlainText(Row):
    text: str


class _Stepwise(Row):
    prompt: AnyText
    completions: list[str] = Field(min_length=1)
    labels: list[bool]


class _Scored(Row):
    prompt: AnyText
    responses: list[AnyText]
    scores: list[float]


class _EachScored(Row):
    prompt: AnyText
    responses: list[AnyText] = Field(min_length=1)
    scores: list[Any]


def _same_form(row: Row, *names: str) -> None:
    forms = {name: is_messages(getattr(row, name)) for name in names}
    if len(set(forms.values())) > 1:
        said = ", ".join(f"`{name}` is {'messages' if form else 'text'}" for name, form in forms.items())
        raise ValueError(f"mixes forms ({said}): give all of them the same form")


ROW_MODELS: dict[str, type[Row]] = {
    "preference": _Preference,
    "preference_implicit": _Implicit,
    "prompt_completion": _Completion,
    "unpaired_preference": _Labelled,
    "prompt_only": _Prompt,
    "messages": _Conversation,
    "text": _PlainText,
    "stepwise": _Stepwise,
    "hh": _Transcripts,
    "sharegpt": _ShareGPT,
    "scored": _Scored,
}

EACH_SCORED: type[Row] = _EachScored
"""The format `scored` where every response counts, not the best and the worst: a score may have several attributes."""
