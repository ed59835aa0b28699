"""The strict loader: YAML and overrides become frozen models, and every mistake names its file, line and nearest key.

Nothing here knows which knobs exist: the models say that. All problems of a configuration are reported together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel
from yaml.nodes import Node

from rewards.config_reader import Reader
from rewards.config_types import in_words, item_types, limits_of, paths, section_of
from rewards.errors import ConfigError
from rewards.reward_sections import (
    DemonstrationGainSection,
    GainSection,
    PairGainSection,
    RewardFunction,
    RewardSection,
)
from rewards.schedule_rules import DifferentialRule, SetPointRule, TriggerRule
from rewards.section import Problem, Section
from rewards.yaml_nodes import COMMAND_LINE, Dumper, compose, read_yaml, where

__all__ = [
    "DemonstrationGainSection",
    "DifferentialRule",
    "GainSection",
    "Knob",
    "Loaded",
    "PairGainSection",
    "Problem",
    "RewardFunction",
    "RewardSection",
    "Section",
    "SetPointRule",
    "TriggerRule",
    "describe",
    "digest_of",
    "dump",
    "load",
    "load_node",
    "paths",
    "read_yaml",
    "split_overrides",
]

M = TypeVar("M", bound=BaseModel)
_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.\-]*=")


@dataclass(frozen=True)
class Loaded(Generic[M]):
    """A configuration after all defaults and overrides.

    resolved: every knob as plain JSON values; digest: SHA-256 of its canonical JSON, all knobs included, output paths
    too; path: the file it came from; warnings: what is allowed but probably not meant.
    """

    config: M
    resolved: dict[str, Any]
    digest: str
    path: Path | None = None
    warnings: tuple[str, ...] = ()


def load(
    model: type[M],
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    retired: Mapping[str, str] | None = None,
    known_elsewhere: Mapping[str, str] | None = None,
) -> Loaded[M]:
    """The configuration in a file, or all defaults, with `key=value` overrides on top.

    `retired` maps old leaf names to what replaces them, `known_elsewhere` leaf names and paths that people may expect
    here to why there is no such key.
    Raises: ConfigError with one line per problem.
    """
    node = compose("", COMMAND_LINE) if path is None else read_yaml(path)
    return load_node(model, node, overrides, retired=retired, known_elsewhere=known_elsewhere)


def load_node(
    model: type[M],
    node: Node,
    overrides: Sequence[str] = (),
    *,
    retired: Mapping[str, str] | None = None,
    known_elsewhere: Mapping[str, str] | None = None,
) -> Loaded[M]:
    """The same from a mapping inside a file that was read with `read_yaml`."""
    reader = Reader(model, retired or {}, known_elsewhere or {})
    try:
        reader.take_file(node)
        for override in overrides:
            reader.take_override(override)
        config = reader.build()
    except RecursionError:
        raise ConfigError(f"{where(node)}: an alias contains itself") from None
    resolved = json.loads(json.dumps(config.model_dump(), allow_nan=False))
    name = str(node.start_mark.name)
    path = None if name == COMMAND_LINE else Path(name)
    return Loaded(config, resolved, digest_of(resolved), path, tuple(reader.cautions(config)))


def digest_of(resolved: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(resolved, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dump(loaded: Loaded[Any]) -> str:
    """The resolved configuration as YAML; loading it again gives the same digest, which is its first line."""
    body = yaml.dump(loaded.resolved, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return f"# digest: {loaded.digest}\n{body}"


class Knob(NamedTuple):
    """A key: dotted path (`a.b[].c` inside a list), type in words, default (`...`: required), description."""

    path: str
    type: str
    default: Any
    description: str


def describe(model: type[BaseModel]) -> list[Knob]:
    """Every knob, in their order, with the keys of list entries after the list."""
    return list(_knobs(model, None, ""))


def _knobs(model: type[BaseModel], defaults: BaseModel | None, prefix: str) -> Iterator[Knob]:
    for name, info in model.model_fields.items():
        path, section = prefix + name, section_of(info.annotation)
        default = ... if info.is_required() else info.get_default(call_default_factory=True)
        if defaults is not None:
            default = getattr(defaults, name)
        if section is not None:
            yield from _knobs(section, default if isinstance(default, BaseModel) else None, f"{path}.")
            continue
        yield Knob(path, in_words(info.annotation, limits_of(info)), default, info.description or "")
        items = item_types(info.annotation, list)
        entry = section_of(items[0]) if items else None
        if entry is not None:
            yield from _knobs(entry, None, f"{path}[].")


def split_overrides(argv: Sequence[str]) -> list[str]:
    """Command-line words as `key=value`: `a.b=1`, `--beta=0.2`, `--beta 0.2`, `--use-cpu` (true), `--k 1 2` (a list).

    Raises: ConfigError for a word that is neither.
    """
    return list(_assignments(list(argv)))


def _assignments(words: list[str]) -> Iterator[str]:
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if not _ASSIGNMENT.match(word):
                raise ConfigError(f"{COMMAND_LINE}: `{word}` is no key=value")
            yield word
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if equals:
            yield f"{key}={value}"
            continue
        values = []
        while words and not words[0].startswith("--") and not _ASSIGNMENT.match(words[0]):
            values.append(words.pop(0))
        if len(values) > 1:
            yield f"{key}=[{', '.join(values)}]"
        else:
            yield f"{key}={values[0] if values else 'true'}"
