"""The decomposition of a changed mean reward: exact, symmetric, and each cause in its own part."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from rewards.analysis.scored import OUTSIDE, WHOLE, Scored, clusters
from rewards.analysis.shapley import product_change
from rewards.analysis.why import Window, why


def window(rows, label="A", run="r", first=1, size=4):
    """rows: (category, {name: (value or None, weight)}); groups of `size` in their order."""
    n = len(rows)
    entries = [
        [
            {
                "name": name,
                "value": value[0],
                "raw": value[0],
                "weight": value[1],
                "role": "optimised",
                "status": "na" if value[0] is None else "ok",
                "scorer_id": value[2] if len(value) > 2 else "f",
            }
            for name, value in parts.items()
        ]
        for _, parts in rows
    ]
    sums = []
    for _, parts in rows:
        known = [v[0] * v[1] for v in parts.values() if v[0] is not None]
        sums.append(sum(known) if known else None)
    fields = {
        "step": pa.array([i // 8 for i in range(n)], pa.int64()),
        "group_id": pa.array([f"g{i // size}" for i in range(n)], pa.string()),
        "category": pa.array([category for category, _ in rows], pa.string()),
        "baseline_reward": pa.array(sums, pa.float64()),
        "components": pa.array(entries),
    }
    return Window(run, label, first, first + n - 1, Scored.of_table(pa.table(fields)))


def random_rows(seed, n=200, categories="xyz", missing=0.2, **weights):
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(len(categories), 3))
    shares = rng.dirichlet(np.ones(len(categories)))
    rows = []
    for _ in range(n):
        c = rng.choice(len(categories), p=shares)
        values = level[c] + rng.normal(size=3)
        parts = {
            name: (None if rng.random() < missing else float(v), weights.get(name, w))
            for name, v, w in zip(("task", "style", "length"), values, (1.0, 0.3, -0.7), strict=True)
        }
        rows.append((categories[c], parts))
    return rows


def parts(found):
    return {(part["kind"], part["name"]): part["value"] for part in found["parts"]}


def test_a_product_changes_by_the_mean_over_all_orders():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4):
        before, after = rng.normal(size=(2, count))
        got = product_change(list(before[:, None]), list(after[:, None]))
        want = np.zeros(count)
        orders = list(itertools.permutations(range(count)))
        for order in orders:
            now = before.copy()
            for i in order:
                then = np.prod(now)
                now[i] = after[i]
                want[i] += (np.prod(now) - then) / len(orders)
        assert np.concatenate(got) == pytest.approx(want, abs=1e-12)
        assert sum(g[0] for g in got) == pytest.approx(np.prod(after) - np.prod(before), abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_the_parts_sum_to_the_change_whatever_changed(seed):
    a = window(random_rows(seed, categories="xyz"))
    b = window(random_rows(seed + 100, n=150, categories="yzw", style=0.9))
    found = why(a, b, resamples=20)
    assert found["mean_a"] == pytest.approx(np.nanmean(a.scored.baseline), abs=1e-14)
    assert found["sums_to"] == pytest.approx(found["change"], abs=1e-12)
    assert sum(row["within"] + row["mixture"] for row in found["by_category"]) == pytest.approx(
        found["change"], abs=1e-12
    )
    kinds = {part["kind"] for part in found["parts"]}
    assert kinds == {"component", "weight", "mixture", "missing"}
    backwards = parts(why(b, a, resamples=20))
    assert backwards == pytest.approx({key: -value for key, value in parts(found).items()}, abs=1e-12)


def test_a_decomposition_by_hand():
    # A: x 1, x 0, y 0, y 0 with weight 1; B: x 1, x 1, x 1, y 0 with weight 2.
    a = window([("x", {"t": (v, 1.0)}) for v in (1.0, 0.0)] + [("y", {"t": (0.0, 1.0)})] * 2)
    b = window([("x", {"t": (1.0, 2.0)})] * 3 + [("y", {"t": (0.0, 2.0)})])
    found = parts(why(a, b))
    # Only x is not 0: p 1/2 to 3/4, W 1 to 2, V 1/2 to 1.
    # Three factors: (b1 - a1) (2 a2 a3 + a2 b3 + b2 a3 + 2 b2 b3) / 6
    share = 1 / 4 * (2 * 1 * 1 / 2 + 1 * 1 + 2 * 1 / 2 + 2 * 2 * 1) / 6
    weight = 1 * (2 * 1 / 2 * 1 / 2 + 1 / 2 * 1 + 3 / 4 * 1 / 2 + 2 * 3 / 4 * 1) / 6
    value = 1 / 2 * (2 * 1 / 2 * 1 + 1 / 2 * 2 + 3 / 4 * 1 + 2 * 3 / 4 * 2) / 6
    want = {("component", "t"): value, ("weight", "t"): weight, ("mixture", "categories"): share}
    assert found == pytest.approx(want, abs=1e-12)
    assert sum(want.values()) == pytest.approx(3 / 2 - 1 / 4)


def test_when_only_the_mixture_changed_only_the_mixture_has_a_part():
    make = {"x": {"t": (1.0, 1.0), "s": (0.5, 0.2)}, "y": {"t": (0.25, 1.0), "s": (1.0, 0.2)}}
    a = window([(c, make[c]) for c in "xxyyyyyy"])
    b = window([(c, make[c]) for c in "xxxxxxyy"])
    found = why(a, b)
    got = parts(found)
    assert got["mixture", "categories"] == pytest.approx(found["change"], abs=1e-15) and found["change"] > 0
    assert [value for key, value in got.items() if key[0] != "mixture"] == pytest.approx([0.0, 0.0], abs=1e-15)
    # Seen from the middle, the better category that grew and the worse one that shrank both are gains.
    assert all(row["mixture"] > 0 and row["within"] == pytest.approx(0) for row in found["by_category"])


def test_a_naive_difference_of_means_by_component_takes_the_mixture_for_an_improvement():
    """Simpson: both categories get worse, the mean rises, and the naive split calls the component an improvement."""
    a = window([("x", {"t": (0.9, 1.0)})] * 2 + [("y", {"t": (0.2, 1.0)})] * 6)
    b = window([("x", {"t": (0.8, 1.0)})] * 6 + [("y", {"t": (0.1, 1.0)})] * 2)
    found = why(a, b)
    naive = float(b.scored.value.mean() - a.scored.value.mean())
    assert naive > 0.2
    assert parts(found)["component", "t"] == pytest.approx(-0.1) and all(
        row["within"] < 0 for row in found["by_category"]
    )


def test_a_changed_weight_alone_is_a_part_of_its_own():
    rows = random_rows(4, missing=0.0)
    a = window(rows)
    b = window([(c, {**p, "style": (p["style"][0], 0.8)}) for c, p in rows])
    got = parts(why(a, b))
    mean = np.mean([p["style"][0] for _, p in rows])
    assert got["weight", "style"] == pytest.approx(0.5 * mean, abs=1e-12)
    assert all(value == pytest.approx(0, abs=1e-12) for key, value in got.items() if key != ("weight", "style"))


def test_a_weight_that_changes_inside_a_window_still_leaves_nothing_over():
    rows = random_rows(4)
    mixed = [(c, {**p, "task": (p["task"][0], 1.0 + i % 3)}) for i, (c, p) in enumerate(rows)]
    found = why(window(rows), window(mixed))
    assert found["sums_to"] == pytest.approx(found["change"], abs=1e-12)
    assert parts(found)["component", "task"] == pytest.approx(0, abs=1e-12)
    assert parts(found)["weight", "task"] == pytest.approx(found["change"], abs=1e-12)


def test_missing_values_alone_are_a_part_of_their_own():
    rows = [("x", {"t": (1.0, 1.0), "s": (0.5, 1.0)})] * 8
    without = [("x", {"t": (1.0, 1.0), "s": (None if i < 4 else 0.5, 1.0)}) for i in range(8)]
    found = why(window(rows), window(without))
    assert found["change"] == pytest.approx(-0.25)
    assert parts(found) == pytest.approx(
        {("component", "t"): 0, ("component", "s"): 0, ("missing", "s"): -0.25}, abs=1e-15
    )


def test_a_component_whose_scorer_changed_is_one_part_that_says_so():
    rows = random_rows(5)
    newer = [
        (c, {k: (v[0] if k != "task" or v[0] is None else v[0] + 1, v[1], "g" if k == "task" else "f")
             for k, v in p.items()})
        for c, p in rows
    ]  # fmt: skip
    found = why(window(rows), window(newer))
    (scorer,) = [part for part in found["parts"] if part["kind"] == "scorer"]
    assert scorer["name"] == "task" and "f to g" in scorer["note"] and "cannot be told" in scorer["note"]
    assert scorer["value"] == pytest.approx(found["change"], abs=1e-12)
    assert ("component", "task") not in parts(found) and ("missing", "task") not in parts(found)
    assert "cannot be split further" in found["verdict"]


def test_a_reward_that_its_components_do_not_explain_is_named_and_is_no_component():
    a = window(random_rows(6))
    clipped = np.clip(a.scored.baseline, -0.5, 0.5)
    b = Window("r", "B", 1, 200, Scored(**{**vars(a.scored), "baseline": clipped}))
    found = why(a, b)
    assert parts(found)["outside", OUTSIDE] == pytest.approx(found["change"], abs=1e-12)
    assert {name for kind, name in parts(found) if kind == "component"} == {"length", "style", "task"}
    assert "what is outside the components" in found["verdict"]
    tables = [
        pa.table({"step": [1] * 9, "baseline_reward": pa.array(v, pa.float64())}) for v in (range(9), range(1, 10))
    ]
    bare = [Window("r", "A", 1, 9, Scored.of_table(table)) for table in tables]
    found = why(*bare)
    assert parts(found) == {("outside", WHOLE): pytest.approx(1.0)} and found["credit_a"]["why"]
    assert "It is made of the whole reward +1" in found["verdict"]
    assert "without a group" in found["why"]


def test_the_interval_counts_groups_where_their_answers_are_alike():
    """Eight equal answers a group: the naive interval over sessions is sqrt(8) too narrow."""
    rng = np.random.default_rng(0)

    def side():
        return window([("x", {"t": (float(v), 1.0)}) for v in rng.normal(size=50) for _ in range(8)], size=8)

    a, b = side(), side()
    found = why(a, b)
    low, high = found["change_interval"]
    per_session = 2 * 1.96 * np.sqrt(2 / 400)
    assert (high - low) / per_session == pytest.approx(np.sqrt(8), rel=0.2)
    assert found["parts"][0]["mde"] == pytest.approx(2.8 * np.sqrt(2 / 50), rel=0.2)


def test_the_interval_covers_no_change_as_often_as_it_says():
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(size=2000), 4) + rng.normal(size=8000)
    rows = [("xy"[i % 8 // 4], {"t": (float(v), 1.0)}) for i, v in enumerate(values)]
    population = window(rows).scored
    runs, inside = 120, 0
    for _ in range(runs):
        drawn = rng.choice(2000, (2, 40), replace=False)
        sides = [Window("r", "", i, i, population.part(np.isin(population.group, own))) for i, own in enumerate(drawn)]
        low, high = why(*sides, rng, resamples=300)["change_interval"]
        inside += low <= 0 <= high
    assert 0.87 <= inside / runs <= 0.995  # 95 % nominal, n = 120, 40 groups a side


def test_many_groups_are_put_together_with_their_neighbours():
    data = window([("x", {"t": (1.0, 1.0)})] * 40_000).scored
    assert len(np.unique(clusters(data, 10))) == 2000
    few = clusters(data, 200_000)
    assert len(np.unique(few)) == 100 and bool(np.all(np.diff(few) >= 0))


def test_an_empty_window_says_so_and_nothing_is_invented():
    full = window(random_rows(7))
    none = window([("x", {"t": (None, 1.0)})] * 4)
    found = why(full, none)
    assert (found["mean_b"], found["change"], found["parts"], found["sums_to"]) == (None, None, [], None)
    assert "no session has a baseline reward" in found["why"]
    one = why(window([("x", {"t": (1.0, 1.0)})]), full)
    assert one["change_interval"] == [None, None] and "one group" in one["why"]
    assert all(part["low"] is None and part["mde"] is None for part in one["parts"])


def test_constant_rewards_have_no_interval_and_few_groups_are_told():
    flat = window([("x", {"t": (0.5, 1.0)})] * 40)
    found = why(flat, flat)
    assert (found["change"], found["change_interval"], found["parts"][0]["mde"]) == (0.0, [None, None], None)
    assert "No part of it changed" in found["verdict"] and "only 10 groups" in found["why"]
    assert "every advantage is 0" in found["credit_a"]["why"]


def test_a_category_that_is_null_is_a_category_of_its_own():
    a = window([(None, {"t": (1.0, 1.0)})] * 4 + [("x", {"t": (0.0, 1.0)})] * 4)
    b = window([(None, {"t": (0.0, 1.0)})] * 4 + [("x", {"t": (0.0, 1.0)})] * 4)
    rows = {row["category"]: row for row in why(a, b)["by_category"]}
    assert rows[None]["within"] == pytest.approx(-0.5) and rows["x"]["within"] == 0


def test_equal_input_gives_equal_output_and_both_credits_sum_to_one():
    a, b = window(random_rows(8)), window(random_rows(9), "B")
    found = why(a, b)
    assert found == why(a, b)
    assert [found[f"credit_{end}"]["sums_to"] for end in "ab"] == pytest.approx([1, 1], abs=1e-9)
    assert "share sessions" in found["why"]
