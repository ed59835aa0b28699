"""Reward functions on their way to a trainer: what they are called, which can be wrapped, and the wrapper itself."""

import functools
import inspect
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.calls import is_async
from rewards.errors import ConfigError
from rewards.scorers import scorer_id

Function = Callable[..., Any]


@dataclass(frozen=True)
class Part:
    """One function of the set. name: what the trainer calls it. kwargs: what a partial binds.

    phrases: the sentences that it looks for, where it names them.
    """

    name: str
    function: Function
    kwargs: dict[str, Any]
    scorer_id: str
    phrases: list[str] | None


class Desk(Protocol):
    """What a wrapper reports to."""

    def begin(self, index: int, arguments: dict[str, Any]) -> Any:
        """A function is about to be called; gives the call's handle."""

    def failed(self, call: Any, error: BaseException) -> None:
        """It raised."""

    def returned(self, call: Any, values: Any) -> Any:
        """It returned; gives what the trainer gets."""


def parts_of(functions: Any) -> list[Part]:
    """The functions of a set, checked.

    Raises: ConfigError for what is no function (a model or its name), or two functions of one name.
    """
    given = list(functions) if isinstance(functions, list | tuple) else [functions]
    if not given:
        raise ConfigError("no reward function to record; pass the functions that the trainer would get")
    parts = [_part(function) for function in given]
    repeated = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
    if repeated:
        raise ConfigError(
            f"two reward functions are called `{repeated[0]}`, in the ledger as in the trainer's metrics; give one "
            "another __name__"
        )
    return parts


def _part(function: Any) -> Part:
    if isinstance(function, str):
        raise ConfigError(
            f"`{function}` is the name of a reward model, not a function: the trainer would score with it unseen; load "
            "it yourself and pass a function that calls it"
        )
    if hasattr(function, "forward") and hasattr(function, "state_dict"):
        raise ConfigError(
            f"{type(function).__name__} is a reward model, not a function: the trainer calls it on token ids; pass "
            "`def score(prompts, completions, **columns)` that tokenizes and calls it"
        )
    if not callable(function) or isinstance(function, type):
        what = function.__name__ if isinstance(function, type) else type(function).__name__
        raise ConfigError(f"{what} cannot be called as a reward function; pass `fn(prompts, completions, **columns)`")
    if hasattr(function, "recorded_as"):
        raise ConfigError(f"reward function `{function.recorded_as}` is already recorded; pass the function itself")
    inner, bound = _unwrapped(function)
    # Objects that a partial binds are told by their type: their text would differ from process to process.
    plain = json.loads(json.dumps(bound, default=lambda value: f"{type(value).__module__}.{type(value).__qualname__}"))
    offered = getattr(inner, "phrases", None)
    phrases = list(offered(**bound)) if callable(offered) else None
    name = str(getattr(inner, "__name__", type(inner).__name__))
    return Part(name, function, plain, scorer_id(inner, plain, phrases), phrases)


def _unwrapped(function: Function) -> tuple[Function, dict[str, Any]]:
    bound: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        bound = {**{f"argument {i}": value for i, value in enumerate(function.args)}, **function.keywords, **bound}
        function = function.func
    return function, bound


def wrapped(part: Part, index: int, desk: Desk) -> Function:
    """The function as the trainer gets it: the same name, asynchronous where it was, and reporting to the desk."""
    function = part.function
    inner, _ = _unwrapped(function)

    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        call = desk.begin(index, _arguments(function, args, kwargs))
        try:
            values = await function(*args, **kwargs)
        except BaseException as error:
            desk.failed(call, error)
            raise
        return desk.returned(call, values)

    def synchronous(*args: Any, **kwargs: Any) -> Any:
        call = desk.begin(index, _arguments(function, args, kwargs))
        try:
            values = function(*args, **kwargs)
        except BaseException as error:
            desk.failed(call, error)
            raise
        return desk.returned(call, values)

    outer = functools.wraps(function)(asynchronous if is_async(inner) else synchronous)
    outer.__name__ = part.name
    outer.recorded_as = part.name  # type: ignore[attr-defined]
    return outer


def _arguments(function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return kwargs
    return dict(inspect.signature(function).bind_partial(*args).arguments) | kwargs
