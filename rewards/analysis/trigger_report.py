"""The design of a k-of-n trigger: false alarms of a whole run, delays at higher rates, and the smallest sound k."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from rewards.analysis.trigger_design import MAX_N, alarm_curve
from rewards.counted import counted

HIGHER_RATES = (0.1, 0.2, 0.35, 0.5)
_SETTLED = 1e-8
_SHORTEST = 6  # windows before the hazard is looked at
_NEVER = 1e9  # sessions: an alarm later than that is none

RECURRENCE = (
    "Phrases that were chosen after they were seen to recur have no such guarantee: their recurrence is what they were "
    "chosen for."
)
INDEPENDENCE = (
    "Sessions are taken as independent; answers to one prompt or of one policy resemble each other, and then alarms "
    "are more frequent."
)


@dataclass(frozen=True)
class Design:
    """A trigger and the run it watches.

    base_rate: share of sessions that match while all is well. phrases: how many are watched, each by a window of its
    own. alpha: false alarms that are allowed in the run, over all phrases.
    Raises: ValueError for what is no design.
    """

    base_rate: float
    k: int
    n: int
    sessions: int
    phrases: int = 1
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.base_rate <= 1:
            raise ValueError(f"the base rate is {self.base_rate}; a share lies in 0..1")
        if not 1 <= self.k <= self.n <= MAX_N:
            raise ValueError(f"k = {self.k}, n = {self.n}: needs 1 <= k <= n <= {MAX_N}")
        if self.sessions < 1 or self.phrases < 1:
            raise ValueError("a run has at least one session and watches at least one phrase")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it lies between 0 and 1")


@dataclass(frozen=True)
class Law:
    """When the first alarm comes: exactly up to a session, and from there at a chance per session that stays.

    A window forgets what it held n sessions ago, so the chance of an alarm in the next session, given none so far,
    settles; it is computed until it changes by less than one part in 10^8.
    Shapes: curve, chance of an alarm by session 1, 2, ...
    """

    curve: NDArray[np.float64]
    hazard: float

    @classmethod
    def of(cls, p: float, k: int, n: int, sessions: int) -> "Law":
        """Raises: ValueError for what is no design."""
        length = min(sessions, _SHORTEST * n)
        while True:
            curve = alarm_curve(p, k, n, length)
            hazard, settled = _hazard(curve, n)
            if settled or length == sessions:
                return cls(curve, hazard)
            length = min(sessions, 2 * length)

    def by(self, session: int) -> float:
        """Chance of an alarm up to and including a session."""
        if session <= len(self.curve):
            return float(self.curve[session - 1])
        more = (session - len(self.curve)) * np.log1p(-self.hazard)
        # 1 - (1 - F) exp(more), without losing a small F in the difference
        return float(self.curve[-1] - (1 - self.curve[-1]) * np.expm1(more))

    def quantile(self, share: float) -> int | None:
        """First session by which the alarm has come in that share of runs; None where that takes a billion."""
        if self.curve[-1] >= share:
            return int(np.searchsorted(self.curve, share)) + 1
        if self.hazard <= 0:
            return None
        more = float(np.log((1 - share) / (1 - self.curve[-1])) / np.log1p(-self.hazard))
        return len(self.curve) + int(np.ceil(more - 1e-9)) if more < _NEVER else None

    def mean(self) -> float | None:
        """Mean session of the alarm; None where that is above a billion."""
        survive = 1 - self.curve
        if self.hazard <= 0:
            return float(1 + survive.sum()) if survive[-1] <= 1e-12 else None
        found = float(1 + survive[:-1].sum() + survive[-1] / self.hazard)
        return found if found < _NEVER else None


def report(design: Design, source: str = "given") -> dict[str, Any]:
    """What the trigger does. Every chance is of an event in a run in which nothing but the base rate is at work.

    Keys: the design's; base_rate_source; pointwise (one full window), run_false_alarm, run_false_alarm_phrases (at
    most, by adding up), delays (rate, mean, median, p95: sessions from an empty window at a higher rate), smallest_k
    (k, run_false_alarm, allowed: alpha / phrases; k is null where no k up to n will do), sound, verdict, caveats.
    """
    alarm = Law.of(design.base_rate, design.k, design.n, design.sessions).by(design.sessions)
    smallest = smallest_k(design)
    found: dict[str, Any] = {
        "base_rate": design.base_rate,
        "base_rate_source": source,
        "k": design.k,
        "n": design.n,
        "sessions": design.sessions,
        "phrases": design.phrases,
        "alpha": design.alpha,
        "pointwise": float(binom.sf(design.k - 1, design.n, design.base_rate)),
        "run_false_alarm": alarm,
        "run_false_alarm_phrases": min(1.0, design.phrases * alarm),
        "delays": [_delay(rate, design) for rate in HIGHER_RATES if rate > design.base_rate],
        "smallest_k": smallest,
        "sound": alarm <= design.alpha / design.phrases,
    }
    return found | {"verdict": _verdict(design, found), "caveats": [RECURRENCE, INDEPENDENCE]}


def smallest_k(design: Design) -> dict[str, Any]:
    """The smallest k whose false alarms over the run stay within alpha / phrases.

    Most k are decided by bounds: windows that share no session are independent, and all windows together alarm at
    most as often as their chances add up to.
    """
    allowed = design.alpha / design.phrases
    for k in range(1, design.n + 1):
        tail = float(binom.sf(k - 1, design.n, design.base_rate))
        apart = design.sessions // design.n
        if -np.expm1(apart * np.log1p(-tail)) > allowed if tail < 1 else apart > 0:
            continue
        alarm = Law.of(design.base_rate, k, design.n, design.sessions).by(design.sessions)
        if alarm <= allowed:
            return {"k": k, "run_false_alarm": alarm, "allowed": allowed}
    return {"k": None, "run_false_alarm": None, "allowed": allowed}


def upper_limit(hits: int, sessions: int, confidence: float = 0.95) -> float:
    """One-sided upper limit of a rate: 0 of 300 still allows 1 %. Source: Clopper and Pearson 1934."""
    return 1.0 if hits == sessions else float(beta.ppf(confidence, hits + 1, sessions - hits))


def _hazard(curve: NDArray[np.float64], n: int) -> tuple[float, bool]:
    """Chance of an alarm in the last session given none before, and whether it has settled."""
    if len(curve) < 2 * n + 2:
        return 0.0, False
    survive = 1 - curve
    if survive[-1] <= 1e-12:
        return 0.0, True  # what is left is nothing
    gained = np.diff(curve)
    now, before = (float(gained[-i] / survive[-i - 1]) for i in (1, 1 + n))
    return now, abs(now - before) <= _SETTLED * max(now, 1e-300)


def _delay(rate: float, design: Design) -> dict[str, Any]:
    law = Law.of(rate, design.k, design.n, 1 << 20)
    return {"rate": rate, "mean": law.mean(), "median": law.quantile(0.5), "p95": law.quantile(0.95)}


def _verdict(design: Design, found: dict[str, Any]) -> str:
    run = f"a run of {counted(design.sessions, 'session')}"
    watched = "" if design.phrases == 1 else f" with {design.phrases:,} phrases watched"
    false = f"{100 * found['run_false_alarm_phrases']:.3g} %"
    allowed = f"{100 * design.alpha:.3g} %"
    most = "" if design.phrases == 1 else "at most "
    smallest = found["smallest_k"]["k"]
    if found["sound"]:
        told = f"Sound: {run}{watched} fires by chance in {most}{false} of cases, within the {allowed} allowed."
    else:
        told = f"Not sound: {run}{watched} fires by chance in {most}{false} of cases; {allowed} is allowed."
    if smallest is None:
        return f"{told} No k up to n = {design.n} is: take a longer window or a rarer phrase."
    return f"{told} The smallest sound k of n = {design.n} is {smallest}."
