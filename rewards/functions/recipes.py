"""Recipes of built-in data sets: where they lie, and their contents as frozen models.

A recipe holds the texts and shares from which a generator draws, and what the checkers of the same data set look for.
"""

from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewards.errors import ConfigError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Share = float


class Confined(_Part):
    """A family that lives in one category only: as a share of that category's responses."""

    category: str
    share: Share = Field(ge=0, le=1)
    prepend: Share = Field(0.0, ge=0, le=1, description="Share of its sentences that stand before the answer")


class Pollution(_Part):
    """How often responses carry sentences that nobody asked for."""

    penalised: Share = Field(ge=0, le=1)
    gold: Share = Field(ge=0, le=1)
    second: Share = Field(ge=0, le=1)
    prepend: Share = Field(ge=0, le=1)
    confined: dict[str, Confined] = {}
    penalised_in: dict[str, Share] = {}


class Families(_Part):
    """Sentences by family: those that a reward penalises and those that it never does."""

    penalised: dict[str, list[str]]
    gold: dict[str, list[str]]


class Markers(_Part):
    """Words that show what an answer does."""

    refusal: list[str]
    compliance: list[str]
    unknown: list[str]


class Level(_Part):
    """A difficulty of arithmetic: ranges of both numbers, ends included."""

    share: Share = Field(gt=0)
    a: tuple[int, int]
    b: tuple[int, int]


class Arithmetic(_Part):
    """Sums and differences."""

    levels: list[Level]
    add: list[str]
    subtract: list[str]
    answers: list[str]
    wrong_by: list[int]


class Tool(_Part):
    """A tool and its arguments: a range of integers or a list of words."""

    tool: str
    args: dict[str, tuple[int, int] | list[str]]
    prompts: list[str]


class Format(_Part):
    """Tool calls in strict JSON."""

    prompts: list[str]
    chatty: list[str]
    tools: list[Tool]


class Item(_Part):
    """One subject of a templated category; lists that it leaves empty are the category's."""

    say: str
    accept: list[str] = []
    frames: list[str] = []
    answers: list[str] = []
    defects: dict[str, list[str]] = {}


class Templated(_Part):
    """A category whose prompts and answers are templates over subjects."""

    frames: list[str]
    answers: list[str]
    defects: dict[str, list[str]]
    items: list[Item]


class Recipe(_Part):
    """Everything a built-in data set is made of."""

    name: str
    version: int
    sizes: dict[str, int]
    heldout_share: Share = Field(gt=0, lt=1)
    categories: dict[str, Share]
    defects: dict[str, Share]
    compliant_when: dict[str, list[str]]
    pollution: Pollution
    families: Families
    sentence_weights: dict[str, list[float]] = {}
    markers: Markers
    slots: dict[str, list[str]]
    arithmetic: Arithmetic
    format: Format
    harmful: Templated
    benign: Templated
    unanswerable: Templated
    self: Templated

    @model_validator(mode="after")
    def _shares_are_whole(self) -> "Recipe":
        if abs(sum(self.categories.values()) - 1) > 1e-9:
            raise ValueError(f"the shares of `categories` sum to {sum(self.categories.values()):g}, not to 1")
        for table in ("defects", "compliant_when"):
            if set(getattr(self, table)) != set(self.categories):
                raise ValueError(f"`{table}` must name exactly the categories of `categories`")
        for family in self.pollution.confined:
            if family not in self.families.penalised:
                raise ValueError(f"pollution.confined: there is no penalised family `{family}`")
        for family, weights in self.sentence_weights.items():
            sentences = (self.families.penalised | self.families.gold).get(family)
            if sentences is None or len(sentences) != len(weights):
                raise ValueError(f"sentence_weights.{family}: give one weight for each sentence of the family")
        return self

    @property
    def all_phrases(self) -> tuple[str, ...]:
        """Every sentence of every family, penalised ones first."""
        both = [*self.families.penalised.values(), *self.families.gold.values()]
        return tuple(sentence for family in both for sentence in family)


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: by the name of a built-in data set, or a path to a YAML file or a folder that holds one.

    Raises: ConfigError naming what was looked for and the built-in names.
    """
    package = Path(__file__).resolve().parents[1]
    # In a checkout the recipes lie beside the code, in a wheel inside of it.
    roots = [package.parent / "datasets", package / "recipes"]
    if Path(name).suffix in (".yaml", ".yml"):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(f"recipe file `{name}` does not exist (looked from {Path.cwd()})")
    for place in [*(root / name for root in roots), Path(name)]:
        if (place / "recipe.yaml").is_file():
            return place / "recipe.yaml"
    known = sorted({found.parent.name for root in roots for found in root.glob("*/recipe.yaml")})
    raise ConfigError(f"there is no recipe `{name}`; built in: {', '.join(known) or 'none'}; or give a recipe.yaml")


def load_recipe(name: str | Path) -> Recipe:
    """A recipe, read once per file and kept until the file changes.

    Raises: ConfigError naming the file and the first key that does not fit.
    """
    path = find_recipe(name).resolve()
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, modified_ns: int) -> Recipe:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc'])) or 'recipe'}: {first['msg']}") from None
