"""What a section's annotations allow: the dotted paths of its keys, and types in words."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails


def members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, unions flattened; NoneType stands for null."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in members(part)]
    if origin is Annotated:
        return members(get_args(annotation)[0])
    return [annotation]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section among an annotation's alternatives."""
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def item_types(annotation: Any, kind: type) -> tuple[Any, ...] | None:
    """The type arguments of the `list`, `tuple` or `dict` among an annotation's alternatives."""
    for member in members(annotation):
        if member is kind or get_origin(member) is kind:
            return get_args(member) or (Any,) * 2
    return None


def allows_null(annotation: Any) -> bool:
    """True when null is a value."""
    return any(member in (type(None), Any) for member in members(annotation))


def scalars(annotation: Any) -> list[Any]:
    """The alternatives that are a single value, null aside."""
    return [m for m in members(annotation) if m in (str, int, float, bool, Any) or get_origin(m) is Literal]


def is_text(annotation: Any) -> bool:
    """True when a scalar can only mean text here, so that `no` and `007` need no quotes."""
    single = scalars(annotation)
    return bool(single) and all(m is str or get_origin(m) is Literal for m in single)


def is_word(annotation: Any, text: str) -> bool:
    """True when `text` is one of the words that may stand here."""
    return any(get_origin(m) is Literal and text in get_args(m) for m in members(annotation))


def paths(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """{dotted path: field} of a model's keys, sections included, in their order."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        found[prefix + name] = info
        section = section_of(info.annotation)
        if section is not None:
            found |= paths(section, f"{prefix}{name}.")
    return found


def candidates(key: str, known: Iterable[str]) -> list[str]:
    """The paths that a key can mean: itself, else every path that ends with it."""
    known = list(known)
    return [key] if key in known else [path for path in known if path.endswith("." + key)]


def nearest(key: str, known: Iterable[str]) -> list[str]:
    """The paths somebody who wrote `key` may have meant: the same leaf elsewhere, else the most similar path."""
    leaf = key.rpartition(".")[2]
    known = list(known)
    same = [path for path in known if path.rpartition(".")[2] == leaf]
    if same:
        return same
    scores = {path: max(_likeness(key, path), _likeness(leaf, path.rpartition(".")[2])) for path in known}
    best = max(known, key=lambda path: scores[path], default=None)
    return [best] if best is not None and scores[best] >= 0.6 else []


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def in_words(annotation: Any, constraints: Iterable[Any] = ()) -> str:
    """A type as an error says it: `a number above 0`, `` `stop` or `null` ``."""
    limits = _limits(constraints)
    words = [word for member in members(annotation) for word in _member_in_words(member, limits)]
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _limits(constraints: Iterable[Any]) -> str:
    said = []
    for limit in constraints:
        for kind, word, bound in ((Gt, "above", "gt"), (Ge, "of at least", "ge"), (Lt, "below", "lt")):
            if isinstance(limit, kind):
                said.append(f"{word} {_number(getattr(limit, bound))}")
        if isinstance(limit, Le):
            said.append(f"at most {_number(limit.le)}")
    return "".join(f" {said[0]}" if i == 0 else f" and {part}" for i, part in enumerate(said)) if said else ""


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _member_in_words(member: Any, limits: str) -> list[str]:
    simple: Mapping[Any, str] = {
        int: "a whole number" + limits,
        float: "a number" + limits,
        bool: "true or false",
        str: "text",
        type(None): "null",
        Any: "any value",
    }
    if member in simple:
        return [simple[member]]
    origin = get_origin(member)
    if origin is Literal:
        return [f"`{value}`" for value in get_args(member)]
    if origin is list:
        return [f"a list of: {in_words(get_args(member)[0])}"]
    if origin is tuple:
        return [f"a list of {len(get_args(member))} values"]
    return ["a mapping"]


def limits_of(info: FieldInfo) -> list[Any]:
    """The bounds of a field."""
    return [limit for limit in info.metadata if isinstance(limit, Gt | Ge | Lt | Le | MinLen)]


def mismatch(model: type[BaseModel], path: tuple[str | int, ...], error: ErrorDetails) -> str:
    """What pydantic found at a path, as `expected ..., got ...`."""
    within: type[BaseModel] | None = model
    annotation: Any = None
    limits: list[Any] = []
    for part in path:
        if isinstance(part, str) and within is not None and part in within.model_fields:
            info = within.model_fields[part]
            annotation, limits = info.annotation, limits_of(info)
        else:
            kinds = item_types(annotation, list) or item_types(annotation, tuple) or item_types(annotation, dict)
            annotation, limits = (kinds[-1] if kinds else Any), []
        within = section_of(annotation)
    if error["type"] in ("string_too_short", "too_short"):
        return "must not be empty"
    if error["type"] in ("value_error", "too_long"):
        return str(error["msg"])
    return f"expected {in_words(annotation, limits)}, got {_in_short(error['input'])}"


def _in_short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
