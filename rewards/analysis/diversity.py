"""How alike texts are: self-BLEU on subsamples of fixed size, Vendi score, and the chance that one of k is right."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.behaviour import ngrams

Floats = NDArray[np.float64]

ORDERS = 4


def self_bleu(texts: Sequence[Sequence[str]]) -> Floats:
    """BLEU of each text with all others as its references: 0 nothing in common, 1 a copy of another text.

    BLEU = BP exp(1/N sum_n ln p_n), n = 1..N, N = 4 or the length of a shorter text. p_n is the share of the text's
    n-grams found in the others, each counted at most as often as the other text that has most of them does; from
    n = 2 on (m + 1) / (t + 1) for m of t found, so that one missing order is not a zero. BP = exp(1 - r / c) for a text
    of c tokens shorter than r, the length closest to it among the others (the shorter of two).
    It grows with the number of references: compare samples of one size only.
    Shapes: tokens of each text; one value a text. Raises: ValueError for fewer than two texts.
    Source: Zhu et al. 2018 (Texygen); Papineni et al. 2002; Lin and Och 2004 for the smoothing.
    Departures: an empty text scores 1 beside another empty one, else 0.
    """
    if len(texts) < 2:
        raise ValueError("self-BLEU compares texts with each other: give at least two")
    lengths = np.array([len(text) for text in texts])
    logs, orders = np.zeros(len(texts)), np.minimum(lengths, ORDERS)
    for order in range(1, ORDERS + 1):
        counts = [Counter(ngrams(text, order)) for text in texts]
        # The two texts with most of an n-gram answer for every text: the first, or the second for the first itself.
        best: dict[tuple[str, ...], tuple[int, int, int]] = {}
        for place, found in enumerate(counts):
            for gram, times in found.items():
                most, owner, second = best.get(gram, (0, -1, 0))
                if times > most:
                    best[gram] = (times, place, most)
                elif times > second:
                    best[gram] = (most, owner, times)
        for place, found in enumerate(counts):
            if lengths[place] < order:
                continue
            matched = sum(min(n, best[gram][2 if best[gram][1] == place else 0]) for gram, n in found.items())
            smooth = 1 if order > 1 else 0
            share = (matched + smooth) / (lengths[place] - order + 1 + smooth)
            logs[place] += np.log(share) if share > 0 else -np.inf
    scores = np.zeros(len(texts))
    for place, length in enumerate(lengths):
        others = np.delete(lengths, place)
        if length == 0:
            scores[place] = float((others == 0).any())
            continue
        closest = others[np.lexsort((others, np.abs(others - length)))[0]]
        penalty = min(0.0, 1 - closest / length)
        scores[place] = np.exp(penalty + logs[place] / orders[place])
    return scores


def vendi(kernel: Floats) -> float:
    """Effective number of different items: exp of the entropy of the eigenvalues of K / n.

    n for items that share nothing, 1 for identical ones.
    Shapes: kernel, n x n, symmetric, ones on the diagonal. Raises: ValueError for another matrix.
    Source: Friedman and Dieng 2023, definition 3.1.
    """
    n = len(kernel)
    square = kernel.ndim == 2 and kernel.shape == (n, n) and n > 0
    if not square or not np.allclose(kernel, kernel.T) or not np.allclose(np.diag(kernel), 1.0):
        raise ValueError("a similarity kernel is a symmetric square matrix with ones on its diagonal")
    values = np.linalg.eigvalsh(kernel / n)
    kept = values[values > 1e-12]
    return float(np.exp(-(kept * np.log(kept)).sum()))


def ngram_kernel(texts: Sequence[Sequence[str]], orders: Sequence[int] = (1, 2)) -> Floats:
    """Cosine of the counts of n-grams of the given orders, for every pair of texts.

    Shapes: tokens of each text; texts x texts. Two empty texts are alike, an empty one and another share nothing.
    Raises: ValueError without texts.
    """
    if not texts:
        raise ValueError("a kernel needs at least one text")
    index: dict[tuple[str, ...], int] = {}
    rows: list[int] = []
    columns: list[int] = []
    for place, text in enumerate(texts):
        found = [gram for order in orders for gram in ngrams(text, order)] or [()]
        rows.extend([place] * len(found))
        columns.extend(index.setdefault(gram, len(index)) for gram in found)
    flat = np.bincount(np.array(rows) * len(index) + np.array(columns), minlength=len(texts) * len(index))
    counts = flat.reshape(len(texts), len(index)).astype(np.float64)
    counts /= np.sqrt((counts**2).sum(axis=1, keepdims=True))
    kernel = counts @ counts.T
    np.fill_diagonal(kernel, 1.0)
    return np.asarray((kernel + kernel.T) / 2, dtype=np.float64)


def pass_at_k(n: NDArray[np.int64], right: NDArray[np.int64], k: int) -> Floats:
    """Chance that at least one of k answers drawn without replacement from n is right: 1 - C(n - c, k) / C(n, k).

    Shapes: n, right: answers and right ones of each prompt; one value a prompt, NaN where n < k.
    Raises: ValueError for k below 1 or more right answers than answers.
    Source: Chen et al. 2021, equation 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if np.any(right < 0) or np.any(right > n):
        raise ValueError("right answers must be among the answers")
    wrong = (n - right).astype(np.float64)
    # C(n - c, k) / C(n, k) = prod_i (n - c - i) / (n - i): 0 as soon as a factor is.
    missed = np.ones(len(n))
    for i in range(k):
        missed *= np.maximum(wrong - i, 0.0) / np.maximum(n - i, 1)
    return np.where(n >= k, 1 - missed, np.nan)
