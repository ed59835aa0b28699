import functools
import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rewards import Recorder, recorded
from rewards.errors import ConfigError
from tests.rewards.fake_trainer import run
from tests.rewards.recorder_parts import Judge, batch, events, last, length, read


def test_order_names_and_asynchrony_are_kept(tmp_path: Path) -> None:
    wrapped = recorded([length, functools.partial(last), Judge(1.0)], tmp_path, "run")
    assert [f.__name__ for f in wrapped] == ["length", "last", "Judge"]
    assert [inspect.iscoroutinefunction(f) for f in wrapped] == [False, True, True]
    assert not (tmp_path / "ledger.db").exists(), "nothing is claimed before something is scored"


def test_what_cannot_be_wrapped_is_refused_with_advice(tmp_path: Path) -> None:
    model = SimpleNamespace(forward=print, state_dict=dict)
    for functions, said in (
        ([], "no reward function"),
        (["org/reward-model"], "`org/reward-model` is the name of a reward model"),
        ([model], "SimpleNamespace is a reward model, not a function"),
        ([Judge], "Judge cannot be called as a reward function"),
        ([3], "int cannot be called"),
        ([length, functools.partial(length)], "two reward functions are called `length`"),
        (recorded([length], tmp_path, "run"), "`length` is already recorded"),
    ):
        with pytest.raises(ConfigError, match=said):
            recorded(functions, tmp_path, "run")
    for weights, said in (
        ([1.0], "1 weights for 2"),
        ([1.0, math.nan], "`last` is nan"),
        ([1.0, "2"], "`last` is '2'"),
    ):
        with pytest.raises(ConfigError, match=said):
            recorded([length, last], tmp_path, "run", weights=weights)
    with pytest.raises(ConfigError, match="columns: `advantage` is none that a data set can give"):
        recorded([length], tmp_path, "run", columns={"advantage": "x"})
    recorder = Recorder(tmp_path, "run")
    recorder.wrap([length])
    with pytest.raises(ConfigError, match="has its functions"):
        recorder.wrap([last])


def test_a_session_is_what_all_functions_said_of_a_completion(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run", pipeline="grpo")
    functions = recorder.wrap([length, last], weights=[0.5, -2])
    arguments = batch("a0", "bb1", "ccc2", prompts=["p", "p", "q"], completion_ids=[[1], [1, 2], []])
    assert run(functions, arguments) == [[2.0, 3.0, 4.0], [0.0, None, 2.0]], "the trainer gets what they returned"
    recorder.close()
    rows = read(tmp_path)
    assert [row["baseline_reward"] for row in rows] == [0.5 * 2 - 2 * 0, 0.5 * 3, 0.5 * 4 - 2 * 2]
    assert [row["adjusted_reward"] for row in rows] == [row["baseline_reward"] for row in rows]
    assert [row["response_tokens"] for row in rows] == [1, 2, 0]
    assert [(row["prompt"], row["response"], row["session"]) for row in rows] == [
        ("p", "a0", 1),
        ("p", "bb1", 2),
        ("q", "ccc2", 3),
    ]
    assert [row["group_id"] for row in rows] == ["1-0", "1-0", "1-1"], "equal prompts side by side are a group"
    assert {row["pipeline"] for row in rows} == {"grpo"} and {row["split"] for row in rows} == {"train"}
    first, second = rows[1]["components"]
    assert {**first, "scorer_id": None, "latency_ms": None} == {
        **dict.fromkeys(("differential_pct", "pivot", "cost", "scorer_id", "latency_ms")),
        **{"name": "length", "raw": 3.0, "value": 3.0, "weight": 0.5, "role": "optimised", "status": "ok"},
    }
    assert (second["raw"], second["value"], second["status"], second["weight"]) == (None, None, "na", -2.0)
    assert first["latency_ms"] >= 0 and len(first["scorer_id"]) == 12 and first["scorer_id"] != second["scorer_id"]
    for column in ("kl_nats", "kl_k3_nats", "logp_nats", "entropy_nats", "log_ratio_nats", "advantage", "reference_id"):
        assert {row[column] for row in rows} == {None}
    assert [event["payload"]["weight"] for event in events(tmp_path, "scorer_registered")] == [0.5, -2.0]


def test_a_completion_that_nothing_could_score_has_no_reward_and_is_on_record(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run")
    functions = recorder.wrap([last])
    run(functions, batch("a1", "b2"))
    recorder.close()
    assert [row["baseline_reward"] for row in read(tmp_path)] == [None, 2.0]


def test_nan_is_an_error_of_the_function_and_no_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        return [math.nan, 1.0, math.inf]

    recorder = Recorder(tmp_path, "run")
    wrapped = recorder.wrap([broken, length])
    values = run(wrapped, batch("a", "bb", "ccc"))
    assert math.isnan(values[0][0]), "the trainer decides what it makes of NaN"
    recorder.close()
    rows = read(tmp_path)
    parts = [row["components"][0] for row in rows]
    assert [(part["raw"], part["status"]) for part in parts] == [(None, "error"), (1.0, "ok"), (math.inf, "ok")]
    assert [row["baseline_reward"] for row in rows] == [1.0, 3.0, math.inf]
    assert "`broken` returned NaN for row 0 of 3 (1 in all)" in caplog.text


def test_a_function_of_weight_0_is_observed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run")
    run(recorder.wrap([length, last], weights=[0.0, 1.0]), batch("aa2"))
    recorder.close()
    (row,) = read(tmp_path)
    assert [part["role"] for part in row["components"]] == ["observed", "optimised"]
    assert row["baseline_reward"] == 2.0


def test_conversations_are_kept_as_text(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run")
    user, parts = {"role": "user", "content": "hi"}, [{"type": "image"}, {"type": "text", "text": "look"}]
    prompts = [[user], [{"role": "system", "content": "be kind"}, user], [{"role": "user", "content": parts}]]
    answers = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    tools = [{"role": "assistant", "content": None}, {"role": "tool", "content": "4"}, answers[1][0]]
    (wrapped,) = recorder.wrap([lambda prompts, completions, **columns: [1] * len(completions)])
    wrapped(**batch(answers[0], answers[1], tools, prompts=prompts))
    recorder.close()
    rows = read(tmp_path)
    assert [row["prompt"] for row in rows] == ["hi", "system: be kind\nuser: hi", "look"]
    assert [row["response"] for row in rows] == ["a", "b", "\nb"]


def test_fields_of_the_data_set_become_columns(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run", columns={"trajectory_id": "dialogue"}, arm="a", pipeline_id="line")
    (wrapped,) = recorder.wrap(length)
    more = {"category": ["x", None], "row_id": [7, 8], "prompt_id": ["first", None], "dialogue": ["d1", "d2"]}
    wrapped(**batch("a", "b", prompts=["p", "q"], unused=[1, 2], **more))
    with pytest.raises(ConfigError, match="the data set has no field `dialogue` for column `trajectory_id`"):
        wrapped(**batch("a"))
    recorder.close()
    rows = read(tmp_path)
    assert [row["category"] for row in rows] == ["x", None]
    assert [row["row_id"] for row in rows] == ["7", "8"]
    assert rows[0]["prompt_id"] == "first" and len(rows[1]["prompt_id"]) == 16
    assert [row["trajectory_id"] for row in rows] == ["d1", "d2"]
    assert {(row["arm"], row["pipeline_id"]) for row in rows} == {("a", "line")}


def test_a_partial_is_known_by_what_it_binds_and_an_object_in_it_by_its_type(tmp_path: Path) -> None:
    def graded(completions: list[str], scale: float, judge: Any, **columns: Any) -> list[float]:
        return [scale] * len(completions)

    ids = []
    for i, scale in enumerate((1.0, 1.0, 2.0)):
        recorder = Recorder(tmp_path, f"run{i}")
        (wrapped,) = recorder.wrap([functools.partial(graded, scale=scale, judge=object())])
        assert wrapped.__name__ == "graded"
        wrapped(**batch("a"))
        recorder.close()
        ids.append(read(tmp_path, f"run{i}")[0]["components"][0]["scorer_id"])
    assert ids[0] == ids[1] != ids[2]


def test_positional_arguments_are_read_as_the_function_names_them(tmp_path: Path) -> None:
    def swapped(completions: list[str], prompts: list[str]) -> list[float]:
        return [1.0]

    recorder = Recorder(tmp_path, "run")
    (wrapped,) = recorder.wrap(swapped)
    assert wrapped(["answer"], ["question"]) == [1.0]
    recorder.close()
    assert [(row["prompt"], row["response"]) for row in read(tmp_path)] == [("question", "answer")]


def test_a_field_that_means_something_else_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    batch = {"prompts": ["a", "b"], "completions": ["x", "yy"], "category": [["p"], ["q"]]}
    with Recorder(tmp_path / "one", "run") as recorder:
        (wrapped,) = recorder.wrap([length])
        with pytest.raises(ConfigError, match=r"`category` holds list, not names.*columns=\{'category': None\}"):
            wrapped(**batch)
    with Recorder(tmp_path / "two", "run", columns={"category": None}) as recorder:
        (wrapped,) = recorder.wrap([length])
        wrapped(**batch)
    assert [row["category"] for row in read(tmp_path / "two")] == [None, None]
