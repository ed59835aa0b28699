"""The gold components of a run: what each stands for, which way is better, and when its scorer changed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.data import RunData

Floats = NDArray[np.float64]

NO_GOLD = (
    "no component has the role `gold`: nothing independent of the optimised reward says whether answers got better"
)


@dataclass(frozen=True)
class Gold:
    """A component that is never optimised, with the proxy that is optimised in its place.

    values, proxy_values: one a session, higher is better, NaN is null. proxy: an optimised component, or
    `baseline_reward`. sign: by which `values` differ from the recorded ones. direction: how the sign was decided.
    """

    name: str
    proxy: str
    sign: float
    values: Floats
    proxy_values: Floats
    direction: str


def golds(data: RunData) -> list[Gold]:
    """The gold components that some session carries.

    A gold component has no weight that would say which way is better. Where it is the same function as an optimised
    component, or is named after one (`unsolicited`, `unsolicited_gold`), it takes the sign of that one's weight, and
    that one is its proxy. Otherwise higher is taken as better and the proxy is the baseline reward.
    """
    found = []
    functions, weights = _registered(data)
    optimised = [name for name, role in data.component_roles.items() if role == "optimised"]
    for name, role in data.component_roles.items():
        if role != "gold":
            continue
        same = [
            other
            for other in optimised
            if name.startswith(f"{other}_") or (name in functions and functions.get(other) == functions[name])
        ]
        if not same:
            direction = "higher is taken as better: no optimised component says otherwise"
            values = component_values(data, name)
            found.append(Gold(name, "baseline_reward", 1.0, values, data.column("baseline_reward"), direction))
            continue
        proxy = max(same, key=len)
        weight = weights.get(proxy)
        if weight is None:
            recorded = data.component(proxy, "weight")
            kept = recorded[np.isfinite(recorded)]
            weight = float(kept[0]) if len(kept) else 1.0
        sign = -1.0 if weight < 0 else 1.0
        direction = f"{'lower' if sign < 0 else 'higher'} is better, as for `{proxy}`"
        oriented, optimised_values = (_turned(component_values(data, part), sign) for part in (name, proxy))
        found.append(Gold(name, proxy, sign, oriented, optimised_values, direction))
    return found


def component_values(data: RunData, name: str) -> Floats:
    """A component on its declared scale, or as the function returned it where only that is on record."""
    values = data.component(name, "value")
    return values if np.isfinite(values).any() else data.component(name, "raw")


def scorer_versions(data: RunData, names: list[str]) -> list[tuple[int, str | None]]:
    """[(index of the first session, versions of the scorers)], in order; one entry where nothing is registered.

    A registration counts from the step after its own; one without a step from where its attempt continued.
    """
    resumed = {
        event.get("attempt"): event["payload"].get("resume_step") for event in data.events if event["kind"] == "resumed"
    }
    now: dict[str, str] = {}
    starts: list[tuple[int, str | None]] = []
    for event in data.events:
        payload = event["payload"]
        if event["kind"] != "scorer_registered" or payload.get("name") not in names:
            continue
        now[payload["name"]] = str(payload.get("scorer_id"))
        step = event.get("step")
        step = resumed.get(event.get("attempt")) if step is None else step
        index = 0 if step is None or not starts else int(np.searchsorted(data.steps, step, side="right"))
        version = ", ".join(f"{name}={now[name]}" for name in sorted(now))
        if starts and (index <= starts[-1][0] or index >= data.sessions):
            # Registered before the next session was scored: part of the same version.
            if index <= starts[-1][0]:
                starts[-1] = (starts[-1][0], version)
        elif not starts or version != starts[-1][1]:
            starts.append((index, version))
    return starts or [(0, None)]


def _turned(values: Floats, sign: float) -> Floats:
    return -values if sign < 0 else values


def _registered(data: RunData) -> tuple[dict[str, str], dict[str, float]]:
    functions: dict[str, str] = {}
    weights: dict[str, float] = {}
    for event in data.events:
        payload = event["payload"]
        if event["kind"] == "scorer_registered" and payload.get("name"):
            if payload.get("fn"):
                functions[payload["name"]] = str(payload["fn"])
            if payload.get("weight") is not None:
                weights[payload["name"]] = float(payload["weight"])
    return functions, weights
