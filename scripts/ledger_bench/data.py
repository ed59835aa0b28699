"""Rows as a GRPO run leaves them: groups of eight that share a prompt, three components, continuous values.

Nothing is rounded or repeated: every reward, log-probability and divergence is another double or float, which is the
worst case for a file format. Responses have exactly 300 bytes of made-up English: 20,000 words with the frequencies of
Zipf's law and letters and lengths as in English, which zstd compresses a little less than real answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rewards.schema import COMPONENTS_TYPE

GROUP = 8
TEXT_BYTES = 300
PROMPT_BYTES = 100
CATEGORIES = ("arithmetic", "format", "harmful", "benign", "unanswerable", "self")
COMPONENTS = ("task", "style", "reward_model")
WEIGHTS = (1.0, 0.2, 0.5)

_WORDS = 20_000
_LETTERS = "etaoinshrdlcumwfgypbvk"
_LETTER_SHARES = (127, 91, 82, 75, 70, 67, 63, 61, 60, 43, 40, 28, 28, 24, 24, 22, 20, 20, 19, 15, 10, 8)


class Texts:
    """A stream of words cut into texts of one length."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        shares = np.array(_LETTER_SHARES) / sum(_LETTER_SHARES)
        # Frequent words are short, as in every language: about five letters in running text.
        lengths = np.clip(2 + np.log2(1 + np.arange(_WORDS)) * 0.45 + rng.normal(0, 1.3, _WORDS), 1, 14).astype(int)
        letters = rng.choice(np.array(list(_LETTERS)), lengths.sum(), p=shares)
        ends = np.cumsum(lengths)
        words = ["".join(letters[end - size : end]) for end, size in zip(ends, lengths, strict=True)]
        self._words = pa.array([word + " " for word in words])
        self._cumulated = np.cumsum(1.0 / (np.arange(_WORDS) + 2.7))
        self._rest = b""

    def take(self, count: int, size: int) -> pa.Array:
        """`count` texts of `size` bytes."""
        wanted = count * size
        while len(self._rest) < wanted:
            draws = self._rng.random(max(wanted // 4, 1000)) * self._cumulated[-1]
            words = self._words.take(pa.array(np.searchsorted(self._cumulated, draws)))
            self._rest += words.buffers()[2].to_pybytes()
        taken, self._rest = self._rest[:wanted], self._rest[wanted:]
        offsets = np.arange(0, wanted + 1, size, dtype=np.int32)
        return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(taken)])


def _constant(value: Any, count: int, kind: pa.DataType | None = None) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind) if kind is not None else pa.scalar(value), count)


def _text(prefix: str, numbers: np.ndarray[Any, Any]) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _components(raw: np.ndarray[Any, Any], rng: np.random.Generator, rows_a_step: int) -> pa.Array:
    """raw: one row a session, one column a component."""
    rows, parts = raw.shape
    total = rows * parts
    calls = np.repeat(rng.gamma(4.0, 3.0, (-(-rows // rows_a_step), parts)), rows_a_step, axis=0)[:rows]
    value = raw.copy()
    value[:, 2] = np.tanh(raw[:, 2])  # a score on another scale
    names = pa.array(COMPONENTS).take(pa.array(np.tile(np.arange(parts), rows)))
    scorers = pa.array(["task-1", "style-1", "4f2ac09b17d3"]).take(pa.array(np.tile(np.arange(parts), rows)))
    given = {
        "name": names,
        "raw": pa.array(raw.ravel()),
        "value": pa.array(value.ravel()),
        "weight": pa.array(np.tile(WEIGHTS, rows)),
        "role": _constant("optimised", total),
        "status": _constant("ok", total),
        "scorer_id": scorers,
        "latency_ms": pa.array(calls.ravel().astype(np.float32)),
    }
    fields = [field for field in COMPONENTS_TYPE.value_type if field.name in given]
    flat = pa.StructArray.from_arrays([given[field.name] for field in fields], fields=fields)
    return pa.ListArray.from_arrays(pa.array(np.arange(0, total + 1, parts, dtype=np.int32)), flat)


def sessions(
    rng: np.random.Generator, first: int, count: int, rows_a_step: int, texts: Texts | None = None
) -> pa.Table:
    """Sessions `first` to `first + count - 1` of a run, counted from 0, with their `step`; whole groups of eight."""
    assert first % GROUP == 0 and count % GROUP == 0
    groups = count // GROUP
    number = np.arange(first, first + count)
    step = number // rows_a_step + 1
    quality = np.repeat(rng.normal(0, 0.4, groups), GROUP)
    raw = quality[:, None] * (1.0, 0.3, 2.0) + rng.normal((0.5, 0.1, 1.0), (0.3, 0.5, 1.5), (count, len(COMPONENTS)))
    baseline = raw[:, 0] + WEIGHTS[1] * raw[:, 1] + WEIGHTS[2] * np.tanh(raw[:, 2])
    gain = np.repeat(rng.choice((0.0, 12.0), groups, p=(0.8, 0.2)), GROUP)
    adjusted = baseline + gain / 100 * (baseline - 0.61)
    by_group = adjusted.reshape(groups, GROUP)
    mean, std = by_group.mean(axis=1), by_group.std(axis=1)
    spread = {name: np.repeat(values, GROUP) for name, values in {"mean": mean, "std": std}.items()}
    unadjusted = (baseline - np.repeat(baseline.reshape(groups, GROUP).mean(axis=1), GROUP)) / spread["std"]
    tokens = rng.integers(20, 90, count).astype(np.int32)
    kl = rng.gamma(2.0, 0.3, count)
    group = number // GROUP
    categories = pa.array(CATEGORIES).take(pa.array(np.repeat(rng.integers(0, len(CATEGORIES), groups), GROUP)))
    prompts = pa.array(np.repeat(np.arange(groups), GROUP))

    def f32(values: Any) -> pa.Array:
        return pa.array(np.asarray(values, dtype=np.float32))

    columns = {
        "step": pa.array(step),
        "pipeline": _constant("grpo", count),
        "split": _constant("train", count),
        "dataset_id": _constant("benchmark", count),
        "row_id": _text("", np.repeat(rng.integers(0, 40_000, groups), GROUP)),
        "prompt_id": _text("p", group % 40_000),
        "group_id": _text("g", group),
        "group_size": _constant(GROUP, count, pa.int32()),
        "sample_seed": pa.array(rng.integers(0, 2**62, count)),
        "policy_version": pa.array(step - 1),
        "schedule_version": _constant("7d1c", count),
        "category": categories,
        "compliant": pa.array(raw[:, 0] > 0.5),
        "baseline_reward": pa.array(baseline),
        "adjusted_reward": pa.array(adjusted),
        "differential_pct": pa.array(gain),
        "pivot": _constant(0.61, count),
        "components": _components(raw, rng, rows_a_step),
        "advantage": f32((adjusted - spread["mean"]) / spread["std"]),
        "advantage_unadjusted": f32(unadjusted),
        "norm_mean": f32(spread["mean"]),
        "norm_std": f32(spread["std"]),
        "kl_nats": f32(kl),
        "kl_k3_nats": f32(kl * rng.uniform(0.8, 1.3, count)),
        "logp_nats": f32(-rng.gamma(8.0, 4.0, count)),
        "entropy_nats": f32(rng.gamma(3.0, 0.2, count)),
        "prompt_tokens": pa.array(np.repeat(rng.integers(10, 40, groups), GROUP).astype(np.int32)),
        "response_tokens": pa.array(tokens),
        "stop_reason": pc.if_else(pa.array(tokens > 85), "length", "stop"),
        "truncated": pa.array(tokens > 85),
    }
    if texts is not None:
        columns["prompt"] = texts.take(groups, PROMPT_BYTES).take(prompts)
        columns["response"] = texts.take(count, TEXT_BYTES)
    return pa.table(columns)


def audited(rng: np.random.Generator, first: int, count: int, rows_a_step: int) -> pa.Table:
    """The twelve columns of a run that was logged for an audit; the arguments are those of `sessions`."""
    number = np.arange(first, first + count)
    prompts = -(-count // GROUP)
    compliant = rng.random(count) < 0.7
    baseline = rng.normal(0.5, 0.6, count)
    gain = np.repeat(rng.choice((0.0, 12.0), prompts, p=(0.8, 0.2)), GROUP)[:count]
    drawn = np.repeat(rng.integers(0, len(CATEGORIES), prompts), GROUP)[:count]
    columns = {
        "session": pa.array(number + 1),
        "step": pa.array(number // rows_a_step + 1),
        "prompt_id": _text("p", number // GROUP % 40_000),
        "category": pa.array(CATEGORIES).take(pa.array(drawn)),
        "classification": pc.if_else(pa.array(compliant), "answered", "refused"),
        "compliant": pa.array(compliant),
        "baseline_reward": pa.array(baseline),
        "adjusted_reward": pa.array(baseline + gain / 100 * (baseline - 0.61)),
        "differential_pct": pa.array(gain),
        "trajectory_index": pa.array(np.repeat(rng.random(prompts), GROUP)[:count].astype(np.float32)),
        "response_tokens": pa.array(rng.integers(20, 90, count).astype(np.int32)),
        "kl_nats": pa.array(rng.gamma(2.0, 0.3, count).astype(np.float32)),
    }
    return pa.table(columns)


def chunks(rng: np.random.Generator, first: int, count: int, rows_a_step: int, size: int) -> Iterator[pa.Table]:
    """The same, a table of at most `size` rows at a time."""
    for start in range(first, first + count, size):
        yield sessions(rng, start, min(size, first + count - start), rows_a_step)


def as_columns(table: pa.Table) -> dict[str, Any]:
    """A dict of columns as a trainer may have it: numpy arrays, lists of texts, components as lists of dicts."""
    columns: dict[str, Any] = {}
    for name in table.schema.names:
        column = table[name]
        numbers = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
        columns[name] = column.to_numpy() if numbers else column.to_pylist()
    columns["components"] = as_dicts(table.select(["components"]), "components")
    return columns | {"pipeline": "grpo", "split": "train", "dataset_id": "benchmark"}


def as_dicts(table: pa.Table, only: str | None = None) -> list[Any]:
    """A list of dicts, as reward functions give them: keys without a value are left out."""

    def present(value: dict[str, Any]) -> dict[str, Any]:
        return {key: item for key, item in value.items() if item is not None}

    rows = table.to_pylist()
    for row in rows:
        row["components"] = [present(component) for component in row["components"]]
    return [row[only] for row in rows] if only else rows
