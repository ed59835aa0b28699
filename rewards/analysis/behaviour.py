"""What the answers are like: richness of vocabulary and of whole answers, compared at equal sample size."""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from rewards.analysis.intervals import Estimate, jackknife_interval, mean_estimate

Floats = NDArray[np.float64]

BLOCKS = 20
_TOKEN = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and single marks of a text, case kept; not the pieces of any model's tokenizer."""
    return _TOKEN.findall(text)


def rarefied_types(counts: Floats, sample: int) -> float:
    """Expected number of distinct types among `sample` items drawn without replacement.

    E[V_n] = sum_i 1 - C(N - c_i, n) / C(N, n), for counts c_i that sum to N.
    Shapes: counts, one per type. Raises: ValueError when the sample is not in 1..N.
    Source: Hurlbert 1971.
    """
    kept = counts[counts > 0]
    total = float(kept.sum())
    if not 1 <= sample <= total:
        raise ValueError(f"a sample of {sample} cannot be drawn from {total:g} items")
    rest = total - kept
    missed = np.zeros(len(kept))
    possible = rest >= sample
    rest = rest[possible]
    missed[possible] = np.exp(
        gammaln(rest + 1) - gammaln(rest - sample + 1) - gammaln(total + 1) + gammaln(total - sample + 1)
    )
    return float((1 - missed).sum())


def unique_share(answers: Sequence[Hashable], sample: int) -> float:
    """Expected share of distinct answers in a sample of fixed size."""
    _, counts = _count([[answer] for answer in answers])
    return rarefied_types(counts, sample) / sample


def ngrams(tokens: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """The n-grams inside one text."""
    return list(zip(*(tokens[shift:] for shift in range(order)), strict=False))


def distinct_n(texts: Iterable[Sequence[str]], order: int, budget: int) -> float:
    """Expected share of distinct n-grams among `budget` n-grams drawn from all texts.

    Source: Li et al. 2016. Departures: at a fixed budget, so that longer or more texts do not lower it.
    """
    _, counts = _count([ngrams(tokens, order) for tokens in texts])
    return rarefied_types(counts, budget) / budget


def differing_pairs(answers: Sequence[Hashable], groups: Sequence[Hashable]) -> Estimate:
    """Chance that two answers to one prompt differ: mean over the groups with at least two answers.

    n counts groups. Does not depend on the size of the groups.
    """
    members: dict[Hashable, list[Hashable]] = {}
    for group, answer in zip(groups, answers, strict=True):
        if group is not None:
            members.setdefault(group, []).append(answer)
    values = []
    for found in members.values():
        if len(found) >= 2:
            _, counts = _count([found])
            values.append(1 - float((counts * (counts - 1)).sum()) / (len(found) * (len(found) - 1)))
    if not values:
        return Estimate(None, None, None, 0, why="no prompt has two answers")
    return mean_estimate(np.array(values), bounds=(0.0, 1.0))


@dataclass(frozen=True)
class Richness:
    """Distinct types per drawn item or in all, first window against last, both at one sample size.

    sample: items drawn; items: items in the window (first, last).
    """

    first: Estimate
    last: Estimate
    sample: int | None
    items: tuple[int, int]


def compare_richness(
    first: Sequence[Sequence[Hashable]],
    last: Sequence[Sequence[Hashable]],
    groups: tuple[Sequence[Hashable], Sequence[Hashable]],
    limit: int | None = None,
    per_item: bool = False,
) -> Richness:
    """Rarefied richness of two windows at one sample size: half of the smaller window, at most `limit` items.

    Half, because near the whole window the count of types is certain and says nothing about the source it came from.
    Shapes: first, last: the items (words, n-grams, or the whole answer) of each session; groups: each session's prompt
    group, so that answers to one prompt stay in one block of the jackknife. per_item divides by the sample.
    """
    tables = [_by_block(window, found) for window, found in zip((first, last), groups, strict=True)]
    items = (int(tables[0].sum()), int(tables[1].sum()))
    left_out = [table.sum(axis=0) - table for table in tables]
    common = int(min(*items, *(rest.sum(axis=1).min() for rest in left_out if len(rest) > 1)))
    sample = common // 2 if limit is None else min(common // 2, limit)
    if sample < 2:
        nothing = Estimate(None, None, None, 0, why="too few items in one of the two windows")
        return Richness(nothing, nothing, None, items)
    estimates = [
        _rarefied(table, rest, sample, per_item, len(window))
        for table, rest, window in zip(tables, left_out, (first, last), strict=True)
    ]
    return Richness(estimates[0], estimates[1], sample, items)


def _rarefied(table: Floats, left_out: Floats, sample: int, per_item: bool, sessions: int) -> Estimate:
    scale = 1 / sample if per_item else 1.0
    value = rarefied_types(table.sum(axis=0), sample) * scale
    if len(table) < 2:
        return Estimate(value, None, None, sessions, why="one prompt only: no interval")
    low, high = jackknife_interval(
        value, [rarefied_types(rest, sample) * scale for rest in left_out], bounds=(0.0, sample * scale)
    )
    return Estimate(value, low, high, sessions)


def _count(texts: Sequence[Sequence[Hashable]]) -> tuple[dict[Hashable, int], Floats]:
    index: dict[Hashable, int] = {}
    ids = [index.setdefault(item, len(index)) for text in texts for item in text]
    return index, np.bincount(ids, minlength=len(index)).astype(np.float64) if ids else np.zeros(0)


def _by_block(texts: Sequence[Sequence[Hashable]], groups: Sequence[Hashable]) -> Floats:
    """Counts of types by block: consecutive prompt groups, dealt into at most BLOCKS blocks."""
    index: dict[Hashable, int] = {}
    order: dict[Hashable, int] = {}
    # A session without a group is a group of its own.
    numbers = [order.setdefault(("", i) if g is None else g, len(order)) for i, g in enumerate(groups)]
    blocks = max(1, min(BLOCKS, len(order)))
    rows: list[int] = []
    columns: list[int] = []
    for number, text in zip(numbers, texts, strict=True):
        rows.extend([number * blocks // len(order)] * len(text))
        columns.extend(index.setdefault(item, len(index)) for item in text)
    table = np.zeros((blocks, max(1, len(index))))
    np.add.at(table, (rows, columns), 1.0)
    return table
