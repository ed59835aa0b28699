"""Summary tables of a run: outcomes by stage, reward by category, behaviour in the first and the last sessions."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rewards.analysis.behaviour import (
    Richness,
    compare_richness,
    differing_pairs,
    ngrams,
    words,
)
from rewards.analysis.columns import component, component_roles, floats, strings, where
from rewards.analysis.convergence import Bin, mean_series
from rewards.analysis.intervals import first_last, mean_estimate, share_estimate
from rewards.analysis.recalibrations import of_kind
from rewards.functions.sentences import without_phrases

WINDOW = 1000
ANSWERS = 200
BIGRAMS = 2000

Event = Mapping[str, Any]


def end_windows(n: int) -> tuple[slice, slice] | None:
    """The first and the last thousand sessions, or halves of a run too short for both; None for fewer than two."""
    width = min(WINDOW, n // 2)
    return (slice(0, width), slice(n - width, n)) if width else None


def stages(events: Sequence[Event], order: Sequence[str]) -> list[dict[str, Any]]:
    """Outcomes of each run's evaluations before and after its training, in the order in which the runs came.

    A repeated evaluation (a resumed run evaluates again) replaces the earlier one.
    """
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {run: {} for run in order}
    during: dict[str, int] = {}
    names: dict[str, str] = {}
    for event in events:
        run, payload = event["run_id"], event["payload"]
        if event["kind"] in ("attempt_started", "phase_started") and payload.get("stage"):
            names[payload.get("run_id") or run] = payload["stage"]
        if event["kind"] != "evaluation" or run not in found:
            continue
        when = payload.get("when")
        if when not in ("before", "after"):
            during[run] = during.get(run, 0) + 1
            continue
        kept = ("suite", "when", "n", "metrics", "by_category")
        found[run][(str(payload.get("suite")), when)] = {"step": event.get("step")} | {
            name: payload.get(name) for name in kept
        }
    return [
        {
            "run_id": run,
            "stage": names.get(run, run.rpartition("/")[2]),
            "evaluations": list(found[run].values()),
            "evaluations_during": during.get(run, 0),
        }
        for run in order
    ]


def reward_ends(table: pa.Table, pairs: bool = False) -> dict[str, Any]:
    """Mean rewards in the first and the last sessions; for pairs also the share whose margin is above 0."""
    windows = end_windows(table.num_rows)
    if windows is None:
        nothing = {"first": None, "last": None, "why": "fewer than two sessions"}
        return {"baseline": nothing, "adjusted": nothing, "ranked_right": nothing}
    baseline, adjusted = floats(table, "baseline_reward"), floats(table, "adjusted_reward")
    right = np.where(np.isfinite(baseline) & pairs, baseline > 0, np.nan)
    ends = {
        name: first_last(*(mean_estimate(values[window]) for window in windows))
        for name, values in (("baseline", baseline), ("adjusted", adjusted))
    }
    ranked = first_last(*(share_estimate(right[window]) for window in windows))
    return ends | {"ranked_right": ranked if pairs else ranked | {"why": "its sessions are not pairs"}}


def categories(table: pa.Table) -> list[dict[str, Any]]:
    """Reward, compliance and classifications by category in the first and the last sessions of the run."""
    windows = end_windows(table.num_rows)
    names = strings(table, "category")
    found = []
    for name in sorted(set(names), key=lambda value: (value is None, value)):
        mine = where(names, name)
        row: dict[str, Any] = {"category": name, "n": int(mine.sum())}
        for end, window in zip(("first", "last"), windows or (), strict=False):
            row[end] = _category_window(table.slice(window.start, window.stop - window.start), mine[window])
        found.append(row)
    return found


def _category_window(part: pa.Table, mine: Any) -> dict[str, Any]:
    reward, compliant = floats(part, "baseline_reward"), floats(part, "compliant")
    labels = strings(part, "classification")
    classes = []
    for label in sorted({value for value, own in zip(labels, mine, strict=True) if own and value is not None}):
        these = mine & where(labels, label)
        classes.append(
            {
                "classification": label,
                "share": share_estimate(where(labels, label)[mine].astype(np.float64)).as_dict(),
                "baseline": mean_estimate(reward[these]).as_dict(),
            }
        )
    return {
        "n": int(mine.sum()),
        "baseline": mean_estimate(reward[mine]).as_dict(),
        "compliant": share_estimate(compliant[mine]).as_dict(),
        "classifications": classes,
    }


def behaviour(table: pa.Table, bins: Sequence[Bin], phrases: Sequence[str], sampled: bool) -> dict[str, Any]:
    """Unsolicited content, vocabulary and diversity in the first and the last sessions, on the task part of answers."""
    windows = end_windows(table.num_rows)
    texts = strings(table, "response")
    section: dict[str, Any] = {
        name: _component_share(table, name, windows) for name in ("unsolicited_share", "unsolicited_gold")
    }
    section["curve"] = _component_curves(table, bins)
    why = None
    if not sampled:
        why = "its sessions are demonstrations or pairs, not answers of the policy"
    elif windows is None:
        why = "fewer than two sessions"
    elif all(texts[i] is None for window in windows for i in range(table.num_rows)[window]):
        why = "no texts are on record"
    section["task_part"] = (
        f"answers without the {len(set(phrases))} sentences that the reward functions look for"
        if phrases
        else "whole answers: no reward function names sentences to leave out"
    )
    if why or windows is None:
        nothing = {"first": None, "last": None, "why": why}
        return section | {"vocabulary": nothing, "diversity": nothing, "distinct_2": nothing, "within_prompt": nothing}
    sought = tuple(dict.fromkeys(phrases))
    answers = [None if text is None else without_phrases(text, sought) for text in texts]
    return section | _richness(table, answers, windows)


def _component_share(table: pa.Table, metric: str, windows: tuple[slice, slice] | None) -> dict[str, Any]:
    name = "unsolicited" if metric == "unsolicited_share" else metric
    if name not in component_roles(table):
        return {"first": None, "last": None, "why": f"no component is named `{name}`"}
    if windows is None:
        return {"first": None, "last": None, "why": "fewer than two sessions"}
    raw = component(table, name)
    present = np.where(np.isfinite(raw), raw > 0, np.nan)
    return first_last(share_estimate(present[windows[0]]), share_estimate(present[windows[1]]))


def _component_curves(table: pa.Table, bins: Sequence[Bin]) -> list[dict[str, Any]]:
    curves = {}
    for name in ("unsolicited", "unsolicited_gold"):
        if name in component_roles(table):
            raw = component(table, name)
            curves[name] = mean_series(np.where(np.isfinite(raw), raw > 0, np.nan), bins, share=True)
    return [
        found.place() | {name: series[i].as_dict() for name, series in curves.items()} for i, found in enumerate(bins)
    ]


def _richness(table: pa.Table, answers: list[str | None], windows: tuple[slice, slice]) -> dict[str, Any]:
    groups, names = strings(table, "group_id"), strings(table, "category")
    kept = [[i for i in range(len(answers))[window] if answers[i] is not None] for window in windows]
    found = _measures(answers, groups, kept)
    per_category: dict[str, Any] = {}
    for name in sorted({value for value in names if value is not None}):
        mine = [[i for i in window if names[i] == name] for window in kept]
        if all(mine):
            measured = _measures(answers, groups, mine)
            per_category[name] = {key: measured[key] for key in ("vocabulary", "diversity", "within_prompt")}
    return found | {"by_category": per_category, "within_categories": _averaged(per_category)}


def _averaged(per_category: Mapping[str, Any]) -> dict[str, Any]:
    """Means over the categories that both ends have, each weighing the same: a changed mixture cannot move them."""
    averaged: dict[str, dict[str, Any]] = {}
    for name in ("vocabulary", "diversity", "within_prompt"):
        pairs = [measured[name] for measured in per_category.values() if measured[name]["first"] is not None]
        pairs = [pair for pair in pairs if pair["last"] is not None]
        if not pairs:
            averaged[name] = {"first": None, "last": None, "categories": 0, "why": "no category is in both ends"}
            continue
        averaged[name] = {"categories": len(pairs), "why": None}
        for end in ("first", "last"):
            limits = [pair[f"{end}_interval"] for pair in pairs]
            value = float(np.mean([pair[end] for pair in pairs]))
            averaged[name] |= {end: value, f"{end}_n": sum(pair[f"{end}_n"] for pair in pairs)}
            averaged[name][f"{end}_interval"] = [None, None]
            if all(low is not None for low, _ in limits):
                half = float(np.sqrt(sum(((high - low) / 2) ** 2 for low, high in limits))) / len(limits)
                averaged[name][f"{end}_interval"] = [value - half, value + half]
    return averaged


def _measures(
    answers: Sequence[str | None], groups: Sequence[str | None], kept: Sequence[Sequence[int]]
) -> dict[str, Any]:
    texts = [[answers[i] or "" for i in window] for window in kept]
    tokens = [[words(text) for text in window] for window in texts]
    members = ([groups[i] for i in kept[0]], [groups[i] for i in kept[1]])
    bigrams: list[list[list[Hashable]]] = [[list(ngrams(found, 2)) for found in window] for window in tokens]
    vocabulary = compare_richness(tokens[0], tokens[1], members)
    whole = [[[text] for text in window] for window in texts]
    diversity = compare_richness(whole[0], whole[1], members, ANSWERS, per_item=True)
    distinct = compare_richness(bigrams[0], bigrams[1], members, BIGRAMS, per_item=True)
    within = [differing_pairs(window, found) for window, found in zip(texts, members, strict=True)]
    return {
        "vocabulary": _rich(vocabulary, "distinct words and marks", "words and marks drawn")
        | {"raw_types": [len({token for text in window for token in text}) for window in tokens]},
        "diversity": _rich(diversity, "share of distinct answers", "answers drawn"),
        "distinct_2": _rich(distinct, "share of distinct word pairs", "word pairs drawn"),
        "within_prompt": first_last(*within)
        | {"unit": "chance that two answers to a prompt differ", "counts": "prompts"},
    }


def _rich(found: Richness, unit: str, drawn: str) -> dict[str, Any]:
    return first_last(found.first, found.last) | {
        "unit": unit,
        "drawn": drawn,
        "sample": found.sample,
        "items": list(found.items),
    }


def phrases_of(events: Sequence[Event], run_id: str) -> list[str]:
    """The literal sentences that the run's reward functions look for."""
    found: dict[str, None] = {}
    for event in of_kind(events, "scorer_registered"):
        if event["run_id"] == run_id:
            found.update(dict.fromkeys(event["payload"].get("phrases") or []))
    return list(found)
