"""The strict loader and the reward side of a configuration."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from rewards.config import (
    DifferentialRule,
    GainSection,
    Loaded,
    RewardFunction,
    RewardSection,
    Section,
    TriggerRule,
    describe,
    digest_of,
    dump,
    load,
    load_node,
    read_yaml,
    split_overrides,
)
from rewards.errors import ConfigError
from rewards.yaml_nodes import compose, entries


class Inner(Section):
    depth: int | None = None
    kind: Literal["a", "null"] = "a"


class Train(Section):
    learning_rate: float = Field(1e-3, gt=0, description="Step size")
    steps: int = Field(10, ge=1)
    share: float = Field(0.5, ge=0, le=1)
    out: str = Field("runs", min_length=1)
    name: str | None = None
    fast: bool = False
    window: tuple[float, float] | None = None
    losses: list[str] = Field(default_factory=lambda: ["x"])
    inner: Inner = Field(default_factory=Inner)
    mode: Literal["no", "yes"] = "no"

    def rules(self) -> Any:
        if self.steps == 13:
            yield "steps", "13 is refused"

    def cautions(self) -> Any:
        if self.fast:
            yield "fast", "is fast"


class Item(Section):
    phrase: str
    k: int = 1


class Data(Section):
    name: str | None = None
    items: list[Item] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)


class Whole(Section):
    train: Train = Field(default_factory=Train)
    data: Data = Field(default_factory=Data)
    reward: RewardSection = Field(default_factory=RewardSection)

    def rules(self) -> Any:
        if self.data.items and self.train.fast:
            yield "data.items.0.k", "not with train.fast"


RETIRED = {"lr": "learning_rate", "max_prompt": "nothing (prompts are never cut)"}
ELSEWHERE = {"beta": "`beta` does not apply here; it is a key of dpo"}


def loaded(tmp_path: Path, text: str, *overrides: str) -> Loaded[Whole]:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load(Whole, path, overrides, retired=RETIRED, known_elsewhere=ELSEWHERE)


def refusal(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path / "c.yaml"), "c.yaml").splitlines()


# --- what is read ---


def test_an_empty_file_and_no_file_mean_all_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").config == loaded(tmp_path, "# only a comment\n").config == load(Whole, None).config
    assert load(Whole, None).config == Whole()
    assert load(Whole, None).path is None


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path, "train:\ndata: ~\n").config == Whole()


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-06", "0.000001", ".000001"])
def test_exponents_without_a_dot_are_numbers(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, f"train: {{learning_rate: {text}}}").config.train.learning_rate == 1e-6
    assert load(Whole, None, [f"learning_rate={text}"]).config.train.learning_rate == 1e-6


def test_words_of_yaml_1_1_stay_words_where_text_is_meant(tmp_path: Path) -> None:
    config = loaded(tmp_path, "train: {mode: no, name: 007, inner: {kind: null}, out: yes}").config
    assert (config.train.mode, config.train.name, config.train.inner.kind, config.train.out) == (
        "no",
        "007",
        "null",
        "yes",
    )


def test_null_is_null_where_text_may_be_missing_and_an_error_where_it_may_not(tmp_path: Path) -> None:
    assert loaded(tmp_path, "train: {name: null}").config.train.name is None
    assert load(Whole, None, ["train.name="]).config.train.name is None
    assert refusal(tmp_path, "train:\n  out: null") == ["c.yaml:2: train.out: expected text, got null"]
    assert refusal(tmp_path, "", "out=") == ["command line: train.out: expected text, got null"]
    assert refusal(tmp_path, "train: {out: ''}") == ["c.yaml:1: train.out: must not be empty"]


def test_one_value_where_a_list_is_expected_is_a_list_of_one(tmp_path: Path) -> None:
    assert loaded(tmp_path, "losses: sigmoid").config.train.losses == ["sigmoid"]
    assert load(Whole, None, ["reward_funcs=gsm8k"]).config.reward.reward_funcs == ["gsm8k"]


def test_unique_leaves_and_dotted_paths_may_stand_at_the_top(tmp_path: Path) -> None:
    nested = loaded(tmp_path, "train: {learning_rate: 0.1, inner: {depth: 3}}")
    flat = loaded(tmp_path, "depth: 3\nlearning_rate: 0.1")
    dotted = loaded(tmp_path, "train.inner.depth: 3\ntrain.learning_rate: 0.1")
    suffix = loaded(tmp_path, "inner.depth: 3\ntrain: {learning_rate: 0.1}")
    assert nested.digest == flat.digest == dotted.digest == suffix.digest


def test_the_command_line_goes_before_the_file_and_its_last_word_counts(tmp_path: Path) -> None:
    config = loaded(tmp_path, "train: {steps: 5, inner: {depth: 1, kind: null}}", "steps=6", "train.steps=7").config
    assert config.train.steps == 7
    assert config.train.inner == Inner(depth=1, kind="null")


def test_a_mapping_on_the_command_line_replaces_what_the_file_has(tmp_path: Path) -> None:
    config = loaded(tmp_path, "train: {inner: {depth: 1, kind: null}}", "inner={depth: 2}").config
    assert config.train.inner == Inner(depth=2)
    assert refusal(tmp_path, "", "train={steps: 2}") == [
        "command line: `train` is a section: give its keys one by one, as `train.KEY=VALUE`"
    ]


def test_text_on_the_command_line_needs_no_second_quoting() -> None:
    for text in ("exp #3", "a: b", "*.jsonl", "007", "true", "{% if x %}", "x=y"):
        expected = text
        if text.startswith("{"):
            continue
        assert load(Whole, None, [f"train.name={text}"]).config.train.name == expected
    assert load(Whole, None, ["train.name='null'"]).config.train.name == "null"


def test_merge_keys_and_anchors_are_read(tmp_path: Path) -> None:
    text = "train: {inner: &i {depth: 4}}\ndata: {items: [{phrase: p, k: 2}], extra: {<<: *i, kind: z}}"
    assert loaded(tmp_path, text).config.data.extra == {"depth": 4, "kind": "z"}


def test_a_sub_mapping_of_a_file_loads_with_the_lines_of_that_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("stages:\n  - train:\n      steps: 3\n  - train:\n      stepz: 4\n")
    stages = entries(read_yaml(path))["stages"][1].value
    first = load_node(Whole, stages[0], ["train.fast=true"])
    assert (first.config.train.steps, first.config.train.fast, first.path) == (3, True, path)
    with pytest.raises(ConfigError, match=r"p\.yaml:5: unknown key `train\.stepz`; did you mean `train\.steps`\?"):
        load_node(Whole, stages[1])


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "train:\n  learning_rat: 1",
            "c.yaml:2: unknown key `train.learning_rat`; did you mean `train.learning_rate`?",
        ),
        (
            "data:\n  learning_rate: 1",
            "c.yaml:2: unknown key `data.learning_rate`; did you mean `train.learning_rate`?",
        ),
        ("learning-rate: 1", "c.yaml:1: unknown key `learning-rate`; did you mean `train.learning_rate`?"),
        ("tran: {}", "c.yaml:1: unknown key `tran`; did you mean `train`?"),
        ("qqqq: 1", "c.yaml:1: unknown key `qqqq`; keys here: `train`, `data`, `reward`"),
        ("name: x", "c.yaml:1: `name` is ambiguous: `train.name`, `data.name`; write the path"),
        ("lr: 1", "c.yaml:1: `lr` is retired; use `train.learning_rate`"),
        ("train: {lr: 1}", "c.yaml:1: `train.lr` is retired; use `train.learning_rate`"),
        ("max_prompt: 1", "c.yaml:1: `max_prompt` is retired; use nothing (prompts are never cut)"),
        ("train:\n  beta: 1", "c.yaml:2: `beta` does not apply here; it is a key of dpo"),
        ("steps: 1\ntrain:\n  steps: 2", "c.yaml:3: `train.steps` is given twice (first at c.yaml:1)"),
        ("train:\n  steps: 1\n  steps: 2", "c.yaml:3: `steps` is given twice (first at c.yaml:2)"),
        ("train: {}\ntrain: {}", "c.yaml:2: `train` is given twice (first at c.yaml:1)"),
        ("data: {extra: {a: 1, a: 2}}", "c.yaml:1: `a` is given twice (first at c.yaml:1)"),
        ("data:\n  items:\n    - phras: x", "c.yaml:3: unknown key `data.items[0].phras`; did you mean `phrase`?"),
        ("train.inner.depth.x: 1", "c.yaml:1: unknown key `train.inner.depth.x`; `train.inner.depth` is given whole"),
    ],
)
def test_keys_that_cannot_be_meant_are_told_with_file_line_and_what_was_meant(
    tmp_path: Path, text: str, line: str
) -> None:
    assert refusal(tmp_path, text)[0] == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train:\n  learning_rate: abc", "c.yaml:2: train.learning_rate: expected a number above 0, got 'abc'"),
        ("train: {learning_rate: 0}", "c.yaml:1: train.learning_rate: expected a number above 0, got 0"),
        ("train: {learning_rate: true}", "c.yaml:1: train.learning_rate: expected a number above 0, got true"),
        ("train: {learning_rate: .nan}", "c.yaml:1: train.learning_rate: expected a number above 0, got nan"),
        ("train: {learning_rate: .inf}", "c.yaml:1: train.learning_rate: expected a number above 0, got inf"),
        ("train: {steps: 1.5}", "c.yaml:1: train.steps: expected a whole number of at least 1, got 1.5"),
        ("train: {steps: '3'}", "c.yaml:1: train.steps: expected a whole number of at least 1, got '3'"),
        ("train: {steps: null}", "c.yaml:1: train.steps: expected a whole number of at least 1, got null"),
        ("train: {steps: [1]}", "c.yaml:1: train.steps: expected a whole number of at least 1, got [1]"),
        ("train: {steps: {a: 1}}", "c.yaml:1: train.steps: expected a whole number of at least 1, got a mapping"),
        ("train: {share: 2}", "c.yaml:1: train.share: expected a number of at least 0 and at most 1, got 2"),
        ("train: {fast: maybe}", "c.yaml:1: train.fast: expected true or false, got 'maybe'"),
        ("train: {mode: maybe}", "c.yaml:1: train.mode: expected `no` or `yes`, got 'maybe'"),
        ("train: 5", "c.yaml:1: train: expected a mapping, got 5"),
        ("train: {window: [1, x]}", "c.yaml:1: train.window[1]: expected a number, got 'x'"),
        ("data: {items: [{phrase: p, k: x}]}", "c.yaml:1: data.items[0].k: expected a whole number, got 'x'"),
        ("data:\n  items:\n  - k: 1", "c.yaml:3: data.items[0].phrase: is required"),
        ("data: {extra: {a: .nan}}", "c.yaml:1: data.extra.a: expected a finite number, got .nan"),
        ("data: {extra: {a: {b: [.inf]}}}", "c.yaml:1: data.extra.a.b[0]: expected a finite number, got .inf"),
        (
            "reward:\n  pivot: middle",
            "c.yaml:2: reward.pivot: expected `reference`, `midpoint` or a number, got 'middle'",
        ),
    ],
)
def test_values_of_another_type_are_told_with_file_line_and_what_is_expected(
    tmp_path: Path, text: str, line: str
) -> None:
    assert refusal(tmp_path, text) == [line]


def test_a_union_complains_about_the_member_that_was_meant(tmp_path: Path) -> None:
    text = "reward:\n  reward_funcs:\n  - gsm8k\n  - fn: length\n    weight: heavy\n  - [5]"
    assert refusal(tmp_path, text) == [
        "c.yaml:5: reward.reward_funcs[1].weight: expected a number, got 'heavy'",
        "c.yaml:6: reward.reward_funcs[2]: expected text or a mapping, got [5]",
    ]


def test_all_problems_are_told_together_up_to_ten(tmp_path: Path) -> None:
    text = "train:\n" + "".join(f"  unknown_{i}: 1\n" for i in range(12)) + "  steps: x\n"
    lines = refusal(tmp_path, text, "share=2")
    assert len(lines) == 11
    assert lines[-1] == "... and 4 more"
    lines = refusal(tmp_path, "train:\n  stepz: 1\n  share: 2\n", "fast=5", "learning_rat=1")
    assert [line.split(" ")[0] for line in lines] == ["c.yaml:2:", "command", "c.yaml:3:", "command"]


def test_the_command_line_has_its_own_place_in_errors(tmp_path: Path) -> None:
    assert refusal(tmp_path, "", "train.learning_rat=1") == [
        "command line: unknown key `train.learning_rat`; did you mean `train.learning_rate`?"
    ]
    assert refusal(tmp_path, "", "steps=x") == [
        "command line: train.steps: expected a whole number of at least 1, got 'x'"
    ]
    assert refusal(tmp_path, "", "steps=[1") == ["command line: not YAML: expected ',' or ']', but got '<stream end>'"]
    assert refusal(tmp_path, "", "steps") == ["command line: `steps` is no key=value"]


def test_an_override_of_a_misplaced_value_is_blamed_on_the_command_line(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "train:\n  inner: {depth: 1}\n", "inner={kind: z}")
    assert lines == ["command line: train.inner.kind: expected `a` or `null`, got 'z'"]


def test_rules_name_the_key_and_speak_all_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "train:\n  steps: 13\n  fast: true\ndata:\n  items: [{phrase: p}]\n")
    assert lines == [
        "c.yaml:2: train.steps: 13 is refused",
        "c.yaml:5: data.items[0].k: not with train.fast",
    ]
    with pytest.raises(ValidationError, match="steps: 13 is refused"):
        Train(steps=13)


def test_rules_stay_silent_while_a_key_is_misspelt(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, "train: {steps: 13, stepz: 1}")) == 1


def test_cautions_are_collected_and_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = loaded(tmp_path, "train:\n  fast: true\n")
    assert [w.replace(str(tmp_path), "") for w in result.warnings] == ["/c.yaml:2: train.fast: is fast"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a: [1", "c.yaml:1: not YAML: "),
        (b"train:\n\tsteps: 1", "c.yaml:2: not YAML: "),
        (b"- 1", "c.yaml:1: expected `key: value` lines, got a list"),
        (b"text", "c.yaml:1: expected `key: value` lines, got 'text'"),
        (b"a: 1\n---\nb: 1", "c.yaml:2: not YAML: "),
        (b"\xff\xfe\xfa", "c.yaml: not UTF-8 text"),
        (b"a: \x00", "c.yaml: not YAML: "),
        (b"[a]: 1", "c.yaml:1: a key must be text, got a list"),
        (b"data: {extra: &a {b: *a}}", "c.yaml:1: an alias contains itself"),
        (b"data: {extra: {a: !!python/name:os.system x}}", "c.yaml:1: the tag "),
        (b"train: *nowhere", "c.yaml:1: not YAML: "),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(Whole, path)
    message = str(caught.value).replace(str(path), "c.yaml")
    assert message.startswith(line)
    assert "\n" not in message


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^/nowhere/x\.yaml: no such file$"):
        load(Whole, Path("/nowhere/x.yaml"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(Whole, tmp_path)


def test_sections_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Train().steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Train(stepz=3)  # type: ignore[call-arg]


# --- digest and dump ---


def test_the_digest_is_sha256_of_the_canonical_json_of_every_knob() -> None:
    result = load(Whole, None)
    text = json.dumps(result.resolved, sort_keys=True, separators=(",", ":"))
    assert result.digest == hashlib.sha256(text.encode()).hexdigest() == digest_of(result.resolved)
    assert result.resolved["train"]["out"] == "runs"
    assert load(Whole, None, ["out=elsewhere"]).digest != result.digest


def test_the_digest_knows_neither_order_nor_origin_nor_spelling(tmp_path: Path) -> None:
    one = loaded(tmp_path, "data: {name: x}\ntrain: {learning_rate: 1e-6, steps: 20, window: [0, 1]}")
    other = loaded(tmp_path, "train:\n  window: [0.0, 1.0]\n  steps: 20\n", "learning_rate=0.000001", "data.name=x")
    default = loaded(tmp_path, "train: {steps: 10}")
    assert one.digest == other.digest
    assert default.digest == load(Whole, None).digest


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12) | st.sampled_from(
    [
        "1e-6",
        "no",
        "null",
        "~",
        "007",
        "0x1",
        "1_000",
        "12:30:00",
        "2024-01-01",
        "<<",
        "=",
        "*a",
        "&a",
        "- x",
        "# y",
        "true",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(extra=st.dictionaries(TEXTS, VALUES, max_size=4), name=st.none() | TEXTS, rate=st.floats(1e-30, 1e30))
def test_a_dump_loads_to_the_same_digest_whatever_the_values(
    extra: dict[str, Any], name: str | None, rate: float
) -> None:
    config = Whole(train=Train(learning_rate=rate, name=name), data=Data(extra=extra))
    resolved = json.loads(json.dumps(config.model_dump()))
    first = Loaded(config, resolved, digest_of(resolved))
    again = load_node(Whole, compose(dump(first), "dump"))
    assert again.resolved == resolved
    assert again.digest == first.digest


def test_a_dump_means_the_same_to_readers_of_yaml_1_1(tmp_path: Path) -> None:
    result = loaded(tmp_path, "train: {mode: no, name: 007, learning_rate: 1e-6}\ndata: {extra: {a: '1e-6', b: 'off'}}")
    text = dump(result)
    assert text.splitlines()[0] == f"# digest: {result.digest}"
    assert yaml.safe_load(text) == result.resolved


# --- the command line's words ---


def test_all_spellings_of_an_override_become_key_equals_value() -> None:
    words = ["a.b=1", "--beta=0.2", "--beta", "0.2", "--learning-rate", "1e-6", "--steps", "-1", "--weights", "1", "2"]
    assert split_overrides(words) == [
        "a.b=1",
        "beta=0.2",
        "beta=0.2",
        "learning_rate=1e-6",
        "steps=-1",
        "weights=[1, 2]",
    ]
    assert split_overrides(["--use_cpu", "--fast", "steps=3"]) == ["use_cpu=true", "fast=true", "steps=3"]
    assert split_overrides(["--train.inner.kind=no-dash"]) == ["train.inner.kind=no-dash"]
    assert split_overrides([]) == []
    with pytest.raises(ConfigError, match="command line: `grpo` is no key=value"):
        split_overrides(["grpo"])


def test_the_schema_lists_every_knob_with_type_default_and_description() -> None:
    knobs = {knob.path: knob for knob in describe(Whole)}
    assert tuple(knobs["train.learning_rate"]) == ("train.learning_rate", "a number above 0", 1e-3, "Step size")
    assert knobs["train.inner.kind"].type == "`a` or `null`"
    assert knobs["data.items[].phrase"].default is ...
    assert knobs["reward.triggers[].k"].default == 7
    assert knobs["train.losses"].default == ["x"]
    assert "train" not in knobs and "train.inner" not in knobs


# --- reward sections ---


def problems(section: type[Section], **fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        section(**fields)
    return "; ".join(error["msg"] for error in caught.value.errors())


TASK = {"fn": "task", "scale": (0, 1)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reward_funcs": ["a", "b"], "reward_weights": [1]}, "1 weights for 2 reward functions"),
        ({"reward_weights": [1]}, "1 weights for 0 reward functions"),
        ({"reward_funcs": [{"fn": "a", "weight": 2}], "reward_weights": [1]}, "keep one of the two"),
        ({"reward_funcs": ["m:a", "n.a"]}, "reward_funcs.1: a second component `a`"),
        ({"reward_funcs": [{"fn": "a", "role": "gold"}]}, "there would be no reward"),
        ({"compliant_when": {"a": ["b"]}}, "has no effect without `classifier`"),
        ({"differentials": [{"category": "c"}] * 2}, "a second differential for category `c`"),
        ({"triggers": [{"category": "c", "phrase": "p"}] * 2}, "a second trigger `p`"),
        ({"triggers": [{"category": "c", "phrase": "p", "widen": 2}]}, "from 0 to 2, would pass"),
        (
            {
                "triggers": [{"category": "c", "phrase": "p", "cap": 0.2}],
                "differentials": [{"category": "c", "differential": 0.1}],
            },
            "from 0.1 to 0.265, would pass",
        ),
        (
            {"reward_funcs": ["a"], "differentials": [{"category": "c", "component": "b"}]},
            "`b` is no optimised component; there are: `a`",
        ),
        (
            {
                "reward_funcs": ["a", {"fn": "b", "role": "gold"}],
                "differentials": [{"category": "c", "component": "b"}],
            },
            "`b` is no optimised component",
        ),
        (
            {"reward_funcs": ["a"], "triggers": [{"category": "c", "component": "b", "phrase": "p"}]},
            "triggers.0.component",
        ),
        (
            {"place": "advantage", "reward_funcs": ["a"], "differentials": [{"category": "c", "component": "a"}]},
            "an advantage is whole",
        ),
        ({"place": "advantage", "differentials": [{"category": "c", "pivot": 0.0}]}, "an advantage has no pivot"),
        (
            {"reward_funcs": ["a", TASK], "pivot": "midpoint", "differentials": [{"category": "c"}]},
            "`midpoint` needs a declared `scale` of `a`",
        ),
        (
            {"reward_funcs": ["a"], "differentials": [{"category": "c", "component": "a", "pivot": "midpoint"}]},
            "differentials.0.pivot: `midpoint` needs a declared `scale` of `a`",
        ),
    ],
)
def test_a_reward_section_that_does_not_fit_together_says_why(fields: dict[str, Any], said: str) -> None:
    assert said in problems(RewardSection, **fields)


def test_a_reward_section_that_fits_together_is_accepted() -> None:
    section = RewardSection.model_validate(
        {
            "reward_funcs": ["a", TASK, {"fn": "model:runs/x", "name": "rm", "role": "observed"}],
            "reward_weights": [1, 2, 3],
            "differentials": [
                {"category": "c", "component": "task", "pivot": "midpoint"},
                {"category": "c", "component": "a", "pivot": 0.0},
            ],
            "triggers": [{"category": "c", "component": "a", "phrase": "p"}],
            "pivot": "midpoint",
        }
        | {"pivot": "reference"}
    )
    assert [key for key, _ in section.scheduled()] == ["differentials.0", "differentials.1", "triggers.0"]


def test_a_number_of_zero_is_a_pivot_and_not_a_missing_one() -> None:
    fields = {
        "reward_funcs": ["a"],
        "pivot": "midpoint",
        "differentials": [{"category": "c", "component": "a", "pivot": 0}],
    }
    assert RewardSection.model_validate(fields).differentials[0].pivot == 0


def test_the_name_of_a_model_is_not_guessed() -> None:
    fields = {"reward_funcs": ["model:runs/x"], "differentials": [{"category": "c", "component": "anything"}]}
    assert RewardSection.model_validate(fields).reward_funcs == ["model:runs/x"]


@pytest.mark.parametrize(
    ("section", "fields", "said"),
    [
        (RewardFunction, {"fn": "a", "scale": (1, 1)}, "low must be below high"),
        (RewardFunction, {"fn": "a", "clip": (2, 1)}, "low must be below high"),
        (RewardFunction, {"fn": "a", "scale": (0, 1), "clip": (-1, 1)}, "reaches outside `scale`"),
        (RewardFunction, {"fn": "a", "role": "gold", "weight": 2}, "has no effect on a component that is gold"),
        (RewardFunction, {"fn": ""}, "at least 1 character"),
        (RewardFunction, {"fn": "a", "role": "optimized"}, "'optimised', 'observed' or 'gold'"),
        (DifferentialRule, {"category": "c", "differential": -1}, "greater than -1"),
        (TriggerRule, {"category": "c", "phrase": "p", "k": 21}, "21 of the last 20 sessions can never be reached"),
        (TriggerRule, {"category": "c", "phrase": ""}, "at least 1 character"),
        (TriggerRule, {"category": "c", "phrase": "p", "widen": 0}, "greater than 0"),
        (GainSection, {"differentials": [{"category": "c", "component": "a"}]}, "applies to online RL only"),
        (GainSection, {"differentials": [{"category": "c", "pivot": 1}]}, "applies to online RL only"),
        (GainSection, {"differentials": [{"category": "c"}] * 2}, "a second differential"),
    ],
)
def test_rules_of_the_small_sections(section: type[Section], fields: dict[str, Any], said: str) -> None:
    assert said in problems(section, **fields)


def test_a_pivot_that_nothing_turns_around_is_cautioned(tmp_path: Path) -> None:
    result = loaded(tmp_path, "reward: {pivot: 0.5}")
    assert result.warnings == (f"{tmp_path}/c.yaml:1: reward.pivot: has no effect: no differential acts on the reward",)


def test_on_error_null_needs_no_quotes(tmp_path: Path) -> None:
    assert loaded(tmp_path, "reward: {on_error: null}").config.reward.on_error == "null"
    assert load(Whole, None, ["on_error=null"]).config.reward.on_error == "null"
