from itertools import combinations
from math import comb, exp, log

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from rewards.analysis.behaviour import rarefied_types, words
from rewards.analysis.diversity import ngram_kernel, pass_at_k, self_bleu, vendi
from tests.rewards.accepted import record


def tokens(*texts):
    return [text.split() for text in texts]


def slow_bleu(candidate, references):
    """BLEU by its definition, one n-gram at a time."""
    total, orders = 0.0, min(4, len(candidate))
    for n in range(1, orders + 1):
        mine = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
        theirs = [[tuple(r[i : i + n]) for i in range(len(r) - n + 1)] for r in references]
        matched = sum(min(mine.count(gram), max(found.count(gram) for found in theirs)) for gram in set(mine))
        smooth = 1 if n > 1 else 0
        if matched + smooth == 0:
            return 0.0
        total += log((matched + smooth) / (len(mine) + smooth))
    closest = min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
    return exp(min(0.0, 1 - closest / len(candidate)) + total / orders)


def test_self_bleu_equals_the_definition_for_every_text():
    rng = np.random.default_rng(1)
    texts = [[str(word) for word in rng.integers(0, 6, int(rng.integers(1, 12)))] for _ in range(25)]
    expected = [slow_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(expected, abs=1e-12)


def test_self_bleu_is_one_for_copies_and_near_nothing_for_texts_without_a_common_word():
    assert self_bleu(tokens("the cat sat on the mat", "the cat sat on the mat")).tolist() == pytest.approx([1, 1])
    assert self_bleu(tokens("a b c d", "e f g h")).tolist() == [0.0, 0.0]


def test_a_word_counts_at_most_as_often_as_one_other_text_has_it():
    # a: 2 of 4 unigrams (the other has two), then (1 + 1) / (3 + 1), (0 + 1) / (2 + 1), (0 + 1) / (1 + 1)
    scores = self_bleu(tokens("x x x x", "x x"))
    assert scores[0] == pytest.approx((2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25)
    assert scores[1] == pytest.approx(exp(1 - 4 / 2))


def test_an_empty_text_is_like_another_empty_text_only():
    assert self_bleu([[], ["a"], ["a"]]).tolist() == [0.0, 1.0, 1.0]
    assert self_bleu([[], []]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="at least two"):
        self_bleu([["a"]])


def test_self_bleu_grows_with_the_number_of_texts_so_only_samples_of_one_size_compare():
    rng = np.random.default_rng(2)
    texts = [[str(word) for word in rng.integers(0, 40, 10)] for _ in range(400)]
    few = np.mean([self_bleu(texts[i : i + 20]).mean() for i in range(0, 400, 20)])
    assert self_bleu(texts).mean() > few + 0.1
    other = [[str(word) for word in rng.integers(0, 40, 10)] for _ in range(400)]
    same = np.mean([self_bleu(other[i : i + 20]).mean() for i in range(0, 400, 20)])
    assert same == pytest.approx(few, abs=0.03)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_vendi_is_n_for_orthogonal_items_and_one_for_identical_ones(n):
    assert vendi(np.eye(n)) == pytest.approx(n)
    assert vendi(np.ones((n, n))) == pytest.approx(1.0)


def test_vendi_of_unequal_groups_of_copies_is_the_exponential_entropy_of_their_shares():
    kernel = np.zeros((10, 10))
    kernel[:7, :7] = kernel[7:, 7:] = 1.0
    assert vendi(kernel) == pytest.approx(exp(-0.7 * log(0.7) - 0.3 * log(0.3)))


@pytest.mark.parametrize("bad", [np.zeros((0, 0)), np.ones((2, 3)), np.eye(2) * 2, np.array([[1.0, 0.5], [0.1, 1.0]])])
def test_vendi_refuses_what_is_no_similarity_kernel(bad):
    with pytest.raises(ValueError, match="kernel"):
        vendi(bad)


def test_the_ngram_kernel_equals_the_cosine_of_independent_counts():
    texts = ["the cat sat on the mat", "the dog sat on the log", "zebras run", "the the the cat"]
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+").fit_transform(texts)
    assert ngram_kernel(tokens(*texts)) == pytest.approx(cosine_similarity(counts))


def test_texts_with_nothing_in_common_count_as_many_and_copies_as_one_and_empty_texts_are_alike():
    assert vendi(ngram_kernel(tokens("a b", "c d", "e f"))) == pytest.approx(3.0)
    assert vendi(ngram_kernel(tokens("a b", "a b", "a b"))) == pytest.approx(1.0)
    assert ngram_kernel([[], [], ["a"]]).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="at least one text"):
        ngram_kernel([])


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer():
    for n, right in ((8, 3), (5, 0), (5, 5), (4, 1)):
        for k in range(1, n + 1):
            draws = list(combinations(range(n), k))
            share = np.mean([any(i < right for i in draw) for draw in draws])
            found = pass_at_k(np.array([n]), np.array([right]), k)[0]
            assert found == pytest.approx(share) == pytest.approx(1 - comb(n - right, k) / comb(n, k))


def test_pass_at_k_is_null_where_there_are_fewer_answers():
    found = pass_at_k(np.array([4, 8]), np.array([1, 1]), 8)
    assert np.isnan(found[0]) and found[1] == 1.0
    for n, right, k in ((4, 5, 1), (4, -1, 1), (4, 1, 0)):
        with pytest.raises(ValueError):
            pass_at_k(np.array([n]), np.array([right]), k)


def test_rarefied_words_stay_within_2_percent_over_a_fivefold_length_where_the_ratio_of_types_does_not():
    rng = np.random.default_rng(4)
    p = 1 / np.arange(1, 401)
    rarefied, ratio = {}, {}
    for length in (200, 1000):
        drawn = [rng.choice(400, size=length, p=p / p.sum()) for _ in range(300)]
        rarefied[length] = np.mean([rarefied_types(np.bincount(text).astype(float), 150) for text in drawn])
        ratio[length] = np.mean([len(set(text.tolist())) / length for text in drawn])
    off = abs(rarefied[1000] / rarefied[200] - 1)
    record("rarefied vocabulary: change over a fivefold length", float(off), "<= 0.02", 300)
    record("Vendi score of 40 orthogonal items", vendi(np.eye(40)), "40", 1)
    record("Vendi score of 40 identical items", vendi(np.ones((40, 40))), "1", 1)
    record("types over tokens: change over a fivefold length", float(1 - ratio[1000] / ratio[200]), "naive", 300)
    assert off <= 0.02 and ratio[1000] < 0.8 * ratio[200]


def test_words_of_one_source_give_one_self_bleu_and_one_vendi_score_whatever_the_number_of_sessions():
    rng = np.random.default_rng(6)
    source = [words(f"the {rng.integers(9)} of {rng.integers(9)} is {rng.integers(9)}.") for _ in range(2000)]
    few = [source[i : i + 40] for i in range(0, 400, 40)]
    many = [source[i : i + 40] for i in range(0, 2000, 40)]
    for score in (lambda t: self_bleu(t).mean(), lambda t: vendi(ngram_kernel(t))):
        assert np.mean([score(t) for t in few]) == pytest.approx(np.mean([score(t) for t in many]), rel=0.03)
