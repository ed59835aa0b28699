"""Adjusted p-values against scipy's."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from rewards.analysis.multiplicity import benjamini_hochberg


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_adjusted_p_values_are_scipys(count: int) -> None:
    p = np.random.default_rng(count).uniform(size=count) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), rtol=1e-14)


def test_equal_and_extreme_p_values_are_adjusted_alike() -> None:
    p = [0.0, 0.04, 0.04, 1.0, 1.0]
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))
    assert benjamini_hochberg([]).tolist() == []


def test_what_is_no_probability_is_refused() -> None:
    for p in ([1.1], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            benjamini_hochberg(p)
