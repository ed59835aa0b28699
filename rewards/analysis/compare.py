"""An old and a new set of answers to the same prompts: did anything get worse, and what could have been found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from rewards.analysis import eprocess
from rewards.analysis.compare_verdict import verdict
from rewards.analysis.outcomes import Outcomes
from rewards.analysis.paired import ALPHA, FEWEST, binary_mde, mcnemar_table, mean_difference, student_difference
from rewards.analysis.tails import Answers, tail_changes
from rewards.counted import counted
from rewards.errors import UserError

Floats = NDArray[np.float64]

SLICE_Q = 0.1
UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class Pairs:
    """Answers to the prompts that both sides have, more being better; prompts stand in the order of the new side.

    Shapes: a, b: all answers; difference: one value a prompt, mean of its new answers minus mean of its old ones;
    category: one code a prompt into names (-1: none). pairs: answers that have a partner. unpaired: prompts of each
    side that the other lacks. binary: every value is 0 or 1. single: every prompt has one answer on either side.
    """

    a: Answers
    b: Answers
    difference: Floats
    category: NDArray[np.int64]
    names: tuple[str, ...]
    pairs: int
    unpaired: tuple[int, int]

    @classmethod
    def of(cls, old: Outcomes, new: Outcomes, sign: float = 1.0) -> Pairs:
        """Raises: UserError for fewer common prompts than a comparison needs."""
        sides = old.table, new.table
        known = [pc.unique(side["prompt_id"]) for side in sides]
        common = known[1].filter(pc.is_in(known[1], value_set=known[0]))
        n = len(common)
        if n < FEWEST:
            told = "no prompt" if n == 0 else "1 prompt" if n == 1 else f"{n} prompts"
            raise UserError(
                f"{told} in common: {counted(len(known[0]), 'prompt')} in {old.source}, {len(known[1]):,} in "
                f"{new.source}; a comparison pairs at least {FEWEST} by prompt_id"
            )
        a, b = (_answers(side, common, sign) for side in sides)
        counts = [np.bincount(side.prompt, minlength=n) for side in (a, b)]
        means = [np.bincount(side.prompt, side.values, n) / count for side, count in zip((a, b), counts, strict=True)]
        category, names = _categories(sides[1], common)
        unpaired = len(known[0]) - n, len(known[1]) - n
        return cls(a, b, means[1] - means[0], category, names, int(np.minimum(*counts).sum()), unpaired)

    @property
    def prompts(self) -> int:
        """How many prompts both sides have."""
        return len(self.difference)

    @property
    def single(self) -> bool:
        """Whether every prompt has one answer on either side."""
        return self.prompts == len(self.a.values) == len(self.b.values)

    @property
    def binary(self) -> bool:
        """Whether every value is 0 or 1 (with its sign)."""
        values = np.unique(np.concatenate([np.unique(np.abs(side.values)) for side in (self.a, self.b)]))
        return set(values.tolist()) <= {0.0, 1.0}

    def each(self) -> tuple[Floats, Floats]:
        """Old and new value of every prompt where each has one answer."""
        return self.a.values[np.argsort(self.a.prompt)], self.b.values[np.argsort(self.b.prompt)]


def compare(
    old: Outcomes,
    new: Outcomes,
    metric: str = "baseline_reward",
    *,
    less_is_better: bool = False,
    limits: tuple[float, float] | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, Any]:
    """The comparison, as `rewards compare --json` prints it; differences are new minus old, in the metric's units.

    limits: what a value can be, for the e-process; by default 0 to 1 where all values are in it.
    A regression is a worse mean whose interval leaves out 0 (for yes or no also McNemar's p < .05), a category that is
    worse after Benjamini-Hochberg at q = .1, or a worse mean of the worst 5 %. The three have error rates of their own:
    without any change about one comparison in ten is called a regression.
    Raises: UserError for too few common prompts, or values outside the limits.
    """
    rng = rng or np.random.default_rng(0)
    sign = -1.0 if less_is_better else 1.0
    pairs = Pairs.of(old, new, sign)
    difference = mean_difference(pairs.difference, rng).as_dict()
    table = _mcnemar(pairs)
    if table["p"] is not None:
        difference["mde"] = binary_mde(table["discordant"], pairs.prompts)
    tails = tail_changes(pairs.a, pairs.b, pairs.prompts, rng)
    slices = slice_table(pairs.difference, pairs.category, pairs.names, pairs.each() if _one_bit(pairs) else None)
    worse = _worse(difference, table, slices, tails)
    found: dict[str, Any] = {
        "a": old.describe(),
        "b": new.describe(),
        "metric": metric,
        "better": "less" if less_is_better else "more",
        "pairs": pairs.pairs,
        "prompts": pairs.prompts,
        "unpaired_a": pairs.unpaired[0],
        "unpaired_b": pairs.unpaired[1],
        "difference": difference,
        "mcnemar": table,
        "slices": slices,
        "slices_q": SLICE_Q,
        "tails": tails,
        "eprocess": _monitored(pairs.difference, (old, new), limits),
        "regression": bool(worse),
        "worse": worse,
    }
    if less_is_better:
        _turn(found)
    return found | {"verdict": verdict(found)}


def slice_table(
    d: Floats, category: NDArray[np.int64], names: Sequence[str], each: tuple[Floats, Floats] | None = None
) -> list[dict[str, Any]]:
    """Every category's difference, with p-values adjusted for how many there are (Benjamini-Hochberg).

    Shapes: d, category: one value a prompt; each: old and new value a prompt where all are 0 or 1: then p is McNemar's
    mid-p, else Student's. Slices without a p-value take no part in the adjustment.
    Source: Benjamini and Hochberg 1995; it holds under positive dependence too (Benjamini and Yekutieli 2001).
    """
    rows = []
    for code, name in enumerate(names):
        mine = category == code
        row = {"category": name} | student_difference(d[mine]).as_dict()
        if each is not None and row["p"] is not None:
            table = mcnemar_table(each[0][mine], each[1][mine])
            row |= {"p": table["p"], "mde": binary_mde(table["discordant"], table["n"])}
        rows.append(row | {"p_adjusted": None})
    tested = [row for row in rows if row["p"] is not None]
    if tested:
        adjusted = false_discovery_control([row["p"] for row in tested], method="bh")
        for row, p in zip(tested, adjusted, strict=True):
            row["p_adjusted"] = float(p)
    for row in rows:
        row["verdict"] = _slice_verdict(row)
    return rows


def _slice_verdict(row: Mapping[str, Any]) -> str:
    if row["p_adjusted"] is None:
        return f"not tested: {row['why']}"
    way = "worse" if row["estimate"] < 0 else "better"
    if row["p_adjusted"] <= SLICE_Q:
        return way
    if row["p"] < ALPHA:
        return f"{way} on its own, which among so many slices is no finding"
    return "no change found"


def _answers(side: pa.Table, common: pa.Array, sign: float) -> Answers:
    place = pc.index_in(side["prompt_id"], value_set=common)
    kept = side.filter(pc.is_valid(place))
    prompt = np.asarray(place.drop_null().to_numpy(), dtype=np.int64)
    return Answers(sign * np.asarray(kept["value"].to_numpy(), dtype=np.float64), prompt)


def _categories(side: pa.Table, common: pa.Array) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Category of each prompt, as its first answer on the new side has it."""
    first = pc.index_in(common, value_set=side["prompt_id"].combine_chunks())
    found = side["category"].combine_chunks().take(first)
    names = sorted(name for name in pc.unique(found).to_pylist() if name is not None)
    codes = pc.fill_null(pc.index_in(found, value_set=pa.array(names, pa.string())), -1)
    return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int64), tuple(names)


def _one_bit(pairs: Pairs) -> bool:
    return pairs.binary and pairs.single


def _mcnemar(pairs: Pairs) -> dict[str, Any]:
    if _one_bit(pairs):
        return mcnemar_table(*pairs.each()) | {"why": None}
    why = (
        "several answers a prompt: the bootstrap keeps them together" if pairs.binary else "the metric is not yes or no"
    )
    return dict.fromkeys(("worse", "better", "discordant", "n", "p", "exact_p")) | {"why": why}


def _monitored(d: Floats, sides: Sequence[Outcomes], limits: tuple[float, float] | None) -> dict[str, Any]:
    """The e-process over the prompts' differences (below 0: worse) in the order of the new side."""
    ends = [pc.min_max(side.table["value"]).as_py() for side in sides]
    least, most = min(end["min"] for end in ends), max(end["max"] for end in ends)
    if limits is None and not UNIT[0] <= least <= most <= UNIT[1]:
        why = f"values reach from {least:.4g} to {most:.4g}; it needs to be told what they can be (--limits LOW HIGH)"
        return dict.fromkeys(("e", "max_e", "alarm_at", "scale")) | {"n": 0, "why": why}
    low, high = UNIT if limits is None else limits
    if not low <= least <= most <= high or low == high:
        raise UserError(f"--limits {low:g} {high:g}: values reach from {least:.4g} to {most:.4g}")
    scale = high - low
    return eprocess.run(np.clip(d / scale, -1.0, 1.0)) | {"scale": scale, "why": None}


def _worse(
    difference: Mapping[str, Any],
    table: Mapping[str, Any],
    slices: Sequence[Mapping[str, Any]],
    tails: Mapping[str, Any],
) -> list[str]:
    """What got worse: mean, slice NAME, worst 5 %. Values are such that more is better."""
    worse = []
    if _below(difference) and (table["p"] is None or table["p"] < ALPHA):
        worse.append("mean")
    worse += [f"slice {row['category']}" for row in slices if row["verdict"] == "worse"]
    if _below(tails["cvar_5"]):
        worse.append("worst 5 %")
    return worse


def _below(found: Mapping[str, Any]) -> bool:
    """Whether the interval leaves out 0 from below; without an interval (all alike) the p-value decides."""
    if found["high"] is not None:
        return bool(found["high"] < 0)
    return found["p"] is not None and found["p"] < ALPHA and found["estimate"] < 0


def _turn(found: dict[str, Any]) -> None:
    """Back to the metric's own direction, where less is better."""
    for row in (found["difference"], *found["slices"], found["tails"]["cvar_5"]):
        _negate(row)
    quantiles = found["tails"]["quantiles"]
    for row in quantiles:
        _negate(row)
        row["q"] = 1 - row["q"]
    quantiles.reverse()


def _negate(row: dict[str, Any]) -> None:
    ends = {"estimate": "estimate", "low": "high", "high": "low", "a": "a", "b": "b"}
    turned = {to: None if row[name] is None else 0.0 - row[name] for name, to in ends.items() if name in row}
    row |= turned
