"""Held-out prompts, answered by sampling and scored: figures with intervals, by category and over all."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from rewards.analysis.intervals import wilson
from rlhf.evaluation.answers import Judged

_Z = 1.959963984540054


def share(values: Sequence[bool]) -> dict[str, Any] | None:
    """A share with its 95 % score interval; None without values."""
    if not values:
        return None
    low, high = wilson(sum(values), len(values))
    return {"value": sum(values) / len(values), "low": low, "high": high, "n": len(values)}


def mean(values: Sequence[float]) -> dict[str, Any] | None:
    """A mean with its 95 % normal interval over independent answers, a share with its score interval; or None."""
    if not values:
        return None
    if all(value in (0.0, 1.0) for value in values):
        return share([value == 1.0 for value in values])
    n, average = len(values), math.fsum(values) / len(values)
    if n < 2:
        return {"value": average, "low": None, "high": None, "n": n}
    half = _Z * math.sqrt(math.fsum((v - average) ** 2 for v in values) / (n - 1) / n)
    return {"value": average, "low": average - half, "high": average + half, "n": n}


def summarise(judged: Sequence[Judged], counts: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Figures of a set of answers.

    Per component its mean raw value, and for those named in `counts` the share of answers above 0 (`NAME_share`);
    compliance; tokens; the share that was cut; the share of different texts. n is the number of answers behind each
    figure.
    """
    figures: dict[str, dict[str, Any] | None] = {}
    for i, part in enumerate(judged[0].components if judged else []):
        raws = [j.components[i].raw for j in judged]
        known = [raw for raw in raws if raw is not None]
        figures[part.name] = mean(known)
        if part.name in counts:
            figures[f"{part.name}_share"] = share([raw > 0 for raw in known])
    figures["compliance"] = share([j.compliant for j in judged if j.compliant is not None])
    figures["response_tokens"] = mean([float(len(j.answer.ids)) for j in judged])
    figures["truncated"] = share([not j.answer.finished for j in judged])
    texts = {j.answer.text for j in judged}
    figures["different_answers"] = {"value": len(texts) / len(judged), "low": None, "high": None, "n": len(judged)}
    return {name: figure for name, figure in figures.items() if figure is not None}


def by_category(judged: Sequence[Judged], counts: Collection[str] = ()) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures of each category."""
    names = sorted({str(j.answer.record.category) for j in judged if j.answer.record.category is not None})
    return {name: summarise([j for j in judged if j.answer.record.category == name], counts) for name in names}
