"""Which rows a step takes: shares right on average, stateless in the step, every row equally often."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import ConfigError, DataError
from rlhf.config import MixturePhase
from rlhf.data.mixture import EpochOrder, Mixture, allocate

CATEGORIES = ["sums"] * 40 + ["refusals"] * 30 + ["self"] * 20 + [None] * 10


def mixture(*phases: tuple, seed: int = 0, categories=CATEGORIES) -> Mixture:
    made = [MixturePhase(category=c, weight=w, from_step=s) for c, w, s in phases]
    return Mixture(categories, made, seed)


def counts(rows: list[int]) -> Counter:
    return Counter(CATEGORIES[row] for row in rows)


def test_a_step_depends_on_seed_and_step_alone():
    phases = (("sums", 1, 1), ("refusals", 2, 1))
    one, two = mixture(*phases), mixture(*phases)
    forward = [one.choose(step, 8) for step in range(1, 20)]
    backward = [two.choose(step, 8) for step in range(19, 0, -1)]
    assert forward == backward[::-1]
    assert forward != [mixture(*phases, seed=1).choose(step, 8) for step in range(1, 20)]
    assert len({tuple(rows) for rows in forward}) == 19


def test_shares_are_right_on_average_and_within_one_prompt_in_every_step():
    drawn = mixture(("sums", 1, 1), ("refusals", 1, 1), ("self", 0.3, 1))
    total: Counter = Counter()
    for step in range(1, 2001):
        here = counts(drawn.choose(step, 8))
        for category, share in drawn.weights(step).items():
            assert abs(here[category] - 8 * share) < 1
        total += here
    # Rounding is Bernoulli with a variance of at most 1/4: the mean of 2,000 steps lies within 4 x 0.0112 prompts.
    for category, share in drawn.weights(1).items():
        assert abs(total[category] / 2000 - 8 * share) < 0.045
    assert None not in total


def test_no_row_comes_twice_in_a_step_while_there_are_others():
    drawn = mixture(("sums", 1, 1), ("self", 1, 1))
    for step in range(1, 50):
        rows = drawn.choose(step, 40)
        assert len(set(rows)) == 40
    repeated = counts(drawn.choose(1, 60))
    assert repeated == {"sums": 30, "self": 30}
    assert max(Counter(drawn.choose(1, 60)).values()) == 2


def test_a_category_enters_at_its_step_and_that_is_an_entry():
    drawn = mixture(("sums", 1, 1), ("self", 3, 5))
    assert "self" not in counts(drawn.choose(4, 8))
    assert counts(drawn.choose(5, 8))["self"] == 6
    assert [(e.category, e.weight, e.from_step) for e in drawn.entries_at(5)] == [("self", 3.0, 5)]
    assert drawn.entries_at(1) == drawn.entries_at(4) == drawn.entries_at(6) == []


def test_a_later_phase_of_a_category_replaces_its_weight():
    drawn = mixture(("sums", 1, 1), ("self", 1, 1), ("self", 0, 3))
    assert drawn.weights(2) == {"sums": 0.5, "self": 0.5}
    assert drawn.weights(3) == {"sums": 1.0}
    assert drawn.entries_at(3)[0].weight == 0


def test_a_mixture_that_cannot_be_drawn_is_refused():
    with pytest.raises(
        DataError, match="names category `poems`, which no row has \\(there are: refusals, self, sums\\)"
    ):
        mixture(("poems", 1, 1))
    with pytest.raises(ConfigError, match="at step 1"):
        mixture(("sums", 1, 2))
    with pytest.raises(ConfigError, match="at step 7"):
        mixture(("sums", 1, 1), ("sums", 0, 7))
    with pytest.raises(DataError, match="no prompts"):
        mixture(categories=[])


def test_rows_without_a_phase_are_counted():
    assert mixture(("sums", 1, 1)).left_out == 60
    assert Mixture(CATEGORIES, None, 0).left_out == 0


def test_without_phases_every_prompt_is_taken_equally_often():
    drawn = Mixture([None] * 10, None, 0)
    taken = Counter(row for step in range(1, 11) for row in drawn.choose(step, 4))
    assert taken == dict.fromkeys(range(10), 4)


def test_weights_are_drawn_from_every_order_of_categories_alike():
    generator = np.random.default_rng(0)
    extra = np.zeros(4)
    for _ in range(8000):
        extra += np.array(allocate(2, [0.25] * 4, generator))
    # Each category gets a half prompt on average; the standard error of a mean of 8,000 is 0.0056.
    assert np.allclose(extra / 8000, 0.5, atol=0.025)


@given(st.integers(1, 200), st.lists(st.floats(0.01, 10), min_size=1, max_size=8), st.integers(0, 10_000))
def test_an_allocation_sums_to_n_and_rounds_each_share_down_or_up(n, weights, seed):
    shares = [weight / sum(weights) for weight in weights]
    got = allocate(n, shares, np.random.default_rng(seed))
    assert sum(got) == n
    assert all(abs(count - n * share) < 1 + 1e-6 for count, share in zip(got, shares, strict=True))


def test_an_epoch_takes_every_row_once_whatever_the_batch():
    order = EpochOrder(10, 4, seed=5)
    flat = [row for step in range(1, 6) for row in order.indices(step)]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_the_order_is_stateless_and_differs_between_seeds():
    order = EpochOrder(100, 8, seed=5)
    later = order.indices(40)
    order.indices(1)
    assert order.indices(40) == later == EpochOrder(100, 8, seed=5).indices(40)
    assert later != EpochOrder(100, 8, seed=6).indices(40)


@given(st.integers(1, 50), st.integers(1, 70), st.integers(1, 5))
def test_after_whole_epochs_every_row_was_taken_equally_often(n, batch, epochs):
    order = EpochOrder(n, batch, 0)
    flat = [row for step in range(1, order.steps(epochs) + 1) for row in order.indices(step)]
    assert len(flat) >= n * epochs > len(flat) - batch
    assert Counter(flat[: n * epochs]) == dict.fromkeys(range(n), epochs)


def test_steps_of_a_part_of_an_epoch_are_counted_up():
    assert EpochOrder(100, 8, 0).steps(0.5) == 7
    assert EpochOrder(100, 10, 0).steps(3) == 30
    assert EpochOrder(7, 10, 0).steps(0.1) == 1
    with pytest.raises(ValueError, match="count from 1"):
        EpochOrder(7, 10, 0).indices(0)
