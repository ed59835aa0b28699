"""Reward functions and classifiers by name: a registry, and the forms in which a configuration may name a function.

One file each. A file registers what it offers with `@register("name")`; the files are imported at the first look-up,
so that importing the package stays cheap.
"""

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from rewards.errors import ConfigError

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

_registry: dict[str, Function] = {}


def register(name: str, *, phrases: Callable[..., list[str]] | None = None) -> Callable[[F], F]:
    """Decorator that offers a function under a name.

    `phrases` is called with the function's configured kwargs and gives the literal sentences that it looks for; it
    becomes the attribute `phrases` of the function, which reports read to set those sentences apart.
    Raises: ConfigError when another function already has the name.
    """

    def offer(fn: F) -> F:
        holder = _registry.get(name)
        if holder is not None and _origin(holder) != _origin(fn):
            raise ConfigError(
                f"reward function `{name}` is offered twice: by {_origin(holder)} and {_origin(fn)}; rename one"
            )
        if phrases is not None:
            fn.phrases = phrases  # type: ignore[attr-defined]
        _registry[name] = fn
        return fn

    return offer


def names() -> list[str]:
    """All registered names, sorted."""
    _import_all()
    return sorted(_registry)


def resolve(fn: str, special: Mapping[str, Callable[[str], Function]] | None = None) -> Function:
    """The function that a configuration means.

    Accepted: a registered name; `package.module:function`; `package.module.function` as TRL writes it;
    `path/file.py:function`; and `PREFIX:REST` for every prefix in `special`, whose value is called with REST
    (how a trainer adds `model:FOLDER`).
    Raises: ConfigError naming what was asked for and the nearest names.
    """
    head, colon, tail = fn.partition(":")
    if colon and special and head in special:
        return special[head](tail)
    if colon:
        place, _, attribute = fn.rpartition(":")  # a path may have a colon of its own
        if place.endswith(".py"):
            return _attribute(_load_file(Path(place)), attribute, fn)
        if head == "model":
            raise ConfigError(f"`{fn}`: a reward model is scored by a trainer; use it in a stage of `rlhf`")
        return _attribute(_load_module(place, fn), attribute, fn)
    _import_all()
    if fn in _registry:
        return _registry[fn]
    if "." in fn:
        place, _, attribute = fn.rpartition(".")
        return _attribute(_load_module(place, fn), attribute, fn)
    near = difflib.get_close_matches(fn, _registry, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(sorted(_registry))}"
    raise ConfigError(
        f"unknown reward function `{fn}`{hint} (your own: package.module:function or path/file.py:function)"
    )


def _origin(fn: Function) -> str:
    return f"{getattr(fn, '__module__', '?')}:{getattr(fn, '__qualname__', repr(fn))}"


def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def _load_module(place: str, fn: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # A module that exists but lacks a dependency of its own must not read as "no such module".
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise ConfigError(f"reward function `{fn}`: there is no module `{place}` on the Python path") from None
        raise ConfigError(f"reward function `{fn}`: importing `{place}` failed: {error}") from error
    except Exception as error:
        raise ConfigError(f"reward function `{fn}`: importing `{place}` failed: {_one_line(error)}") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"reward function file `{path}` does not exist (looked from {Path.cwd()})")
    full = path.resolve()
    # One module object per file, so that a file named twice keeps one state and one identity.
    name = f"_reward_file_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise ConfigError(f"reward function file `{path}` cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"reward function file `{path}` failed to load: {_one_line(error)}") from error
    return module


def _attribute(module: ModuleType, attribute: str, fn: str) -> Function:
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        offered = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(attribute, offered, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ConfigError(f"reward function `{fn}`: `{module.__name__}` has no function `{attribute}`{hint}")
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
