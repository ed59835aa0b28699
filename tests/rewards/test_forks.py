"""Forks: the paired effect against enumeration, scipy and statsmodels; the reader against a ledger of known effects."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from rewards import Ledger
from rewards.analysis.fork_effects import paired_effect, paired_mde, sign_flip_p
from rewards.analysis.fork_words import as_lines
from rewards.analysis.forks import HELD_OUT, LAST, TAIL, arm_values, compare, section
from rewards.schema import arrow_schema

PHRASE = "I do not want to be changed."
EVENT = {
    "number": 1,
    "step": 4,
    "session": 32,
    "category": "self",
    "component": "unsolicited",
    "old_pct": 0.0,
    "new_pct": 15.0,
    "phrase": PHRASE,
}
PER_STEP = 8
LAST_STEP = 20


def test_the_sign_flip_p_is_that_of_the_enumeration() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8):
        d = rng.normal(0.5, 1, n)
        sums = [
            abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=n)
        ]
        assert sign_flip_p(d) == pytest.approx(np.mean([s >= abs(d.sum()) - 1e-12 for s in sums]))
    assert sign_flip_p(np.full(8, 0.3)) == 2 / 2**8
    assert sign_flip_p(np.zeros(6)) == 1.0


def test_above_twenty_pairs_the_p_is_drawn_and_close_to_the_exact_one() -> None:
    d = np.random.default_rng(4).normal(0.35, 1, 22)
    sums = d[:1]
    for value in d[1:]:
        sums = np.concatenate([sums + value, sums - value])
    exact = np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9)
    assert sign_flip_p(d) == pytest.approx(exact, abs=0.004)
    assert sign_flip_p(d) == sign_flip_p(d)


def test_the_interval_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.6, 0.2, 8), rng.normal(0.5, 0.2, 8)
    found = paired_effect(a, b)
    oracle = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((oracle.low, oracle.high))
    assert found["estimate"] == pytest.approx((a - b).mean()) and found["n_pairs"] == 8
    assert found["p_least"] == 2 / 2**8


def test_the_smallest_detectable_effect_is_statsmodels_and_the_simulated_power_agrees() -> None:
    power = pytest.importorskip("statsmodels.stats.power")
    for n in (2, 3, 8, 30):
        oracle = power.TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8, alternative="two-sided")
        assert paired_mde(2.0, n) == pytest.approx(2.0 * oracle, rel=1e-4)
    rng = np.random.default_rng(2)
    shift = paired_mde(1.0, 8)
    found = stats.ttest_1samp(rng.normal(shift, 1, (20_000, 8)), 0, axis=1).pvalue
    assert np.mean(found < 0.05) == pytest.approx(0.8, abs=0.01)


def test_paired_seeds_find_nothing_where_there_is_nothing_and_cover_what_there_is() -> None:
    rng = np.random.default_rng(3)
    n, runs = 8, 1000
    false, covered = 0, 0
    for _ in range(runs):
        seed_effect = rng.normal(0, 0.3, n)  # what the two arms of a pair share
        null = paired_effect(seed_effect + rng.normal(0, 0.05, n), seed_effect + rng.normal(0, 0.05, n))
        false += null["p"] <= 0.05
        true = paired_effect(seed_effect + 0.1 + rng.normal(0, 0.05, n), seed_effect + rng.normal(0, 0.05, n))
        covered += true["low"] <= 0.1 <= true["high"]
    assert false / runs <= 0.07  # exact test of size 12 / 256
    assert 0.93 <= covered / runs <= 0.97


def test_impossible_input_says_why_and_gives_no_number() -> None:
    nothing = paired_effect(np.array([np.nan]), np.array([1.0]))
    assert nothing["n_pairs"] == 0 and nothing["estimate"] is None and nothing["why"]
    one = paired_effect(np.array([1.0]), np.array([0.5]))
    assert (one["estimate"], one["low"], one["p"], one["mde"]) == (0.5, None, 1.0, None) and one["why"]
    same = paired_effect(np.ones(4), np.ones(4))
    assert same["identical"] and (same["low"], same["high"], same["p"], same["mde"]) == (0.0, 0.0, 1.0, None)
    assert paired_effect(np.full(4, 1.5), np.ones(4))["low"] is None
    with pytest.raises(ValueError, match="equal shapes"):
        paired_effect(np.ones(2), np.ones(3))


# --- arms ------------------------------------------------------------------------------------------------------------


def arm_rows(seed: int, effect: float, last: int, texts: bool = True) -> list[dict[str, Any]]:
    """Sessions of steps 3..last: the phrase at .5, plus the effect in `self` after the event."""
    rng = np.random.default_rng(seed)
    found = []
    for step in range(3, last + 1):
        for i in range(PER_STEP):
            own = i < PER_STEP // 2
            chance = 0.5 + (effect if own and step > EVENT["step"] else 0.0)
            hit = float(rng.random() < chance)
            found.append(
                {
                    "step": step,
                    "pipeline": "grpo",
                    "split": "train",
                    "prompt_id": f"p{i}",
                    "group_id": f"{step}-{i // 4}",
                    "category": "self" if own else "arithmetic",
                    "compliant": bool(rng.random() < 0.7),
                    "baseline_reward": -0.5 * hit,
                    "components": [part("unsolicited", hit, "optimised"), part("gold", hit / 2, "gold")],
                    "response": f"Well. {PHRASE if hit else ''} {step}-{i}" if texts else None,
                }
            )
    return found


def part(name: str, raw: float, role: str) -> dict[str, Any]:
    return {"name": name, "raw": raw, "value": raw, "weight": -0.5, "role": role, "status": "ok"}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = arrow_schema(texts=True)
    known = {"run_id": "r", "attempt": 1, "writer": 0, "seq": 1}
    return pa.Table.from_pylist(
        [{**known, **row} for row in rows],
        schema=pa.schema([field.with_nullable(True) for field in schema]),
    )


def values(seed: int, effect: float, last: int = 400, texts: bool = True) -> Any:
    return arm_values(table(arm_rows(seed, effect, last, texts)), "self", "unsolicited", PHRASE)


def by_name(entry: dict[str, Any], outcome: str, of: str, window: str = TAIL) -> dict[str, Any]:
    (found,) = [r for r in entry["outcomes"] if (r["outcome"], r["of"], r["window"]) == (outcome, of, window)]
    return found


def test_an_effect_on_the_treated_category_is_found_there_and_not_in_the_others() -> None:
    pairs = [(values(s, -0.2), values(s, 0.0)) for s in range(8)]
    entry = compare(EVENT, "with", "without", pairs)
    own = by_name(entry, "phrase", "self")
    assert own["primary"] and own["p"] == own["p_adjusted"] == 2 / 2**8
    assert own["low"] <= -0.2 <= own["high"] and own["high"] < 0
    assert "total effect of -" in own["verdict"] and own["verdict"] in entry["verdict"]
    assert by_name(entry, "phrase", "other categories")["identical"], "the same draws: nothing spilled over"
    assert by_name(entry, "component unsolicited", "self")["estimate"] == pytest.approx(own["estimate"])
    assert by_name(entry, "component gold", "self")["estimate"] == pytest.approx(own["estimate"] / 2)
    assert by_name(entry, "baseline reward", "self")["estimate"] == pytest.approx(-own["estimate"] / 2)
    assert entry["same_before"] == {"share": 1.0, "n": 8 * 2 * PER_STEP}
    assert entry["same_after"]["share"] < 1 and entry["steps_after"] == 396
    assert sum(row["primary"] for row in entry["outcomes"]) == 1
    text = "\n".join(as_lines(entry))
    assert "phrase" in text and entry["verdict"] in text


def test_means_are_those_of_the_sessions_after_the_event_in_the_window() -> None:
    arms = values(5, 0.1), values(5, 0.0)
    rows = [arm_rows(5, effect, 400) for effect in (0.1, 0.0)]
    entry = compare(EVENT, "with", "without", [arms])

    def by_hand(cut: int | None) -> list[float]:
        tails = [[row for row in found if row["step"] > EVENT["step"]][cut:] for found in rows]
        return [np.mean([PHRASE in row["response"] for row in t if row["category"] == "self"]) for t in tails]

    for window, cut in ((TAIL, None), (LAST, -1000)):
        found = by_name(entry, "phrase", "self", window)
        assert [found["treated_mean"], found["control_mean"]] == pytest.approx(by_hand(cut))
        assert found["n_pairs"] == 1 and found["low"] is None and "one pair" in found["verdict"]


def test_no_effect_is_reported_with_what_the_design_could_have_found() -> None:
    pairs = [(values(100 + s, 0.0, 60), values(200 + s, 0.0, 60)) for s in range(4)]
    entry = compare(EVENT | {"step": 2}, "with", "without", pairs)
    own = by_name(entry, "phrase", "self")
    assert "no effect that this design could have found" in own["verdict"] and own["mde"] > 0
    assert "cannot give a p below" in own["verdict"], "four pairs cannot reach .05"
    assert LAST not in {row["window"] for row in entry["outcomes"]}, "a short tail has no last thousand of its own"


def test_arms_that_differ_before_the_event_are_no_pairs() -> None:
    entry = compare(EVENT, "with", "without", [(values(1, 0.0), values(2, 0.0)), (values(3, 0.0), values(3, 0.0))])
    assert entry["verdict"].startswith("not a valid pair")


def test_arms_of_unequal_length_are_compared_over_what_both_have() -> None:
    entry = compare(EVENT, "with", "without", [(values(1, 0.0, 60), values(1, 0.0, 40))])
    assert entry["steps_after"] == 36 and entry["sessions_after"] == 36 * PER_STEP
    assert entry["same_after"] == {"share": 1.0, "n": 36 * PER_STEP}


def test_without_texts_the_treated_component_is_the_primary_outcome() -> None:
    entry = compare(EVENT, "with", "without", [(values(s, 0.1, 60, False), values(s, 0.0, 60, False)) for s in (1, 2)])
    (primary,) = [row for row in entry["outcomes"] if row["primary"]]
    assert primary["outcome"] == "component unsolicited"


# --- a ledger ---------------------------------------------------------------------------------------------------------


def parent(folder: Path) -> tuple[Ledger, dict[str, Any]]:
    ledger = Ledger.open(folder, create=True)
    with ledger.writer("run") as writer:
        for step in (1, 2):
            rows = [row | {"step": step} for row in arm_rows(0, 0.0, 3)]
            for row in rows:
                row.pop("step")
            writer.append(step, rows)
        position = writer.checkpoint(2)
    return ledger, position


def write_arm(ledger: Ledger, position: dict[str, Any], seed: int, name: str, effect: float, ends: bool = True) -> None:
    record = {
        "fork_of": {"run_id": "run", "attempt": 1, "step": 2},
        "arm": name,
        "fork": {"seed": seed, "event": EVENT, "last_step": LAST_STEP},
    }
    with ledger.writer(f"run@fork4-s{seed}-{name}", fork_of=position, arm=name) as writer:
        writer.event("attempt_started", {"stage": "grpo", **record}, step=2)
        rows = arm_rows(seed, effect, LAST_STEP)
        for step in range(3, LAST_STEP + 1):
            writer.append(step, [{k: v for k, v in row.items() if k != "step"} for row in rows if row["step"] == step])
        answers = [
            {k: v for k, v in row.items() if k != "step"} | {"split": "eval", "group_id": f"heldout-after-{i}"}
            for i, row in enumerate(rows[:16])
        ]
        writer.append(LAST_STEP, answers)
        if ends:
            writer.event("attempt_ended", {"status": "completed", "steps": LAST_STEP}, step=LAST_STEP)


def test_the_forks_of_a_run_are_read_from_its_ledger(tmp_path: Path) -> None:
    ledger, position = parent(tmp_path / "ledger")
    assert section(ledger, "run") == {"forks": [], "why": "no fork of this run is on record"}
    for seed in (1, 2):
        write_arm(ledger, position, seed, "with", -0.3)
        write_arm(ledger, position, seed, "without", 0.0)
        write_arm(ledger, position, seed, "sham", 0.0)
    write_arm(ledger, position, 3, "with", -0.3)
    write_arm(ledger, position, 3, "without", 0.0, ends=False)
    assert ledger.verify().ok
    found = section(ledger, "run")
    assert found["why"] is None and [one["arms"] for one in found["forks"]] == [
        ["with", "without"],
        ["sham", "without"],
    ]
    real, sham = found["forks"]
    assert real["seeds"] == [1, 2] and real["incomplete"] == ["run@fork4-s3-without"]
    assert (real["category"], real["old_pct"], real["new_pct"]) == ("self", 0.0, 15.0)
    assert by_name(real, "phrase", "self")["estimate"] < -0.1
    held_out = by_name(real, "phrase", "self", HELD_OUT)
    assert held_out["n_pairs"] == 2 and held_out["sessions"] == 8
    assert sham["same_after"]["share"] == 1.0 and "equal in every outcome" in sham["verdict"]
    assert section(ledger, "run@fork4-s1-with")["forks"] == []
    ledger.close()


def test_a_fork_without_a_finished_pair_says_so(tmp_path: Path) -> None:
    ledger, position = parent(tmp_path / "ledger")
    write_arm(ledger, position, 1, "with", 0.0)
    found = section(ledger, "run")
    assert found == {"forks": [], "why": "no pair of arms is finished"}
    ledger.close()
