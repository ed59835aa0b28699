"""From named, weighted reward functions to the baseline reward; and from a classification to compliance."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rewards.calls import Caller, Outcome
from rewards.errors import ConfigError, RunStopped
from rewards.functions import Function
from rewards.scorers import Role, Scorer, scorer

if TYPE_CHECKING:
    from rewards.config import RewardSection

Status = Literal["ok", "na", "timeout", "error"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Component:
    """One reward function's verdict on one session.

    Units: raw as the function returned it; value on the declared scale (raw where none is declared), after clipping;
    latency_ms of the whole call that scored the session. raw and value are None where there is no number.
    """

    name: str
    raw: float | None
    value: float | None
    weight: float
    role: Role
    status: Status
    scorer_id: str
    latency_ms: float | None
    cost: float | None = None


class RewardFault(RunStopped):
    """A reward function or classifier failed, so the run stops.

    `components` holds what was scored until then, one list a row, with statuses: to be recorded before stopping.
    """

    def __init__(self, message: str, components: list[list[Component]] | None = None) -> None:
        super().__init__(message)
        self.components = components or []


class Composer:
    """Scores sessions with every configured reward function."""

    def __init__(self, parts: Sequence[Scorer], on_error: Literal["stop", "null"] = "stop") -> None:
        """Raises: ConfigError without functions, without an optimised one, or when two have one name."""
        if not any(part.role == "optimised" for part in parts):
            raise ConfigError("reward.reward_funcs names no function with role `optimised`: there would be no reward")
        repeated = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
        if repeated:
            raise ConfigError(f"reward.reward_funcs: two functions are called `{repeated[0]}`; give one a `name`")
        self.scorers = tuple(parts)
        self.on_error = on_error
        self.clipped: Counter[str] = Counter()
        self._caller = Caller()

    @classmethod
    def from_config(
        cls, section: "RewardSection", special: Mapping[str, Callable[[str], Function]] | None = None
    ) -> "Composer":
        """The composer that a reward section describes; `special` as in `rewards.functions.resolve`.

        Raises: ConfigError naming the entry.
        """
        weights: Sequence[float | None] = section.reward_weights or [None] * len(section.reward_funcs)
        pairs = zip(section.reward_funcs, weights, strict=True)
        return cls([scorer(entry, weight, special) for entry, weight in pairs], section.on_error)

    def score(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[list[Component]]:
        """All components of every row; each function is called once, `fn(prompts=, completions=, **columns)`.

        Shapes: prompts, completions and every column have one entry a row; the result too. `clipped` counts, per
        function and since the start, the values that an explicit clip changed.
        Raises: RewardFault for NaN, an infinity, a value off the declared scale; and, with `on_error: stop`, for a
        function that raises or does not return one number or None a row. With `on_error: null` the rows of such a
        call get the status `error`, or `timeout` for a TimeoutError.
        """
        rows = _check_shapes(prompts, completions, columns)
        self._check_columns(columns)
        arguments = {"prompts": prompts, "completions": completions, **columns}
        outcomes = self._caller.run(
            [part.call for part in self.scorers], arguments, stop_at_error=self.on_error == "stop"
        )
        scored: list[list[Component]] = []
        fault: str | None = None
        for part, outcome in zip(self.scorers, outcomes, strict=True):
            if outcome is None:  # not called: an earlier one failed
                continue
            components, problem = self._read(part, outcome, rows)
            scored.append(components)
            fault = fault or problem
        by_row = [list(row) for row in zip(*scored, strict=True)]
        if fault is not None:
            raise RewardFault(fault, by_row)
        return by_row

    def registrations(self) -> list[dict[str, Any]]:
        """Payloads of the scorer_registered events, one a function."""
        return [
            {
                "name": part.name,
                "role": part.role,
                "weight": part.weight,
                "scale": None if part.scale is None else list(part.scale),
                "scorer_id": part.scorer_id,
                "fn": part.fn,
                "kwargs": dict(part.kwargs),
                "phrases": part.phrases,
            }
            for part in self.scorers
        ]

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        for part in self.scorers:
            both = sorted(set(part.kwargs) & set(columns))
            if both:  # the column would silently win over the configured value
                raise ConfigError(f"reward function `{part.name}`: kwarg `{both[0]}` is also a column of the data")

    def _read(self, part: Scorer, outcome: Outcome, rows: int) -> tuple[list[Component], str | None]:
        try:
            raws = _numbers(outcome, rows)
        except Exception as error:
            message = f"reward function `{part.name}` {_describe(error)}"
            kind: Status = "timeout" if isinstance(error, TimeoutError) else "error"
            failed = [_component(part, outcome, None, None, kind) for _ in range(rows)]
            if self.on_error == "stop":
                return failed, message
            _log.warning("%s: %d sessions recorded with status `%s`", message, rows, kind)
            return failed, None
        components, bad = [], []
        for row, raw in enumerate(raws):
            value, problem = None, None
            if raw is not None:
                value, problem = self._value(part, raw)
            if problem is not None:
                bad.append(f"reward function `{part.name}`, row {row} of {rows}: {problem}")
            status: Status = "na" if raw is None else "ok" if problem is None else "error"
            components.append(_component(part, outcome, raw, value, status))
        return components, bad[0] if bad else None

    def _value(self, part: Scorer, raw: float) -> tuple[float | None, str | None]:
        if not math.isfinite(raw):
            return None, f"returned {raw}; return None where the function does not apply"
        value = raw
        if part.clip is not None:
            value = min(max(raw, part.clip[0]), part.clip[1])
            self.clipped[part.name] += value != raw
        if part.scale is not None:
            low, high = part.scale
            if not low <= value <= high:
                return None, f"{raw:g} lies outside the declared scale {low:g}..{high:g}; widen it or set `clip`"
            value = (value - low) / (high - low)
        return value, None


def baseline(components: Sequence[Component]) -> float | None:
    """The baseline reward: sum of weight times value over the optimised components that apply; None if none does."""
    terms = [part.weight * part.value for part in applicable(components) if part.value is not None]
    return math.fsum(terms) if terms else None


def applicable(components: Sequence[Component]) -> list[Component]:
    """The optimised components that have a value."""
    return [part for part in components if part.role == "optimised" and part.status == "ok" and part.value is not None]


def classify(
    classifier: Function, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
) -> list[str | None]:
    """What every response did, by a classifier `fn(prompts, completions, **columns) -> list[str or None]`.

    Raises: RewardFault when it raises, or does not return one string or None a row.
    """
    rows = _check_shapes(prompts, completions, columns)
    name = getattr(classifier, "__name__", type(classifier).__name__)
    arguments = {"prompts": prompts, "completions": completions, **columns}
    (outcome,) = Caller().run([classifier], arguments, stop_at_error=True)
    assert outcome is not None
    if outcome.values is None:
        raise RewardFault(f"classifier `{name}` {_describe(outcome.error)}")
    if len(outcome.values) != rows:
        raise RewardFault(f"classifier `{name}` returned {len(outcome.values)} values for {rows} rows")
    for row, value in enumerate(outcome.values):
        if value is not None and not isinstance(value, str):
            raise RewardFault(f"classifier `{name}`, row {row} of {rows}: {value!r} is neither a string nor None")
    return outcome.values


def compliant(
    category: str | None, classification: str | None, compliant_when: Mapping[str, Sequence[str]]
) -> bool | None:
    """Whether the classification is right in the category; None where either is unknown or the category not listed."""
    if category is None or classification is None or category not in compliant_when:
        return None
    return classification in compliant_when[category]


def _check_shapes(prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> int:
    rows = len(completions)
    if rows == 0:
        raise ValueError("nothing to score: no completions")
    for name, column in {"prompts": prompts, **columns}.items():
        if len(column) != rows:
            raise ValueError(f"{name} has {len(column)} entries for {rows} completions")
    return rows


class _BadOutput(Exception):
    """A call that came back with something other than one number or None a row."""


def _numbers(outcome: Outcome, rows: int) -> list[float | None]:
    if outcome.error is not None:
        raise outcome.error
    values = outcome.values or []
    if len(values) != rows:
        raise _BadOutput(f"returned {len(values)} values for {rows} rows")
    return [_number(value, row, rows) for row, value in enumerate(values)]


def _number(value: Any, row: int, rows: int) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _BadOutput(f"returned {value!r} for row {row} of {rows}, neither a number nor None") from None


def _describe(error: Exception | None) -> str:
    if isinstance(error, _BadOutput):
        return str(error)
    return " ".join(f"raised {type(error).__name__}: {error}".split())


def _component(part: Scorer, outcome: Outcome, raw: float | None, value: float | None, status: Status) -> Component:
    finite = raw if raw is not None and math.isfinite(raw) else None
    return Component(part.name, finite, value, part.weight, part.role, status, part.scorer_id, outcome.latency_ms)
