"""The base of every configuration section: frozen, closed to unknown keys, with rules between its knobs."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

Problem = tuple[str, str]
"""The key that a rule speaks of, relative to its section, and what is wrong."""

RULES_LATER = {"rules": "later"}
"""Validation context of a caller that asks every section for its rules itself, to hear of all problems at once."""


class Section(BaseModel):
    """A frozen group of knobs that knows no other keys.

    A subclass says what must hold between its knobs in `rules`, and what is allowed but probably not meant in
    `cautions`; the loader turns both into lines that name the file and the line of the key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def rules(self) -> Iterator[Problem]:
        """What does not hold between the knobs of this section."""
        yield from ()

    def cautions(self) -> Iterator[Problem]:
        """What is allowed, but probably not meant."""
        yield from ()

    def changed(self, *names: str) -> list[str]:
        """Those of `names` whose value differs from the default."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].get_default(call_default_factory=True)]

    @model_validator(mode="after")
    def _rules_hold(self, info: ValidationInfo) -> Section:
        if info.context is RULES_LATER:
            return self
        problems = list(self.rules())
        if problems:
            text = "; ".join(f"{key}: {message}" for key, message in problems)
            raise PydanticCustomError("rule", "{text}", {"text": text})
        return self


def sections(config: BaseModel, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Section]]:
    """Every section in a configuration with its path, inner ones first, lists of sections included."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from sections(value, (*path, name))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from sections(item, (*path, name, i))
    if isinstance(config, Section):
        yield path, config
