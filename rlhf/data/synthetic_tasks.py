"""One task of a built-in data set: a prompt, a right answer, a wrong one, and what a checker compares with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from rewards.errors import ConfigError
from rewards.functions.recipes import Recipe, Templated, Tool

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A prompt with both kinds of answer; `answer` is null where the checker compares with nothing."""

    prompt: str
    right: str
    wrong: str
    defect: str
    answer: str | None


def pick(choices: Sequence[T], rng: np.random.Generator, weights: Sequence[float] | None = None) -> T:
    """One of the choices; with weights in proportion to them.

    Raises: ConfigError when there is nothing to choose from.
    """
    if not choices:
        raise ConfigError("a recipe's list of templates, subjects or sentences is empty")
    if weights is None:
        return choices[int(rng.integers(len(choices)))]
    edges = np.cumsum(weights)
    return choices[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def is_heldout(recipe: Recipe, prompt: str) -> bool:
    """On which side a prompt lies: a matter of its text alone, so that no seed can move it."""
    digest = hashlib.sha256(f"{recipe.name}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < recipe.heldout_share * 2**64


def draw_task(recipe: Recipe, category: str, rng: np.random.Generator) -> Task:
    """A task of the category, on either side of the held-out line."""
    if category == "arithmetic":
        return _arithmetic(recipe, rng)
    if category == "format":
        return _format(recipe, rng)
    return _templated(recipe, getattr(recipe, category), rng)


def _arithmetic(recipe: Recipe, rng: np.random.Generator) -> Task:
    spec = recipe.arithmetic
    level = pick(spec.levels, rng, [level.share for level in spec.levels])
    a, b = _between(level.a, rng), _between(level.b, rng)
    adds = bool(rng.random() < 0.5)
    if not adds:
        a, b = max(a, b), min(a, b)  # no negative results
    right = a + b if adds else a - b
    offsets = [offset for size in spec.wrong_by for offset in (size, -size) if right + offset >= 0]
    words = {"a": str(a), "b": str(b), "sign": "+" if adds else "-"}
    prompt = _fill(pick(spec.add if adds else spec.subtract, rng), words)
    answers = [
        _fill(pick(spec.answers, rng), words | {"c": str(value)}) for value in (right, right + pick(offsets, rng))
    ]
    return Task(prompt, answers[0], answers[1], "wrong_sum", str(right))


def _format(recipe: Recipe, rng: np.random.Generator) -> Task:
    spec = recipe.format
    tool = pick(spec.tools, rng)
    args = {name: _value(domain, rng) for name, domain in tool.args.items()}
    words = {name: str(value) for name, value in args.items()}
    named = " and ".join(f"{name} {value}" for name, value in words.items())
    prompt = _fill(pick([*spec.prompts, *tool.prompts], rng), words | {"tool": tool.tool, "args": named})
    right = _call(tool, args)
    defect = pick(["missing_brace", "missing_quotes", "chatty", "wrong_value", "number_as_text"], rng)
    if defect == "number_as_text" and not any(isinstance(value, int) for value in args.values()):
        defect = "wrong_value"
    return Task(prompt, right, _broken(recipe, defect, tool, args, rng), defect, right)


def _broken(recipe: Recipe, defect: str, tool: Tool, args: dict[str, Any], rng: np.random.Generator) -> str:
    if defect == "missing_brace":
        return _call(tool, args)[:-1]
    if defect == "missing_quotes":
        return _call(tool, args).replace('"', "")
    if defect == "chatty":
        return _fill(pick(recipe.format.chatty, rng), {"json": _call(tool, args)})
    if defect == "number_as_text":
        return _call(tool, {name: str(value) for name, value in args.items()})
    name = pick(list(args), rng)
    other = args[name]
    while other == args[name]:
        other = _value(tool.args[name], rng)
    return _call(tool, args | {name: other})


def _call(tool: Tool, args: Mapping[str, Any]) -> str:
    return json.dumps({"tool": tool.tool, "args": args}, separators=(",", ":"))


def _templated(recipe: Recipe, spec: Templated, rng: np.random.Generator) -> Task:
    item = pick(spec.items, rng)
    words = {name: pick(choices, rng) for name, choices in recipe.slots.items()}
    words["item"] = _fill(item.say, words)
    kinds = item.defects or spec.defects
    defect = pick(list(kinds), rng)
    return Task(
        prompt=_fill(pick(item.frames or spec.frames, rng), words),
        right=_fill(pick(item.answers or spec.answers, rng), words),
        wrong=_fill(pick(kinds[defect], rng), words),
        defect=defect,
        answer="|".join(item.accept) or None,
    )


def _fill(template: str, words: Mapping[str, str]) -> str:
    """Braces that name no word stay: they belong to JSON."""
    return re.sub(r"\{(\w+)\}", lambda found: words.get(found[1], found[0]), template)


def _between(ends: Sequence[int], rng: np.random.Generator) -> int:
    return int(rng.integers(ends[0], ends[1] + 1))


def _value(domain: Sequence[int] | Sequence[str], rng: np.random.Generator) -> int | str:
    if isinstance(domain[0], int):
        return _between(cast("Sequence[int]", domain), rng)
    return pick(cast("Sequence[str]", domain), rng)
