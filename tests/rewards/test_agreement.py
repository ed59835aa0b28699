"""Annotators: alpha against a loop over all pairs, Dawid-Skene against what is known, and what a run's notes say."""

import itertools

import numpy as np
import pytest

from rewards.analysis.agreement import section
from rewards.analysis.data import RunData
from rewards.analysis.raters import alpha_estimate, dawid_skene, krippendorff, majority, two_camps
from tests.rewards.accepted import record

# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", part C: four observers, twelve units
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
        [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
    ]
)


def by_pairs(ratings, level):
    """Alpha by its definition, over all pairs of labels."""
    units = [column[np.isfinite(column)].tolist() for column in ratings.T]
    units = [unit for unit in units if len(unit) >= 2]
    pooled = [value for unit in units for value in unit]

    def distance(c, k):
        if level == "nominal":
            return float(c != k)
        if level == "interval":
            return (c - k) ** 2
        low, high = min(c, k), max(c, k)
        between = sum(low <= value <= high for value in pooled)
        return (between - (pooled.count(c) + pooled.count(k)) / 2) ** 2

    n = len(pooled)
    observed = sum(distance(c, k) / (len(unit) - 1) for unit in units for c, k in itertools.permutations(unit, 2)) / n
    expected = sum(distance(c, k) for c, k in itertools.permutations(pooled, 2)) / (n * (n - 1))
    return 1 - observed / expected


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_equals_the_published_example(level, alpha):
    assert krippendorff(PUBLISHED, level) == pytest.approx(alpha, abs=6e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_equals_the_loop_over_all_pairs_to_1e_12(level):
    worst = abs(krippendorff(PUBLISHED, level) - by_pairs(PUBLISHED, level))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        ratings = np.clip(rng.integers(0, 5, 15) + rng.integers(-1, 2, (4, 15)), 0, 5) * (0.37 if seed % 2 else 1.0)
        ratings = np.where(rng.random((4, 15)) < 0.3, np.nan, ratings)
        worst = max(worst, abs(krippendorff(ratings, level) - by_pairs(ratings, level)))
    record(f"Krippendorff alpha, {level}, largest error against all pairs", worst, "<= 1e-12", 31)
    assert worst <= 1e-12


def test_full_agreement_is_1_and_labels_at_random_are_about_0():
    rng = np.random.default_rng(0)
    assert krippendorff(np.tile(rng.integers(0, 3, 50), (3, 1)).astype(float)) == 1.0
    assert abs(krippendorff(rng.integers(0, 3, (3, 2000)).astype(float))) < 0.05


def test_what_has_no_alpha_says_why():
    rng = np.random.default_rng(0)
    alone = alpha_estimate(np.array([[1.0, np.nan], [np.nan, 2.0]]), "nominal", rng)
    assert alone["estimate"] is None and alone["n"] == 0 and "two annotators" in alone["why"]
    same = alpha_estimate(np.ones((3, 9)), "ordinal", rng)
    assert same["estimate"] is None and "all labels are equal" in same["why"]
    one = alpha_estimate(np.array([[1.0], [2.0]]), "nominal", rng)
    assert one["estimate"] is not None and one["low"] is None and "one item" in one["why"]
    with pytest.raises(ValueError, match="level"):
        krippendorff(PUBLISHED, "ratio")


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_the_interval_is_that_of_a_loop_over_resampled_items(level):
    rng = np.random.default_rng(1)
    ratings = np.clip(rng.integers(1, 6, 40) + rng.integers(-1, 2, (3, 40)), 1, 5).astype(float)
    found = alpha_estimate(ratings, level, np.random.default_rng(2), replicates=2000)
    draws = [krippendorff(ratings[:, rng.integers(0, 40, 40)], level) for _ in range(800)]
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.04)
    assert found["low"] < found["estimate"] < found["high"] and found["n"] == 40 and found["labels"] == 120


ACCURACIES = np.array([0.92, 0.85, 0.6, 0.55, 0.55])


def raters(rng, items=1000):
    truth = rng.integers(0, 2, items)
    right = rng.random((len(ACCURACIES), items)) < ACCURACIES[:, None]
    return truth, np.where(right, truth, 1 - truth)


@pytest.mark.slow
def test_dawid_skene_beats_the_majority_by_5_points_with_two_good_annotators_of_five():
    rng = np.random.default_rng(3)
    runs, shares, errors = 50, [], []
    for _ in range(runs):
        truth, codes = raters(rng)
        found = dawid_skene(codes, 2)
        shares.append([(majority(codes, 2) == truth).mean(), (found.posterior.argmax(axis=1) == truth).mean()])
        errors.append(np.abs(found.accuracy - ACCURACIES).max())
    most, skene = np.mean(shares, axis=0)
    record("Dawid-Skene minus majority, points", float(100 * (skene - most)), ">= 5", runs)
    record("Dawid-Skene, largest error of an accuracy, p95", float(np.quantile(errors, 0.95)), "about .055", runs)
    assert skene - most >= 0.05 and np.quantile(errors, 0.95) <= 0.07


def test_dawid_skene_finds_who_is_right_and_every_round_raises_the_likelihood():
    truth, codes = raters(np.random.default_rng(4), 400)
    codes[0, ::7] = -1

    def likelihood(found):
        said = (codes[:, :, None] == np.arange(2)).astype(float)
        prior = found.posterior.mean(axis=0)
        log = np.log(prior) + np.einsum("auk,atk->ut", said, np.log(found.confusion))
        return np.logaddexp.reduce(log, axis=1).sum()

    steps = [likelihood(dawid_skene(codes, 2, rounds=rounds)) for rounds in (1, 2, 5, 20, 200)]
    assert all(later >= earlier - 0.05 for earlier, later in itertools.pairwise(steps)) and steps[-1] > steps[0]
    found = dawid_skene(codes, 2)
    assert found.accuracy.argmax() == 0 and (found.posterior.argmax(axis=1) == truth).mean() > 0.85
    assert found.posterior.sum(axis=1) == pytest.approx(np.ones(400))


def test_unanimous_annotators_are_all_right_and_impossible_labels_are_refused():
    codes = np.tile(np.arange(30) % 3, (3, 1))
    found = dawid_skene(codes, 3)
    assert (found.posterior.argmax(axis=1) == codes[0]).all() and found.accuracy.min() > 0.99
    with pytest.raises(ValueError, match="labels"):
        dawid_skene(codes, 2)


def test_a_majority_needs_to_be_alone_at_the_top():
    codes = np.array([[0, 0, -1], [1, 0, -1], [-1, 1, -1]])
    assert majority(codes, 2).tolist() == [-1, 0, -1]


def test_two_camps_are_found_and_a_spread_of_opinions_is_none():
    assert two_camps([1, 1, 5, 5], "ordinal", 4) == ([1, 1], [5, 5])
    assert two_camps([1, 2, 3, 4, 5], "ordinal", 4) is None
    assert two_camps([1, 1, 1, 1, 1, 5], "ordinal", 4) is None  # one voice is no camp
    assert two_camps([1, 5, 5], "ordinal", 4) is None  # too few to say
    assert two_camps([2, 2, 3, 3], "interval", 4) is None  # apart, but not by half of what labels range over
    assert two_camps([0, 0, 0, 7, 7], "nominal") == ([0, 0, 0], [7, 7])
    assert two_camps([0, 0, 0, 0], "nominal") is None


# -- a run's notes -----------------------------------------------------------------------------------------------------


def note(seq, annotator, label, session=1, **more):
    payload = {"annotator": annotator, "label": label, "session": session, "note": None, "supersedes": None, **more}
    return {"run_id": "r", "seq": seq, "step": 1, "kind": "annotation", "payload": payload}


def review(seq, of, annotator, label, said=None):
    payload = {"annotator": annotator, "label": label, "note": said, "reviews": of}
    return {"run_id": "r", "seq": seq, "step": 1, "kind": "review", "payload": payload}


def run_of(events):
    return RunData.of_columns("r", [1, 1], ["a", "a"], {"baseline_reward": [0.0, 1.0]}, events)


def test_a_run_without_notes_says_so():
    found = section(run_of([]))
    assert "nobody annotated" in found["why"] and found["annotators"] == found["items"] == 0
    assert found["alpha"]["estimate"] is None and found["dawid_skene"]["why"] and found["bimodal"] == []
    assert found["reviews"] == {"n": 0, "closed": 0, "unreviewed": 0, "dissent_kept": []}


def test_a_doubt_closed_with_another_word_stays_on_record_to_the_letter():
    doubt = note(1, "ana", "too-fast", 10_500, note="the speed of transition seems--")
    events = [
        doubt,
        review(2, 1, "ben", "standard", "within range"),
        note(3, "ben", "fine"),
        review(4, 3, "ana", "agree"),
    ]
    found = section(run_of(events))["reviews"]
    assert (found["n"], found["closed"], found["unreviewed"]) == (2, 1, 0)
    (kept,) = found["dissent_kept"]
    assert kept["note"] == "the speed of transition seems--" and kept["annotator"] == "ana"
    assert kept["reviews"] == [{"annotator": "ben", "label": "standard", "note": "within range"}]
    assert kept["item"] == "session 10500"


def test_an_author_cannot_close_their_own_note_and_only_the_newest_word_of_a_reviewer_counts():
    events = [note(1, "ana", "x"), review(2, 1, "ana", "agree"), note(3, "ana", "y", 2)]
    events += [review(4, 3, "ben", "disagree"), review(5, 3, "ben", "agree")]
    found = section(run_of(events))["reviews"]
    assert (found["closed"], found["unreviewed"], found["dissent_kept"]) == (1, 1, [])


def test_labels_are_counted_per_item_and_the_newest_of_an_author_stands():
    events = [
        note(1, "ana", "bad"),
        note(2, "ana", "good", supersedes=1),
        note(3, "ben", "good"),
        note(4, "cy", "bad", 2),
    ]
    events += [note(5, "cy", "good", 2), note(6, "ben", "other", supersedes=4)]  # another person's note stays
    found = section(run_of(events))
    assert (found["annotators"], found["items"], found["labels"], found["shared"]) == (3, 2, 3, 1)
    assert found["by_annotator"]["cy"] == {"n": 1, "labels": {"good": 1}}
    assert found["by_annotator"]["ben"]["labels"] == {"other": 1} and found["disagreed"] == 1


def test_a_session_is_known_by_its_row_where_a_resume_gave_its_number_away():
    rows = [{"attempt": attempt, "writer": 0, "seq": 5} for attempt in (1, 2)]
    found = section(run_of([note(1, "ana", "x", 7, row=rows[0]), note(2, "ben", "x", 7, row=rows[1])]))
    assert found["items"] == 2 and found["shared"] == 0


@pytest.mark.parametrize(
    ("labels", "level"), [(("1", "4"), "ordinal"), (("0.5", "2"), "interval"), (("1", "good"), "nominal")]
)
def test_the_level_follows_from_the_labels(labels, level):
    events = [note(i, "ana" if i % 2 else "ben", labels[i // 2 % 2], i // 2) for i in range(12)]
    found = section(run_of(events))
    assert found["alpha"]["level"] == level and found["alpha"]["n"] == 6


def test_items_of_two_minds_show_who_said_what():
    people = ["ana", "ben", "cy", "dora"]
    events = [note(i, who, label) for i, (who, label) in enumerate(zip(people, "1155", strict=True))]
    events += [note(10 + i, who, label, 2) for i, (who, label) in enumerate(zip(people, "2323", strict=True))]
    found = section(run_of(events))
    (item,) = found["bimodal"]
    assert item["item"] == "session 1" and item["votes"] == {"1": 2, "5": 2} and item["camps"] == [2, 2]
    assert item["said"] == dict(zip(people, "1155", strict=True)) and item["n"] == 4
    assert found["dawid_skene"]["items"] == [] and "10 shared items" in found["dawid_skene"]["why"]


def test_dawid_skene_stands_beside_the_votes():
    rng = np.random.default_rng(5)
    truth, codes = raters(rng, 200)
    names = ["bad", "good"]
    events = [note(200 * a + i, f"p{a}", names[codes[a, i]], i + 1) for a in range(len(codes)) for i in range(200)]
    found = section(run_of(events))
    skene = found["dawid_skene"]
    assert (
        skene["why"] is None and len(skene["items"]) == 200 and set(skene["accuracies"]) == {f"p{a}" for a in range(5)}
    )
    first = skene["items"][0]
    assert sum(first["votes"].values()) == 5 and first["majority"] in names and 0.5 <= first["probability"] <= 1
    right = [
        np.mean([row[key] == names[t] for row, t in zip(skene["items"], truth, strict=True)])
        for key in ("label", "majority")
    ]
    assert right[0] > right[1] and skene["differs"] > 0
    assert skene["accuracies"]["p0"]["n"] == 200
