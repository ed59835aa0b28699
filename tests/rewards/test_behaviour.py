from itertools import combinations

import numpy as np
import pytest

from rewards.analysis.behaviour import (
    compare_richness,
    differing_pairs,
    distinct_n,
    ngrams,
    rarefied_types,
    unique_share,
    words,
)


def zipf(rng, n, types=400):
    p = 1 / np.arange(1, types + 1)
    return rng.choice(types, size=n, p=p / p.sum())


def test_rarefied_types_equal_the_mean_over_every_possible_sample():
    items = list("aaabbcddee")
    counts = np.array([3.0, 2, 1, 2, 2])
    for sample in (1, 2, 4, 10):
        drawn = [len({items[i] for i in chosen}) for chosen in combinations(range(10), sample)]
        assert rarefied_types(counts, sample) == pytest.approx(np.mean(drawn), abs=1e-10)


def test_rarefied_types_stay_within_2_percent_over_a_fivefold_change_of_length():
    rng = np.random.default_rng(2)
    means = {}
    for length in (200, 1000):
        drawn = [rarefied_types(np.bincount(zipf(rng, length)).astype(float), 150) for _ in range(200)]
        means[length] = np.mean(drawn)
    assert means[200] == pytest.approx(means[1000], rel=0.02)


def test_raw_type_token_ratio_does_change_with_length():
    rng = np.random.default_rng(2)
    short, long = (np.mean([len(set(zipf(rng, n))) / n for _ in range(50)]) for n in (200, 1000))
    assert short > 1.3 * long


def test_rarefaction_is_stable_for_large_counts():
    assert rarefied_types(np.full(1000, 1e6), 500) == pytest.approx(1000 * (1 - 0.999**500), rel=1e-4)


@pytest.mark.parametrize("sample", [0, 11])
def test_a_sample_larger_than_the_data_is_refused(sample):
    with pytest.raises(ValueError, match="cannot be drawn"):
        rarefied_types(np.array([5.0, 5.0]), sample)


def test_unique_share_is_one_for_distinct_answers_and_one_over_n_for_equal_ones():
    assert unique_share([f"answer {i}" for i in range(50)], 20) == pytest.approx(1.0)
    assert unique_share(["same"] * 50, 20) == pytest.approx(1 / 20)


def test_distinct_bigrams_do_not_fall_because_there_are_more_texts():
    rng = np.random.default_rng(4)
    texts = [[str(token) for token in zipf(rng, 12, 40)] for _ in range(2000)]
    assert distinct_n(texts[:400], 2, 1000) == pytest.approx(distinct_n(texts, 2, 1000), rel=0.03)
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


def test_words_are_words_and_single_marks():
    assert words('It\'s {"x": 4.5}') == ["It", "'", "s", "{", '"', "x", '"', ":", "4", ".", "5", "}"]


def test_differing_pairs_is_the_chance_that_two_answers_to_a_prompt_differ():
    answers = ["a", "a", "b", "b", "c", "c", "c", "d"]
    groups = ["p", "p", "p", "p", "q", "q", "q", None]
    estimate = differing_pairs(answers, groups)
    assert estimate.value == pytest.approx((4 / 6 + 0) / 2) and estimate.n == 2
    assert differing_pairs(["a"], ["p"]).why == "no prompt has two answers"


def test_windows_of_different_length_from_one_source_show_the_same_richness():
    rng = np.random.default_rng(9)
    first = [[int(t) for t in zipf(rng, 30)] for _ in range(400)]
    last = [[int(t) for t in zipf(rng, 6)] for _ in range(400)]
    groups = [i // 8 for i in range(400)]
    found = compare_richness(first, last, (groups, groups))
    assert found.items == (12000, 2400) and 1080 <= found.sample <= 1200
    assert found.first.value == pytest.approx(found.last.value, rel=0.04)
    assert found.last.low < found.first.value < found.last.high


@pytest.mark.slow
def test_jackknife_interval_of_richness_covers_its_expectation():
    rng = np.random.default_rng(12)
    groups = list(range(120))
    truth = np.mean([rarefied_types(np.bincount(zipf(rng, 960)).astype(float), 400) for _ in range(400)])
    hits = 0
    for _ in range(300):
        window = [[int(t) for t in zipf(rng, 8)] for _ in range(120)]
        found = compare_richness(window, window, (groups, groups), limit=400)
        hits += found.first.low <= truth <= found.first.high
    assert 0.90 <= hits / 300 <= 0.99


def test_a_window_without_items_says_so_and_one_prompt_has_no_interval():
    empty = compare_richness([[]], [["a", "b"]], ([None], [None]))
    assert empty.first.value is None and "too few items" in empty.first.why
    one = compare_richness([list("abab")], [list("aaaa")], (["p"], ["p"]))
    assert one.first.value == pytest.approx(5 / 3) and one.last.value == 1.0 and "no interval" in one.first.why
