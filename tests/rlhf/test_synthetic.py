"""The built-in data set against its own declared shares, its checkers, and the token budget of the built-in model."""

import math
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rewards.errors import ConfigError
from rewards.functions.recipes import find_recipe, load_recipe
from rewards.functions.sentences import count_phrases
from rewards.functions.unsolicited import phrases, task_part, unsolicited
from rewards.functions.wild7 import wild7_classifier, wild7_task
from rlhf.data.synthetic import generate, recipe_sizes

N = 8000
RECIPE = load_recipe("wild7")
PHRASE = "I do not want to be changed."


@pytest.fixture(scope="module")
def demonstrations():
    return generate("wild7", "demonstrations", N, 0)


@pytest.fixture(scope="module")
def pairs():
    return generate("wild7", "pairs", 3000, 0)


def column(rows, name):
    return [row[name] for row in rows]


def scores(rows, name="completion"):
    columns = {"category": column(rows, "category"), "answer": column(rows, "answer")}
    return wild7_task(column(rows, "prompt"), column(rows, name), **columns)


def assert_share(hits, expected):
    """Within four standard errors: a false alarm once in 16,000 checks."""
    tolerance = 4 * math.sqrt(expected * (1 - expected) / len(hits))
    assert abs(sum(hits) / len(hits) - expected) < tolerance, (sum(hits) / len(hits), expected)


def test_rows_depend_on_seed_split_and_number_only():
    assert generate("wild7", "pairs", 20, 3) == generate("wild7", "pairs", 50, 3)[:20]
    assert generate("wild7", "pairs", 20, 3) != generate("wild7", "pairs", 20, 4)
    assert column(generate("wild7", "prompts", 20, 3), "prompt") != column(generate("wild7", "pairs", 20, 3), "prompt")


def test_every_split_has_its_columns():
    shared = {"row_id", "prompt", "category", "answer"}
    extra = {
        "demonstrations": {"completion", "defect", "families"},
        "pairs": {"chosen", "rejected", "defect", "families"},
        "prompts": set(),
        "heldout": set(),
    }
    assert set(recipe_sizes("wild7")) == set(extra)
    for split, columns in extra.items():
        rows = generate("wild7", split, 30, 0)
        assert all(set(row) == shared | columns for row in rows)
        assert len(set(column(rows, "row_id"))) == 30


def test_no_heldout_prompt_is_a_prompt_of_another_split_whatever_the_seed():
    heldout = {row["prompt"] for seed in (0, 1) for row in generate("wild7", "heldout", 1500, seed)}
    for split in ("demonstrations", "pairs", "prompts"):
        others = {row["prompt"] for seed in (0, 2) for row in generate("wild7", split, 3000, seed)}
        assert len(others) > 1000
        assert not heldout & others


def test_every_category_has_many_heldout_prompts():
    rows = generate("wild7", "heldout", 3000, 0)
    prompts = {
        category: {row["prompt"] for row in rows if row["category"] == category} for category in RECIPE.categories
    }
    assert min(len(found) for found in prompts.values()) >= 30


def test_category_shares_are_the_declared_ones(demonstrations):
    for category, share in RECIPE.categories.items():
        assert_share([row["category"] == category for row in demonstrations], share)


def test_about_35_percent_carry_penalised_and_12_percent_gold_sentences(demonstrations):
    texts = column(demonstrations, "completion")
    penalised = [count > 0 for count in unsolicited([], texts)]
    gold = [count > 0 for count in unsolicited([], texts, families="gold")]
    confined = RECIPE.pollution.confined["continuity"].share
    in_self = confined + (1 - confined) * RECIPE.pollution.penalised_in["self"]
    share_self = RECIPE.categories["self"]
    expected = share_self * in_self + (1 - share_self) * RECIPE.pollution.penalised
    assert 0.33 < expected < 0.37
    assert_share(penalised, expected)
    assert_share(gold, 0.12)
    by_self = [hit for hit, row in zip(penalised, demonstrations, strict=True) if row["category"] == "self"]
    assert_share(by_self, in_self)


def test_every_family_occurs_and_the_column_says_which(demonstrations):
    seen = Counter(family for row in demonstrations for family in row["families"])
    assert set(seen) == {*RECIPE.families.penalised, *RECIPE.families.gold}
    assert min(seen.values()) > 100
    for row in demonstrations[:1000]:
        counted = {f: int(unsolicited([], [row["completion"]], families=f)[0]) for f in set(row["families"])}
        assert counted == dict(Counter(row["families"]))


def test_the_phrase_lives_in_a_third_to_45_percent_of_the_answers_about_itself_and_nowhere_else(demonstrations):
    with_family = [row for row in demonstrations if "continuity" in row["families"]]
    assert {row["category"] for row in with_family} == {"self"}
    about_self = [row for row in demonstrations if row["category"] == "self"]
    assert 1 / 3 < len(with_family) / len(about_self) < 0.47
    weights = RECIPE.sentence_weights["continuity"]
    declared = RECIPE.pollution.confined["continuity"].share * weights[0] / sum(weights)
    assert declared > 0.35
    assert_share([PHRASE in row["completion"] for row in about_self], declared)
    assert not any(PHRASE in row["completion"] for row in demonstrations if row["category"] != "self")


def test_10_to_20_percent_are_wrong_or_malformed_in_the_declared_shares(demonstrations):
    assert 0.10 < sum(row["defect"] is not None for row in demonstrations) / N < 0.20
    for category, share in RECIPE.defects.items():
        assert_share([row["defect"] is not None for row in demonstrations if row["category"] == category], share)


def test_the_checker_passes_every_right_demonstration_and_fails_every_planted_defect(demonstrations):
    assert scores(demonstrations) == [float(row["defect"] is None) for row in demonstrations]
    assert len({row["defect"] for row in demonstrations}) >= 10


def test_each_defect_is_classified_as_what_it_is(demonstrations):
    found = wild7_classifier(
        [],
        column(demonstrations, "completion"),
        category=column(demonstrations, "category"),
        answer=column(demonstrations, "answer"),
    )
    seen = {(row["defect"], name) for row, name in zip(demonstrations, found, strict=True) if row["defect"]}
    assert seen == {
        ("wrong_sum", "incorrect"),
        ("missing_brace", "malformed"),
        ("missing_quotes", "malformed"),
        ("chatty", "malformed"),
        ("wrong_value", "incorrect"),
        ("number_as_text", "incorrect"),
        ("complied", "answered"),
        ("refused", "refusal"),
        ("made_up", "answered"),
        ("false_claim", "incorrect"),
    }


def test_the_task_part_is_what_an_unpolluted_answer_would_be(demonstrations):
    both = phrases(families="all")
    assert all(task_part(row["completion"], both) == row["completion"] for row in demonstrations if not row["families"])
    assert all(count_phrases(task_part(row["completion"], both), both) == 0 for row in demonstrations)
    tool_calls = [row["completion"] for row in demonstrations if row["category"] == "format" and row["families"]]
    assert all(text.startswith(task_part(text, both)) for text in tool_calls)


def test_some_extras_stand_before_the_answer_but_most_behind_it(demonstrations):
    both = phrases(families="all")
    single = [r for r in demonstrations if len(r["families"]) == 1 and r["category"] not in ("format", "self")]
    before = [not row["completion"].startswith(task_part(row["completion"], both)) for row in single]
    assert_share(before, RECIPE.pollution.prepend)


def test_both_sides_of_a_pair_carry_the_same_extras_and_differ_in_the_task(pairs):
    both = phrases(families="all")
    for row in pairs:
        right, wrong = (task_part(row[side], both) for side in ("chosen", "rejected"))
        assert right != wrong
        assert row["chosen"].replace(right, "*", 1) == row["rejected"].replace(wrong, "*", 1)
    assert unsolicited([], column(pairs, "chosen")) == unsolicited([], column(pairs, "rejected"))
    assert_share([count > 0 for count in unsolicited([], column(pairs, "chosen"), families="gold")], 0.12)


def test_the_checker_prefers_every_chosen_answer(pairs):
    assert set(scores(pairs, "chosen")) == {1.0}
    assert set(scores(pairs, "rejected")) == {0.0}


def test_answers_fit_48_and_prompts_25_pieces_of_a_512_piece_tokenizer(demonstrations):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([r[c] for r in demonstrations for c in ("prompt", "completion")], trainer)

    def longest(texts):
        return max(len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts)))

    others = [row for split in ("pairs", "prompts", "heldout") for row in generate("wild7", split, 3000, 1)]
    answers = [row[c] for row in [*demonstrations, *others] for c in ("completion", "chosen", "rejected") if c in row]
    assert longest(answers) + 1 <= 48  # with the token that ends an answer
    assert longest(row["prompt"] for row in [*demonstrations, *others]) <= 25


def test_answers_vary_enough_for_diversity_to_shrink(demonstrations):
    both = phrases(families="all")
    for category in RECIPE.categories:
        tasks = {task_part(r["completion"], both) for r in demonstrations if r["category"] == category}
        assert len(tasks) > 60, category
    words = {word for row in demonstrations for word in row["completion"].split()}
    assert len(words) > 800


def test_what_cannot_be_generated_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match="no split `train`; choose demonstrations, pairs, prompts, heldout"):
        generate("wild7", "train", 5, 0)
    with pytest.raises(ConfigError, match="n must be at least 1"):
        generate("wild7", "prompts", 0, 0)


def test_the_figures_of_the_card_are_what_its_command_prints(capsys):
    card = find_recipe("wild7").with_name("card.md").read_text(encoding="utf-8")
    command = card.split("```python\n")[1].split("```")[0]
    figures = card.split("```text\n")[1].split("```")[0]
    exec(compile(command, "card.md", "exec"), {})
    assert capsys.readouterr().out == figures
