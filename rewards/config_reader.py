"""From marked YAML nodes to a frozen model, keeping for every key where it was written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rewards.config_types import (
    allows_null,
    candidates,
    is_text,
    is_word,
    item_types,
    members,
    mismatch,
    nearest,
    paths,
    scalars,
    section_of,
)
from rewards.errors import ConfigError
from rewards.section import RULES_LATER, sections
from rewards.yaml_nodes import COMMAND_LINE, compose, entries, is_null, plain, show, where

Path = tuple[str | int, ...]
Tree = dict[str, Any]  # of trees (sections) and nodes (values)
MOST_PROBLEMS = 10


class Reader:
    """Takes a file and overrides, then builds the model."""

    def __init__(self, model: type[BaseModel], retired: Mapping[str, str], known_elsewhere: Mapping[str, str]) -> None:
        self.model = model
        self.known = paths(model)
        self.retired = retired
        self.known_elsewhere = known_elsewhere
        self.tree: Tree = {}
        self.places: dict[Path, Node] = {}
        self.problems: list[str] = []

    def take_file(self, node: Node) -> None:
        """Reads a mapping whose keys are sections, dotted paths, or leaves that are unique over the sections."""
        self.places[()] = node
        for key, (key_node, value) in entries(node).items():
            path = self._meant(key, key_node)
            if path is not None:
                self._assign(path, key_node, value, replace=False)

    def take_override(self, override: str) -> None:
        """Reads one `key=value`; it replaces what the file has at that path."""
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{COMMAND_LINE}: `{override}` is no key=value")
        key_node = ScalarNode("tag:yaml.org,2002:str", key, compose("", COMMAND_LINE).start_mark)
        path = self._meant(key.strip(), key_node)
        if path is None:
            return
        dotted = ".".join(path)
        info = self.known[dotted]
        if len(path) == 1 and section_of(info.annotation) is not None:
            self._say(key_node, f"`{dotted}` is a section: give its keys one by one, as `{dotted}.KEY=VALUE`")
            return
        self._assign(path, key_node, self._override_value(text, info.annotation), replace=True)

    def build(self) -> Any:
        """The model. Raises: ConfigError with all problems, one a line."""
        data = self._section(self.tree, self.model, ())
        misspelt = bool(self.problems)
        config = None
        try:
            # JSON mode is strict about types and still takes lists for tuples and mappings for sections.
            config = self.model.model_validate_json(json.dumps(data), strict=True, context=RULES_LATER)
        except ValidationError as error:
            self._explain(error.errors(include_url=False))
        # With unknown keys about, what a rule misses may be what was misspelt.
        if config is not None and not misspelt:
            for path, section in sections(config):
                self.problems += [self._at((*path, *_key(key)), message) for key, message in section.rules()]
        if self.problems:
            shown = self.problems[:MOST_PROBLEMS]
            more = len(self.problems) - len(shown)
            raise ConfigError("\n".join([*shown, *([f"... and {more} more"] if more else [])]))
        return config

    def cautions(self, config: BaseModel) -> Iterator[str]:
        """What the sections call allowed but probably not meant, with file and line."""
        for path, section in sections(config):
            for key, message in section.cautions():
                yield self._at((*path, *_key(key)), message)

    def _say(self, node: Node, message: str) -> None:
        self.problems.append(f"{where(node)}: {message}")

    def _meant(self, key: str, node: Node) -> tuple[str, ...] | None:
        """The path that a key means; None after saying why there is none."""
        found = candidates(key, self.known)
        if len(found) == 1:
            return tuple(found[0].split("."))
        if found:
            self._say(node, f"`{key}` is ambiguous: {_listed(found)}; write the path")
        else:
            self._unknown(key, node)
        return None

    def _unknown(self, key: str, node: Node) -> None:
        leaf = key.rpartition(".")[2]
        if leaf in self.retired:
            new, _, more = self.retired[leaf].partition(" ")
            found = candidates(new, self.known)
            use = f"`{found[0]}`" if len(found) == 1 else new
            self._say(node, f"`{key}` is retired; use {use}{' ' if more else ''}{more}")
            return
        whole = next((path for path in self.known if key.startswith(f"{path}.") and not self._has_keys(path)), None)
        if whole is not None:
            self._say(node, f"unknown key `{key}`; `{whole}` is given whole")
            return
        near = nearest(key, self.known)
        same_leaf = any(path.rpartition(".")[2] == leaf for path in near)
        elsewhere = self.known_elsewhere.get(key) or (None if same_leaf else self.known_elsewhere.get(leaf))
        if elsewhere is not None:
            self._say(node, elsewhere + (f"; did you mean {_listed(near)}?" if same_leaf else ""))
        elif near:
            self._say(node, f"unknown key `{key}`; did you mean {_listed(near)}?")
        else:
            siblings = [path for path in self.known if path.rpartition(".")[0] == key.rpartition(".")[0]]
            top = [path for path in self.known if "." not in path]
            self._say(node, f"unknown key `{key}`; keys here: {_listed(siblings or top)}")

    def _has_keys(self, path: str) -> bool:
        return any(other.startswith(f"{path}.") for other in self.known)

    def _assign(self, path: tuple[str, ...], key: Node, value: Node, *, replace: bool) -> None:
        """Puts a value into the tree; a mapping for a section becomes a tree of its own."""
        dotted = ".".join(path)
        annotation = self.known[dotted].annotation
        tree = self._below(path[:-1], key)
        if replace:  # nothing of what the file has here is left, and neither is its place
            tree.pop(path[-1], None)
            self.places = {known: place for known, place in self.places.items() if known[: len(path)] != path}
        before = tree.get(path[-1])
        if section_of(annotation) is None or (is_null(value) and allows_null(annotation)):
            if before is not None:
                self._say(key, f"`{dotted}` is given twice (first at {where(self.places[path])})")
                return
            tree[path[-1]] = value
            self.places[path] = key
        elif isinstance(value, MappingNode) or is_null(value):
            self.places.setdefault(path, key)
            if not isinstance(before, dict):
                tree[path[-1]] = {}
            for name, (name_node, below) in {} if is_null(value) else entries(value).items():
                if f"{dotted}.{name}" in self.known:
                    self._assign((*path, name), name_node, below, replace=replace)
                else:
                    self._unknown(f"{dotted}.{name}", name_node)
        else:
            self._say(key, f"{dotted}: expected a mapping, got {show(value)}")

    def _below(self, path: tuple[str, ...], key: Node) -> Tree:
        tree = self.tree
        for n, part in enumerate(path, start=1):
            self.places.setdefault(path[:n], key)
            if not isinstance(tree.get(part), dict):
                tree[part] = {}
            tree = tree[part]
        return tree

    def _override_value(self, text: str, annotation: Any) -> Node:
        """A value from the command line: YAML, or the text as it stands where only text can be meant."""
        mark = compose("", COMMAND_LINE).start_mark
        if text.strip() in ("", "~", "null") and not is_word(annotation, text):
            return ScalarNode("tag:yaml.org,2002:null", text, mark)
        if is_text(annotation) and not text.startswith(("'", '"', "[", "{")):
            return ScalarNode("tag:yaml.org,2002:str", text, mark)
        return compose(text, COMMAND_LINE)

    def _section(self, tree: Tree, model: type[BaseModel], path: Path) -> dict[str, Any]:
        data = {}
        for name, below in tree.items():
            annotation = model.model_fields[name].annotation
            section = section_of(annotation)
            if isinstance(below, dict):
                assert section is not None
                data[name] = self._section(below, section, (*path, name))
            else:
                data[name] = self._value(below, annotation, (*path, name))
        return data

    def _value(self, node: Node, annotation: Any, path: Path) -> Any:
        self.places.setdefault(path, node)
        if isinstance(node, SequenceNode):
            return self._list(node, annotation, path)
        if isinstance(node, MappingNode):
            return self._mapping(node, annotation, path)
        if is_null(node) and not is_word(annotation, node.value):
            return None
        value = node.value if is_text(annotation) else plain(node)
        if isinstance(value, float) and not math.isfinite(value) and Any in members(annotation):
            self._say(node, f"{_dotted(path)}: expected a finite number, got {node.value}")
        items = item_types(annotation, list)
        # One value where a list is expected is a list of one.
        return [self._value(node, items[0], (*path, 0))] if items and not scalars(annotation) else value

    def _list(self, node: SequenceNode, annotation: Any, path: Path) -> list[Any]:
        one = item_types(annotation, list)
        several = item_types(annotation, tuple)
        wanted = [one[0]] * len(node.value) if one else list(several or ())
        wanted += [Any] * (len(node.value) - len(wanted))
        return [self._value(item, wanted[i], (*path, i)) for i, item in enumerate(node.value)]

    def _mapping(self, node: MappingNode, annotation: Any, path: Path) -> dict[str, Any]:
        section = section_of(annotation)
        if section is None:
            kinds = item_types(annotation, dict)
            kind = kinds[1] if kinds else Any
            return {key: self._value(value, kind, (*path, key)) for key, (_, value) in entries(node).items()}
        data = {}
        for key, (key_node, value) in entries(node).items():
            info = section.model_fields.get(key)
            if info is None:
                near = nearest(key, section.model_fields)
                hint = f"did you mean {_listed(near)}?" if near else f"keys here: {_listed(section.model_fields)}"
                self._say(key_node, f"unknown key `{_dotted((*path, key))}`; {hint}")
                continue
            self.places[(*path, key)] = key_node
            data[key] = self._value(value, info.annotation, (*path, key))
        return data

    def _at(self, path: Path, message: str) -> str:
        """A line about a path, with the place of the longest part of it that was written somewhere."""
        for n in range(len(path), 0, -1):
            if path[:n] in self.places:
                return f"{where(self.places[path[:n]])}: {_dotted(path)}: {message}"
        return f"{self.places[()].start_mark.name}: {_dotted(path)}: {message}"

    def _explain(self, errors: list[ErrorDetails]) -> None:
        said: dict[Path, str] = {}
        for error in errors:
            path = self._path_of(error)
            if error["type"] == "missing":
                said[path] = "is required"
            else:
                said.setdefault(path, mismatch(self.model, path, error))
        for path, message in said.items():
            # A union complains about each of its members; the one that got furthest is the one that was meant.
            if not any(other[: len(path)] == path and other != path for other in said):
                self.problems.append(self._at(path, message))

    def _path_of(self, error: ErrorDetails) -> Path:
        """A pydantic location without the names of union members."""
        path: Path = ()
        for part in error["loc"]:
            if (*path, part) in self.places:
                path = (*path, part)
        return (*path, error["loc"][-1]) if error["type"] == "missing" else path


def _key(key: str) -> Path:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _listed(names: Any) -> str:
    names = [f"`{name}`" for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text
