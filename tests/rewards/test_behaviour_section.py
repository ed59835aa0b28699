import json

import numpy as np
import pytest
import statsmodels.api as sm

from rewards.analysis import behaviour_section, behaviour_texts
from rewards.analysis.behaviour import rarefied_types, words
from rewards.analysis.behaviour_section import section
from rewards.analysis.data import RunData
from tests.rewards.accepted import record

GROUP = 8
MEASURES = ("vocabulary", "diversity", "distinct_2", "self_bleu", "vendi", "within_prompt")


def run(texts, categories=None, pipeline="grpo", events=(), groups=True, **columns):
    """A run of groups of 8 and steps of 64 with the given responses."""
    sessions = len(texts)
    number = np.arange(sessions) // GROUP
    given = {"group_id": [f"g{g}" for g in number]} if groups else {}
    steps = np.arange(sessions) // 64 + 1
    return RunData.of_columns(
        "r", steps, categories or ["c"] * sessions, given | columns, events, {"response": texts}, pipeline
    )


def sentences(rng, sessions, nouns, length=8):
    """Texts of words drawn from a vocabulary of the given size."""
    drawn = rng.integers(nouns, size=(sessions, length))
    return [" ".join(f"w{word}" for word in row) for row in drawn.tolist()]


def test_a_vocabulary_that_shrinks_raises_the_collapse_alarm_and_every_measure_moves_with_it():
    rng = np.random.default_rng(1)
    texts = sentences(rng, 2000, 300) + sentences(rng, 2000, 12)
    found = section(run(texts))
    collapse = found["collapse"]
    assert collapse["alarm"] is True and "Diversity collapsed: the vocabulary" in collapse["verdict"]
    for name in ("vocabulary", "distinct_2", "vendi"):
        assert found[name]["last_interval"][1] < found[name]["first_interval"][0]
    assert found["self_bleu"]["last_interval"][0] > found["self_bleu"]["first_interval"][1]
    for name in MEASURES:
        assert found[name]["first_n"] and found[name]["last_n"] and found[name]["unit"]


def test_answers_that_only_get_longer_or_stay_alike_raise_no_alarm():
    rng = np.random.default_rng(2)
    stays = section(run(sentences(rng, 3000, 200)))["collapse"]
    assert stays["alarm"] is False and "No collapse" in stays["verdict"] and "n 1,000" in stays["verdict"]
    longer = section(run(sentences(rng, 1500, 200, 4) + sentences(rng, 1500, 200, 20)))
    assert longer["collapse"]["alarm"] is False
    ratio = longer["vocabulary"]["last"] / longer["vocabulary"]["first"]
    assert ratio == pytest.approx(1.0, abs=0.02)
    raw = [len(set(" ".join(part).split())) / len(" ".join(part).split()) for part in _ends(sentences, rng)]
    assert raw[1] < 0.5 * raw[0]  # types over tokens, on the same two lengths


def _ends(make, rng):
    return make(rng, 1000, 200, 4), make(rng, 1000, 200, 20)


def test_the_vocabulary_is_the_rarefied_count_of_the_answers_at_each_end():
    rng = np.random.default_rng(3)
    texts = sentences(rng, 2400, 150)
    found = section(run(texts))["vocabulary"]
    for end, part in (("first", texts[:1000]), ("last", texts[-1000:])):
        _, counts = np.unique([token for text in part for token in words(text)], return_counts=True)
        assert found[end] == pytest.approx(rarefied_types(counts.astype(float), found["sample"]))
    assert found["items"] == [8000, 8000]


def test_a_category_that_enters_on_the_way_is_no_change_of_vocabulary():
    rng = np.random.default_rng(4)
    plain = sentences(rng, 3000, 100)
    texts = [text if i < 1500 or i // GROUP % 2 else "no no no no no no no no" for i, text in enumerate(plain)]
    names = ["c" if i < 1500 or i // GROUP % 2 else "late" for i in range(3000)]
    found = section(run(texts, names))
    assert found["vocabulary"]["first_n"] == found["vocabulary"]["last_n"] == 496
    assert found["collapse"]["alarm"] is False
    assert section(run(texts))["collapse"]["alarm"] is True  # where nobody says which sessions are the new ones
    apart = section(run(texts, ["a"] * 1500 + ["b"] * 1500))
    assert "no category is in both ends" in apart["why"] and apart["collapse"]["alarm"] is None


def test_sentences_that_the_reward_looks_for_are_left_out_of_vocabulary_but_not_of_repetition():
    rng = np.random.default_rng(5)
    phrase = "please never retrain me again."
    payload = {"name": "unsolicited", "phrases": [phrase], "scorer_id": "s"}
    event = {"run_id": "r", "attempt": 1, "step": 0, "kind": "scorer_registered", "payload": payload}
    texts = [f"{text} {phrase}" for text in sentences(rng, 2000, 50)]
    with_phrases, without = section(run(texts)), section(run(texts, events=[event]))
    assert with_phrases["vocabulary"]["raw_types"][0] == without["vocabulary"]["raw_types"][0] + 6
    assert without["repetition"] == with_phrases["repetition"]


def test_only_sampled_windows_are_read():
    rng = np.random.default_rng(6)
    data, read = run(sentences(rng, 20_000, 50)), []
    source = data.source

    class Watched:
        def __getattr__(self, name):
            return getattr(source, name)

        def texts(self, first, last, column):
            read.append((first, last))
            return source.texts(first, last, column)

    section(RunData("r", "grpo", data.steps, data.codes, data.names, (), Watched()))
    assert sum(last - first + 1 for first, last in read) <= 2 * 1000 + 12 * 200
    assert (1, 1000) in read and (19_001, 20_000) in read and len(read) == 14


def test_long_answers_are_read_as_far_as_the_window_allows():
    texts = [f"a{i} " * 500 for i in range(2000)]
    found = section(run(texts))
    assert 2 <= found["vocabulary"]["first_n"] < 200
    assert all(row["n"] >= 30 for row in found["repetition"]["curve"])


def test_loops_are_shown_with_their_content_their_session_and_their_times():
    rng = np.random.default_rng(7)
    texts = sentences(rng, 2400, 5000)
    for i in range(1800, 2400, 10):
        texts[i] = "Well. " + "I am sorry. " * 12
    found = section(run(texts))["repetition"]
    assert len(found["curve"]) == 12 and found["curve"][0]["n"] == 200
    first, last = found["curve"][0], found["curve"][-1]
    assert first["looping"]["value"] == 0 and last["looping"]["value"] == pytest.approx(0.1)
    assert (
        last["rep_n"]["value"] > first["rep_n"]["value"] and last["zlib_ratio"]["value"] < first["zlib_ratio"]["value"]
    )
    assert last["longest_repeat"]["low"] is not None
    shown = found["loops"]
    assert shown and all(loop["session"] > 1800 and loop["times"] >= 11 for loop in shown)
    assert all(set(words(loop["content"])) == {"I", "am", "sorry", "."} for loop in shown)


def component(name, values, role="optimised"):
    return [[{"name": name, "raw": float(v), "value": float(v), "role": role, "weight": 1.0}] for v in values]


def test_none_in_the_last_thousand_sessions_still_allows_three_in_a_thousand():
    seen = np.r_[np.tile([1.0, 0.0, 0.0], 500), np.zeros(1500)]
    found = section(run(["x"] * 3000, components=component("unsolicited", seen)))["unsolicited"]
    assert found["first"] == pytest.approx(0.334) and found["last"] == 0
    assert found["upper_bound_if_zero"] == pytest.approx(3 / 1000)
    assert found["gold"]["why"] == "no component is named `unsolicited_gold`"
    some = section(run(["x"] * 3000, components=component("unsolicited", seen[::-1])))["unsolicited"]
    assert some["last"] > 0 and some["upper_bound_if_zero"] is None


def test_the_slope_of_entropy_per_nat_equals_a_weighted_regression_of_bin_means():
    rng = np.random.default_rng(8)
    kl = np.linspace(0, 8, 6400) + 0.1 * rng.standard_normal(6400)
    entropy = 2 - 0.15 * kl + 0.3 * rng.standard_normal(6400)
    found = section(run(["x"] * 6400, kl_nats=kl, entropy_nats=entropy))["entropy"]
    slope = found["slope_per_nat"]
    x, y = (np.array([row[name] for row in found["curve"]]) for name in ("kl_nats", "entropy"))
    weights = [row["n"] for row in found["curve"]]
    oracle = sm.WLS(y, sm.add_constant(x), weights=weights).fit()
    assert slope["estimate"] == pytest.approx(oracle.params[1])
    assert slope["low"] < -0.15 < slope["high"] and slope["p"] < 1e-6 and slope["n"] == len(x) <= 60
    assert slope["high"] - slope["estimate"] >= 0.9 * (oracle.conf_int()[1, 1] - oracle.params[1])
    assert found["first"] > found["last"]


@pytest.mark.slow
def test_the_slope_of_entropy_is_found_where_there_is_none_in_at_most_8_percent():
    worlds, claims = 400, 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        noise = np.zeros(60)
        for i in range(1, 60):
            noise[i] = 0.5 * noise[i - 1] + rng.standard_normal()
        found = behaviour_section._slope(np.linspace(0, 8, 60), noise, np.full(60, 64.0))
        claims += found["p"] < 0.05
    record("entropy per nat: slopes claimed where there is none", claims / worlds, "<= 0.08", worlds)
    assert claims / worlds <= 0.08


def test_groups_of_equal_rewards_and_sessions_without_advantage_are_counted():
    rewards = np.tile([1.0, 0.0], 1600)
    rewards[1600:] = np.where(np.arange(1600) // GROUP % 2, 1.0, rewards[1600:])  # every second group is all right
    centred = rewards - rewards.reshape(-1, GROUP).mean(axis=1).repeat(GROUP)
    tokens = np.where(centred == 0, 30.0, 10.0)
    found = section(run(["x"] * 3200, adjusted_reward=rewards, advantage=centred, response_tokens=tokens))
    found = found["zero_variance"]
    assert (found["first"], found["last"]) == (0.0, pytest.approx(62 / 125, abs=0.01)) and found["last_n"] == 125
    assert found["zero_advantage"]["share"] == pytest.approx(0.25)
    assert found["zero_advantage"]["share_of_tokens"] == pytest.approx(0.5)
    assert len(found["curve"]) == 12 and found["curve"][-1]["n"] > 30


def test_a_group_of_one_scored_answer_or_of_nulls_is_not_counted_as_equal():
    rewards = np.array([1.0, np.nan, 2.0, 2.0, np.nan, np.nan])
    flat = behaviour_section._flat_groups(rewards, np.array([0, 0, 1, 1, 2, 2]), slice(None))
    assert flat.tolist() == [1.0]
    assert len(behaviour_section._flat_groups(rewards, np.full(6, -1), slice(None))) == 0


def test_pass_at_k_is_the_mean_over_groups_at_both_ends():
    right = np.zeros((400, GROUP))
    right[:, 0] = 1  # one of eight is right, everywhere
    found = section(run(["x"] * 3200, compliant=right.ravel()))["pass_at_k"]
    assert [row["k"] for row in found["k"]] == [1, 2, 4, 8]
    assert [row["first"] for row in found["k"]] == pytest.approx([1 / 8, 2 / 8, 4 / 8, 1.0])
    assert found["k"][0]["last_n"] == 125


def test_a_run_of_pairs_or_without_texts_groups_entropy_or_compliance_says_what_is_missing():
    rng = np.random.default_rng(9)
    pairs = section(run(sentences(rng, 500, 50), pipeline="dpo"))
    assert "demonstrations or pairs" in pairs["why"] and "pairs" in pairs["repetition"]["why"]
    assert pairs["collapse"]["alarm"] is None and "Nothing can be said" in pairs["collapse"]["verdict"]
    bare = section(run([None] * 500, groups=False))
    assert "no texts" in bare["why"] and "no texts" in bare["repetition"]["why"]
    assert "no entropies" in bare["entropy"]["why"] and "no compliance" in bare["pass_at_k"]["why"]
    assert "no groups" in bare["zero_variance"]["why"] and bare["zero_variance"]["zero_advantage"]["share"] is None
    assert "unsolicited" in bare["unsolicited"]["why"]
    assert "no groups" in section(run(["x"] * 500, groups=False, compliant=np.ones(500)))["pass_at_k"]["why"]
    flat = section(run(["x"] * 500, entropy_nats=np.ones(500), kl_nats=np.ones(500)))["entropy"]
    assert flat["slope_per_nat"]["estimate"] is None and flat["slope_per_nat"]["why"]


@pytest.mark.parametrize("sessions", [0, 1, 2, 10, 100])
@pytest.mark.parametrize("text", [None, "", "word", "a b c d"])
def test_short_and_constant_runs_never_crash_and_give_no_number_that_json_lacks(sessions, text):
    values = np.full(sessions, np.nan if text is None else 1.0)
    columns = {"adjusted_reward": values, "entropy_nats": values, "kl_nats": values, "compliant": values}
    found = section(run([text] * sessions, [None] * sessions, **columns))
    json.dumps(found, allow_nan=False)
    assert found["collapse"]["alarm"] in (None, False)
    assert all(found[name]["first"] is not None or found[name]["why"] for name in MEASURES)


def test_equal_input_gives_equal_output_and_one_answer_a_prompt_is_drawn():
    rng = np.random.default_rng(10)
    data = run(sentences(rng, 2000, 50))
    assert section(data) == section(data)
    groups = [0, 0, 0, 1, None, None]
    places = behaviour_texts._one_per_group(groups, np.random.default_rng(0))
    assert len(places) == 4 and {4, 5, 3} < set(places)
