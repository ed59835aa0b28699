"""What the forks of a run showed: paired arms of one checkpoint, with and without a recalibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rewards.analysis.columns import component, component_roles, floats, strings
from rewards.analysis.fork_effects import paired_effect
from rewards.analysis.fork_words import MEANINGS, fork_verdict, outcome_verdict
from rewards.analysis.multiplicity import benjamini_hochberg
from rewards.text import fold

if TYPE_CHECKING:
    from rewards.ledger import Ledger

Floats = NDArray[np.float64]
Rows = Callable[["ArmValues"], NDArray[np.bool_]]

COMPARISONS = (("with", "without"), ("sham", "without"), ("null", "control"))
WINDOW = 1000
TAIL, LAST, HELD_OUT = "all sessions after the event", f"last {WINDOW:,} sessions", "held-out answers at the end"
POINTS = ("compliance", "phrase")


@dataclass(frozen=True)
class ArmRun:
    """One arm on record. event: what was forked at, as the arm recorded it."""

    run_id: str
    arm: str
    seed: int
    event: Mapping[str, Any]
    checkpoint_step: int
    completed: bool


@dataclass(frozen=True)
class ArmValues:
    """An arm's rows as arrays. Shapes: one value a row; train rows in session order first, then held-out answers."""

    steps: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    treated: NDArray[np.bool_]
    outcomes: Mapping[str, Floats]
    texts: Sequence[str | None] = field(default=(), repr=False)

    def window(self, name: str, after: int, through: int) -> NDArray[np.bool_]:
        """The rows of a window: sessions of steps after..through, exclusive and inclusive."""
        if name == HELD_OUT:
            return self.held_out
        tail = ~self.held_out & (self.steps > after) & (self.steps <= through)
        if name == LAST:
            places = np.flatnonzero(tail)
            tail[places[:-WINDOW]] = False
        return tail

    def mean(self, outcome: str, rows: NDArray[np.bool_]) -> float:
        """Mean of the rows that have the outcome; NaN for none, and where the arm has no such outcome."""
        values = self.outcomes.get(outcome)
        kept = np.empty(0) if values is None else values[rows & np.isfinite(values)]
        return float(kept.mean()) if len(kept) else float("nan")


def section(ledger: Ledger, run: str) -> dict[str, Any]:
    """The forks of a run: per event and pair of arms, paired differences per seed of every outcome.

    Keys: forks, why. A fork: event, category, component, old_pct, new_pct, arms (treated, control), meaning, seeds,
    n_pairs, incomplete, steps_after, sessions_after, same_before, same_after, outcomes, verdict. An outcome: outcome,
    of (category or `other categories`), window, primary, unit, estimate, low, high, p, p_adjusted, p_least, n_pairs,
    mde, treated_mean, control_mean, sessions, verdict.
    Raises: LedgerError where a file of the ledger cannot be read.
    """
    arms = arms_of(ledger, run)
    if not arms:
        return {"forks": [], "why": "no fork of this run is on record"}
    values: dict[str, ArmValues] = {}
    found = []
    for key in sorted({_event_key(arm) for arm in arms}):
        mine = [arm for arm in arms if _event_key(arm) == key]
        for treated, control in COMPARISONS:
            pairs = _pairs(mine, treated, control)
            if not any(arm.arm == treated for arm in mine) or not pairs:
                continue
            for arm in (arm for pair in pairs for arm in pair if arm.run_id not in values):
                values[arm.run_id] = read_arm(ledger, arm)
            matched = [(values[a.run_id], values[b.run_id]) for a, b in pairs]
            entry = compare(pairs[0][0].event, treated, control, matched)
            incomplete = [arm.run_id for arm in mine if not arm.completed and arm.arm in (treated, control)]
            found.append(entry | {"seeds": [a.seed for a, _ in pairs], "incomplete": incomplete})
    why = None if found else "no pair of arms is finished"
    return {"forks": found, "why": why}


def arms_of(ledger: Ledger, run: str) -> list[ArmRun]:
    """The arms of all forks of a run, as their newest attempts announce themselves."""
    status = {one["run_id"]: one["status"] for one in ledger.runs()}
    found: dict[str, ArmRun] = {}
    for event in ledger.events(kind="attempt_started"):
        payload = event["payload"]
        origin, record = payload.get("fork_of") or {}, payload.get("fork") or {}
        if origin.get("run_id") == run and record.get("event"):
            name = event["run_id"]
            done = status.get(name) == "completed"
            found[name] = ArmRun(name, payload["arm"], record["seed"], record["event"], origin["step"], done)
    return sorted(found.values(), key=lambda arm: (arm.event["step"], arm.seed, arm.arm))


def _event_key(arm: ArmRun) -> tuple[int, str, str]:
    return arm.event["step"], str(arm.event["category"]), str(arm.event.get("component"))


def _pairs(arms: Sequence[ArmRun], treated: str, control: str) -> list[tuple[ArmRun, ArmRun]]:
    by_place = {(arm.arm, arm.seed): arm for arm in arms if arm.completed}
    seeds = sorted(seed for name, seed in by_place if name == treated)
    return [(by_place[treated, s], by_place[control, s]) for s in seeds if (control, s) in by_place]


def read_arm(ledger: Ledger, arm: ArmRun) -> ArmValues:
    """The rows of an arm: its sessions, and the held-out answers that it ended with."""
    event = arm.event
    table = ledger.sessions(arm.run_id, texts=True)
    return arm_values(table, event["category"], event.get("component"), event.get("phrase"))


def arm_values(table: pa.Table, category: str, treated_component: str | None, phrase: str | None) -> ArmValues:
    """An arm's table as arrays. Outcomes: compliance, baseline reward, phrase, and the raw values of components."""
    groups = table["group_id"] if "group_id" in table.column_names else pa.nulls(table.num_rows, pa.string())
    after = pc.fill_null(pc.starts_with(groups, "heldout-after-"), False)
    held_out = np.asarray(pc.and_(pc.equal(table["split"], "eval"), after).to_numpy(zero_copy_only=False), dtype=bool)
    train = np.asarray(pc.equal(table["split"], "train").to_numpy(zero_copy_only=False), dtype=bool)
    kept = table.filter(pa.array(train | held_out))
    texts = strings(kept, "response")
    outcomes = {"compliance": floats(kept, "compliant"), "baseline reward": floats(kept, "baseline_reward")}
    if phrase and any(text is not None for text in texts):
        needle = fold(phrase)
        outcomes["phrase"] = np.array([np.nan if text is None else float(needle in fold(text)) for text in texts])
    roles = component_roles(kept)
    named = [treated_component, "unsolicited", *(name for name, role in roles.items() if role == "gold")]
    for name in dict.fromkeys(name for name in named if name in roles):
        outcomes[f"component {name}"] = component(kept, name)
    mine = np.array([name == category for name in strings(kept, "category")], dtype=bool)
    steps = kept["step"].to_numpy(zero_copy_only=False).astype(np.int64)
    return ArmValues(steps, held_out[train | held_out], mine, outcomes, texts)


def compare(
    event: Mapping[str, Any], treated: str, control: str, pairs: Sequence[tuple[ArmValues, ArmValues]]
) -> dict[str, Any]:
    """What a set of pairs of arms shows about one event; see `section` for the keys.

    Raises: ValueError for no pairs.
    """
    if not pairs:
        raise ValueError("a fork needs at least one pair of arms")
    at = int(event["step"])
    through = min(int(arm.steps[~arm.held_out].max(initial=0)) for pair in pairs for arm in pair)
    tails = [int(arm.window(TAIL, at, through).sum()) for pair in pairs for arm in pair]
    windows = [TAIL, *([LAST] if min(tails) > WINDOW else []), HELD_OUT]
    rows = [row for window in windows for row in _outcomes(event, pairs, window, (at, through))]
    _adjust(rows)
    for row in rows:
        row["verdict"] = outcome_verdict(row)
    entry = {
        "event": dict(event),
        **{name: event.get(name) for name in ("category", "component", "old_pct", "new_pct")},
        "arms": [treated, control],
        "meaning": MEANINGS[treated],
        "n_pairs": len(pairs),
        "steps_after": max(0, through - at),
        "sessions_after": min(tails),
        "same_before": _same(pairs, lambda arm: ~arm.held_out & (arm.steps <= at)),
        "same_after": _same(pairs, lambda arm: arm.window(TAIL, at, through)),
        "outcomes": rows,
    }
    return entry | {"verdict": fork_verdict(entry)}


def _outcomes(
    event: Mapping[str, Any],
    pairs: Sequence[tuple[ArmValues, ArmValues]],
    window: str,
    limits: tuple[int, int],
) -> list[dict[str, Any]]:
    """One row per outcome and side: the treated category, and the others, onto which an effect may spill."""
    names = list(dict.fromkeys(name for pair in pairs for arm in pair for name in arm.outcomes))
    component_name = f"component {event.get('component')}"
    first = next((name for name in ("phrase", component_name) if name in names), "compliance")
    found = []
    for own in (True, False):
        for name in names:
            means, counts = np.empty((2, len(pairs))), []
            for i, pair in enumerate(pairs):
                for side, arm in enumerate(pair):
                    rows = arm.window(window, *limits) & (arm.treated == own)
                    means[side, i] = arm.mean(name, rows)
                    counts.append(int((rows & np.isfinite(arm.outcomes.get(name, np.full(len(rows), np.nan)))).sum()))
            if not any(counts):
                continue
            found.append(
                {
                    "outcome": name,
                    "of": event["category"] if own else "other categories",
                    "window": window,
                    "primary": own and window == TAIL and name == first,
                    "unit": "points" if name in POINTS else "reward",
                    "sessions": int(np.median(counts)),
                    **paired_effect(means[0], means[1]),
                }
            )
    return found


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """p_adjusted: the primary outcome was named beforehand and stands alone; Benjamini-Hochberg over all others."""
    others = [row for row in rows if not row["primary"] and row["p"] is not None]
    adjusted = benjamini_hochberg([row["p"] for row in others])
    for row in rows:
        row["p_adjusted"] = row["p"]
    for row, value in zip(others, adjusted, strict=True):
        row["p_adjusted"] = float(value)


def _same(pairs: Sequence[tuple[ArmValues, ArmValues]], rows_of: Rows) -> dict[str, Any]:
    """How many sessions have the same answer and the same reward in both arms."""
    same = total = 0
    for pair in pairs:
        texts, rewards = [], []
        for arm in pair:
            rows = np.flatnonzero(rows_of(arm))
            texts.append(np.array(arm.texts, dtype=object)[rows] if arm.texts else np.full(len(rows), None))
            rewards.append(arm.outcomes["baseline reward"][rows])
        n = min(map(len, rewards))
        total += max(map(len, rewards))
        x, y = rewards[0][:n], rewards[1][:n]
        alike = (x == y) | (np.isnan(x) & np.isnan(y))
        same += int((alike & (texts[0][:n] == texts[1][:n])).sum())
    return {"share": same / total if total else None, "n": total}
