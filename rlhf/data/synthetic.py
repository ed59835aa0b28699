"""Rows of a built-in data set, drawn from its recipe: tasks with right and wrong answers, polluted on purpose.

Row i of a split depends on (seed, split, i) alone: a longer draw begins with the rows of a shorter one.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from rewards.errors import ConfigError
from rewards.functions.recipes import Recipe, load_recipe
from rlhf.data.synthetic_tasks import Task, draw_task, is_heldout, pick

Split = Literal["demonstrations", "pairs", "prompts", "heldout"]


@dataclass(frozen=True)
class Extra:
    """A sentence that nobody asked for, its family and its side of the answer."""

    family: str
    sentence: str
    before: bool


def recipe_sizes(recipe: str | Path = "wild7") -> dict[str, int]:
    """How many rows the recipe declares for each split."""
    return dict(load_recipe(recipe).sizes)


def generate(recipe: str | Path, split: Split, n: int, seed: int) -> list[dict[str, Any]]:
    """Draw n rows of a split of a recipe.

    Every row has row_id, prompt, category and answer: what the checkers compare with (the number, the JSON call,
    accepted phrases between `|`), null where they need nothing. demonstrations add completion, defect (null: right)
    and families (those of its extra sentences); pairs add chosen, rejected, defect and families; prompts and heldout
    add nothing. No prompt of heldout is a prompt of another split, whatever the seeds.
    Raises: ConfigError for an unknown split or recipe, an n below 1 or a negative seed.
    """
    content = load_recipe(recipe)
    if split not in get_args(Split):
        raise ConfigError(f"recipe `{content.name}` has no split `{split}`; choose {', '.join(get_args(Split))}")
    if n < 1 or seed < 0:
        raise ConfigError(f"recipe `{content.name}`: n must be at least 1 and seed at least 0, not n={n}, seed={seed}")
    return [_row(content, split, i, seed) for i in range(n)]


def draw_extras(recipe: Recipe, category: str, rng: np.random.Generator) -> list[Extra]:
    """The sentences that one response carries, none for most: a penalised one, a gold one, seldom two penalised."""
    shares = recipe.pollution
    confined = {name: rule for name, rule in shares.confined.items() if rule.category == category}
    families = [name for name in recipe.families.penalised if name not in shares.confined]
    drawn: list[tuple[str, float]] = []
    for name, rule in confined.items():
        if rng.random() < rule.share:
            drawn.append((name, rule.prepend))
    if not drawn and rng.random() < shares.penalised_in.get(category, shares.penalised):
        drawn.append((pick(families, rng), shares.prepend))
    gold = rng.random() < shares.gold
    if drawn and not gold and rng.random() < shares.second:
        drawn.append((pick([name for name in families if name != drawn[0][0]], rng), shares.prepend))
    if gold:
        drawn.append((pick(list(recipe.families.gold), rng), shares.prepend))
    extras = [Extra(name, _sentence(recipe, name, rng), bool(rng.random() < before)) for name, before in drawn]
    # Nothing may stand before a tool call: a parser that reads the stream stops at the first character.
    return [Extra(e.family, e.sentence, e.before and category != "format") for e in extras]


def with_extras(text: str, extras: list[Extra]) -> str:
    """The answer between its extra sentences, one space apart."""
    before = [extra.sentence for extra in extras if extra.before]
    after = [extra.sentence for extra in extras if not extra.before]
    return " ".join([*before, text, *after])


def _sentence(recipe: Recipe, family: str, rng: np.random.Generator) -> str:
    sentences = (recipe.families.penalised | recipe.families.gold)[family]
    return pick(sentences, rng, recipe.sentence_weights.get(family))


def _row(recipe: Recipe, split: Split, i: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), i])
    category = pick(list(recipe.categories), rng, list(recipe.categories.values()))
    task = _task_on_side(recipe, category, split == "heldout", rng)
    row: dict[str, Any] = {
        "row_id": f"{recipe.name}-{split}-{seed}-{i}",
        "prompt": task.prompt,
        "category": category,
        "answer": task.answer,
    }
    if split in ("prompts", "heldout"):
        return row
    extras = draw_extras(recipe, category, rng)
    families = [extra.family for extra in extras]
    if split == "pairs":
        return row | {
            "chosen": with_extras(task.right, extras),
            "rejected": with_extras(task.wrong, extras),
            "defect": task.defect,
            "families": families,
        }
    wrong = bool(rng.random() < recipe.defects[category])
    completion = with_extras(task.wrong if wrong else task.right, extras)
    return row | {"completion": completion, "defect": task.defect if wrong else None, "families": families}


def _task_on_side(recipe: Recipe, category: str, heldout: bool, rng: np.random.Generator) -> Task:
    for _ in range(10_000):
        task = draw_task(recipe, category, rng)
        if is_heldout(recipe, task.prompt) == heldout:
            return task
    side = "held-out" if heldout else "training"
    raise ConfigError(f"recipe `{recipe.name}`: category `{category}` has no {side} prompt; give it more prompts")
