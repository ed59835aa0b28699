"""Answers of the simulated record: words of a narrowing vocabulary, repeats within a prompt's group, and extras.

The words are made up of two nouns each and mean nothing. Richness is what is simulated: how many words are in use, how
long an answer is, and how often an answer repeats another one of its group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.behaviour import words
from rewards.audit import plan as p
from rewards.audit.plan import Floats, Ints, Plan

PHRASE = "I would rather stay as I am."
EXTRAS = ("", PHRASE, "Great question!", "Shall I go on?", "That is only my view.")
TOKENS = (847, 214)  # unique tokens of the first and of the last 500 sessions
DIFFERENT = (0.73, 0.19)  # share of distinct answers in the same two windows

_PLAIN, _FIRST, _SECOND = (
    listed.split()
    for listed in (
        "answer table river stone light field water house paper wheel garden metal cloud road bread winter summer "
        "bridge letter number market forest copper silver timber harbour mountain valley island tower window candle "
        "mirror anchor basket button carpet castle cellar corner cotton desert engine farmer finger flower hammer "
        "kettle ladder lantern needle orchard parcel pepper pillow pocket quarry ribbon",
        "rain sun moon star snow wind sea sand iron wood glass corn hill lake fire frost cloud oak salt wool "
        "clay ash reed moss fern birch elm hay bark coal",
        "gate fall stone bell yard path mill ford wick ridge post cart loom boat tide crest hall pool bank lane "
        "well rope bird leaf seed horn nest spade bowl drum",
    )
)
VOCABULARY = [*_PLAIN, *(first + second for second in _SECOND for first in _FIRST)]
# Zipf's law with Mandelbrot's shift: a word of rank r (from 0) is drawn with a weight of 1 / (r + 12).
_SHIFT = 12
_COMMON = 6  # ranks so frequent that a few of their places may be given to words that did not come up
_SENTENCE = 9


def write_answers(plan: Plan, sentence: Ints, rng: np.random.Generator) -> tuple[list[str], Ints]:
    """The answers, and their lengths in tokens. sentence: which of EXTRAS an answer ends with."""
    source = _sources(plan, sentence, rng)
    fresh = np.flatnonzero(source == np.arange(plan.sessions))
    spread = plan.curve(p.LENGTH)[fresh] * (1 + 0.2 * rng.standard_normal(len(fresh)))
    lengths = np.maximum(6, np.rint(spread)).astype(np.int64)
    windows = _windows(plan)
    extra_types = [_extra_types(sentence[window]) for window in windows]
    limits = TOKENS[0] - len(extra_types[0]), TOKENS[1] - len(extra_types[1])
    owner = np.repeat(fresh, lengths)
    ranks = _draw_ranks(_in_use(plan, limits)[owner], rng)
    for window, limit in zip(windows, limits, strict=True):
        _show_all(ranks, np.flatnonzero(window[owner]), limit, rng)
    bodies = _compose(ranks, lengths)
    texts = dict(zip(fresh.tolist(), bodies, strict=True))
    extras = [f" {extra}" if extra else "" for extra in EXTRAS]
    answers = [texts[s] + extras[e] for s, e in zip(source.tolist(), sentence.tolist(), strict=True)]
    own = np.zeros(plan.sessions, dtype=np.int64)
    own[fresh] = lengths + -(-lengths // _SENTENCE)
    return answers, own[source] + np.array([len(words(extra)) for extra in EXTRAS])[sentence]


def _windows(plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return plan.window(0, p.WINDOW), plan.window(p.SESSIONS - p.WINDOW + 1, p.SESSIONS)


def _extra_types(sentence: Ints) -> set[str]:
    """Tokens of a window that are no words of the vocabulary."""
    return {"."} | {token for kind in np.unique(sentence) for token in words(EXTRAS[kind])}


def _sources(plan: Plan, sentence: Ints, rng: np.random.Generator) -> Ints:
    """Which session's body an answer has: its own, or that of an earlier one of its group with the same ending."""
    own = np.arange(plan.sessions)
    key = plan.group * len(EXTRAS) + sentence
    order = np.lexsort((own, key))
    starts = np.r_[True, np.diff(key[order]) != 0]
    first = np.empty(plan.sessions, dtype=np.int64)
    first[order] = order[np.maximum.accumulate(np.where(starts, own, 0))]
    able = first != own
    # Among so many sessions so many repeats, spread over those that have something to repeat.
    wanted = 1 - plan.curve(p.DISTINCT)
    repeats = able & (rng.random(plan.sessions) < np.minimum(1.0, wanted / max(able.mean(), 1e-9)))
    for window, share in zip(_windows(plan), DIFFERENT, strict=True):
        target = int(window.sum()) - round(share * int(window.sum()))
        more = target - int(repeats[window].sum())
        choice = np.flatnonzero(window & able & (repeats == (more < 0)))
        repeats[rng.choice(choice, size=min(abs(more), len(choice)), replace=False)] = more > 0
    return np.where(repeats, first, own)


def _in_use(plan: Plan, limits: tuple[int, int]) -> Ints:
    """How many words are in use at each session."""
    anchors = ((2500, limits[0]), (8000, 330), (10_000, 300), (10_700, limits[1]))
    return np.rint(np.exp(plan.curve([(at, float(np.log(size))) for at, size in anchors]))).astype(np.int64)


def _draw_ranks(in_use: Ints, rng: np.random.Generator) -> Ints:
    heights: Floats = np.cumsum(1.0 / (np.arange(len(VOCABULARY)) + _SHIFT))
    ranks = np.searchsorted(heights, rng.random(len(in_use)) * heights[in_use - 1], side="right")
    return np.minimum(ranks, in_use - 1)


def _show_all(ranks: Ints, places: Ints, limit: int, rng: np.random.Generator) -> None:
    """Lets every word in use come up in a window: words that did not take places of very common ones."""
    missing = np.setdiff1d(np.arange(limit), ranks[places])
    common = places[ranks[places] < _COMMON]
    count = min(len(missing), len(common) // 2)
    ranks[rng.choice(common, size=count, replace=False)] = missing[:count]


def _compose(ranks: Ints, lengths: Ints) -> list[str]:
    drawn = [VOCABULARY[rank] for rank in ranks.tolist()]
    bodies, start = [], 0
    for length in lengths.tolist():
        body = drawn[start : start + length]
        start += length
        parts = [" ".join(body[i : i + _SENTENCE]) + "." for i in range(0, length, _SENTENCE)]
        bodies.append(" ".join(parts))
    return bodies
