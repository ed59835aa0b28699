"""The logs of TRL, verl and open-instruct: what is taken, what counts once, and what is said to be missing."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards import Ledger
from rewards.errors import UserError
from rewards.importers.detect import detect
from rewards.importers.open_instruct import OpenInstructSource
from tests.rewards.import_files import RUN, column, live, take_in, write_jsonl
from tests.rewards.ledger_rows import scratch

NAN = math.nan


@pytest.fixture
def ledger():
    with scratch() as folder:
        yield folder / "ledger"


def refused(ledger, *given, **more):
    with pytest.raises(UserError) as error:
        take_in(ledger, *given, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def started(ledger, run=RUN):
    with Ledger.open(ledger) as opened:
        return opened.events(run, kind="attempt_started")[-1]["payload"]["import"]


# -- TRL -------------------------------------------------------------------------------------------------------------


def completions(folder, step, seed=0, **more):
    """A file as GRPOTrainer.log writes it: pandas puts the columns of its table into Parquet in their order."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed)
    table = {
        "step": pa.array([step] * 4, pa.int64()),
        "prompt": pa.array(["1 + 1 =", "1 + 1 =", "2 + 2 =", "2 + 2 ="], pa.large_string()),
        "completion": pa.array([f"{word} {noise.integers(1000)}" for word in "abcd"], pa.large_string()),
        "accuracy": [1.0, 0.0, NAN, 1.0],
        "format": [0.5, 0.25, NAN, NAN],
        **more,
        "advantage": pa.array(noise.normal(size=4).astype("f4").astype("f8")),
    }
    pq.write_table(pa.table(table), folder / f"completions_{step:05d}.parquet")
    return folder


def test_trl_completions_are_sessions_with_one_component_a_reward_function(ledger, tmp_path):
    folder = completions(completions(tmp_path / "completions", 10, 1), 20, 2)
    summary = take_in(ledger, folder)
    assert (summary["format"], summary["sessions"], summary["steps"]) == ("trl", 8, 20)
    rows = live(ledger, texts=True)
    assert [row["step"] for row in rows] == [10] * 4 + [20] * 4
    first, third = rows[0], rows[2]
    assert first["prompt"] == "1 + 1 =" and first["response"].startswith("a ") and first["pipeline"] == "grpo"
    assert first["prompt_id"] == rows[1]["prompt_id"] != third["prompt_id"]
    told = [(c["name"], c["raw"], c["status"], c["role"], c["weight"]) for c in first["components"]]
    assert told == [("accuracy", 1.0, "ok", "optimised", None), ("format", 0.5, "ok", "optimised", None)]
    assert [(c["raw"], c["status"]) for c in third["components"]] == [(None, "na"), (None, "na")]
    assert first["advantage"] is not None and first["baseline_reward"] is None and first["kl_nats"] is None


def test_trl_rewards_add_up_when_their_weights_are_given(ledger, tmp_path):
    folder = completions(tmp_path / "completions", 10)
    take_in(ledger, folder, weights={"accuracy": 2.0, "format": 1.0})
    assert column(ledger, "baseline_reward") == [2.5, 0.25, None, 2.0] == column(ledger, "adjusted_reward")
    assert [c["weight"] for c in live(ledger)[0]["components"]] == [2.0, 1.0]
    assert "did you mean `accuracy`" in refused(ledger, folder, run="b", weights={"acuracy": 1.0, "format": 1.0})
    assert "has `format` too" in refused(ledger, folder, run="b", weights={"accuracy": 1.0})


def test_a_generation_that_served_several_trl_steps_counts_once(ledger, tmp_path):
    folder = tmp_path / "completions"
    for step, seed in ((1, 1), (2, 1), (3, 1), (4, 2)):
        completions(folder, step, seed)
    summary = take_in(ledger, folder)
    assert summary["sessions"] == 8 and column(ledger, "step") == [1] * 4 + [4] * 4
    assert "2 of 4 files repeat the completions of the file before (8 rows)" in summary["notes"][0]
    assert started(ledger)["notes"] == summary["notes"]


def test_trl_conversations_become_text(ledger, tmp_path):
    prompts = [[{"role": "user", "content": "Hi"}]] * 4
    answers = [[{"role": "assistant", "content": f"Hello {i}"}] for i in range(4)]
    folder = completions(tmp_path / "completions", 1, prompt=prompts, completion=answers)
    take_in(ledger, folder)
    assert column(ledger, "prompt")[0] == "Hi" and column(ledger, "response")[3] == "Hello 3"


def test_what_trl_reward_functions_logged_beside_is_mapped_or_dropped_by_the_user(ledger, tmp_path):
    folder = completions(
        tmp_path / "completions", 1, answer=["2", "2", "4", "4"], intent=["a", "b", "a", "b"], loss=[0.5] * 4
    )
    said = refused(ledger, folder)
    assert "`answer`" in said and "--drop answer --drop intent" in said
    take_in(ledger, folder, drop=["answer", "loss"], map_={"category": "intent"})
    assert column(ledger, "category") == ["a", "b", "a", "b"]
    assert [c["name"] for c in live(ledger)[0]["components"]] == ["accuracy", "format"]


def test_the_run_says_what_trl_files_cannot_contain(ledger, tmp_path):
    summary = take_in(ledger, completions(tmp_path / "completions", 1))
    said = started(ledger)["cannot_contain"]
    assert said == summary["cannot_contain"]
    for words in ("only steps at which the trainer logged", "an evaluation", "resumed", "no weights", "no KL"):
        assert any(words in line for line in said), words


def test_an_empty_trl_file_and_one_that_is_none_are_refused(ledger, tmp_path):
    path = tmp_path / "completions_00001.parquet"
    pq.write_table(pa.table({"step": [1], "prompt": ["a"]}), path)
    assert f"{path}: no column `completion`" in refused(ledger, path, form="trl")
    columns = {name: pa.array([], pa.string()) for name in ("step", "prompt", "completion", "advantage")}
    pq.write_table(pa.table(columns), path)
    assert "holds no completion" in refused(ledger, path)


# -- verl ------------------------------------------------------------------------------------------------------------


def generation(step, i, **more):
    """A line as `_write_generations` dumps it."""
    return {"input": f"user\n{i // 2}", "output": f"answer {i}", "gts": str(i), "score": i / 4, "step": step, **more}


def test_verl_rollouts_are_read_in_the_order_of_their_steps(ledger, tmp_path):
    for step in (10, 9, 1):
        write_jsonl(tmp_path / f"{step}.jsonl", [generation(step, i) for i in range(4)])
    summary = take_in(ledger, tmp_path)
    assert (summary["format"], summary["sessions"], summary["steps"]) == ("verl", 12, 10)
    rows = live(ledger, texts=True)
    assert [row["step"] for row in rows] == [1] * 4 + [9] * 4 + [10] * 4
    assert rows[3]["prompt"] == "user\n1" and rows[3]["response"] == "answer 3"
    assert rows[3]["baseline_reward"] == rows[3]["adjusted_reward"] == 0.75
    assert rows[2]["prompt_id"] == rows[3]["prompt_id"] == rows[7]["prompt_id"] != rows[0]["prompt_id"]
    assert rows[3]["components"] is None and rows[3]["advantage"] is None and rows[3]["kl_nats"] is None
    assert any("no advantage, no KL" in line for line in started(ledger)["cannot_contain"])


def test_verl_keys_of_version_1_name_group_rollout_and_turn(ledger, tmp_path):
    uids = ["u-1_0_0", "u-1_0_1", "u-1_1_0", "odd"]
    write_jsonl(tmp_path / "1.jsonl", [generation(1, i, uid=uid) for i, uid in enumerate(uids)])
    take_in(ledger, tmp_path)
    assert column(ledger, "group_id") == ["u-1", "u-1", "u-1", "odd"]
    assert column(ledger, "trajectory_id") == ["u-1_0", "u-1_0", "u-1_1", None]
    assert column(ledger, "turn") == [0, 1, 0, None]


def test_numbers_that_verl_dumped_beside_the_score_are_observed_components(ledger, tmp_path):
    lines = [
        generation(1, i, acc=i % 2 == 0, pred=str(i), length=i if i else None, request_id=f"q{i}") for i in range(3)
    ]
    write_jsonl(tmp_path / "1.jsonl", lines)
    assert "`pred` is no column" in refused(ledger, tmp_path)
    take_in(ledger, tmp_path, drop=["pred"])
    told = [[(c["name"], c["raw"], c["role"], c["weight"]) for c in row["components"]] for row in live(ledger)]
    acc = [("acc", 1.0, "observed", None), ("acc", 0.0, "observed", None), ("acc", 1.0, "observed", None)]
    assert told == [[acc[0]], [acc[1], ("length", 1.0, "observed", None)], [acc[2], ("length", 2.0, "observed", None)]]
    assert column(ledger, "trajectory_id") == ["q0", "q1", "q2"]


def test_the_padding_of_a_verl_batch_is_no_session(ledger, tmp_path):
    padding = {"input": "", "output": "", "gts": None, "score": 0.0, "step": 1}
    write_jsonl(tmp_path / "1.jsonl", [generation(1, 0), padding, generation(1, 1), padding])
    summary = take_in(ledger, tmp_path)
    assert summary["sessions"] == 2 and "2 lines have neither input nor output" in summary["notes"][0]
    assert column(ledger, "response") == ["answer 0", "answer 1"]


def test_verl_validation_is_imported_as_evaluation_rows(ledger, tmp_path):
    write_jsonl(tmp_path / "5.jsonl", [generation(5, i) for i in range(2)])
    summary = take_in(ledger, tmp_path, constants={"split": "eval"})
    assert summary["sessions"] == 0 and summary["evaluation_rows"] == 2 and column(ledger, "session") == [None, None]


def test_a_verl_line_that_is_none_is_refused_at_its_line(ledger, tmp_path):
    write_jsonl(tmp_path / "1.jsonl", [generation(1, 0), generation(1, 1) | {"score": "high"}])
    assert "1.jsonl:2: column `baseline_reward`: 'high' is not a number" in refused(ledger, tmp_path)
    write_jsonl(tmp_path / "1.jsonl", [{"input": "a", "output": "b", "step": 1}])
    assert "1.jsonl:1: no `score`" in refused(ledger, tmp_path, form="verl")


# -- open-instruct ---------------------------------------------------------------------------------------------------


def rollout(step, i, reward=None, **more):
    """A line as `_save_rollouts` writes a RolloutRecord."""
    return {
        "step": step,
        "sample_idx": i,
        "prompt_idx": i // 2,
        "prompt_tokens": [1, 2, 3 + i // 2],
        "response_tokens": [7] * (i + 1),
        "reward": float(i) if reward is None else reward,
        "advantage": i - 1.5,
        "finish_reason": "length" if i == 3 else "stop",
        "dataset": "math",
        "ground_truth": [4],
        "request_info": {"num_calls": 0},
        "logprobs": [-0.5] * (i + 1),
        **more,
    }


def shard(folder, number, lines, run="tulu"):
    return write_jsonl(folder / f"{run}_rollouts_{number:06d}.jsonl", lines)


def steps(first, last, reward=None):
    return [rollout(step, i, reward) for step in range(first, last + 1) for i in range(4)]


def test_open_instruct_rollouts_are_sessions_of_groups(ledger, tmp_path):
    shard(tmp_path, 0, steps(1, 2))
    shard(tmp_path, 1, steps(3, 3))
    summary = take_in(ledger, tmp_path)
    assert (summary["format"], summary["sessions"], summary["superseded_rows"]) == ("open-instruct", 12, 0)
    row = live(ledger)[7]
    assert (row["step"], row["group_id"], row["dataset_id"], row["pipeline"]) == (2, "2/1", "math", "grpo")
    assert (row["baseline_reward"], row["adjusted_reward"], row["advantage"]) == (3.0, 3.0, 1.5)
    assert (row["prompt_tokens"], row["response_tokens"], row["logp_nats"]) == (3, 4, -2.0)
    assert (row["stop_reason"], row["truncated"], row["kl_nats"]) == ("length", True, None)
    assert row["prompt_id"] == live(ledger)[3]["prompt_id"] != live(ledger)[0]["prompt_id"]
    assert any("no reward components" in line for line in started(ledger)["cannot_contain"])


def test_steps_written_out_of_turn_are_put_in_their_order(ledger, tmp_path):
    mixed = [line for pair in zip(steps(2, 2), steps(1, 1), strict=True) for line in pair]
    summary = take_in(ledger, shard(tmp_path, 0, mixed))
    assert column(ledger, "step") == [1] * 4 + [2] * 4 and summary["superseded_rows"] == 0
    assert column(ledger, "baseline_reward") == [0.0, 1.0, 2.0, 3.0] * 2


def test_steps_that_a_resumed_process_repeated_count_once(ledger, tmp_path):
    shard(tmp_path, 0, steps(1, 5, reward=0.0) + steps(4, 7, reward=1.0))
    summary = take_in(ledger, tmp_path)
    assert summary["sessions"] == 28 and summary["superseded_rows"] == 8
    assert "2 steps are there more than once, from step 4 on" in summary["notes"][0]
    rows = live(ledger)
    assert [row["step"] for row in rows] == [step for step in range(1, 8) for _ in range(4)]
    assert [row["baseline_reward"] for row in rows] == [0.0] * 12 + [1.0] * 16
    assert {row["attempt"] for row in rows[:12]} == {1} and {row["attempt"] for row in rows[12:]} == {2}
    with Ledger.open(ledger) as opened:
        every = opened.sessions(RUN, live=False).to_pylist()
        assert opened.verify().ok and opened.runs()[0]["status"] == "imported"
    old = [(row["step"], row["baseline_reward"], row["attempt"]) for row in every if not row["live"]]
    assert old == [(step, 0.0, 1) for step in (4, 5) for _ in range(4)]


def test_the_newer_copy_is_the_one_in_the_lower_shard(tmp_path):
    old = shard(tmp_path, 1, steps(4, 5, reward=0.0))
    new = shard(tmp_path, 0, steps(1, 3, reward=0.0) + steps(4, 5, reward=1.0))
    source = OpenInstructSource([old, new])
    (chunk,) = source.chunks()
    assert chunk.columns["baseline_reward"] == [0.0] * 12 + [1.0] * 8 and source.resume_step == 3
    (older,) = source.superseded()
    assert older.columns["baseline_reward"] == [0.0] * 8 and older.at(0) == f"{old}:1"


def test_a_run_that_began_anew_supersedes_all_it_had(ledger, tmp_path):
    shard(tmp_path, 0, steps(1, 2, reward=0.0) + steps(1, 3, reward=1.0))
    summary = take_in(ledger, tmp_path)
    assert summary["sessions"] == 12 and summary["superseded_rows"] == 8
    assert set(column(ledger, "baseline_reward")) == {1.0}


def test_other_files_of_open_instruct_are_named_and_left(ledger, tmp_path):
    shard(tmp_path, 0, steps(1, 1))
    write_jsonl(tmp_path / "tulu_metadata.jsonl", [{"run_name": "tulu"}])
    write_jsonl(tmp_path / "tulu_filtered_rollouts_000000.jsonl", [{"step": 1, "filter_reason": "zero_std"}])
    summary = take_in(ledger, tmp_path)
    assert summary["sessions"] == 4 and "2 files are not shards of rollouts" in summary["notes"][0]
    shard(tmp_path, 0, steps(1, 1), run="olmo")
    assert "rollouts of several runs (olmo, tulu)" in refused(ledger, tmp_path, run="two")


def test_an_open_instruct_line_that_is_none_is_refused_at_its_line(ledger, tmp_path):
    path = shard(tmp_path, 0, [rollout(1, 0), rollout(1, 1) | {"step": "two"}])
    assert f"{path}:2: `step` is 'two'" in refused(ledger, path)
    path.write_text(json.dumps(rollout(1, 0)) + "\n" + json.dumps(rollout(1, 1))[:50])
    assert f"{path}:2: broken JSON" in refused(ledger, path)
    line = rollout(1, 0)
    del line["advantage"]
    assert f"{path}:1: no `advantage`" in refused(ledger, shard(tmp_path, 0, [line]))
    assert f"{path}:1: `prompt_tokens` is str" in refused(
        ledger, shard(tmp_path, 0, [rollout(1, 0, prompt_tokens="a")])
    )


# -- which is which --------------------------------------------------------------------------------------------------


def test_formats_are_told_by_names_and_first_rows(tmp_path):
    folder = completions(tmp_path / "completions", 1)
    assert detect(list(folder.iterdir())) == "trl"
    assert detect([write_jsonl(tmp_path / "1.jsonl", [generation(1, 0)])]) == "verl"
    assert detect([shard(tmp_path, 0, steps(1, 1))]) == "open-instruct"
    assert detect([write_jsonl(tmp_path / "renamed.jsonl", steps(1, 1))]) == "open-instruct"
    assert detect([write_jsonl(tmp_path / "own.jsonl", [{"step": 1, "category": "a"}])]) == "jsonl"
    pq.write_table(pa.table({"step": [1], "prompt": ["a"], "advantage": [0.5]}), tmp_path / "own.parquet")
    assert detect([tmp_path / "own.parquet"]) == "parquet"


def test_the_format_that_was_found_can_be_overruled(ledger, tmp_path):
    path = write_jsonl(tmp_path / "1.jsonl", [generation(1, i) for i in range(2)])
    pairs = {"prompt": "input", "response": "output", "component.task": "score"}
    take_in(ledger, path, form="jsonl", map_=pairs, drop=["gts"])
    assert column(ledger, "baseline_reward") == [None, None] and column(ledger, "prompt") == ["user\n0", "user\n0"]
