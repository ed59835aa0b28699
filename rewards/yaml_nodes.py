"""YAML as marked nodes: every key keeps its file and line, and scalars follow YAML 1.2.

PyYAML reads YAML 1.1, where `1e-6` is a string and `no` is false; the loader here reads the former as a number and the
latter as text, and refuses duplicate keys.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rewards.errors import ConfigError

COMMAND_LINE = "command line"

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalar rules above."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute, emptied for this class


class Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else, so that everybody reads the same."""


def _represent_text(dumper: Dumper, text: str) -> ScalarNode:
    # Unless it is double-quoted, PyYAML writes these line ends as they are and reads them back as others.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


Dumper.add_representer(str, _represent_text)
for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> Node:
    """The root node of a file; an empty file is an empty mapping.

    Raises: ConfigError in one line for a missing or unreadable file and for text that is no YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return compose(text, str(path))


def compose(text: str, name: str) -> Node:
    """The root node of a text whose marks say `name`.

    Raises: ConfigError with the line of the first mistake.
    """
    try:
        loader = _Loader(text)
        loader.name = name
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None or name == COMMAND_LINE else f":{mark.line + 1}"
        raise ConfigError(f"{name}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    if node is None:
        mark = yaml.Mark(name, 0, 0, 0, None, 0)
        return MappingNode(_TAG + "map", [], mark, mark)
    return node


def where(node: Node) -> str:
    """`FILE:LINE` of a node, or `command line`."""
    name = str(node.start_mark.name)
    return name if name == COMMAND_LINE else f"{name}:{node.start_mark.line + 1}"


def entries(node: Node) -> dict[str, tuple[Node, Node]]:
    """{key: (key node, value node)} of a mapping; merge keys (`<<`) are taken in below the mapping's own keys.

    Raises: ConfigError for something else than a mapping, a key that is no text, or a key given twice.
    """
    if not isinstance(node, MappingNode):
        raise ConfigError(f"{where(node)}: expected `key: value` lines, got {show(node)}")
    own: dict[str, tuple[Node, Node]] = {}
    merged: dict[str, tuple[Node, Node]] = {}
    for key, value in node.value:
        if key.tag == _TAG + "merge":
            for part in value.value if isinstance(value, SequenceNode) else [value]:
                merged = {**entries(part), **merged}
        elif not isinstance(key, ScalarNode):
            raise ConfigError(f"{where(key)}: a key must be text, got {show(key)}")
        elif key.value in own:
            raise ConfigError(f"{where(key)}: `{key.value}` is given twice (first at {where(own[key.value][0])})")
        else:
            own[key.value] = (key, value)
    return {**merged, **own}


def plain(node: Node) -> Any:
    """The node's value as None, bool, int, float, str, list and dict.

    Raises: ConfigError for tags other than YAML's own, and for duplicate keys.
    """
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.value]
    if isinstance(node, MappingNode):
        return {key: plain(value) for key, (_, value) in entries(node).items()}
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind in ("str", "merge"):
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        try:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        except ValueError:  # Python stops at some thousand digits
            raise ConfigError(f"{where(node)}: a number of {len(text):,} digits cannot be read") from None
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".nan", "nan"))
    raise ConfigError(f"{where(node)}: the tag `{node.tag}` is not supported")


def is_null(node: Node) -> bool:
    """True for `null`, `~` and nothing at all."""
    return isinstance(node, ScalarNode) and node.tag == _TAG + "null"


def show(node: Node) -> str:
    """A value as an error quotes it: short, text in quotes."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
    if is_null(node):
        return "null"
    return repr(text) if node.tag == _TAG + "str" else text
