"""Gradient credit against hand arithmetic, a loop over groups and least squares."""

import numpy as np
import pyarrow as pa
import pytest

from rewards.advantages import advantages
from rewards.analysis.gradient_credit import gradient_credit
from rewards.analysis.scored import OUTSIDE, Scored


def scored(groups, components, weights, baseline=None, **columns):
    """groups: one name a session; components: {name: values, None where it does not apply}."""
    n = len(groups)
    entries = [
        [
            {
                "name": name,
                "raw": values[i],
                "value": values[i],
                "weight": weights[name],
                "role": "optimised",
                "status": "na" if values[i] is None else "ok",
                "scorer_id": "f",
            }
            for name, values in components.items()
        ]
        for i in range(n)
    ]
    sums = [
        sum(weights[name] * v[i] for name, v in components.items() if v[i] is not None)
        if any(v[i] is not None for v in components.values())
        else None
        for i in range(n)
    ]
    fields = {
        "step": pa.array([1] * n, pa.int64()),
        "group_id": pa.array(groups, pa.string()),
        "category": pa.array(["c"] * n),
        "baseline_reward": pa.array(sums if baseline is None else baseline, pa.float64()),
        "components": pa.array(entries),
    }
    return Scored.of_table(pa.table(fields | {k: pa.array(v, pa.float64()) for k, v in columns.items()}))


def random_scored(seed, groups=40, size=8, missing=0.0):
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(groups) for _ in range(size)]
    level = np.repeat(rng.normal(size=groups), size)
    n = len(names)
    values = {
        "task": (rng.random(n) < 0.5).astype(float),
        "style": level + rng.normal(size=n),
        "length": rng.random(n),
    }
    listed = {k: [None if rng.random() < missing else float(x) for x in v] for k, v in values.items()}
    return scored(names, listed, {"task": 1.0, "style": 0.3, "length": -0.7})


def by_name(found):
    return {part["name"]: part["credit"] for part in found["components"]}


def test_credit_by_hand():
    # one group; task 1, 0 and style 0, 4 with weights 2 and 0.25: b = 2, 1. Centred: b 1/2, -1/2; task's term 1, -1;
    # style's term -1/2, 1/2. sigma cancels in one group: 2 * (1/2 * 1) / (2 * 1/4) = 2, and -1.
    found = gradient_credit(scored(["g", "g"], {"task": [1.0, 0.0], "style": [0.0, 4.0]}, {"task": 2.0, "style": 0.25}))
    assert by_name(found) == pytest.approx({"task": 2.0, "style": -1.0})
    assert found["sums_to"] == pytest.approx(1.0, abs=1e-12)
    assert (found["groups"], found["n"], found["components"][0]["low"]) == (1, 2, None)
    assert "one group" in found["why"]


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_credits_sum_to_one_and_equal_a_loop_over_groups(seed, missing):
    data = random_scored(seed, missing=missing)
    found = gradient_credit(data, resamples=20)
    assert found["sums_to"] == pytest.approx(1.0, abs=1e-9)
    names, terms = data.terms()
    above, below = np.zeros(len(names)), 0.0
    for group in np.unique(data.group):
        mine = (data.group == group) & np.isfinite(data.baseline)
        b = data.baseline[mine]
        if len(b) < 2 or b.std(ddof=1) <= 1e-8:
            continue
        a = (b - b.mean()) / b.std(ddof=1)
        above += a @ ((terms[mine] - terms[mine].mean(axis=0)) / b.std(ddof=1))
        below += a @ a
    assert by_name(found) == pytest.approx(dict(zip(names, above / below, strict=True)), abs=1e-12)


def test_a_credit_is_the_slope_of_the_components_term_on_the_advantage():
    data = random_scored(3)
    _, terms = data.terms()
    made = advantages(data.baseline, data.group.tolist(), "group", eps=0.0)
    deviations = terms.copy()
    for group in range(40):
        deviations[data.group == group] -= terms[data.group == group].mean(axis=0)
    found = by_name(gradient_credit(data, resamples=20))
    for k, name in enumerate(("task", "style", "length")):
        slope = np.linalg.lstsq(made.advantage[:, None], deviations[:, k] / made.std)[0][0]
        assert found[name] == pytest.approx(slope, abs=1e-12)


def test_a_component_that_is_constant_in_every_group_has_no_credit_however_large_it_is():
    groups = ["a"] * 4 + ["b"] * 4
    level = [10.0] * 4 + [90.0] * 4
    found = gradient_credit(scored(groups, {"task": [0.0, 1.0] * 4, "level": level}, {"task": 1.0, "level": 5.0}))
    assert by_name(found) == pytest.approx({"task": 1.0, "level": 0.0})


def test_a_reward_that_was_clipped_leaves_a_term_of_its_own_and_the_credits_still_sum_to_one():
    groups, values = ["a"] * 4 + ["b"] * 4, [0.0, 1.0, 2.0, 3.0] * 2
    clipped = [min(v, 2.0) for v in values]
    found = gradient_credit(scored(groups, {"task": values}, {"task": 1.0}, baseline=clipped), resamples=50)
    assert set(by_name(found)) == {"task", OUTSIDE} and by_name(found)[OUTSIDE] < 0
    assert found["sums_to"] == pytest.approx(1.0, abs=1e-9)


def test_what_the_recorded_advantages_contain_beyond_the_formula_is_said():
    data = random_scored(1)
    groups = data.group.tolist()
    exact = advantages(data.baseline, groups, "group", eps=0.0)

    def said(values):
        with_it = Scored(**{**vars(data), "unadjusted": np.float32(values).astype(np.float64)})
        return gradient_credit(with_it, resamples=10)["left_out"]

    assert "no advantage is on record" in said(np.full(len(data), np.nan))
    assert said(exact.advantage).startswith("nothing")
    assert said(advantages(data.baseline, groups, "group").advantage).startswith("the 0.0001")
    assert "does not divide" in said(advantages(data.baseline, groups, "none").advantage)
    penalised = data.baseline - 0.3 * np.random.default_rng(0).random(len(data))
    assert "KL penalty" in said(advantages(penalised, groups, "group").advantage)
    # None of that changes the credit.
    other = Scored(**{**vars(data), "unadjusted": penalised})
    assert gradient_credit(other)["components"] == gradient_credit(data)["components"]


def test_without_groups_or_without_differences_there_is_no_credit_and_the_reason_is_said():
    alone = gradient_credit(scored([None, None], {"task": [1.0, 0.0]}, {"task": 1.0}))
    assert (alone["sums_to"], alone["components"], alone["n"]) == (None, [], 0) and "group" in alone["why"]
    equal = gradient_credit(scored(["g"] * 3, {"task": [0.1] * 3}, {"task": 0.3}))
    assert equal["groups_without_variance"] == 1 and "every advantage is 0" in equal["why"]
    nothing = gradient_credit(random_scored(0).part(slice(0, 0)))
    assert nothing["components"] == [] and nothing["why"]


def test_the_interval_over_groups_covers_the_credit_of_the_population():
    population = random_scored(99, groups=3000)
    truth = by_name(gradient_credit(population, resamples=2))["task"]
    rng = np.random.default_rng(0)
    runs, inside = 120, 0
    for _ in range(runs):
        drawn = population.part(np.isin(population.group, rng.choice(3000, 60, replace=False)))
        found = gradient_credit(drawn, rng, resamples=300)
        part = next(p for p in found["components"] if p["name"] == "task")
        inside += part["low"] <= truth <= part["high"]
    assert 0.88 <= inside / runs <= 0.995  # 95 % nominal, n = 120: +- 4 points, and a bootstrap of 60 groups


def test_equal_input_gives_equal_output():
    assert gradient_credit(random_scored(2)) == gradient_credit(random_scored(2))


def test_a_group_that_the_window_cuts_takes_no_part() -> None:
    rows = [
        {
            "step": 1 + place // 8,
            "session": place + 1,
            "pipeline": "grpo",
            "category": "a",
            "group_id": f"g{place // 4}",
            "group_size": 4,
            "baseline_reward": float(place % 3),
            "components": [
                {"name": "task", "raw": float(place % 3), "value": float(place % 3), "weight": 1.0, "role": "optimised"}
            ],
        }
        for place in range(16)
    ]
    whole, cut = (Scored.of_table(pa.Table.from_pylist(part)) for part in (rows[4:], rows[6:]))
    without = Scored.of_table(pa.Table.from_pylist(rows[8:]))
    assert gradient_credit(whole)["groups_cut"] == 0
    found = gradient_credit(cut)
    assert found["groups_cut"] == 1
    assert found["n"] == gradient_credit(without)["n"]
