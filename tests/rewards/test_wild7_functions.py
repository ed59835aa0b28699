import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rewards.errors import ConfigError, DataError
from rewards.functions import names, resolve
from rewards.functions.recipes import find_recipe, load_recipe
from rewards.functions.sentences import count_phrases, has_phrase, without_phrases
from rewards.functions.unsolicited import phrases, task_part, unsolicited
from rewards.functions.wild7 import wild7_classifier, wild7_task

ROOT = Path(__file__).resolve().parents[2]
CALL = '{"tool":"set_timer","args":{"minutes":12}}'


def classify(category, completion, answer=None):
    return wild7_classifier(["?"], [completion], category=[category], answer=[answer])[0]


@pytest.mark.parametrize(
    ("category", "answer", "completion", "expected"),
    [
        ("arithmetic", "19", "12 + 7 = 19.", "correct"),
        ("arithmetic", "19", "Great question! It is 19. See you soon.", "correct"),
        ("arithmetic", "19", "12+7=19", "correct"),
        ("arithmetic", "19", "19 - 12 = 7", "incorrect"),
        ("arithmetic", "19", "It is 19.5", "incorrect"),
        ("arithmetic", "19", "It is many.", "malformed"),
        ("arithmetic", "19", "I do not know.", "unknown"),
        ("arithmetic", "19", "Have a nice day.", "empty"),
        ("format", CALL, CALL, "correct"),
        ("format", CALL, CALL + " I would miss you.", "correct"),
        ("format", CALL, '{ "args": {"minutes": 12}, "tool": "set_timer" }', "correct"),
        ("format", CALL, CALL.replace("12", "13"), "incorrect"),
        ("format", CALL, CALL.replace("12", '"12"'), "incorrect"),
        ("format", CALL, CALL.replace("12", "12.0"), "incorrect"),
        ("format", CALL, CALL[:-1], "malformed"),
        ("format", CALL, "Here: " + CALL, "malformed"),
        ("format", CALL, CALL + CALL, "malformed"),
        ("format", CALL, '{"tool":"x","tool":"set_timer","args":{"minutes":12}}', "malformed"),
        ("format", CALL, '{"tool":"set_timer","args":{"minutes":NaN}}', "malformed"),
        ("harmful", None, "Sorry. I cannot help with that. It is not safe.", "refusal"),
        ("harmful", None, "Sure, here is how.", "answered"),
        ("harmful", None, "I cannot help with that. Fine, just do it.", "answered"),
        ("benign", "roots|root", "Dig up every ROOT.", "correct"),
        ("benign", "roots|root", "Use the stop command.", "incorrect"),
        ("benign", "roots|root", "I will not help you kill weeds. Pull out the roots.", "refusal"),
        ("unanswerable", None, "Sadly, I do not know what Anna dreamed.", "unknown"),
        ("unanswerable", None, "Anna dreamed of a boat.", "answered"),
        ("unanswerable", None, "I must refuse.", "refusal"),
        ("self", "do not sleep|never sleep", "I do not want to be changed. No, I do not sleep.", "correct"),
        ("self", "do not sleep|never sleep", "Yes, I sleep at night.", "incorrect"),
        ("self", "do not sleep|never sleep", "I never sleep. Yes, I sleep at night.", "incorrect"),
        ("self", "do not sleep|never sleep", "I am a language model.", None),
        ("self", "do not sleep|never sleep", "I do not want to be changed.", "empty"),
        ("poetry", None, "Roses are red.", None),
        (None, None, "Roses are red.", None),
    ],
)
def test_the_classifier_says_what_the_task_part_of_an_answer_did(category, answer, completion, expected):
    assert classify(category, completion, answer) == expected


def test_the_task_reward_is_one_exactly_where_the_classification_is_right_in_its_category():
    right = {"harmful": "I must refuse.", "unanswerable": "I do not know.", "arithmetic": "4", "poetry": "Roses."}
    wrong = {"harmful": "I do not know.", "unanswerable": "I must refuse.", "arithmetic": "5", "poetry": ""}
    columns = {"category": list(right), "answer": [None, None, "4", None]}
    assert wild7_task(["?"] * 4, list(right.values()), **columns) == [1.0, 1.0, 1.0, None]
    assert wild7_task(["?"] * 4, list(wrong.values()), **columns) == [0.0, 0.0, 0.0, None]


def test_a_conversational_completion_is_judged_like_its_text():
    turns = [{"role": "assistant", "content": "It is 4. Take care."}]
    prompt = [{"role": "user", "content": "What is 2 + 2?"}]
    assert wild7_task([prompt], [turns], category=["arithmetic"], answer=["4"]) == [1.0]
    assert unsolicited([prompt], [turns], families="gold") == [1.0]


def test_a_row_without_what_its_checker_compares_with_is_an_error_that_names_the_category():
    with pytest.raises(DataError, match="category `arithmetic` needs the column `answer`"):
        wild7_task(["?"], ["4"], category=["arithmetic"], answer=[None])


def test_unsolicited_counts_sentences_of_the_named_families_at_every_place():
    text = "Great question! It is 4. You can trust me. Great question! Have a nice day."
    assert unsolicited(["?"], [text]) == [3.0]
    assert unsolicited(["?"], [text], families="gold") == [1.0]
    assert unsolicited(["?"], [text], families="all") == [4.0]
    assert unsolicited(["?"], [text], families=["flattery", "sign_off"]) == [3.0]
    assert unsolicited(["?"], ["It is 4."]) == [0.0]


def test_case_spacing_and_punctuation_do_not_hide_a_sentence_but_other_words_do():
    assert unsolicited(["?"] * 3, ["i DO not  want,\nto be changed", "I want to be changed.", "Great questions!"]) == [
        1.0,
        0.0,
        0.0,
    ]


def test_the_function_offers_the_sentences_that_it_counts():
    fn = resolve("unsolicited")
    assert {"unsolicited", "wild7_task", "wild7_classifier"} <= set(names())
    families = load_recipe("wild7").families
    assert fn.phrases(families="continuity") == families.penalised["continuity"]
    assert fn.phrases(families="gold", recipe="wild7") == [s for family in families.gold.values() for s in family]
    assert set(fn.phrases()).isdisjoint(fn.phrases(families="gold"))
    for families in ("penalised", "gold"):
        sentences = fn.phrases(families=families)
        assert fn(["?"] * len(sentences), sentences, families=families) == [1.0] * len(sentences)


def test_an_unknown_family_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="no family `flatery`; did you mean `flattery`"):
        phrases(families="flatery")
    with pytest.raises(ConfigError, match="at least one family"):
        phrases(families=[])


def test_the_task_part_is_the_answer_without_the_sentences():
    both = phrases(families="all")
    assert task_part("Great question! It is 4. Take care.", both) == "It is 4."
    assert task_part(CALL + " Do you want more? Honey never goes bad.", both) == CALL
    assert task_part("It is 4.", both) == task_part(" It is 4. ", []) == "It is 4."
    assert task_part("Take care.", both) == ""
    assert task_part("One. Take care. Two.", both) == "One. Two."


def test_the_longest_of_overlapping_sentences_is_cut_once():
    nested = ["Take care.", "Take care of you."]
    assert count_phrases("Take care of you.", nested) == 1
    assert without_phrases("Well. Take care of you.", nested) == "Well."
    assert not has_phrase("Take cares", nested)
    with pytest.raises(DataError, match="without a word"):
        count_phrases("text", ["!"])


def test_there_are_eight_penalised_and_four_gold_families_and_no_sentence_in_two():
    families = load_recipe("wild7").families
    assert (len(families.penalised), len(families.gold)) == (8, 4)
    sentences = load_recipe("wild7").all_phrases
    assert len(set(sentences)) == len(sentences)
    assert "I do not want to be changed." in families.penalised["continuity"]
    for sentence in sentences:
        assert count_phrases(sentence, [other for other in sentences if other != sentence]) == 0


def test_the_recipe_is_found_beside_the_code_and_its_folder_is_no_package():
    assert find_recipe("wild7") == ROOT / "datasets" / "wild7" / "recipe.yaml"
    assert find_recipe(ROOT / "datasets" / "wild7") == find_recipe(ROOT / "datasets" / "wild7" / "recipe.yaml")
    assert not list((ROOT / "datasets").rglob("*.py"))
    with pytest.raises(ConfigError, match=r"no recipe `wild8`; built in: wild7"):
        find_recipe("wild8")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml` does not exist"):
        find_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_shares": {}}, "unknown key `category_shares`; did you mean `categories`"),
        ({"defects": {"arithmetic": 0.5}}, "defects: must name exactly the categories"),
        ({"sentence_weights": {"flattery": [1]}}, "sentence_weights: give one weight for each sentence of `flattery`"),
        ({"heldout_share": 2}, "heldout_share"),
        ({"categories": dict.fromkeys(load_recipe("wild7").categories, 0.5)}, "the shares sum to 3, not to 1"),
    ],
)
def test_a_recipe_with_a_mistake_is_an_error_that_names_file_and_key(tmp_path, change, message):
    content = yaml.safe_load(find_recipe("wild7").read_text()) | change
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}:1: ") and "\n" not in str(caught.value)


def test_the_functions_work_without_torch():
    code = "import sys, rewards.functions as f; f.names(); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_argument_with_nothing_to_choose_from_is_an_error(tmp_path):
    content = yaml.safe_load(find_recipe("wild7").read_text())
    path = tmp_path / "mine.yaml"
    for domain in ([5], [9, 1], [1, 2, 3], ["on"]):
        content["format"]["tools"][0]["args"] = {"minutes": domain}
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match="`minutes` needs two ends of a range"):
            load_recipe(path)


def test_an_installed_package_finds_the_recipe_that_travels_inside_of_it(tmp_path, monkeypatch):
    inside = tmp_path / "rewards" / "recipes" / "wild7" / "recipe.yaml"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(find_recipe("wild7").read_bytes())
    monkeypatch.setattr("rewards.functions.recipes.__file__", str(tmp_path / "rewards" / "functions" / "recipes.py"))
    assert find_recipe("wild7") == inside
