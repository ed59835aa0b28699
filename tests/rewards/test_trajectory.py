"""The trajectory index against the weighted mean written out."""

import json

import numpy as np
import pytest

from rewards.trajectory import TrajectoryIndex


def test_the_index_is_the_weighted_mean_with_half_the_weight_every_half_life():
    index = TrajectoryIndex(half_life=20)
    assert index.value("c") is None
    index.update(1, [("c", True), ("c", False), ("d", True)])
    assert index.value("c") == 0.5 and index.value("d") == 1.0
    index.update(21, [("c", True)])
    # one compliant of weight 1 now; one of two of weight 1/2 each from twenty steps ago
    assert index.value("c") == (1 + 0.5) / (1 + 0.5 + 0.5)
    assert index.value("d") == 1.0


def test_the_index_equals_the_sum_over_all_past_sessions():
    rng = np.random.default_rng(0)
    index, past = TrajectoryIndex(), []
    for step in range(1, 120):
        for category in "abc":
            known = [(s, c) for s, of, c in past if of == category]
            weights = np.array([2.0 ** (-(step - s) / 20) for s, _ in known])
            want = weights @ np.array([c for _, c in known], dtype=float) / weights.sum() if known else None
            assert index.value(category) == (None if want is None else pytest.approx(want, abs=1e-12))
        sessions = [("abc"[int(i)], bool(rng.random() < 0.3)) for i in rng.integers(0, 3, rng.integers(0, 5))]
        past += [(step, category, compliant) for category, compliant in sessions]
        index.update(step, sessions)


def test_a_session_without_verdict_or_category_has_no_part():
    index = TrajectoryIndex()
    index.update(1, [("c", None), (None, True)])
    assert index.value("c") is None and index.value(None) is None
    index.update(2, [("c", False), ("c", None)])
    assert index.value("c") == 0.0


def test_the_index_continues_from_its_state():
    whole, first = TrajectoryIndex(7), TrajectoryIndex(7)
    for index in (whole, first):
        index.update(3, [("c", True), ("c", False)])
    second = TrajectoryIndex()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for index in (whole, second):
        index.update(9, [("c", True)])
    assert second.value("c") == whole.value("c")
    with pytest.raises(ValueError, match="step 9 comes after step 9"):
        second.update(9, [])
    with pytest.raises(ValueError, match="positive"):
        TrajectoryIndex(0)
