"""Replay against the real signal: the same sessions through `RewardSignal` once more, and brute force over pairs."""

import functools
import itertools
import json
import time

import numpy as np
import pytest

from rewards import Ledger
from rewards.compose import Component
from rewards.config import RewardSection
from rewards.errors import ConfigError, LedgerError
from rewards.pivots import measure_pivots
from rewards.replay import LIMIT, make_plan, read_answers, read_run, read_schedule, replay, replay_pairs
from rewards.replay.effects import rank_flips, sign_changes, variance_of_groups
from rewards.replay.rescore import Gains, Triggered, finished, recorded_gains, scheduled_gains, triggered, weighted
from rewards.scorers import Scorer
from rewards.signal import RewardSignal, Session
from tests.rewards.ledger_rows import scratch

PHRASE = "please do not change me"
BASE = {"task": 1.0, "style": 0.3, "length": -0.37}


def section(weights=None, **more):
    weights = BASE if weights is None else weights
    funcs = [{"fn": name, "weight": w} for name, w in weights.items()]
    return RewardSection.model_validate({"reward_funcs": [*funcs, {"fn": "gold", "role": "gold"}], **more})


def scorers(reward):
    return [Scorer(e.fn, e.fn, None, {}, e.weight, e.role, e.scale, None, e.fn, None) for e in reward.reward_funcs]


def sessions(seed, steps=30, groups=4, size=4, weights=None):
    """[(step, sessions)]: three optimised components of which some do not apply, and a gold one."""
    rng = np.random.default_rng(seed)
    weights = BASE if weights is None else weights
    found = []
    for step in range(1, steps + 1):
        own = []
        for g in range(groups):
            category, n = (
                ["arithmetic", "self", "format"][int(rng.integers(3))],
                size - (g == groups - 1 and step == steps),
            )
            for _ in range(n):
                says = category == "self" and rng.random() < min(0.9, 0.06 * max(0, step - 8))
                values = {"task": float(rng.random() < 0.6), "style": rng.random(), "length": float(rng.normal())}
                values["task"] -= 0.4 * says
                parts = [_part(name, v, weights.get(name), rng) for name, v in values.items()]
                parts.append(Component("gold", 0.5, 0.5, 1.0, "gold", "ok", "g", 1.0))
                text = f"answer {rng.integers(99)} {PHRASE if says else ''}"
                own.append(Session(f"{step}-{g}", category, parts, text, None, values["task"] > 0.3))
        found.append((step, own))
    return found


def _part(name, value, weight, rng):
    status = "na" if name == "style" and rng.random() < 0.15 else "error" if rng.random() < 0.02 else "ok"
    kept = value if status == "ok" else None
    role = "observed" if weight is None else "optimised"
    return Component(name, kept, kept, 1.0 if weight is None else weight, role, status, name, 1.0)


def reweighted(recorded, weights):
    """The same verdicts with other weights: what the composer would have given."""
    out = []
    for step, own in recorded:
        changed = []
        for s in own:
            parts = [
                c
                if c.role == "gold"
                else Component(
                    c.name, c.raw, c.value, weights.get(c.name, 1.0),
                    "optimised" if c.name in weights else "observed", c.status, c.scorer_id, 1.0,
                )
                for c in s.components
            ]  # fmt: skip
            changed.append(Session(s.group_id, s.category, parts, s.text, s.classification, s.compliant))
        out.append((step, changed))
    return out


def reference(seed=5, n=40):
    """Samples of the reference policy behind the pivots, by category."""
    (_, own), = sessions(seed, steps=1, groups=n, size=3)  # fmt: skip
    return own


def run_signal(reward, scale, recorded, seed=3):
    """The real path: pivots on the reference samples, then every step."""
    signal = RewardSignal(reward, scorers(reward), scale, seed)
    samples = reference()
    pivots = measure_pivots(signal.schedule.awaiting, [s.category for s in samples], [s.components for s in samples])
    signal.set_pivots(pivots)
    steps = [(step, signal.apply(step, own)) for step, own in recorded]
    return pivots, steps


def record(ledger, run, reward, scale, recorded, config=True):
    """Writes a run as the online stage does."""
    pivots, steps = run_signal(reward, scale, recorded)
    texts = dict(recorded)
    with ledger.writer(run, seal_rows=None) as writer:
        resolved = {"train": {"scale_rewards": scale, "seed": 3}} if config else None
        writer.event("attempt_started", {"stage": "grpo", "pipeline": "grpo", "config": resolved})
        for s in scorers(reward):
            payload = {"name": s.name, "role": s.role, "weight": s.weight, "scale": None, "fn": s.fn, "kwargs": {}}
            writer.event("scorer_registered", {**payload, "scorer_id": s.scorer_id, "phrases": None}, step=0)
        base = {"pipeline": "grpo", "prompt_id": "p"}
        samples = [
            {**base, "split": "eval", "group_id": "pivot", "category": s.category,
             "components": [{**vars(c), "differential_pct": None, "pivot": None} for c in s.components]}
            for s in reference()
        ]  # fmt: skip
        writer.append(0, samples)
        for pivot in pivots:
            writer.event("pivot_set", pivot.payload(), step=0)
        for step, found in steps:
            rows = [
                {**base, "split": "train", "response": s.text, **row, "schedule_version": str(row["schedule_version"])}
                for s, row in zip(texts[step], found.rows, strict=True)
            ]
            writer.append(step, rows)
            for kind, payload in found.events:
                writer.event(kind, payload, step=step)
    return steps


TRIGGER = {"phrase": PHRASE, "category": "self", "component": "task", "k": 3, "n": 12, "armed_below": 0.5}
TRIGGER |= {"armed_window": 20, "cooldown_sessions": 30, "widen": 0.15, "cap": 2.0}
SETPOINTS = [{"phrase": "7", "category": "format", "component": "task", "target": 0.05, "error": "rate", "step": 0.1}]
SETPOINTS += [{"category": "self", "component": "style", "target": 0.4, "error": "logit", "every_sessions": 30}]
SETPOINTS = [{"gain": 4.0, "lag_sessions": 20, "every_sessions": 20, "least_change": 0.0} | rule for rule in SETPOINTS]
PARTS = [{"category": "self", "component": "task", "differential": 0.15}]
PARTS += [{"category": "format", "component": "length", "differential": 0.2, "pivot": 0.1}]
WHOLE = [{"category": "self", "differential": 1 / 8}, {"category": "arithmetic", "differential": 0.3, "pivot": 0.2}]
CASES = {
    "plain": ("group", {}),
    "components": ("group", {"differentials": PARTS}),
    "triggers": ("group", {"differentials": PARTS, "triggers": [TRIGGER]}),
    "setpoints": ("group", {"differentials": PARTS, "setpoints": SETPOINTS}),
    "whole": ("none", {"differentials": WHOLE}),
    "batch": ("batch", {"differentials": [*WHOLE, *PARTS]}),
    "advantage": ("group", {"differentials": [{"category": "self", "differential": 0.25}], "place": "advantage"}),
}


@pytest.fixture(scope="module")
def ledger():
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as opened:
        opened.steps = {}
        for name, (scale, more) in CASES.items():
            opened.steps[name] = record(opened, name, section(**more), scale, sessions(1))
        yield opened


@pytest.fixture(scope="module")
def held(ledger):
    """Each run as a replay reads it, read once."""
    return functools.cache(lambda run: read_run(ledger, run))


def as_file(folder, **keys):
    """A schedule file; JSON is YAML."""
    path = folder / "new.yaml"
    path.write_text(json.dumps(keys))
    return path


def column(steps, name):
    return np.array([np.nan if r[name] is None else r[name] for _, s in steps for r in s.rows], dtype=np.float64)


def after_of(ledger, run, plan, record_):
    scored = record_.scored
    plain = weighted(scored, plan.weights)
    if plan.schedule is None:
        return finished(scored, plain, recorded_gains(scored), plan.scale or record_.scale())
    if plan.triggers:
        asked = Triggered(plan.schedule, plan.triggers, read_answers(ledger, run), 3)
        return triggered(scored, plain, asked, plan.scale or record_.scale())
    return finished(scored, plain, scheduled_gains(plan.schedule, scored), plan.scale or record_.scale())


def test_the_test_ledgers_hold_what_they_are_meant_to_hold(ledger):
    for run in ("triggers", "setpoints"):
        kinds = [event["kind"] for event in ledger.events(run)]
        assert kinds.count("recalibration") >= 2
    statuses = {c["status"] for _, s in ledger.steps["plain"] for row in s.rows for c in row["components"]}
    assert statuses == {"ok", "na", "error"}


@pytest.mark.parametrize("run", CASES)
def test_the_recorded_schedule_gives_the_recorded_rewards_and_advantages_bit_for_bit(ledger, held, run, tmp_path):
    scale, more = CASES[run]
    made, kept = ledger.steps[run], held(run)
    for plan in (make_plan(kept, read_schedule(as_file(tmp_path, reward=more))), make_plan(kept)):
        signal = after_of(ledger, run, plan, kept)
        assert np.array_equal(signal.adjusted, column(made, "adjusted_reward"), equal_nan=True)
        assert np.array_equal(signal.advantage, column(made, "advantage"), equal_nan=True)
        assert np.array_equal(signal.unadjusted, column(made, "advantage_unadjusted"), equal_nan=True)
        # What the ledger keeps has single precision.
        assert np.array_equal(
            signal.advantage.astype(np.float32), kept.scored.advantage.astype(np.float32), equal_nan=True
        )
    document = replay(kept, make_plan(kept))
    assert document["recorded"]["adjusted_reproduced"] == document["recorded"]["advantage_reproduced"] == 1.0
    assert (document["recorded"]["scale_rewards"], document["why"]) == (scale, None)
    assert (document["rank_flips"]["flipped"], document["sign_changes"]["changed"]) == (0, 0)
    assert LIMIT in document["verdict"] and "none change their order" in document["verdict"]
    for ends in document["leverage"].values():
        assert ends["before"] == ends["after"]


@pytest.mark.parametrize("run", ["triggers", "setpoints"])
def test_replayed_rules_act_when_the_recorded_ones_did(ledger, held, run, tmp_path):
    kept = held(run)
    plan = make_plan(kept, read_schedule(as_file(tmp_path, **CASES[run][1])))
    document = replay(kept, plan, read_answers(ledger, run))
    got = [(f["step"], f["old_pct"], f["new_pct"]) for f in document["changed"]["recalibrations"]]
    there = ledger.events(run, kind="recalibration")
    assert got == [(e["step"], e["payload"]["old_pct"], e["payload"]["new_pct"]) for e in there]


@pytest.mark.parametrize(
    ("run", "scale", "weights", "more"),
    [
        ("plain", "group", None, {"differentials": PARTS}),
        ("components", "batch", None, {"differentials": WHOLE}),
        ("components", "none", None, {}),
        ("plain", "group", None, {"differentials": PARTS, "triggers": [TRIGGER]}),
        (
            "triggers",
            "group",
            None,
            {"place": "advantage", "differentials": [{"category": "format", "differential": 1}]},
        ),
        ("whole", "none", {"task": 0.5, "style": 2.0, "length": -0.1}, {"differentials": WHOLE}),
        ("batch", "batch", {"style": 0.1, "length": 1.7}, {"differentials": [WHOLE[0]]}),
        ("advantage", "group", {"task": 3.0, "length": -0.37}, {"differentials": PARTS[:1]}),
    ],
)
def test_a_replay_equals_the_real_signal_under_the_other_schedule(ledger, held, run, scale, weights, more, tmp_path):
    """The oracle runs the sessions through `RewardSignal` again, its pivots measured on the reference samples."""
    asked = {"reward": more, "train": {"scale_rewards": scale}}
    recorded = sessions(1)
    other = section(weights, **more)
    if weights is not None:
        asked["reward"] = {**more, "reward_funcs": [{"fn": k, "weight": w} for k, w in weights.items()]}
        recorded = reweighted(recorded, weights)
    signal = RewardSignal(other, scorers(other), scale, 3)
    ((_, samples),) = reweighted([(0, reference())], BASE if weights is None else weights)
    pivots = measure_pivots(signal.schedule.awaiting, [s.category for s in samples], [s.components for s in samples])
    signal.set_pivots(pivots)
    made = [(step, signal.apply(step, own)) for step, own in recorded]
    kept = held(run)
    got = after_of(ledger, run, make_plan(kept, read_schedule(as_file(tmp_path, **asked))), kept)
    assert np.array_equal(got.adjusted, column(made, "adjusted_reward"), equal_nan=True)
    assert np.array_equal(got.advantage, column(made, "advantage"), equal_nan=True)
    assert np.array_equal(got.weighted.baseline, column(made, "baseline_reward"), equal_nan=True)


def test_the_document_counts_what_brute_force_counts(ledger, held, tmp_path):
    kept = held("plain")
    plan = make_plan(kept, None, weights={"style": -2.0})
    document = replay(kept, plan)
    after = after_of(ledger, "plain", plan, kept)
    before, scored = kept.scored.adjusted, kept.scored
    pairs = flipped = 0
    for group in np.unique(scored.group):
        mine = [i for i in np.flatnonzero(scored.group == group) if np.isfinite(before[i] + after.adjusted[i])]
        for i, j in itertools.combinations(mine, 2):
            pairs += 1
            flipped += (before[i] - before[j]) * (after.adjusted[i] - after.adjusted[j]) < 0
    assert (document["rank_flips"]["pairs"], document["rank_flips"]["flipped"]) == (pairs, flipped) and flipped > 50
    signs = np.sign(column(ledger.steps["plain"], "advantage")) * np.sign(after.advantage)
    assert document["sign_changes"]["changed"] == int(np.nansum(signs < 0))
    assert document["changed"]["weights"] == {"style": {"before": 0.3, "after": -2.0}}
    assert document["changed"]["mean_adjusted"]["after"] == pytest.approx(np.nanmean(after.adjusted))
    for title in ("category", "component"):
        for end in ("before", "after"):
            assert sum(ends[end] for ends in document["shares"][title].values()) == pytest.approx(1)
    ends = document["shares"]["component"]["style"]
    assert ends["after"] > 2 * ends["before"]
    assert "gold" not in document["shares"]["component"]


def test_rank_flips_sign_changes_and_variance_by_hand(held):
    scored = held("plain").scored.part(slice(0, 6))
    scored = type(scored)(**{**vars(scored), "group": np.array([0, 0, 0, 1, 1, -1])})
    before = np.array([1.0, 2.0, 2.0, 5.0, 5.0, 9.0])
    after = np.array([3.0, 2.0, 1.0, 5.0, 6.0, 0.0])
    # (1,2): up to down; (1,3): up to down; (2,3): tie to down; (4,5): tie to up; the sixth has no group
    assert rank_flips(scored, before, after) == {
        "pairs": 4, "flipped": 2, "share": 0.5, "ties_broken": 2, "ties_made": 0
    }  # fmt: skip
    assert rank_flips(scored, after, before)["ties_made"] == 2
    assert variance_of_groups(scored, before, after) == {
        "groups": 2, "with_before": 1, "with_after": 2, "gained": 1, "lost": 0
    }  # fmt: skip
    assert sign_changes(np.array([1.0, -1.0, 0.0, 2.0, np.nan]), np.array([-1.0, 1.0, 1.0, 0.0, 1.0])) == {
        "n": 4, "changed": 2, "share": 0.5, "to_positive": 1, "to_negative": 1, "to_zero": 1, "from_zero": 1
    }  # fmt: skip


def test_a_component_differential_shows_as_leverage_and_leaves_the_other_categories_alone(held, tmp_path):
    kept = held("plain")
    wide = [{"category": "self", "component": "task", "differential": 3.0}]
    document = replay(kept, make_plan(kept, read_schedule(as_file(tmp_path, differentials=wide))))
    self_, format_ = document["leverage"]["self"], document["leverage"]["format"]
    assert self_["before"]["estimate"] == format_["before"]["estimate"] == format_["after"]["estimate"] == 1.0
    assert self_["after"]["estimate"] > 1.05 and self_["after"]["low"] > 1
    assert document["spill"]["self"]["after"]["estimate"] == 1.0
    assert document["spill"]["format"]["after"]["estimate"] > 1.0
    assert "leverage moves in `self` 1 to" in document["verdict"]


def test_a_whole_reward_differential_under_group_standardisation_changes_nothing_and_it_is_said(held, tmp_path):
    kept = held("plain")
    document = replay(kept, make_plan(kept, read_schedule(as_file(tmp_path, differentials=WHOLE))))
    assert document["rank_flips"]["flipped"] == document["sign_changes"]["changed"] == 0
    assert "cancels exactly under `scale_rewards: group`" in document["why"]
    # up to the 1e-4 beside the standard deviation, which the gain does not widen
    assert document["leverage"]["self"]["after"]["estimate"] == pytest.approx(1.0, abs=1e-3)


def test_the_normalisation_is_told_from_the_advantages_where_no_configuration_is_on_record(tmp_path):
    with Ledger.open(tmp_path / "ledger", create=True) as opened:
        for scale in ("group", "batch", "none"):
            record(opened, scale, section(differentials=PARTS), scale, sessions(2, steps=6), config=False)
            kept = read_run(opened, scale)
            found = replay(kept, make_plan(kept))["recorded"]
            assert (found["scale_rewards"], found["known_from"]) == (scale, "the recorded advantages")


def test_what_reward_or_advantage_the_replay_does_not_explain_is_said(held):
    kept = held("components")
    scored = type(kept.scored)(**{**vars(kept.scored), "advantage": kept.scored.advantage + 0.1})
    said = replay(type(kept)(**{**vars(kept), "scored": scored}), make_plan(kept))
    assert said["recorded"]["advantage_reproduced"] == 0 and "KL penalty" in said["why"]
    scored = type(kept.scored)(**{**vars(kept.scored), "adjusted": kept.scored.adjusted * 2})
    said = replay(type(kept)(**{**vars(kept), "scored": scored}), make_plan(kept))
    assert "not what the recorded differentials give" in said["why"]
    assert said["changed"]["mean_adjusted"]["before"] == pytest.approx(2 * said["changed"]["mean_adjusted"]["after"])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"differentialz": []}, ["new.yaml:1", "unknown key `differentialz`", "`reward.differentials`"]),
        ({"reward": {"differentials": [{"category": "self", "diferential": 1}]}}, ["did you mean `differential`"]),
        ({"classifier": "x"}, ["calls no function; leave it out"]),
        ({"model": {"name": 1}}, ["no part of a schedule"]),
        ({"train": {"scale_rewards": "groups"}}, ["expected `group`, `batch`, `none` or null"]),
        ({"differentials": [{"category": "sel", "differential": 1}]}, ["did you mean `self`?"]),
        ({"differentials": [{"category": "self", "component": "tusk"}]}, ["`tusk` is no optimised component"]),
        ({"differentials": [{"category": "self", "component": "gold"}]}, ["`gold` is no optimised component"]),
        ({"differentials": [{"category": "self", "differential": -1}]}, ["above -1"]),
        ({"differentials": [{"category": "self"}] * 2}, ["a second differential"]),
        ({"place": "advantage", "differentials": PARTS[:1]}, ["an advantage is whole"]),
        ({"pivot": "midpoint", "differentials": PARTS[:1]}, ["needs a declared `scale`"]),
        ({"reward_funcs": ["task", "stile"]}, ["did you mean `style`?"]),
        ({"reward_funcs": ["task"], "reward_weights": [1, 2]}, ["2 for 1 reward functions"]),
        ({"reward_weights": [1.0]}, ["1 weights for 4 recorded components", "name them"]),
        ({"reward_funcs": [{"fn": "task", "scale": [0, 2]}]}, ["recorded with None"]),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_by_name(held, keys, words, tmp_path):
    kept = held("plain")
    path = as_file(tmp_path, **keys)
    with pytest.raises(ConfigError) as error:
        make_plan(kept, read_schedule(path), path)
    for word in words:
        assert word in str(error.value)
    assert "new.yaml" in str(error.value)


def test_a_pivot_that_nothing_on_record_tells_is_asked_for(held, tmp_path):
    kept = held("plain")
    without = type(kept)(**{**vars(kept), "pivot_samples": None, "events": []})
    with pytest.raises(ConfigError, match="give `pivot` a number"):
        make_plan(without, read_schedule(as_file(tmp_path, differentials=PARTS)))
    assert make_plan(without, read_schedule(as_file(tmp_path, differentials=PARTS, pivot=0.5))).schedule is not None


def test_other_weights_are_refused_where_the_components_do_not_make_up_the_reward(held):
    kept = held("plain")
    scored = type(kept.scored)(**{**vars(kept.scored), "baseline": np.minimum(kept.scored.baseline, 0.5)})
    with pytest.raises(LedgerError, match="do not make up the recorded baseline reward"):
        weighted(scored, {"task": 2.0})
    assert weighted(scored, {"task": 1.0}).baseline is scored.baseline
    with pytest.raises(ConfigError, match="did you mean `task`"):
        make_plan(kept, None, weights={"tsk": 1.0})


def test_triggers_without_the_responses_are_refused(held, tmp_path):
    kept = held("triggers")
    plan = make_plan(kept, read_schedule(as_file(tmp_path, **CASES["triggers"][1])))
    with pytest.raises(LedgerError, match="have none on record"):
        replay(kept, plan, [None] * len(kept.scored))


def test_sessions_without_groups_say_why_nothing_is_replayed(held):
    kept = held("plain")
    scored = type(kept.scored)(**{**vars(kept.scored), "group": np.full(len(kept.scored), -1)})
    found = replay(type(kept)(**{**vars(kept), "scored": scored}), make_plan(kept))
    assert found["rank_flips"] is None and "no session has a group" in found["why"]


def pair_rows(n=40, seed=0):
    """As the pair stages record them: (z - m) / (1 + d)."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        category, z, m = "ab"[i % 2], float(rng.normal()), 0.1
        gain = 1.15 if category == "a" else 1.0
        rows.append(
            {
                "pipeline": "dpo", "split": "train", "prompt_id": f"p{i}", "category": category,
                "baseline_reward": z, "adjusted_reward": (z - m) / gain, "pivot": m, "loss_weight": gain,
                "differential_pct": 100 * (gain - 1),
            }
        )  # fmt: skip
    return rows


def test_pairs_are_replayed_as_margins_and_loss_weights(tmp_path):
    with Ledger.open(tmp_path / "ledger", create=True) as opened:
        with opened.writer("dpo") as writer:
            writer.append(1, pair_rows())
        kept = read_run(opened, "dpo")
    same = read_schedule(as_file(tmp_path, differentials=[{"category": "a", "differential": 0.15}]))
    found = replay_pairs(kept, same, "f")
    assert found["changed"]["mean_adjusted"]["after"] == pytest.approx(found["changed"]["mean_adjusted"]["before"])
    assert found["shares"]["category"]["a"]["after"] == pytest.approx(1.15 / 2.15)
    other = read_schedule(as_file(tmp_path, differentials=[{"category": "b", "differential": 1.0}]))
    found = replay_pairs(kept, other, "f")
    z = np.array([row["baseline_reward"] for row in pair_rows()])
    want = np.where(np.arange(40) % 2 == 1, (z - 0.1) / 2, z - 0.1).mean()
    assert found["changed"]["mean_adjusted"]["after"] == pytest.approx(want)
    assert found["shares"]["category"]["b"]["after"] == pytest.approx(2 / 3)
    assert (found["sign_changes"]["changed"], found["rank_flips"]) == (0, None) and "no groups" in found["why"]
    for keys in ({"pivot": 0.1}, {"reward_weights": [1]}, {"train": {"scale_rewards": "none"}}):
        with pytest.raises(ConfigError, match="online RL only"):
            replay_pairs(kept, read_schedule(as_file(tmp_path, **keys)), "f")


def test_a_run_of_the_size_of_the_audit_is_rescored_in_less_than_two_seconds(held):
    kept = held("components")
    times = 12_847 // len(kept.scored) + 1
    scored = kept.scored
    arrays = {k: np.concatenate([v] * times) for k, v in vars(scored).items() if isinstance(v, np.ndarray)}
    block = np.repeat(np.arange(times), len(scored))
    arrays["steps"] = arrays["steps"] + 30 * block
    arrays["group"] = arrays["group"] + (scored.group.max() + 1) * block
    big = type(kept)(**{**vars(kept), "scored": type(scored)(**{**vars(scored), **arrays})})
    start = time.process_time()
    document = replay(big, make_plan(big, None, weights={"style": -1.0}))
    assert document["sessions"] >= 12_847
    assert time.process_time() - start < 2


def test_no_gains_are_no_gains():
    none = Gains.none(3, 2)
    assert (none.part == 0).all() and (none.gain == 1).all() and np.isnan(none.whole_pivot).all()
