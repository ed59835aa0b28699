"""Texts that repeat themselves: repeated n-grams, the longest repeated part, compressibility, and what a loop says."""

import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]

# Up to this many characters sorting the suffixes themselves is fastest; beyond, they would fill the memory.
SORTED_SUFFIXES = 2000
# A loop is a part of 3 characters or more that stands at least three times in a row.
LOOP_TIMES = 3
_LOOP = re.compile(r"(\S.{2,120}?)\1{2,}", re.DOTALL)


def repeated_share(tokens: Sequence[str], order: int = 4) -> float | None:
    """Share of a text's n-grams that occurred before in it (rep-n); None for a text without an n-gram.

    Source: Welleck et al. 2020, section 6 (seq-rep-n).
    """
    grams = len(tokens) - order + 1
    if grams < 1:
        return None
    return 1 - len(set(zip(*(tokens[shift:] for shift in range(order)), strict=False))) / grams


def longest_repeat(text: str) -> tuple[int, int]:
    """(length, start) of the longest part that stands at least twice in a text; the two places may overlap.

    (0, 0) where no character comes again. Of several longest ones any may be given.
    Units: characters.
    """
    return _by_sorting(text) if len(text) <= SORTED_SUFFIXES else _by_doubling(text)


def zlib_ratio(text: str) -> float | None:
    """Compressed over plain size; None for an empty text. Small means predictable from itself.

    Units: bytes of UTF-8, raw deflate at level 6, without header. Short texts gain little from it: compare texts of one
    length.
    """
    plain = text.encode(errors="surrogatepass")
    if not plain:
        return None
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (len(packer.compress(plain)) + len(packer.flush())) / len(plain)


@dataclass(frozen=True)
class Loop:
    """A part of a text that stands several times in a row. Units: start in characters."""

    content: str
    times: int
    start: int

    @property
    def covered(self) -> int:
        """Characters that the repetitions fill."""
        return self.times * len(self.content)


def find_loop(text: str) -> Loop | None:
    """The loop that fills most of a text: a part of 3 to 121 characters that stands three times in a row or more.

    Source: none; loops of a longer part show in `longest_repeat` only.
    """
    best: Loop | None = None
    place = 0
    while found := _LOOP.search(text, place):
        unit, start = found.group(1), found.start(1)
        times = LOOP_TIMES
        while text.startswith(unit, start + times * len(unit)):
            times += 1
        loop = Loop(unit, times, start)
        if best is None or loop.covered > best.covered:
            best = loop
        place = start + loop.covered
    return best


def _by_sorting(text: str) -> tuple[int, int]:
    """Neighbours among the sorted suffixes share the longest prefixes."""
    suffixes = sorted(text[start:] for start in range(len(text)))
    length = start = 0
    for one, next_one in itertools.pairwise(suffixes):
        while next_one[: length + 1] == one[: length + 1] and len(one) > length:
            length += 1
            start = len(text) - len(next_one)
    return length, start


def _by_doubling(text: str) -> tuple[int, int]:
    """Names for all parts of 1, 2, 4, ... characters, then a search among the lengths between two powers.

    A part of any length between is a pair of overlapping parts of the power below it.
    """
    names = np.unique(np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4"), return_inverse=True)
    levels = [names[1].reshape(-1).astype(np.int64)]
    if levels[0].max() + 1 == len(text):
        return 0, 0
    while True:
        half = 1 << (len(levels) - 1)
        paired = _paired(levels[-1], half)
        if len(paired) == 0:
            break
        _, place = np.unique(paired, return_inverse=True)
        if place.max() + 1 == len(paired):
            break
        levels.append(place.reshape(-1))
    low, high = 1 << (len(levels) - 1), min(2 << (len(levels) - 1), len(text))
    while high - low > 1:  # a part of `low` characters comes again, one of `high` does not
        middle = (low + high) // 2
        paired = _paired(levels[-1], middle - (1 << (len(levels) - 1)))
        low, high = (middle, high) if len(np.unique(paired)) < len(paired) else (low, middle)
    final = _paired(levels[-1], low - (1 << (len(levels) - 1)))
    order = np.argsort(final, kind="stable")
    again = np.flatnonzero(final[order][1:] == final[order][:-1])
    return low, int(order[again[0]])


def _paired(names: Index, shift: int) -> Index:
    """One number for each pair of names `shift` apart."""
    return names[: len(names) - shift] * (len(names) + 1) + names[shift:] if shift < len(names) else names[:0]
