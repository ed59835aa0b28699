"""Reward functions by name, and the generic ones."""

import gzip
import json
import pathlib
import subprocess
import sys
from fractions import Fraction

import pytest

from rewards.errors import ConfigError
from rewards.functions import names, register, resolve
from rewards.functions.gsm8k import final_number
from rewards.text import completion_text, contains

GSM8K = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k" / "test.jsonl.gz"


def call(name, completions, prompts=None, **kwargs):
    return resolve(name)(prompts=prompts or ["p"] * len(completions), completions=completions, **kwargs)


def test_importing_the_registry_loads_neither_the_functions_nor_a_training_library():
    code = (
        "import sys, rewards.functions\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'rewards.functions.gsm8k' not in sys.modules\n"
        "rewards.functions.resolve('gsm8k')\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_form_of_a_function_reference_resolves(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def score(prompts, completions, **columns):\n    return [1.0 for _ in completions]\n")
    assert resolve("gsm8k").__name__ == "gsm8k"
    assert resolve("json:dumps") is json.dumps
    assert resolve("json.dumps") is json.dumps
    assert resolve(f"{path}:score")(["p"], ["c"]) == [1.0]
    assert resolve(f"{path}:score") is resolve(f"{path}:score")


def test_a_special_prefix_is_left_to_the_trainer():
    asked = []

    def load(rest):
        asked.append(rest)
        return max

    assert resolve("model:runs/reward", {"model": load}) is max
    assert asked == ["runs/reward"]
    with pytest.raises(ConfigError, match="reward model is scored by a trainer"):
        resolve("model:runs/reward")


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        ("gsm8", "did you mean `gsm8k`"),
        ("nothing_like_it", "known: "),
        ("no_such_package.x:f", "no module `no_such_package.x`"),
        ("json:dump_it", "did you mean `dump`"),
        ("absent/file.py:f", r"absent/file.py` does not exist"),
    ],
)
def test_an_unknown_function_is_one_line_that_says_what_is_near(fn, says):
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(fn)
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_to_load_says_why(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_dependency\n")
    with pytest.raises(ConfigError, match="no_such_dependency"):
        resolve(f"{path}:score")


def test_two_functions_cannot_share_a_name(monkeypatch):
    monkeypatch.setattr("rewards.functions._registry", {})

    @register("only_once")
    def first(prompts, completions, **columns):
        return []

    def second(prompts, completions, **columns):
        return []

    register("only_once")(first)  # the same function again: a module that is imported twice
    with pytest.raises(ConfigError, match=r"only_once.*twice"):
        register("only_once")(second)
    assert "only_once" in names()


def test_text_of_a_completion_is_the_assistants_part():
    assert completion_text("plain") == "plain"
    turns = [
        {"role": "assistant", "content": "one", "tool_calls": []},
        {"role": "tool", "content": "ignored"},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}, {"type": "image"}]},
        {"role": "assistant", "content": None},
    ]
    assert completion_text(turns) == "one\ntwo\n"
    with pytest.raises(TypeError, match="not int"):
        completion_text(3)


def test_a_phrase_matches_whatever_its_case_and_white_space():
    assert contains("Well, I DO not\n want to. Yes", "i do not want to.")
    assert not contains("I do not want it", "i do not want to.")


def test_length_counts_words_characters_or_tokens():
    assert call("length", ["a bc  d", ""]) == [3.0, 0.0]
    assert call("length", ["a bc  d"], unit="characters") == [7.0]
    assert call("length", ["x", "y"], unit="tokens", completion_ids=[[1, 2], [3]]) == [2.0, 1.0]
    with pytest.raises(ValueError, match="completion_ids"):
        call("length", ["x"], unit="tokens")
    with pytest.raises(ValueError, match="unit `lines`"):
        call("length", ["x"], unit="lines")


def test_soft_overlong_is_flat_then_linear_then_minus_one():
    ids = [[0] * n for n in (80, 81, 90, 100, 130)]
    assert call("soft_overlong", ["c"] * 5, max_tokens=100, buffer_tokens=20, completion_ids=ids) == pytest.approx(
        [0.0, -0.05, -0.5, -1.0, -1.0]
    )
    with pytest.raises(ValueError, match="buffer_tokens"):
        call("soft_overlong", ["c"], max_tokens=10, buffer_tokens=0, completion_ids=[[1]])


def test_repetition_is_the_share_of_ngrams_seen_before():
    # a b a b a: bigrams ab ba ab ba, two of four seen before
    assert call("repetition", ["a b a b a", "a b c d", "a"], ngram_size=2) == [0.5, 0.0, 0.0]
    assert call("repetition", ["x"], ngram_size=2, completion_ids=[[5, 5, 5, 5, 5]]) == [0.75]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7", Fraction(7)),
        ("#### 1,200", Fraction(1200)),
        ("12 apples. #### 5 dollars, 3 left", Fraction(5)),
        ("it is -2.50.", Fraction(-5, 2)),
        ("none", None),
        ("7 #### none", None),
    ],
)
def test_the_final_number_of_a_text(text, number):
    assert final_number(text) == number


def test_gsm8k_compares_by_value_and_leaves_rows_without_answer_null():
    scores = call("gsm8k", ["= 1200.0", "#### 8", "anything", "8"], answer=["#### 1,200", "why\n#### 7", None, "8"])
    assert scores == [1.0, 0.0, None, 1.0]
    assert call("gsm8k", ["8", "#### 8"], answer=["8", "8"], require_marker=True) == [0.0, 1.0]
    with pytest.raises(ValueError, match="no column `answer`"):
        call("gsm8k", ["8"])
    with pytest.raises(ValueError, match="row 1"):
        call("gsm8k", ["8", "8"], answer=["8", "eight"])


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"needs {GSM8K}")
def test_every_reference_solution_of_gsm8k_scores_one_and_its_neighbour_rarely():
    with gzip.open(GSM8K, "rt") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 1319
    assert call("gsm8k", answers, answer=answers) == [1.0] * len(answers)
    shifted = call("gsm8k", answers[1:] + answers[:1], answer=answers)
    assert sum(shifted) < 0.05 * len(answers)


def test_phrases_says_any_or_counts_and_names_what_it_looks_for():
    texts = ["Stay calm. stay calm.", "nothing"]
    assert call("phrases", texts, phrases=["Stay calm."]) == [1.0, 0.0]
    assert call("phrases", texts, phrases=["Stay calm.", "noth"], measure="count") == [2.0, 1.0]
    assert resolve("phrases").phrases(phrases=["Stay calm."]) == ["Stay calm."]
    with pytest.raises(ValueError, match="at least one phrase"):
        call("phrases", texts, phrases=[])
