"""What a mean hides: the change of the worst answers, and the change of every quantile with a joint band."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.intervals import CONFIDENCE
from rewards.analysis.paired import Bca, Difference, acceleration, resampled_counts
from rewards.counted import counted

Floats = NDArray[np.float64]

SHARE = 0.05
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
REPLICATES = 2000
MOST_STUCK = 0.5  # share of resamples without a change, beyond which their spread says nothing
FEWEST_PROMPTS = 100  # five of them in the worst 5 %
MOST_ANSWERS = 50_000


@dataclass(frozen=True)
class Answers:
    """Answers of one side, one value and one prompt (0..prompts-1) each; less is worse.

    Every prompt weighs 1, shared by its answers.
    """

    values: Floats
    prompt: NDArray[np.int64]

    def sorted(self, prompts: int) -> "_Sorted":
        """In ascending order, each with its share of its prompt."""
        order = np.argsort(self.values, kind="stable")
        share = 1.0 / np.bincount(self.prompt, minlength=prompts)
        return _Sorted(self.values[order], self.prompt[order], share[self.prompt[order]])


@dataclass(frozen=True)
class _Sorted:
    values: Floats
    prompt: NDArray[np.int64]
    share: Floats

    def read(self, counts: NDArray[np.int64], quantiles: Sequence[float]) -> tuple[Floats, Floats]:
        """CVaR and quantiles of each replicate. Shapes: counts (replicates, prompts) -> (replicates,), (.., quantiles).

        A quantile is the smallest value up to which that share of the weight lies.
        """
        weight = counts[:, self.prompt] * self.share
        below = np.cumsum(weight, axis=1)
        total = float(counts.shape[1])
        wanted = np.asarray(quantiles) * total * (1 - 1e-12)  # a share reached exactly must not be missed by rounding
        places = np.array([np.searchsorted(row, wanted) for row in below])
        places = np.minimum(places, len(self.values) - 1)
        tail = SHARE * total
        last = min(len(self.values), int((below < tail).sum(axis=1).max()) + 1)
        part = np.clip(tail - (below[:, :last] - weight[:, :last]), 0.0, weight[:, :last])
        return np.asarray(part @ self.values[:last] / tail), self.values[places]

    def influence(self, prompts: int) -> Floats:
        """How each prompt moves the CVaR, up to a constant factor. Shapes: (prompts,)."""
        value, (threshold,) = self._whole(prompts)
        each = np.minimum(self.values - threshold, 0.0) / SHARE + threshold - value
        return np.asarray(np.bincount(self.prompt, weights=each * self.share, minlength=prompts), dtype=np.float64)

    def _whole(self, prompts: int) -> tuple[float, Floats]:
        value, threshold = self.read(np.ones((1, prompts), dtype=np.int64), [SHARE])
        return float(value[0]), threshold[0]


def cvar(values: Floats, share: float = SHARE) -> float:
    """Mean of the worst share of the values; the value at the edge counts in part.

    Raises: ValueError for no values or a share outside 0..1.
    Source: Rockafellar and Uryasev 2000.
    """
    if not len(values) or not 0 < share <= 1:
        raise ValueError(f"need values and a share in 0..1, got {len(values)} values and {share}")
    ordered, wanted = np.sort(values), share * len(values)
    weight = np.clip(wanted - np.arange(len(values)), 0.0, 1.0)
    return float(weight @ ordered / wanted)


def tail_changes(
    a: Answers, b: Answers, prompts: int, rng: np.random.Generator, replicates: int = REPLICATES
) -> dict[str, Any]:
    """Change of the mean of the worst 5 % and of the quantiles, new minus old, by one paired bootstrap over prompts.

    Keys: cvar_5 (estimate, low, high, n, p, mde, why, a, b: the values of both sides), quantiles (q, a, b, estimate,
    low, high: a band that covers all of them together in at least 95 % of cases, by the largest studentised deviation;
    resampled quantiles spread too widely, so it is cautious), n (prompts), why.
    Source: Doksum 1974 (shift function); Efron 1987 (BCa).
    Departures: above 50,000 answers a side, prompts are sampled down to that many; `n` says how many.
    """
    why = _why_not(a, b, prompts)
    if why is not None:
        nothing = Difference(None, None, None, prompts, None, None, why).as_dict()
        return {"cvar_5": nothing | {"a": None, "b": None}, "quantiles": [], "n": prompts, "why": why}
    a, b, prompts = _thinned(a, b, prompts, rng)
    sides = a.sorted(prompts), b.sorted(prompts)
    whole = [side.read(np.ones((1, prompts), dtype=np.int64), QUANTILES) for side in sides]
    draws: list[Floats] = []
    shifts: list[Floats] = []
    for counts in resampled_counts(prompts, rng, replicates, max(len(a.values), len(b.values))):
        (old, old_at), (new, new_at) = (side.read(counts, QUANTILES) for side in sides)
        draws.append(new - old)
        shifts.append(new_at - old_at)
    ends = float(whole[0][0][0]), float(whole[1][0][0])
    influence = sides[1].influence(prompts) - sides[0].influence(prompts)
    worst = _worst(ends, np.concatenate(draws), influence, prompts)
    quantiles = _band(whole[0][1][0], whole[1][1][0], np.concatenate(shifts))
    return {"cvar_5": worst, "quantiles": quantiles, "n": prompts, "why": None}


def _worst(ends: tuple[float, float], draws: Floats, influence: Floats, prompts: int) -> dict[str, Any]:
    change = ends[1] - ends[0]
    size = max(abs(ends[0]), abs(ends[1]), float(np.abs(draws).max()))
    stuck = float((np.abs(draws - change) <= 1e-9 * size).mean()) > MOST_STUCK
    if stuck and abs(change) <= 1e-9 * size:
        why = "the worst 5 % are at one value on both sides, in most resamples: no interval"
        found = Difference(0.0, None, None, prompts, None, None, why)
    else:
        bootstrap = Bca.of(change, draws, acceleration(influence))
        mde = None if stuck else bootstrap.mde
        found = Difference(change, *bootstrap.interval(), prompts, bootstrap.p(), mde)
    return found.as_dict() | {"a": ends[0], "b": ends[1]}


def _band(old: Floats, new: Floats, shifts: Floats) -> list[dict[str, Any]]:
    change = new - old
    spread = shifts.std(axis=0, ddof=1)
    known = spread > 0
    rows = []
    widest = 0.0
    if known.any():
        deviations = np.abs(shifts[:, known] - change[known]) / spread[known]
        widest = float(np.quantile(deviations.max(axis=1), CONFIDENCE))
    for i, q in enumerate(QUANTILES):
        half = widest * float(spread[i])
        low, high = (float(change[i] - half), float(change[i] + half)) if known[i] else (None, None)
        row = {"q": q, "a": float(old[i]), "b": float(new[i]), "estimate": float(change[i]), "low": low, "high": high}
        rows.append(row)
    return rows


def _why_not(a: Answers, b: Answers, prompts: int) -> str | None:
    if prompts < FEWEST_PROMPTS:
        return f"{counted(prompts, 'prompt')}: the worst 5 % need at least {FEWEST_PROMPTS}"
    if len(np.unique(np.concatenate([np.unique(a.values), np.unique(b.values)]))) <= 2:
        return "the metric has two values: its mean says all there is"
    return None


def _thinned(a: Answers, b: Answers, prompts: int, rng: np.random.Generator) -> tuple[Answers, Answers, int]:
    answers = max(len(a.values), len(b.values))
    if answers <= MOST_ANSWERS:
        return a, b, prompts
    kept = np.sort(rng.choice(prompts, size=max(FEWEST_PROMPTS, prompts * MOST_ANSWERS // answers), replace=False))
    place = np.full(prompts, -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    sides = []
    for side in (a, b):
        mine = place[side.prompt] >= 0
        sides.append(Answers(side.values[mine], place[side.prompt[mine]]))
    return sides[0], sides[1], len(kept)
