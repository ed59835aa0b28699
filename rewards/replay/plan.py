"""What a replay does: the request made complete with what the record says, refused where the record cannot say it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.advantages import Scale
from rewards.analysis.scored import READ, TRAIN, Scored, read_scored, select
from rewards.differential import Schedule
from rewards.errors import ConfigError
from rewards.pivots import Pivot, describe
from rewards.replay.rescore import sums, weighted
from rewards.reward_sections import RewardFunction, RewardSection, component_name
from rewards.schedule_rules import SetPointRule, TriggerRule
from rewards.scorers import Scorer
from rewards.section import RULES_LATER

if TYPE_CHECKING:
    from rewards.ledger import Ledger
    from rewards.replay.schedule import ReplaySection, ScheduleFile


@dataclass(frozen=True)
class Record:
    """What the ledger holds of the run: its sessions, its events, and the samples behind its pivots."""

    run_id: str
    pipeline: str | None
    scored: Scored
    events: Sequence[Mapping[str, Any]] = ()
    pivot_samples: Scored | None = None

    def config(self) -> Mapping[str, Any]:
        """The configuration that the newest attempt started with; empty where none is on record."""
        payload = self._last("attempt_started")
        return (payload or {}).get("config") or {}

    def scale(self) -> Scale | None:
        """`scale_rewards` as configured; None where that is not on record."""
        value = (self.config().get("train") or {}).get("scale_rewards")
        return value if value in ("group", "batch", "none") else None

    def registered(self) -> dict[str, Mapping[str, Any]]:
        """Name -> what was registered of a reward function."""
        return {e["payload"]["name"]: e["payload"] for e in self.events if e["kind"] == "scorer_registered"}

    def pivot(self, key: tuple[str, str | None]) -> float | None:
        """A pivot as it was measured."""
        found = [e["payload"] for e in self.events if e["kind"] == "pivot_set"]
        mine = [p["value"] for p in found if (p["category"], p.get("component")) == key]
        return float(mine[-1]) if mine else None

    def _last(self, kind: str) -> Mapping[str, Any] | None:
        found = [event["payload"] for event in self.events if event["kind"] == kind]
        return found[-1] if found else None


def read_run(ledger: Ledger, run_id: str) -> Record:
    """One run as a replay needs it. Raises: LedgerError when the ledger cannot be read."""
    scored, pipeline = read_scored(ledger, run_id)
    query = f"SELECT {READ} FROM live WHERE run_id = ? AND split = 'eval' AND group_id = 'pivot' ORDER BY seq"
    samples = select(ledger, query, [run_id])
    return Record(run_id, pipeline, scored, ledger.events(run_id), Scored.of_table(samples))


def read_answers(ledger: Ledger, run_id: str) -> list[str | None]:
    """The response of every session. Raises: LedgerError when the ledger cannot be read."""
    query = f"SELECT session, response FROM live JOIN texts USING (run_id, attempt, writer, seq) WHERE {TRAIN}"
    found = select(ledger, query, [run_id])
    texts = dict(zip(found["session"].to_pylist(), found["response"].to_pylist(), strict=True))
    numbers = select(ledger, f"SELECT session FROM live WHERE {TRAIN} ORDER BY session", [run_id])
    return [texts.get(number) for number in numbers["session"].to_pylist()]


@dataclass(frozen=True)
class Plan:
    """A complete request.

    weights: by component, None for one that is taken out; components that are not named stay as recorded. schedule:
    None for the differentials that the sessions carry. scale: None for the recorded normalisation. notes: what is
    worth knowing of it.
    """

    weights: dict[str, float | None] = field(default_factory=dict)
    schedule: Schedule | None = None
    triggers: tuple[TriggerRule | SetPointRule, ...] = ()
    scale: Scale | None = None
    notes: tuple[str, ...] = ()


def make_plan(
    record: Record,
    file: ScheduleFile | None = None,
    name: Path | str = "schedule",
    weights: Mapping[str, float] | None = None,
    scale: Scale | None = None,
) -> Plan:
    """The plan of a file (called `name` in errors), with weights and a normalisation on top.

    Raises: ConfigError naming file and key.
    """
    known = record.scored.components
    wanted = {} if file is None else _weights(record, file.reward, name)
    for component, value in (weights or {}).items():
        if component not in known:
            raise ConfigError(f"--weights {component}: {_unknown(component, known)}")
        if not math.isfinite(value):
            raise ConfigError(f"--weights {component}: {value} is no finite number")
        wanted[component] = value
    if file is None:
        return Plan(wanted, scale=scale)
    section = _section(record, file.reward, wanted, name)
    scale = scale or file.train.scale_rewards
    notes = [
        f"{key}: {message.replace('is a configuration error', 'would be refused by a run')}"
        for key, message in section.cancelled(scale or record.scale() or "group")
    ]
    schedule = _with_pivots(record, Schedule.from_config(section, _scorers(section)), wanted, name)
    return Plan(wanted, schedule, tuple(section.changing()), scale, tuple(notes))


def _weights(record: Record, section: ReplaySection, name: Path | str) -> dict[str, float | None]:
    """Weights as the file gives them: what it does not list is no part of the reward, as in a configuration."""
    known = record.scored.components
    if not section.reward_funcs:
        if section.reward_weights is None:
            return {}
        if len(section.reward_weights) != len(known):
            raise ConfigError(
                f"{name}: reward.reward_weights: {len(section.reward_weights)} weights for {len(known)} recorded "
                f"components ({', '.join(known)}); name them with `reward_funcs`"
            )
        return {c: w for c, w in zip(known, section.reward_weights, strict=True) if _is_optimised(record, c)}
    weights: dict[str, float | None] = dict.fromkeys(known)
    for i, entry in enumerate(section.reward_funcs):
        component = _component(record, entry)
        if component not in known:
            raise ConfigError(f"{name}: reward.reward_funcs.{i}: {_unknown(component, known)}")
        if isinstance(entry, RewardFunction):
            _check_values(record, entry, component, f"{name}: reward.reward_funcs.{i}")
            if entry.role != "optimised":
                continue
        own = entry.weight if isinstance(entry, RewardFunction) else 1.0
        weights[component] = own if section.reward_weights is None else section.reward_weights[i]
    return weights


def _component(record: Record, entry: str | RewardFunction) -> str:
    """The recorded name of an entry; that of a model without one is known from what was registered for its `fn`."""
    fn = entry if isinstance(entry, str) else entry.fn
    if fn in record.scored.components and (isinstance(entry, str) or entry.name is None):
        return fn
    own = component_name(entry)
    same = [name for name, payload in record.registered().items() if payload.get("fn") == fn]
    return own if own is not None else same[0] if same else fn


def _check_values(record: Record, entry: RewardFunction, component: str, place: str) -> None:
    """Raises ConfigError where an entry asks for values other than the recorded ones."""
    there = record.registered().get(component)
    asked = {"scale": None if entry.scale is None else list(entry.scale), "kwargs": dict(entry.kwargs)}
    for key in entry.changed("scale", "kwargs"):
        if there is not None and there.get(key) != asked[key]:
            raise ConfigError(
                f"{place}.{key}: `{component}` was recorded with {there.get(key)}; a replay takes its values as they "
                f"are, so leave `{key}` out"
            )


def _section(
    record: Record, asked: ReplaySection, wanted: Mapping[str, float | None], name: Path | str
) -> RewardSection:
    """The request as a whole reward section, which has rules for how its parts fit together.

    Raises: ConfigError with the rules that do not hold.
    """
    entries: list[str | RewardFunction] = []
    for component in record.scored.components:
        weight = wanted.get(component)
        part_of_it = weight is not None if component in wanted else _is_optimised(record, component)
        values: dict[str, Any] = {"fn": component, "name": component, "role": "optimised" if part_of_it else "observed"}
        if part_of_it:
            values["weight"] = _recorded_weight(record, component) if weight is None else weight
        scale = record.registered().get(component, {}).get("scale")
        entries.append(RewardFunction(**values, scale=None if scale is None else tuple(scale)))
    section = RewardSection.model_validate(
        {
            "reward_funcs": entries,
            "place": asked.place,
            "pivot": asked.pivot,
            "differentials": asked.differentials,
            "triggers": asked.triggers,
            "setpoints": asked.setpoints,
        },
        context=RULES_LATER,
    )
    problems = [f"{name}: reward.{key}: {message}" for key, message in section.rules()]
    problems += [
        f"{name}: reward.{key}.category: {_unknown(rule.category, record.scored.categories, 'category')}"
        for key, rule in section.scheduled()
        if rule.category not in record.scored.categories
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return section


def _scorers(section: RewardSection) -> list[Scorer]:
    """What a schedule asks about the functions; none of them is called."""
    return [
        Scorer(str(e.name), e.fn, _never, {}, e.weight, e.role, e.scale, None, "", None)
        for e in section.reward_funcs
        if isinstance(e, RewardFunction)
    ]


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a replay calls no reward function")


def _with_pivots(record: Record, schedule: Schedule, wanted: Mapping[str, float | None], name: Path | str) -> Schedule:
    """Reference pivots as they were measured then, or measured now on the recorded samples of the reference policy.

    Raises: ConfigError naming the key that nothing on record tells.
    """
    same = weighted(record.scored, wanted).baseline is record.scored.baseline
    found = []
    for key in schedule.awaiting:
        # The whole reward's pivot is the mean of another reward where the weights are others.
        value = record.pivot(key) if same or key[1] is not None else None
        if value is None:
            value = _sampled(record, key, wanted)
        if value is None:
            raise ConfigError(
                f"{name}: reward.pivot: the record holds no pivot of {describe(key)} and no samples of the reference "
                f"policy to measure it on: give `pivot` a number"
            )
        found.append(Pivot(*key, value, None, 0))
    return schedule.with_pivots(found) if found else schedule


def _sampled(record: Record, key: tuple[str, str | None], wanted: Mapping[str, float | None]) -> float | None:
    """A pivot measured on the samples that were recorded for others of its category."""
    samples = record.pivot_samples
    category, component = key
    if samples is None or category not in samples.categories:
        return None
    mine = samples.part(samples.category == samples.categories.index(category))
    if component is not None:
        if component not in mine.components:
            return None
        k = mine.components.index(component)
        values = mine.value[mine.answered[:, k], k]
    else:
        weights = [_weight_in_force(record, name, wanted) for name in mine.components]
        taken = mine.answered & np.array([weight is not None for weight in weights], dtype=bool)
        products = np.where(taken, np.array([weight or 0.0 for weight in weights]) * mine.value, 0.0)
        values = sums(products)[taken.any(axis=1)]
    return math.fsum(values.tolist()) / len(values) if len(values) else None


def _weight_in_force(record: Record, component: str, wanted: Mapping[str, float | None]) -> float | None:
    if component in wanted:
        return wanted[component]
    there = component in record.scored.components and _is_optimised(record, component)
    return _recorded_weight(record, component) if there else None


def _is_optimised(record: Record, component: str) -> bool:
    return bool(record.scored.optimised[:, record.scored.components.index(component)].any())


def _recorded_weight(record: Record, component: str) -> float:
    k = record.scored.components.index(component)
    weights = record.scored.weight[record.scored.optimised[:, k], k]
    return float(weights[-1]) if len(weights) else 1.0


def _unknown(name: str, known: Iterable[str], what: str = "component") -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"no {what} `{name}` on record; did you mean `{near[0]}`?"
    return f"no {what} `{name}` on record; there are: {', '.join(f'`{other}`' for other in known) or 'none'}"
