"""The base of every configuration section: frozen, closed to unknown keys, with rules between its knobs."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

Problem = tuple[str, str]
"""The key that a rule speaks of, relative to its section, and what is wrong."""


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
    def _rules_hold(self) -> Section:
        problems = list(self.rules())
        if problems:
            text = "; ".join(f"{key}: {message}" for key, message in problems)
            raise PydanticCustomError("rule", "{text}", {"text": text, "problems": problems})
        return self
