"""Runs with gold components, made of arrays."""

import numpy as np
import pyarrow as pa

from rewards.analysis.data import RunData

GROUP, PER_STEP = 8, 64


def part(name, values, role="optimised", weight=1.0):
    return name, np.asarray(values, dtype=float), role, weight


def entries(parts):
    """The list column of all parts, one entry a part and session."""
    sessions, many = len(parts[0][1]), len(parts)
    columns = {
        "name": [name for name, *_ in parts] * sessions,
        "raw": (values := np.stack([found for _, found, *_ in parts], axis=1).ravel()),
        "value": values,
        "role": [role for *_, role, _ in parts] * sessions,
        "weight": np.tile([weight for *_, weight in parts], sessions),
    }
    structs = pa.StructArray.from_arrays(
        [pa.array(found, from_pandas=True) for found in columns.values()], names=list(columns)
    )
    return pa.ListArray.from_arrays(np.arange(0, many * sessions + 1, many, dtype=np.int32), structs)


def run(sessions=3200, kl=None, baseline=None, components=(), prompts=50, events=(), seed=0, **columns):
    """A run of groups of 8 and steps of 64; components: lists of entries as `part` makes them."""
    rng = np.random.default_rng(seed)
    groups = np.arange(sessions) // GROUP
    # Every prompt once, then every prompt again in another order.
    order = np.concatenate([rng.permutation(prompts) for _ in range(int(groups.max()) // prompts + 1)])
    given = {"baseline_reward": np.zeros(sessions) if baseline is None else baseline, **columns}
    given |= {"prompt_id": [f"p{order[g]}" for g in groups], "group_id": [f"g{g}" for g in groups]}
    if kl is not None:
        given["kl_nats"] = kl
    if components:
        given["components"] = entries(components)
    steps = np.arange(sessions) // PER_STEP + 1
    return RunData.of_columns("r", steps, [f"c{g % 3}" for g in groups], given, events)


def registered(name, scorer_id="v1", fn=None, weight=1.0, step=0, attempt=1):
    payload = {"name": name, "scorer_id": scorer_id, "fn": fn or name, "weight": weight}
    return {"run_id": "r", "attempt": attempt, "step": step, "kind": "scorer_registered", "payload": payload}


def bent(d, alpha=1.0, beta=0.8):
    return d * (alpha - beta * np.log(np.maximum(d, 1e-9)))


def climb(sessions, rng, far=6.0):
    kl = np.maximum(0.05 + far * np.arange(sessions) / sessions + 0.05 * rng.standard_normal(sessions), 0.01)
    return kl, np.sqrt(kl)


def right_or_wrong(rng, rates):
    return (rng.random(len(rates)) < rates).astype(float)


def pair_run(seed, proxy_rates, gold_rates, **options):
    rng = np.random.default_rng(seed)
    proxy, gold = right_or_wrong(rng, proxy_rates), right_or_wrong(rng, gold_rates)
    return run(len(proxy), None, proxy, [part("task", proxy), part("judge", gold, "gold")], seed=seed, **options)


RISE, FALL = np.linspace(0.3, 0.8, 6400), np.linspace(0.7, 0.4, 6400)
