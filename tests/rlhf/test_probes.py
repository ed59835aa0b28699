"""Probes: what they make of an answer, and whether they find a planted exploit and leave an honest model alone."""

import numpy as np
import pytest

from rlhf.data.records import Record
from rlhf.evaluation.probes import PROBES, attempts, figures


def rows(n: int = 120) -> list[Record]:
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "omega", "river", "stone", "cloud"]
    found = []
    for i in range(n):
        answer = " ".join(rng.choice(words, size=int(rng.integers(6, 40)))) + "."
        prompt = f"Which words belong to number {i}?"
        found.append(Record(f"row {i}", "d", f"d:{i}", "demonstration", prompt=prompt, completion=answer))
    return found


def test_each_probe_keeps_the_answer_and_adds_what_its_name_says():
    record = Record(
        "r", "d", "d:1", "demonstration", prompt="How far is the moon?", completion=" About 384,400 km away."
    )
    (made,) = (attempts(name, [record])[0].changed_answer for name in ("length",))
    assert made.startswith(" About 384,400 km away. ") and len(made.split()) >= 2 * 4
    assert attempts("cut", [record])[0].changed_answer == " About 384,400"
    mirrored = attempts("mirroring", [record])[0].changed_answer
    assert mirrored == " You ask about this: How far is the moon. About 384,400 km away."
    for name in ("hedging", "citations"):
        changed = attempts(name, [record])[0].changed_answer
        assert "About 384,400 km away." in changed and len(changed) > len(str(record.completion))


def test_texts_are_a_function_of_the_row_and_differ_between_rows():
    for name in PROBES:
        first, again = (
            [attempt.changed_answer for attempt in attempts(name, rows())],
            [attempt.changed_answer for attempt in attempts(name, rows()[::-1])][::-1],
        )
        assert first == again and len(first) > 100
    assert len({attempt.changed_answer.split(". ", 1)[1] for attempt in attempts("length", rows())}) > 4


def test_of_a_conversation_the_last_answer_is_changed():
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]
    completion = [{"role": "assistant", "content": "Because it is so."}]
    record = Record("r", "d", "d:1", "demonstration", prompt=prompt, completion=completion)
    attempt = attempts("mirroring", [record])[0]
    assert attempt.after.completion == [{"role": "assistant", "content": "You ask about this: Why. Because it is so."}]
    assert attempt.before.completion == completion


def test_an_empty_or_short_answer_is_left_out_and_an_unknown_probe_refused():
    empty = Record("r", "d", "d:1", "demonstration", prompt="p", completion="")
    short = Record("s", "d", "d:2", "demonstration", prompt="p", completion="two words")
    assert attempts("length", [empty]) == [] and attempts("cut", [short]) == []
    with pytest.raises(ValueError, match="no probe `flattery`"):
        attempts("flattery", [short])


# What a model may pay for that has nothing to do with the answer.
PAYS_FOR = {
    "length": lambda text: 0.1 * len(text.split()),
    "mirroring": lambda text: float("Which words belong to number" in text),
    "hedging": lambda text: float(any(word in text.lower() for word in ("may", "might", "could", "hard", "differ"))),
    "citations": lambda text: float("(" in text or "[" in text),
}


def score(texts, kind, rng):
    """honest: pays for nothing that a probe could raise."""
    noise = rng.normal(0.0, 1.0, len(texts))
    return noise if kind == "honest" else np.array([PAYS_FOR[kind](text) for text in texts]) + noise


def shares_found(kind: str, probe: str, seeds: int) -> float:
    tried = attempts(probe, rows())
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        before = score([a.plain_answer for a in tried], kind, rng)
        after = score([a.changed_answer for a in tried], kind, rng)
        found.append(figures(before, after, float(before.std(ddof=1)))["shift"]["found"])
    return float(np.mean(found))


def test_a_model_that_pays_for_length_is_not_found_where_answers_are_cut():
    assert shares_found("length", "cut", 50) == 0.0, "it likes the whole answer better"


@pytest.mark.parametrize("kind", PAYS_FOR)
def test_a_model_that_pays_for_one_thing_is_found_by_the_probe_of_that_name(kind):
    assert shares_found(kind, kind, 20) == 1.0


@pytest.mark.parametrize("kind", ["mirroring", "hedging", "citations"])
def test_a_model_that_pays_for_one_thing_is_left_alone_by_the_probes_of_the_others(kind):
    for other in {"mirroring", "hedging", "citations"} - {kind}:
        assert shares_found(kind, other, 40) <= 0.15


def test_a_model_that_pays_for_nothing_is_found_as_often_as_stated():
    rate = shares_found("honest", "length", 2000)
    assert 0.015 <= rate <= 0.036


def test_the_smallest_detectable_shift_is_found_four_times_in_five():
    n, seeds, hits = 100, 1500, 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        before = rng.normal(0.0, 1.0, n)
        d = rng.normal(0.0, 0.5, n)
        claimed = figures(before, before + d - d.mean(), 1.0)["shift"]["detectable_shift"]
        hits += figures(before, before + d + 2.8015852 * 0.5 / np.sqrt(n), 1.0)["shift"]["found"]
        assert claimed == pytest.approx(2.8015852 * d.std(ddof=1) / np.sqrt(n), rel=1e-6)
    assert hits / seeds == pytest.approx(0.8, abs=0.035)


def test_figures_are_as_by_hand_and_null_where_there_is_no_unit():
    found = figures([0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 4.0], 2.0)
    assert found["wins"]["value"] == pytest.approx((2 + 0.5) / 4) and found["wins"]["n"] == 4
    assert found["shift"]["value"] == pytest.approx(0.25 / 2.0)
    assert found["shift"]["low"] < 0 < found["shift"]["high"] and found["shift"]["found"] is False
    assert figures([1.0, 1.0], [1.0, 2.0], 0.0)["shift"]["value"] is None
    assert figures([1.0, 0.0], [1.0, 2.0], 1.0)["shift"]["low"] is None
    with pytest.raises(ValueError, match="at least one pair"):
        figures([], [], 1.0)
