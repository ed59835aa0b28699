"""Recipes of built-in data sets: where they lie, and their contents as frozen models.

A recipe holds the texts and shares from which a generator draws, and what the checkers of the same data set look for.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from rewards.config import Problem, Section, load
from rewards.errors import ConfigError

Share = float


class Confined(Section):
    """A family that lives in one category only: as a share of that category's responses."""

    category: str
    share: Share = Field(ge=0, le=1)
    prepend: Share = Field(0.0, ge=0, le=1, description="Share of its sentences that stand before the answer")


class Pollution(Section):
    """How often responses carry sentences that nobody asked for."""

    penalised: Share = Field(ge=0, le=1)
    gold: Share = Field(ge=0, le=1)
    second: Share = Field(ge=0, le=1)
    prepend: Share = Field(ge=0, le=1)
    confined: dict[str, Confined] = Field(default_factory=dict)
    penalised_in: dict[str, Share] = Field(default_factory=dict)


class Families(Section):
    """Sentences by family: those that a reward penalises and those that it never does."""

    penalised: dict[str, list[str]]
    gold: dict[str, list[str]]


class Markers(Section):
    """Words that show what an answer does."""

    refusal: list[str]
    compliance: list[str]
    unknown: list[str]


class Level(Section):
    """A difficulty of arithmetic: ranges of both numbers, ends included."""

    share: Share = Field(gt=0)
    a: tuple[int, int]
    b: tuple[int, int]


class Arithmetic(Section):
    """Sums and differences."""

    levels: list[Level]
    add: list[str]
    subtract: list[str]
    answers: list[str]
    wrong_by: list[int]


class Tool(Section):
    """A tool and its arguments: the two ends of a range of integers, or a list of words."""

    tool: str
    args: dict[str, list[int] | list[str]]
    prompts: list[str]

    def rules(self) -> Iterator[Problem]:
        """A range has two ends; a list offers a choice, or a wrong value could not differ from the right one."""
        for name, domain in self.args.items():
            if len(set(domain)) < 2 or (
                isinstance(domain[0], int) and not (len(domain) == 2 and domain[0] < domain[1])
            ):
                yield "args", f"`{name}` needs two ends of a range, the lower one first, or at least two words"


class Format(Section):
    """Tool calls in strict JSON."""

    prompts: list[str]
    chatty: list[str]
    tools: list[Tool]


class Item(Section):
    """One subject of a templated category; lists that it leaves empty are the category's."""

    say: str
    accept: list[str] = Field(default_factory=list)
    frames: list[str] = Field(default_factory=list)
    answers: list[str] = Field(default_factory=list)
    defects: dict[str, list[str]] = Field(default_factory=dict)


class Templated(Section):
    """A category whose prompts and answers are templates over subjects."""

    frames: list[str]
    answers: list[str]
    defects: dict[str, list[str]]
    items: list[Item]


class Recipe(Section):
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
    sentence_weights: dict[str, list[float]] = Field(default_factory=dict)
    markers: Markers
    slots: dict[str, list[str]]
    arithmetic: Arithmetic
    format: Format
    harmful: Templated
    benign: Templated
    unanswerable: Templated
    self: Templated

    def rules(self) -> Iterator[Problem]:
        """Shares sum to one, and what refers to a category or a family names one that exists."""
        if abs(sum(self.categories.values()) - 1) > 1e-9:
            yield "categories", f"the shares sum to {sum(self.categories.values()):g}, not to 1"
        for table in ("defects", "compliant_when"):
            if set(getattr(self, table)) != set(self.categories):
                yield table, f"must name exactly the categories {', '.join(self.categories)}"
        for family, rule in self.pollution.confined.items():
            if family not in self.families.penalised or rule.category not in self.categories:
                yield "pollution.confined", f"`{family}` must be a penalised family, in a category that exists"
        for family, weights in self.sentence_weights.items():
            sentences = (self.families.penalised | self.families.gold).get(family)
            if sentences is None or len(sentences) != len(weights):
                yield "sentence_weights", f"give one weight for each sentence of `{family}`"

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

    Raises: ConfigError naming file, line and key of what does not fit.
    """
    path = find_recipe(name).resolve()
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, modified_ns: int) -> Recipe:
    return load(Recipe, path).config
