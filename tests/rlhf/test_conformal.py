"""Prediction sets of reward models: what they cover, against the law that it has, enumerations and naive ways."""

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import beta, kstest

from rlhf.evaluation.calibration import halves, probabilities
from rlhf.evaluation.conformal import against, aurc, conformal, coverage_law, one_of_each, rank, threshold
from tests.rewards.accepted import record

SETS = 20_000
DECISIONS = ["decide_margin", "decided", "decided_accuracy", "coverage", "coverage_law"]


def world(rng, n, scale=1.5, temperature=2.5, hacked=0.0):
    """Margins of pairs, the better text first; `hacked` is what a score rises by for nothing that is better."""
    true = rng.normal(0.0, scale, n)
    better = rng.random(n) < 1 / (1 + np.exp(-true))
    shown = (true + rng.normal(0.0, hacked, n)) * temperature
    return np.where(better, shown, -shown)


def document(z, categories=None, prefix=""):
    keys = [f"{prefix}{i}" for i in range(len(z))]
    return conformal(z, np.ones(len(z)), keys, categories or [None] * len(z)), halves(keys)


# -- the law ---------------------------------------------------------------------------------------------------------


def test_over_calibration_sets_the_coverage_has_the_beta_law():
    n, alpha, law = 200, 0.1, beta(181, 20)
    scores = np.random.default_rng(0).random((SETS, n))
    covered = np.array([threshold(row, alpha) for row in scores])  # of uniform scores, exactly the threshold
    mean, (low,) = coverage_law(n, alpha, [0.05])
    record("split conformal, n 200, alpha .1: mean coverage", float(covered.mean()), f"{mean:.4f} in theory", SETS)
    q05 = float(np.quantile(covered, 0.05))
    record("split conformal, n 200, alpha .1: 5 % quantile of coverage", q05, f"{low:.4f} in theory", SETS)
    assert mean == pytest.approx(0.9005, abs=5e-5) == law.mean()
    assert low == pytest.approx(0.8637, abs=5e-5) == law.ppf(0.05)
    assert covered.mean() == pytest.approx(mean, abs=3 * law.std() / math.sqrt(SETS))
    assert q05 == pytest.approx(low, abs=3 * math.sqrt(0.05 * 0.95 / SETS) / law.pdf(low))
    assert kstest(covered, law.cdf).pvalue > 0.01


def test_margins_of_pairs_have_that_law_too_and_a_temperature_does_not_enter():
    # In the order of a data set a margin has the density 2 phi(t) sigmoid(t).
    grid = np.linspace(-15, 15, 200_001)
    density = 2 * np.exp(-((grid / 1.5) ** 2) / 2) / (1.5 * math.sqrt(2 * math.pi)) / (1 + np.exp(-grid))
    below = np.cumsum(density) * (grid[1] - grid[0])
    rng, found = np.random.default_rng(1), []
    for _ in range(4000):
        cut = threshold(against(world(rng, 200), np.ones(200)), 0.1)
        found.append(1 - np.interp(-cut / 2.5, grid, below))
    record("split conformal of margins, n 200: mean coverage", float(np.mean(found)), "0.9005 in theory", 4000)
    assert kstest(found, beta(181, 20).cdf).pvalue > 0.01


def test_the_plain_quantile_of_twenty_scores_covers_less_than_it_says_and_the_threshold_does_not():
    scores = np.random.default_rng(2).random((SETS, 20))
    plain, ours = np.quantile(scores, 0.9, axis=1).mean(), np.mean([threshold(row, 0.1) for row in scores])
    record("conformal, n 20, alpha .1: coverage of the plain 90 % quantile", float(plain), "18.1 / 21 = .862", SETS)
    record("conformal, n 20, alpha .1: coverage of the threshold", float(ours), "19 / 21 = .905, >= .9", SETS)
    assert plain == pytest.approx(18.1 / 21, abs=0.002) and ours == pytest.approx(19 / 21, abs=0.002)


def test_tied_scores_are_covered_more_than_the_law_says_never_less():
    scores = np.random.default_rng(3).integers(0, 5, (4000, 200))
    covered = np.array([(threshold(row, 0.1) + 1) / 5 for row in scores])
    assert covered.min() >= 0.8 and covered.mean() > 0.99
    assert threshold(np.full(50, 0.3), 0.1) == 0.3, "all tied: all covered"


def test_rows_of_one_prompt_count_once_since_all_of_them_are_worth_no_more_than_one():
    prompts, each, rng = 40, 10, np.random.default_rng(4)
    keys = [f"prompt {i // each}" for i in range(prompts * each)]
    chosen = one_of_each(keys)
    assert sorted(chosen // each) == list(range(prompts))
    assert len(set(chosen % each)) > 4, "not always the first row"
    low_all, low_one = (coverage_law(n, 0.1, [0.05])[1][0] for n in (prompts * each, prompts))
    naive, ours = [], []
    for _ in range(4000):
        scores = np.repeat(rng.random(prompts), each)  # rows of a prompt at their most alike
        naive.append(threshold(scores, 0.1))
        ours.append(threshold(scores[chosen], 0.1))
    fell = float(np.mean(np.array(naive) < low_all))
    record("conformal, 40 prompts of 10 rows, all used: below the law's 5 % quantile", fell, "> .2, naive", 4000)
    kept = float(np.mean(np.array(ours) < low_one))
    record("conformal, 40 prompts of 10 rows, one used: below the law's 5 % quantile", kept, ".05", 4000)
    assert fell > 0.2 and kept == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 4000))


def test_the_row_that_stands_for_a_prompt_brings_its_outcome_and_its_category():
    rng = np.random.default_rng(13)
    z, y = rng.normal(size=400), (rng.random(400) < 0.5).astype(float)
    keys, names = [f"prompt {i // 4}" for i in range(400)], ["ab"[i // 4 % 2] for i in range(400)]
    chosen = one_of_each(keys)
    whole = conformal(z, y, keys, names)
    alone = conformal(z[chosen], y[chosen], [keys[i] for i in chosen], [names[i] for i in chosen])
    assert whole == alone and whole["metrics"]["aurc"]["n"] == 100


# -- the threshold ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.29, 0.3, 0.5, 0.9])
def test_the_threshold_is_the_least_score_that_enough_scores_do_not_exceed(alpha):
    rng, exact = np.random.default_rng(5), 1 - Fraction(str(alpha))
    for n in range(1, 120):
        scores = np.round(rng.normal(size=n), 1)
        enough = [t for t in scores if (scores <= t).sum() >= (n + 1) * exact]
        assert threshold(scores, alpha) == min(enough, default=math.inf)
        k = rank(n, alpha)
        if k <= n:
            assert threshold(scores, alpha) == np.quantile(scores, (k - 0.5) / n, method="inverted_cdf")


def test_a_rank_is_not_one_too_high_where_binary_fractions_are():
    assert math.ceil((99 + 1) * (1 - 0.43)) == 58 and rank(99, 0.43) == 57
    # The usual call of numpy's quantile is right where (n + 1)(1 - alpha) is not whole, and one too high where it is.
    for n, more in ((200, 0), (199, 1)):
        scores = np.arange(1.0, n + 1)
        usual = np.quantile(scores, (n + 1) * 0.9 / n, method="higher")
        assert usual - threshold(scores, 0.1) == more


def test_too_few_rows_put_every_outcome_into_the_set():
    assert threshold(np.array([]), 0.1) == math.inf == threshold(np.array([0.3]), 0.1)
    assert threshold(np.array([0.3]), 0.5) == 0.3
    assert threshold(np.arange(8.0), 0.1) == math.inf and threshold(np.arange(9.0), 0.1) == 8.0
    assert coverage_law(8, 0.1, [0.05])[0] == 1.0 == coverage_law(0, 0.1, [0.05])[1][0]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    calls = [
        lambda: threshold(np.arange(9.0), alpha),
        lambda: coverage_law(9, alpha),
        lambda: conformal(np.ones(9), np.ones(9), [str(i) for i in range(9)], [None] * 9, alpha),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="alpha is the share of sets that may miss: expected a number between 0"):
            call()


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="2 of 3 scores are not numbers"):
        threshold(np.array([0.1, math.nan, math.nan]), 0.1)


@pytest.mark.parametrize(("temperature", "noise"), [(1.0, 0.0), (0.4, 0.0), (6.0, 0.2)])
def test_sets_of_margins_are_those_of_probabilities_at_any_temperature_and_noise(temperature, noise):
    rng = np.random.default_rng(6)
    z, y = world(rng, 300), (rng.random(300) < 0.7).astype(float)
    p = probabilities(z / temperature, noise)
    cut = threshold(1 - np.where(y == 1, p, 1 - p), 0.1)
    margin = threshold(against(z, y), 0.1)
    assert ((1 - p <= cut) == (-z <= margin)).all(), "the outcome 1 is in the set"
    assert ((p <= cut) == (z <= margin)).all(), "the outcome 0 is in the set"
    assert (against(z, y) == against(-z, 1 - y)).all(), "and which text is named first does not matter"


# -- what is reported ------------------------------------------------------------------------------------------------


def test_the_report_is_what_the_sets_of_the_other_half_do():
    z = world(np.random.default_rng(7), 900)
    found, fit = document(z)
    metrics = found["metrics"]
    cut = sorted(-z[fit])[math.ceil((fit.sum() + 1) * 0.9) - 1]
    sets = [{name for name, m in (("first", v), ("second", -v)) if -m <= cut} for v in z[~fit]]
    single = [(s, v) for s, v in zip(sets, z[~fit], strict=True) if len(s) == 1]
    assert metrics["decide_margin"] == {"value": cut, "low": None, "high": None, "n": int(fit.sum())}
    assert metrics["decided"]["value"] == pytest.approx(len(single) / len(sets))
    assert metrics["decided_accuracy"]["value"] == pytest.approx(np.mean(["first" in s for s, _ in single]))
    assert metrics["decided_accuracy"]["n"] == len(single) < metrics["decided"]["n"] == int((~fit).sum())
    assert metrics["coverage"]["value"] == pytest.approx(np.mean(["first" in s for s in sets]))
    assert all(metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"] for name in DECISIONS[1:])
    mean, (low, high) = coverage_law(int(fit.sum()), 0.1, [0.025, 0.975])
    assert metrics["coverage_law"] == {"value": mean, "low": low, "high": high, "n": int(fit.sum())}
    assert metrics["aurc"]["n"] == 900 and found["by_category"] == {}


def test_a_category_is_covered_by_its_own_threshold_where_that_over_all_fails_it():
    worlds, own, pooled, easy = 600, [], [], []
    for seed in range(worlds):
        rng = np.random.default_rng(100 + seed)
        z = np.concatenate([world(rng, 800, 3.0, 1.0), world(rng, 200, 0.5, 8.0)])  # sure of itself where it is hard
        found, _ = document(z, ["easy"] * 800 + ["hard"] * 200, f"{seed} ")
        hard = found["by_category"]["hard"]
        own.append(hard["coverage"]["value"])
        pooled.append(hard["coverage_pooled"]["value"])
        easy.append(found["by_category"]["easy"]["coverage"]["value"])
    accepted = ">= .9, less 3 SE"
    record("conformal, hard category, threshold over all: coverage", float(np.mean(pooled)), "< .8, naive", worlds)
    record("conformal, hard category, its own threshold: coverage", float(np.mean(own)), accepted, worlds)
    record("conformal, easy category, its own threshold: coverage", float(np.mean(easy)), accepted, worlds)
    for covered, n in ((own, 100), (easy, 400)):
        slack = 3 * np.std(covered) / math.sqrt(worlds)
        assert 0.9 - slack <= np.mean(covered) <= 0.9 + 1 / (n - 20) + slack
    assert np.mean(pooled) < 0.8


def test_a_category_with_too_few_rows_is_promised_nothing_and_says_so():
    z = world(np.random.default_rng(8), 400)
    categories = ["rare" if i % 50 == 0 else None for i in range(400)]
    found, fit = document(z, categories)
    assert list(found["by_category"]) == ["rare"]
    rare, n = found["by_category"]["rare"], int(fit[::50].sum())
    for name in DECISIONS:
        assert rare[name]["value"] is None
        assert rare[name]["why"] == f"{n} rows to calibrate on, and to cover 90 % takes 9"
    assert rare["coverage_pooled"]["n"] == 8 - n and rare["coverage_pooled"]["value"] is not None


def test_after_the_policy_has_moved_the_promise_is_lost():
    before, after = [], []
    for seed in range(200):
        rng = np.random.default_rng(500 + seed)
        cut = threshold(-world(rng, 200), 0.1)
        before.append(np.mean(-world(rng, 1000) <= cut))
        after.append(np.mean(-world(rng, 1000, hacked=2.0) <= cut))  # texts found that the model likes for nothing
    record("conformal, texts of the same policy: coverage", float(np.mean(before)), "0.9005 in theory", 200)
    record("conformal, texts of a policy that has moved: coverage", float(np.mean(after)), "< .85: lost", 200)
    assert np.mean(before) == pytest.approx(0.9005, abs=0.006)
    assert np.mean(after) < 0.85 < coverage_law(200, 0.1, [0.025])[1][0]


def test_where_fewer_are_wrong_than_may_be_all_are_decided_and_the_law_is_not_claimed():
    z = np.where(np.arange(400) % 20 == 0, -1.0, 1.0) * np.random.default_rng(9).random(400)
    metrics = document(z)[0]["metrics"]
    assert metrics["decide_margin"]["value"] == 0 and metrics["decided"]["value"] == 1
    assert metrics["coverage"] == metrics["decided_accuracy"] and metrics["coverage"]["value"] > 0.9
    assert metrics["coverage_law"]["value"] is None and "under 10 % are ranked wrong" in metrics["coverage_law"]["why"]


def test_without_any_difference_nothing_is_decided_and_all_is_covered():
    metrics = document(np.zeros(60))[0]["metrics"]
    assert metrics["decided"]["value"] == 0 and metrics["coverage"]["value"] == 1
    assert metrics["decided_accuracy"]["value"] is None and metrics["decided_accuracy"]["why"] == "none is decided"
    assert metrics["aurc"]["value"] == 0.5 and metrics["e_aurc"]["value"] == 0


def test_one_row_says_why_and_none_is_an_error():
    found = document(np.array([1.0]), ["a"])[0]
    for figures in (found["metrics"], found["by_category"]["a"]):
        assert all(figures[name]["value"] is None and "takes 9" in figures[name]["why"] for name in DECISIONS)
    assert found["metrics"]["aurc"] == {"value": 0.0, "low": None, "high": None, "n": 1}
    with pytest.raises(ValueError, match="at least one row"):
        document(np.array([]))


def test_labels_that_are_probabilities_and_margins_that_are_no_numbers_give_reasons():
    rng = np.random.default_rng(10)
    z, keys = rng.normal(size=100), [str(i) for i in range(100)]
    soft = conformal(z, np.full(100, 0.8), keys, ["a"] * 100)
    assert all("which outcome came true is not known" in soft["by_category"]["a"][n]["why"] for n in DECISIONS)
    assert soft["metrics"]["aurc"]["value"] is not None
    lost = conformal(np.where(z > 1, math.nan, z), np.ones(100), keys, [None] * 100)
    assert all(figure["value"] is None and "not finite" in figure["why"] for figure in lost["metrics"].values())


# -- selective answering ---------------------------------------------------------------------------------------------


def test_the_area_is_the_mean_of_the_risks_of_the_most_confident():
    confidence, wrong = np.array([3.0, 1.0, 4.0, 2.0]), np.array([1.0, 0.0, 0.0, 1.0])
    assert aurc(confidence, wrong) == pytest.approx((0 + 1 / 2 + 2 / 3 + 2 / 4) / 4)
    assert aurc(-wrong, wrong) == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    rng = np.random.default_rng(11)
    confidence, wrong = rng.random(200), (rng.random(200) < 0.3).astype(float)
    order = sorted(range(200), key=lambda i: -confidence[i])
    assert aurc(confidence, wrong) == pytest.approx(np.mean([wrong[order[:k]].mean() for k in range(1, 201)]))
    with pytest.raises(ValueError, match="at least one row"):
        aurc(np.array([]), np.array([]))


def test_equal_confidence_counts_as_the_mean_over_all_orders():
    confidence, wrong = np.array([2.0, 1.0, 1.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    areas = []
    for inner in permutations([1, 2, 3]):
        order = [0, *inner, 4]
        areas.append(np.mean([wrong[order[:k]].mean() for k in range(1, 6)]))
    assert aurc(confidence, wrong) == pytest.approx(np.mean(areas))


def test_the_excess_is_0_of_the_best_order_and_grows_as_margins_say_less_about_errors():
    z = np.where(np.arange(100) < 30, -0.1, 1.0)
    assert document(z)[0]["metrics"]["e_aurc"]["value"] == pytest.approx(0.0, abs=1e-12)
    assert aurc(np.abs(z), (z < 0).astype(float)) > 0.01, "the area itself is not 0: errors there are"
    excess = [
        document(world(np.random.default_rng(12), 4000, hacked=hacked))[0]["metrics"]["e_aurc"]["value"]
        for hacked in (0.0, 1.0, 3.0)
    ]
    assert excess[0] < excess[1] < excess[2]
