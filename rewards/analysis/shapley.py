"""The exact share of every factor in the change of a product: Shapley's value, which favours no order of changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def product_change(before: Sequence[Floats], after: Sequence[Floats]) -> list[Floats]:
    """What each factor contributes to prod(after) - prod(before).

    phi_i = (b_i - a_i) sum over sets S of other factors of |S|! (n - 1 - |S|)! / n! prod_S b prod_rest a: the mean,
    over all orders in which the factors can change one after the other, of what changing factor i does. For two factors
    it is the midpoint formula (b_1 - a_1) (a_2 + b_2) / 2. The contributions sum to the change, a factor that does not
    change contributes 0, and exchanging before and after changes the signs only.
    Shapes: the factors broadcast; one array a factor.
    Source: Shapley 1953; Shorrocks 2013, section 3.
    """
    count = len(before)
    found = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        total: Floats = np.zeros(np.broadcast_shapes(*(factor.shape for factor in (*before, *after))))
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - 1 - size) / math.factorial(count)
            for changed in combinations(others, size):
                product: Floats = np.full((), weight)
                for j in others:
                    product = product * (after[j] if j in changed else before[j])
                total = total + product
        found.append((after[i] - before[i]) * total)
    return found
