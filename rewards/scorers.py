"""One configured reward function: resolved, bound to its kwargs, checked, and identified."""

import difflib
import functools
import hashlib
import inspect
import json
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rewards.errors import ConfigError
from rewards.functions import Function, resolve
from rewards.reward_sections import component_name

if TYPE_CHECKING:
    from rewards.config import RewardFunction

Role = Literal["optimised", "observed", "gold"]


@dataclass(frozen=True)
class Scorer:
    """One configured reward function. `fn` is what the configuration says, `call` what is called."""

    name: str
    fn: str
    call: Function
    kwargs: Mapping[str, Any]
    weight: float
    role: Role
    scale: tuple[float, float] | None
    clip: tuple[float, float] | None
    scorer_id: str
    phrases: list[str] | None


def scorer_id(function: Function, kwargs: Mapping[str, Any], phrases: Sequence[str] | None = None) -> str:
    """Short SHA-256 of what a scorer is: its source, kwargs and phrases; the same in every process.

    A function may carry an attribute `scorer_id` (a model: the hash of its weights), which then stands for the source.
    Limits: what the source calls is not part of it.
    """
    inner = function.func if isinstance(function, functools.partial) else function
    source = getattr(inner, "scorer_id", None)
    if source is None:
        coded = inner if inspect.isroutine(inner) else type(inner)
        try:
            source = inspect.getsource(coded)
        except (OSError, TypeError, SyntaxError, tokenize.TokenError):  # built-in, typed in, or its file changed since
            source = f"{getattr(coded, '__module__', '')}:{getattr(coded, '__qualname__', '')}"
    content = json.dumps([source, kwargs, phrases], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def scorer(
    entry: "str | RewardFunction", weight: float | None, special: Mapping[str, Callable[[str], Function]] | None = None
) -> Scorer:
    """The scorer that an entry of `reward_funcs` describes; `weight` is its entry of `reward_weights`, if there is one.

    Raises: ConfigError naming a function that cannot be found, or a kwarg that it does not have.
    """
    fn = entry if isinstance(entry, str) else entry.fn
    function = resolve(fn, special)
    name = component_name(entry) or str(getattr(function, "__name__", type(function).__name__))
    own_weight, scale, clip = 1.0, None, None
    role: Role = "optimised"
    kwargs: dict[str, Any] = {}
    if not isinstance(entry, str):
        own_weight, role, scale, clip, kwargs = entry.weight, entry.role, entry.scale, entry.clip, dict(entry.kwargs)
    _check_kwargs(name, function, kwargs)
    offered = getattr(function, "phrases", None)
    phrases = None if offered is None else list(offered(**kwargs))
    return Scorer(
        name=name,
        fn=fn,
        call=_bind(function, kwargs),
        kwargs=kwargs,
        weight=own_weight if weight is None else weight,
        role=role,
        scale=scale,
        clip=clip,
        scorer_id=scorer_id(function, kwargs, phrases),
        phrases=phrases,
    )


def _bind(function: Function, kwargs: Mapping[str, Any]) -> Function:
    if not kwargs:
        return function
    bound = functools.partial(function, **kwargs)
    bound.__name__ = getattr(function, "__name__", type(function).__name__)  # type: ignore[attr-defined]
    return bound


def _check_kwargs(name: str, function: Function, kwargs: Mapping[str, Any]) -> None:
    """A misspelled kwarg would vanish in the function's `**columns`: only named parameters are accepted."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in without a signature
        return
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    offered = [parameter for parameter in named if parameter not in ("prompts", "completions")]
    for key in kwargs:
        if key not in offered:
            near = difflib.get_close_matches(key, offered, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it takes {', '.join(offered) or 'none'}"
            raise ConfigError(f"reward function `{name}` has no parameter `{key}`; {hint}")
