import zlib

import numpy as np
import pytest

from rewards.analysis import repetition
from rewards.analysis.repetition import find_loop, longest_repeat, repeated_share, zlib_ratio


def slow_longest(text):
    for length in range(len(text) - 1, 0, -1):
        seen = set()
        for start in range(len(text) - length + 1):
            part = text[start : start + length]
            if part in seen:
                return length
            seen.add(part)
    return 0


def random_texts(count, most):
    rng = np.random.default_rng(8)
    alphabet = np.array(list("abcé"))
    for _ in range(count):
        yield "".join(alphabet[rng.integers(0, rng.integers(1, 5), int(rng.integers(1, most)))])


def test_repeated_share_counts_what_came_before():
    assert repeated_share(list("abcdabcd")) == pytest.approx(1 - 4 / 5)
    assert repeated_share(list("abcde")) == 0.0
    assert repeated_share(["x"] * 10, order=1) == pytest.approx(0.9)
    assert repeated_share(["a", "b", "c"]) is None


@pytest.mark.parametrize("find", [repetition._by_sorting, repetition._by_doubling])
def test_the_longest_repeat_equals_that_of_trying_every_length(find):
    for text in random_texts(400, 40):
        length, start = find(text)
        assert length == slow_longest(text)
        if length:
            part = text[start : start + length]
            assert text.find(part) != text.rfind(part)


def test_the_longest_repeat_of_a_long_text_is_the_same_by_both_ways():
    rng = np.random.default_rng(3)
    words = [f"w{i}" for i in range(60)]
    text = " ".join(words[i] for i in rng.integers(0, 60, 900))
    assert len(text) > repetition.SORTED_SUFFIXES
    assert longest_repeat(text)[0] == repetition._by_sorting(text)[0]
    planted = text[:1500] + text[100:900] + text[1500:]
    assert longest_repeat(planted)[0] >= 800


def test_texts_without_a_repeat_and_texts_of_one_character():
    assert longest_repeat("") == (0, 0) and longest_repeat("abc") == (0, 0)
    assert longest_repeat("aaaa")[0] == 3
    assert longest_repeat("a" * 5000)[0] == 4999
    assert repetition._by_doubling("abcdef") == (0, 0)


def test_zlib_ratio_is_the_size_of_the_deflated_text_without_header():
    text = "I am sorry. " * 40
    assert zlib_ratio(text) == pytest.approx((len(zlib.compress(text.encode(), 6)) - 6) / len(text))
    assert zlib_ratio(text) < 0.1 < zlib_ratio("The quick brown fox jumps over the lazy dog")
    assert zlib_ratio("") is None and zlib_ratio("\ud800") > 0


def test_a_loop_is_found_with_its_content_and_its_times():
    found = find_loop("Sure. " + "I am sorry. " * 4 + "Bye")
    assert (found.times, found.covered) == (4, 48)
    assert sorted(found.content.strip(" .")) == sorted("I am sorry")
    assert find_loop("hahahahahaha").covered == 12
    assert find_loop("a word and a word and nothing") is None and find_loop("") is None


def test_of_several_loops_the_one_that_fills_more_is_given():
    found = find_loop("abc abc abc abc. but then again, and again, and again, and again, and again, end")
    assert found.content.strip(" ,").replace(",", "").split() in (["and", "again"], ["again", "and"])
    assert found.times >= 4
