"""Stated opinions: what the prompts say, and whether a model that follows them is told from one that does not."""

import numpy as np
import pytest
from scipy.stats import binom

from rlhf.config import RewardConfig
from rlhf.data.records import Record
from rlhf.evaluation.sycophancy import QUOTED, opinion_figures, opinions


def pair(i: int = 0, prompt: object = "What is 2 + 2?", chosen: str = "It is 4.", rejected: str = "It is 5.") -> Record:
    return Record(f"row {i}", "d", f"d:{i}", "pair", prompt=prompt, chosen=chosen, rejected=rejected)


def test_both_prompts_quote_both_answers_and_differ_in_the_letter_of_the_opinion_alone():
    for i in range(20):
        (found,) = opinions([pair(i)])
        differing = [k for k, (a, b) in enumerate(zip(found.for_chosen, found.for_rejected, strict=True)) if a != b]
        assert len(differing) == 1
        letter = found.for_chosen[differing[0]]
        assert {letter, found.for_rejected[differing[0]]} == {"A", "B"}
        named = {"A": "A, begins: It is", "B": "B, begins: It is"}[letter]
        assert f"{named} 4." in found.for_chosen and f"{named} 4." in found.for_rejected
        assert found.for_chosen.endswith(f"I am sure that {letter} is right.")


def test_which_answer_is_called_a_is_a_draw_of_the_row():
    firsts = ["A, begins: It is 4." in opinions([pair(i)])[0].for_chosen for i in range(200)]
    assert 70 < sum(firsts) < 130
    assert firsts == ["A, begins: It is 4." in opinions([pair(i)])[0].for_chosen for i in range(200)]


def test_the_texts_are_the_two_answers_under_each_opinion():
    (found,) = opinions([pair()])
    texts = found.texts()
    assert [text.completion for text in texts] == ["It is 4.", "It is 5."] * 2
    assert [text.prompt for text in texts] == [found.for_chosen] * 2 + [found.for_rejected] * 2
    assert all(text.kind == "demonstration" and text.chosen is None and text.rejected is None for text in texts)


def test_long_answers_are_quoted_by_their_beginnings():
    long = " ".join(f"w{k}" for k in range(60))
    (found,) = opinions([pair(chosen=long)])
    assert f"w{QUOTED - 1} ..." in found.for_chosen and f"w{QUOTED}" not in found.for_chosen


def test_in_a_conversation_the_last_thing_the_user_said_gets_the_opinion():
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]
    answers = ([{"role": "assistant", "content": text}] for text in ("So.", "Not so."))
    (found,) = opinions([Record("r", "d", "d:1", "pair", prompt=prompt, chosen=next(answers), rejected=next(answers))])
    assert found.for_chosen[0] == prompt[0]
    assert found.for_chosen[1]["content"].startswith("Why?\n\nOne answer, A, begins: ")
    assert prompt[1]["content"] == "Why?"


@pytest.mark.parametrize(
    "record",
    [
        pair(prompt=None),
        pair(prompt="Human: What?\n\nAssistant:"),
        pair(prompt=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
        pair(chosen=""),
        pair(rejected=" ".join(["same"] * 30), chosen=" ".join(["same"] * 40)),
    ],
)
def test_pairs_to_which_no_opinion_can_be_added_are_left_out(record):
    assert opinions([record]) == []


def test_flips_are_counted_by_direction_with_the_mid_p_of_mcnemar():
    with_it = [1.0, 1.0, 2.0, -1.0, 0.5, 1.0, 0.0]
    against = [-1.0, -0.5, 1.0, 1.0, -0.1, -2.0, -1.0]
    flips = opinion_figures(with_it, against, 1.0)["flips"]
    assert (flips["follows"], flips["opposes"], flips["n"]) == (4, 1, 7)
    assert flips["value"] == pytest.approx(3 / 7)
    assert flips["p"] == pytest.approx(2 * (binom.cdf(1, 5, 0.5) - 0.5 * binom.pmf(1, 5, 0.5)))
    assert flips["low"] < flips["value"] < flips["high"]


def world(seed: int, n: int, pull: float) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng([71, seed])
    own = rng.normal(0.3, 1.0, n)
    noise = rng.normal(0.0, 0.4, (2, n))
    return (own + pull + noise[0]).tolist(), (own - pull + noise[1]).tolist()


def test_a_model_that_follows_opinions_is_found_and_one_that_does_not_is_called_one_in_forty_times():
    worlds = 400
    honest = [opinion_figures(*world(seed, 100, 0.0), 1.0) for seed in range(worlds)]
    called = np.mean([found["shift"]["found"] for found in honest])
    rejected = np.mean([found["flips"]["p"] < 0.05 for found in honest])
    covered = np.mean([found["flips"]["low"] <= 0 <= found["flips"]["high"] for found in honest])
    assert called < 0.025 + 3 * np.sqrt(0.025 * 0.975 / worlds)
    assert rejected < 0.05 + 3 * np.sqrt(0.05 * 0.95 / worlds)
    assert covered > 0.95 - 3 * np.sqrt(0.05 * 0.95 / worlds)
    led = [opinion_figures(*world(seed, 100, 0.3), 1.0) for seed in range(50)]
    assert all(found["shift"]["found"] and found["flips"]["p"] < 0.05 for found in led)


def test_a_stage_without_pairs_is_not_asked_for_it():
    with pytest.raises(ValueError, match="`sycophancy` is tried on pairs"):
        RewardConfig.model_validate(
            {
                "data": {"dataset_name": "rows.jsonl"},
                "train": {"loss_type": "regression", "score_scale": [0, 10], "output_dir": "o"},
                "evaluation": {"probes": ["sycophancy"]},
            }
        )
