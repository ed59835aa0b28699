"""p-values of several tests, adjusted for how many there are."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values: calling those of at most q keeps the expected share of false ones at q.

    Shapes: p in any order, none missing; as p. Raises: ValueError for values outside 0..1.
    Source: Benjamini and Hochberg 1995. Departures: none; scipy's, which the tests compare it with, takes a second to
    import.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError("p-values are a list of numbers in 0..1")
    count = len(values)
    order = np.argsort(values)[::-1]
    scaled = values[order] * count / np.arange(count, 0, -1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum.accumulate(scaled)
    return np.minimum(adjusted, 1.0)
