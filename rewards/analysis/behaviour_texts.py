"""What the answers of a run are like at its two ends and along it: richness, likeness, repetition. Reads few texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from rewards.analysis.behaviour import Richness, compare_richness, differing_pairs, ngrams, words
from rewards.analysis.data import RunData
from rewards.analysis.diversity import ngram_kernel, self_bleu, vendi
from rewards.analysis.intervals import CONFIDENCE, Estimate, first_last, mean_estimate, share_estimate
from rewards.analysis.repetition import find_loop, longest_repeat, repeated_share, zlib_ratio
from rewards.analysis.summary import end_windows, phrases_of
from rewards.functions.sentences import without_phrases

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

# Reading more of a window would change no figure and take longer.
CHARACTERS = 200_000
ANSWERS = 200
BIGRAMS = 2000
# Self-BLEU and Vendi score: so many samples of distinct prompts, one answer each, of at most so many texts.
SAMPLES = 5
SAMPLE = 40
FEWEST_SAMPLE = 5

CURVE = 12
CURVE_WINDOW = 200
CURVE_CHARACTERS = 30_000
# A loop shows at the end of a text, and the cost of looking grows faster than the text.
TAIL = 1000
# A text at least half of which stands twice in it counts as looping; a loop worth showing fills a fifth of its text.
LOOPING = 0.5
SHOWN = 0.2


@dataclass(frozen=True)
class Window:
    """Answers at one end of a run.

    Shapes: one entry an answer, in order. groups: code of its prompt group; categories: code of its category, -1 none.
    """

    answers: list[str]
    tokens: list[list[str]]
    groups: list[Hashable]
    categories: list[int]

    def of(self, category: int) -> Window:
        """The answers of one category."""
        mine = [i for i, code in enumerate(self.categories) if code == category]
        answers, tokens = [self.answers[i] for i in mine], [self.tokens[i] for i in mine]
        return Window(answers, tokens, [self.groups[i] for i in mine], [category] * len(mine))


def task_part(data: RunData) -> str:
    """Which part of an answer richness is measured on, in words."""
    phrases = len(set(phrases_of(data.events, data.run_id)))
    if not phrases:
        return "whole answers: no reward function names sentences to leave out"
    what = "the sentence" if phrases == 1 else f"the {phrases} sentences"
    return f"answers without {what} that the reward functions look for"


def ends(data: RunData, groups: Index) -> tuple[Window, Window] | str:
    """The answers at both ends, as many of each category from the one as from the other, or why there are none.

    A category that entered on the way would otherwise pass for a change of vocabulary.
    """
    if not data.online:
        return "its sessions are demonstrations or pairs, not answers of the policy"
    windows = end_windows(data.sessions)
    if windows is None:
        return "fewer than two sessions"
    phrases = tuple(phrases_of(data.events, data.run_id))
    read = [_read(data, window.start, window.stop, at_end) for window, at_end in zip(windows, (0, 1), strict=True)]
    if not all(read):
        return "no texts are on record at one end of the run or both"
    codes = [data.codes[list(texts)] for texts in read]
    common = np.intersect1d(codes[0], codes[1])
    if len(common) == 0:
        return "no category is in both ends of the run: their answers cannot be compared"
    room = {int(code): min(int((found == code).sum()) for found in codes) for code in common}
    found = []
    for texts, mine, outwards in zip(read, codes, (1, -1), strict=True):
        left = dict(room)
        kept = []
        for session, code in list(zip(texts, mine.tolist(), strict=True))[::outwards]:
            if left.get(code, 0):
                left[code] -= 1
                kept.append(session)
        kept.sort()
        answers = [without_phrases(texts[session], phrases) for session in kept]
        named = [None if groups[session] < 0 else int(groups[session]) for session in kept]
        tokens = [words(text) for text in answers]
        found.append(Window(answers, tokens, list(named), data.codes[kept].tolist()))
    return found[0], found[1]


def _read(data: RunData, start: int, stop: int, at_end: int) -> dict[int, str]:
    """Index of the session -> text, from the outer end of the run on, as far as the window's characters go."""
    texts = data.texts(start + 1, stop)
    order = range(len(texts) - 1, -1, -1) if at_end else range(len(texts))
    kept: dict[int, str] = {}
    room = CHARACTERS
    for place in order:
        text = texts[place]
        if text is None:
            continue
        if len(text) > room and kept:
            break
        room -= len(text)
        kept[start + place] = text
    return dict(sorted(kept.items()))


def compared(first: Window, last: Window, rng: np.random.Generator) -> dict[str, Any]:
    """Vocabulary, distinct answers and word pairs, self-BLEU, Vendi score, likeness within prompts: at equal size."""
    richness = _richness(first, last)
    pairs: list[list[list[Hashable]]] = [[list(ngrams(text, 2)) for text in w.tokens] for w in (first, last)]
    distinct = compare_richness(pairs[0], pairs[1], (first.groups, last.groups), BIGRAMS, per_item=True)
    types = [len({token for text in window.tokens for token in text}) for window in (first, last)]
    return {
        "vocabulary": richness["vocabulary"] | {"raw_types": types},
        "diversity": richness["diversity"],
        "distinct_2": _rich(distinct, "share of distinct word pairs", "word pairs drawn"),
        **_likeness(first, last, rng),
        "within_prompt": richness["within_prompt"],
    }


def by_category(first: Window, last: Window, names: Sequence[str]) -> dict[str, Any]:
    """Vocabulary, distinct answers and likeness within prompts of each category that both ends have."""
    common = sorted({*first.categories} & {*last.categories} - {-1})
    return {names[code]: _richness(first.of(code), last.of(code)) for code in common}


def _richness(first: Window, last: Window) -> dict[str, Any]:
    members = (first.groups, last.groups)
    vocabulary = compare_richness(first.tokens, last.tokens, members)
    whole = [[[text] for text in window.answers] for window in (first, last)]
    diversity = compare_richness(whole[0], whole[1], members, ANSWERS, per_item=True)
    within = [differing_pairs(window.answers, window.groups) for window in (first, last)]
    return {
        "vocabulary": _rich(vocabulary, "distinct words and marks", "words and marks drawn"),
        "diversity": _rich(diversity, "share of distinct answers", "answers drawn"),
        "within_prompt": first_last(*within)
        | {"unit": "chance that two answers to a prompt differ", "counts": "prompts"},
    }


def _likeness(first: Window, last: Window, rng: np.random.Generator) -> dict[str, Any]:
    """Means over samples that share no prompt, so that their spread gives the interval."""
    chosen = [_one_per_group(window.groups, rng) for window in (first, last)]
    size = min(SAMPLE, *(len(found) // SAMPLES for found in chosen))
    units = {"self_bleu": "BLEU of an answer against others, to other prompts", "vendi": "effective number of answers"}
    if size < FEWEST_SAMPLE:
        nothing = Estimate(None, None, None, 0, why=f"fewer than {SAMPLES * FEWEST_SAMPLE} prompts at one of the ends")
        return {name: first_last(nothing, nothing) | {"unit": unit, "sample": None} for name, unit in units.items()}
    found: dict[str, list[Estimate]] = {name: [] for name in units}
    for window, places in zip((first, last), chosen, strict=True):
        samples = [[window.tokens[i] for i in places[k * size : (k + 1) * size]] for k in range(SAMPLES)]
        scores = {
            "self_bleu": [float(self_bleu(sample).mean()) for sample in samples],
            "vendi": [vendi(ngram_kernel(sample)) for sample in samples],
        }
        limits = {"self_bleu": (0.0, 1.0), "vendi": (1.0, float(size))}
        for name, values in scores.items():
            found[name].append(_over_samples(np.array(values), limits[name], SAMPLES * size))
    return {name: first_last(*found[name]) | {"unit": unit, "sample": size} for name, unit in units.items()}


def _over_samples(values: Floats, limits: tuple[float, float], n: int) -> Estimate:
    value = float(values.mean())
    half = float(stdtrit(SAMPLES - 1, 0.5 + CONFIDENCE / 2)) * float(values.std(ddof=1)) / np.sqrt(SAMPLES)
    if half == 0:
        return Estimate(value, None, None, n, why="all samples are equal: their spread gives no interval")
    return Estimate(value, max(limits[0], value - half), min(limits[1], value + half), n)


def _one_per_group(groups: Sequence[Hashable], rng: np.random.Generator) -> list[int]:
    """Places of one answer a group, all in random order."""
    chosen: dict[Hashable, int] = {}
    for place in rng.permutation(len(groups)).tolist():
        group = groups[place]
        chosen.setdefault(("", place) if group is None else group, place)
    return list(chosen.values())


def repetition(data: RunData) -> dict[str, Any]:
    """How much answers repeat themselves along the run, and what the worst of each window says again and again.

    Units: rep_n share of repeated 4-grams of words; longest_repeat share of the characters; zlib_ratio of the bytes;
    looping share of answers at least half of which stands twice. All on the last 1,000 characters of an answer.
    """
    nothing: dict[str, Any] = {"curve": [], "loops": []}
    if not data.online:
        return nothing | {"why": "its sessions are demonstrations or pairs, not answers of the policy"}
    if data.sessions < 2:
        return nothing | {"why": "fewer than two sessions"}
    size = max(1, min(CURVE_WINDOW, data.sessions // CURVE))
    starts = np.unique(np.linspace(0, data.sessions - size, min(CURVE, data.sessions)).astype(np.int64)).tolist()
    curve, loops = [], []
    for start in starts:
        row, loop = _repetition_window(data, start, start + size)
        if row is not None:
            curve.append(row)
        if loop is not None:
            loops.append(loop)
    return {"curve": curve, "loops": loops, "why": None if curve else "no texts are on record"}


def _repetition_window(data: RunData, start: int, stop: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    texts: list[tuple[int, str]] = []
    room = CURVE_CHARACTERS
    for place, text in enumerate(data.texts(start + 1, stop)):
        tail = (text or "")[-TAIL:]
        if tail and (len(tail) <= room or not texts):
            room -= len(tail)
            texts.append((start + place + 1, tail))
    if not texts:
        return None, None
    longest = np.array([longest_repeat(text)[0] / len(text) for _, text in texts])
    ratios = [zlib_ratio(text) for _, text in texts]
    repeated = [repeated_share(words(text)) for _, text in texts]
    figures = {
        "rep_n": mean_estimate(np.array([np.nan if value is None else value for value in repeated]), (0.0, 1.0)),
        "longest_repeat": mean_estimate(longest, (0.0, 1.0)),
        "zlib_ratio": mean_estimate(np.array([np.nan if value is None else value for value in ratios])),
        "looping": share_estimate((longest >= LOOPING).astype(np.float64)),
    }
    row: dict[str, Any] = {"first_session": start + 1, "last_session": stop, "n": len(texts)}
    row |= {name: figure.as_dict() for name, figure in figures.items()}
    return row, _worst_loop([texts[place] for place in np.argsort(-longest)[:2] if longest[place] >= SHOWN])


def _worst_loop(candidates: Sequence[tuple[int, str]]) -> dict[str, Any] | None:
    best: dict[str, Any] | None = None
    for session, text in candidates:
        loop = find_loop(text)
        share = 0.0 if loop is None else loop.covered / len(text)
        if loop is not None and share >= SHOWN and (best is None or share > best["share"]):
            best = {"session": session, "content": loop.content.strip(), "times": loop.times, "share": share}
    return best


def _rich(found: Richness, unit: str, drawn: str) -> dict[str, Any]:
    row = {"unit": unit, "drawn": drawn, "sample": found.sample, "items": list(found.items)}
    return first_last(found.first, found.last) | row
