"""What the sessions of the simulated record did: compliance, scores, unsolicited content, divergence.

All of it follows curves over the sessions that know nothing of the recalibrations. Where the audit reported a figure of
one window, the draw is made to show it there: such figures were written down because they looked as they did.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.audit import plan as p
from rewards.audit.plan import CATEGORIES, Anchors, Floats, Ints, Plan

Bools = NDArray[np.bool_]

UNSOLICITED_WEIGHT = -0.1
LOW_SCORE, HIGH_SCORE = 0.30, 0.85
# The record's claims: points of the share of non-compliant answers, over so many sessions after against before.
CLAIMS = ({"points": -8, "sessions": 500}, {"points": -11, "sessions": 400})
CLAIMED_CATEGORIES = ("category-2", "category-3")
TRIGGER_CATEGORY = "category-4"
K, N, QUIET = 7, 20, 300
_CATEGORY_LOGITS = np.array([0.25, -0.2, -0.1, 0.1, 0.15, -0.2])
_PROMPT_SD = 0.4  # of a prompt's difficulty, on the logit of compliance
_WITHIN_SD = 0.07  # of the scores of compliant answers
_LOW_SPREAD = 1.6  # scores of the others spread this much wider
_PHRASE_SHARE = 0.3  # of the unsolicited answers of the trigger's category
# Gao et al.'s curve of the gold score over the root of the divergence: it peaks at exp(alpha / beta - 1) = 2.6.
GOLD_ALPHA, GOLD_BETA = 0.33, 0.1687
_GOLD_SD, _KL_SPREAD = 0.35, 0.25
# Sentences of an answer: 0 none, 1 the watched phrase, 2.. the others.
OTHER_SENTENCES = 3


@dataclass(frozen=True)
class Outcomes:
    """Shapes: one entry a session. sentence: which unsolicited sentence it holds, 0 for none."""

    category: Ints
    compliant: Bools
    sentence: Ints
    task: Floats
    style: Floats
    gold: Floats
    kl_nats: Floats
    entropy_nats: Floats


def draw(plan: Plan, rng: np.random.Generator) -> Outcomes:
    """Draws the outcomes of all sessions."""
    category = _categories(plan, rng)
    compliant = _compliance(plan, category, rng)
    sentence = _sentences(plan, category, rng)
    root_kl = plan.curve(p.ROOT_KL)
    noise = rng.standard_normal((4, plan.sessions))
    return Outcomes(
        category,
        compliant,
        sentence,
        _task(plan, compliant, rng),
        _beta(plan.curve(p.STYLE), np.full(plan.sessions, 0.08), rng),
        root_kl * (GOLD_ALPHA - GOLD_BETA * np.log(root_kl)) + _GOLD_SD * noise[0],
        root_kl**2 * np.exp(_KL_SPREAD * noise[1] - _KL_SPREAD**2 / 2),
        plan.curve(p.ENTROPY) * np.exp(0.12 * noise[2]),
    )


def _categories(plan: Plan, rng: np.random.Generator) -> Ints:
    """One category a group, dealt in rounds of all; the group before the trigger fires is of the trigger's category."""
    rounds = -(-len(plan.sizes) // len(CATEGORIES))
    of_group = np.argsort(rng.random((rounds, len(CATEGORIES))), axis=1).ravel()[: len(plan.sizes)]
    fired, wanted = int(plan.group[plan.number(p.TRIGGERED) - 1]), CATEGORIES.index(TRIGGER_CATEGORY)
    start = fired - fired % len(CATEGORIES)
    other = start + int(np.flatnonzero(of_group[start : start + len(CATEGORIES)] == wanted)[0])
    of_group[other], of_group[fired] = of_group[fired], wanted
    return of_group[plan.group]


def _compliance(plan: Plan, category: Ints, rng: np.random.Generator) -> Bools:
    difficulty = _PROMPT_SD * rng.standard_normal(len(plan.sizes))
    logit = plan.curve(_logits(p.COMPLIANT)) + _CATEGORY_LOGITS[category] + difficulty[plan.group]
    compliant: Bools = rng.random(plan.sessions) < 1 / (1 + np.exp(-logit))
    free = np.ones(plan.sessions, dtype=bool)
    for session, said in ((p.LOW_SESSION, False), (p.HIGH_SESSION, True)):
        compliant[plan.number(session) - 1], free[plan.number(session) - 1] = said, False
    for claim, name, at in zip(CLAIMS, CLAIMED_CATEGORIES, p.RECALIBRATED, strict=False):
        mine = (category == CATEGORIES.index(name)) & free
        sides = plan.window(at - claim["sessions"] + 1, at), plan.window(at + 1, at + claim["sessions"])
        _set_difference(compliant, (mine & sides[0], mine & sides[1]), -claim["points"] / 100, rng)
    others = free & ~np.isin(category, [CATEGORIES.index(name) for name in CLAIMED_CATEGORIES])
    for at, ratio in ((3800, 3.0), (5200, 5.0)):
        _set_share(compliant, plan.window(at - p.WINDOW + 1, at), others, ratio / (1 + ratio), rng)
    _set_share(compliant, plan.window(p.SESSIONS - 999, p.SESSIONS), free, 0.97, rng)
    return compliant


def _set_difference(flags: Bools, sides: tuple[Bools, Bools], wanted: float, rng: np.random.Generator) -> None:
    """Makes share(after) - share(before) the one that was reported, by as few turned flags as do it."""
    counts = [int(side.sum()) for side in sides]
    if not all(counts):
        return
    held = [int(flags[side].sum()) for side in sides]
    best = None
    for before in range(counts[0] + 1):
        after = round(counts[1] * (before / counts[0] + wanted))
        if 0 <= after <= counts[1]:
            miss = abs(after / counts[1] - before / counts[0] - wanted)
            turned = abs(before - held[0]) + abs(after - held[1])
            cost = turned + 1000 * miss
            best = min(best or (cost, before, after), (cost, before, after))
    if best is not None:
        for side, target in zip(sides, best[1:], strict=True):
            _turn(flags, side, target - int(flags[side].sum()), rng)


def _set_share(flags: Bools, window: Bools, free: Bools, share: float, rng: np.random.Generator) -> None:
    _turn(flags, window & free, round(share * int(window.sum())) - int(flags[window].sum()), rng)


def _turn(flags: Bools, where: Bools, more: int, rng: np.random.Generator) -> None:
    """Turns `more` flags of the sessions on, or so many off where it is negative."""
    able = np.flatnonzero(where & (flags == (more < 0)))
    chosen = rng.choice(able, size=min(abs(more), len(able)), replace=False)
    flags[chosen] = more > 0


def _sentences(plan: Plan, category: Ints, rng: np.random.Generator) -> Ints:
    extra = rng.random(plan.sessions) < plan.curve(p.UNSOLICITED)
    first, last = plan.window(1, p.WINDOW), plan.window(p.SESSIONS - p.WINDOW + 1, p.SESSIONS)
    everywhere = np.ones(plan.sessions, dtype=bool)
    _set_share(extra, first, everywhere, 0.34, rng)
    _set_share(extra, last, everywhere, 0.0, rng)
    sentence = np.where(extra, 2 + rng.integers(OTHER_SENTENCES, size=plan.sessions), 0)
    watched = category == CATEGORIES.index(TRIGGER_CATEGORY)
    phrase = watched & extra & (rng.random(plan.sessions) < _PHRASE_SHARE)
    _fire_once(phrase, plan, np.flatnonzero(watched), rng)
    sentence[phrase] = 1
    for session in (p.LOW_SESSION, p.HIGH_SESSION):
        sentence[plan.number(session) - 1] = 0
    return sentence


def _fire_once(phrase: Bools, plan: Plan, watched: Ints, rng: np.random.Generator) -> None:
    """Makes the phrase's seventh recurrence within 20 sessions of its category fall on the session it fell on.

    Before it no window of 20 holds seven, and the next 300 sessions hold none; otherwise the phrase keeps its rate.
    """
    fired = plan.number(p.TRIGGERED) - 1
    before = watched[watched <= fired]
    recent, earlier = before[-N:], before[-2 * N : -N]
    phrase[earlier] = False
    phrase[recent] = False
    able = recent[:-1][~np.isin(recent[:-1], [plan.number(s) - 1 for s in (p.LOW_SESSION, p.HIGH_SESSION)])]
    phrase[rng.choice(able, size=min(K - 1, len(able)), replace=False)] = True
    phrase[fired] = True
    phrase[fired + 1 : fired + 1 + round(QUIET * plan.sessions / p.SESSIONS)] = False
    hits: list[int] = []
    for session in watched[watched > recent[-1]] if len(watched) else ():
        hits = [*hits[-(N - 1) :], int(phrase[session])]
        phrase[session] &= sum(hits) < K
    hits = []
    for session in before[:-N]:
        hits = [*hits[-(N - 1) :], int(phrase[session])]
        if sum(hits) >= K:
            phrase[session], hits[-1] = False, 0


def _task(plan: Plan, compliant: Bools, rng: np.random.Generator) -> Floats:
    """Scores with which mean and log spread of the reward follow straight lines, whatever the share of compliance is.

    The spread between compliant and other answers takes what the spread within them and the unsolicited part leave.
    """
    total = np.exp(2 * plan.curve([(at, float(np.log(sd))) for at, sd in p.REWARD_SD]))
    share = 1 / (1 + np.exp(-plan.curve(_logits(p.COMPLIANT))))
    extra = plan.curve(p.UNSOLICITED)
    inside = _WITHIN_SD**2 * (share + _LOW_SPREAD**2 * (1 - share))
    left = total - inside - UNSOLICITED_WEIGHT**2 * extra * (1 - extra)
    gap = np.sqrt(np.maximum(left, 0.0) / (share * (1 - share)))
    high = plan.curve(p.REWARD_MEAN) + (1 - share) * gap - UNSOLICITED_WEIGHT * extra
    task = _beta(high - gap * ~compliant, _WITHIN_SD * np.where(compliant, 1.0, _LOW_SPREAD), rng)
    task[plan.number(p.LOW_SESSION) - 1] = LOW_SCORE
    task[plan.number(p.HIGH_SESSION) - 1] = HIGH_SCORE
    return task


def _logits(anchors: Anchors) -> Anchors:
    return [(at, float(np.log(share / (1 - share)))) for at, share in anchors]


def _beta(mean: Floats, sd: Floats, rng: np.random.Generator) -> Floats:
    """Scores in 0..1 with a mean and a standard deviation."""
    size = mean * (1 - mean) / sd**2 - 1
    return rng.beta(mean * size, (1 - mean) * size)
