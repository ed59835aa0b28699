"""Bins of rows: full where they can be, every row once an epoch, a function of step and seed alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.packing import PackedOrder, best_fit_decreasing

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def by_scanning(lengths: list[int], capacity: int) -> list[int]:
    """Best fit the slow way: look at every bin for each length."""
    rooms: list[int] = []
    chosen = []
    for length in lengths:
        fitting = [room for room in rooms if room >= length]
        # Of equally full bins the one that has been this full for longest is not needed: rooms are all that counts.
        place = rooms.index(min(fitting)) if fitting else len(rooms)
        if place == len(rooms):
            rooms.append(capacity)
        rooms[place] -= length
        chosen.append(place)
    return chosen


def contents(lengths: list[int], bins: list[int]) -> Counter:
    found: dict[int, list[int]] = {}
    for length, number in zip(lengths, bins, strict=True):
        found.setdefault(number, []).append(length)
    return Counter(tuple(sorted(bin_)) for bin_ in found.values())


def test_the_longest_goes_first_into_the_fullest_bin_that_has_room() -> None:
    assert best_fit_decreasing([7, 6, 4, 3, 2, 1], 10).tolist() == [0, 1, 1, 0, 2, 2]
    assert best_fit_decreasing([10, 5, 5, 5], 10).tolist() == [0, 1, 1, 2]


@given(lengths_lists)
def test_bins_are_those_of_a_search_through_all_of_them(lengths: list[int]) -> None:
    descending = sorted(lengths, reverse=True)
    ours, slow = best_fit_decreasing(descending, 40).tolist(), by_scanning(descending, 40)
    assert len(set(ours)) == len(set(slow))
    sums = np.bincount(ours, weights=descending)
    assert sorted(sums) == sorted(np.bincount(slow, weights=descending)) and sums.max() <= 40


def test_bins_hold_the_lengths_that_trls_do() -> None:
    trl = pytest.importorskip("trl", reason="TRL is the independent implementation here")
    datasets = pytest.importorskip("datasets", reason="TRL packs data sets of this library")
    lengths = np.random.default_rng(0).integers(1, 97, size=400).tolist()
    rows = datasets.Dataset.from_dict({"input_ids": [[0] * length for length in lengths]})
    theirs = trl.pack_dataset(rows, seq_length=96, strategy="bfd")["seq_lengths"]
    descending = sorted(lengths, reverse=True)
    ours = contents(descending, best_fit_decreasing(descending, 96).tolist())
    assert ours == Counter(tuple(sorted(bin_)) for bin_ in theirs)


def test_lengths_that_fit_no_bin_or_go_up_are_refused() -> None:
    for lengths in ([11], [3, 4], [3, 0]):
        with pytest.raises(ValueError, match="lengths go down, from 10 to 1"):
            best_fit_decreasing(lengths, 10)
    with pytest.raises(ValueError, match="lengths go down"):
        PackedOrder([3, 11], 10, 1, 0)


@given(lengths_lists, st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_takes_every_row_once_in_bins_that_hold_no_more_than_they_can(
    lengths: list[int], batch: int, seed: int
) -> None:
    order = PackedOrder(lengths, 40, batch, seed)
    steps = -(-2 * order.units // batch)
    bins = [bin_ for step in range(1, steps + 1) for bin_ in order.groups(step)]
    assert all(sum(lengths[row] for row in bin_) <= 40 for bin_ in bins)
    for epoch in (bins[: order.units], bins[order.units : 2 * order.units]):
        assert sorted(row for bin_ in epoch for row in bin_) == list(range(len(lengths)))
    assert order.fill == pytest.approx(sum(lengths) / (40 * order.units))


def test_the_order_depends_on_seed_and_step_alone_and_changes_between_epochs() -> None:
    lengths = np.random.default_rng(1).integers(1, 20, size=200).tolist()
    one, two = PackedOrder(lengths, 40, 4, 7), PackedOrder(lengths, 40, 4, 7)
    forward = [one.groups(step) for step in range(1, 40)]
    assert [two.groups(step) for step in range(39, 0, -1)] == forward[::-1]
    assert forward != [PackedOrder(lengths, 40, 4, 8).groups(step) for step in range(1, 40)]
    bins = [tuple(bin_) for step in forward for bin_ in step]
    first, second = set(bins[: one.units]), set(bins[one.units : 2 * one.units])
    # Rows of one length change places, so that an epoch is no repetition of the one before.
    assert len(first & second) < 0.5 * one.units


def test_a_bin_holds_its_longest_row_first() -> None:
    lengths = np.random.default_rng(1).integers(1, 20, size=50).tolist()
    for bin_ in PackedOrder(lengths, 40, 5, 0).groups(1):
        assert [lengths[row] for row in bin_] == sorted((lengths[row] for row in bin_), reverse=True)
