"""`rewards compare` on ledgers and files: what is read, what is refused, exit codes and both outputs."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards import Ledger
from rewards.cli import Parser
from rewards.commands import compare
from rewards.errors import UserError


def call(*argv):
    parser = Parser(prog="rewards")
    compare.register(parser.add_subparsers(required=True, parser_class=Parser))
    args = parser.parse_args(["compare", *map(str, argv)])
    return args.command(args)


def document(capsys, *argv, code=0):
    capsys.readouterr()
    assert call(*argv, "--json") == code
    return json.loads(capsys.readouterr().out)


def refused(*argv):
    with pytest.raises(UserError) as refusal:
        call(*argv)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def session(i, value, split="train", **more):
    return {
        "pipeline": "grpo",
        "split": split,
        "prompt_id": f"p{i}",
        "category": "xy"[i % 2],
        "baseline_reward": value,
        "adjusted_reward": value,
        "compliant": value > 0.5,
        "components": [
            {"name": "task", "raw": value, "value": value, "weight": 1.0, "role": "optimised"},
            {"name": "extras", "raw": 1 - value, "value": 1 - value, "weight": -0.5, "role": "optimised"},
        ],
        **more,
    }


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """before and after: after has eval rows at two steps, of which the last are worse; train: no eval rows."""
    folder = tmp_path_factory.mktemp("compare") / "ledger"
    rng = np.random.default_rng(0)
    values = rng.random(120)
    with Ledger.open(folder, create=True) as opened:
        with opened.writer("demo/before", pipeline_id="demo") as writer:
            writer.append(1, [session(i, 0.9) for i in range(30)])
            writer.append(1, [session(i, float(values[i]), "eval") for i in range(120)])
        with opened.writer("demo/after", pipeline_id="demo") as writer:
            writer.append(1, [session(i, float(values[i]), "eval") for i in range(120)])
            writer.append(2, [session(i, 0.9) for i in range(30)])
            worse = np.clip(values - 0.2 + 0.1 * rng.random(120), 0, 1)
            writer.append(2, [session(i, float(worse[i]), "eval") for i in range(110)])
            writer.append(2, [session(300, 0.0, "eval", baseline_reward=None, components=[])])
        with opened.writer("demo/train", pipeline_id="demo") as writer:
            writer.append(1, [session(i, float(values[i])) for i in range(120)])
    return folder


BOTH = ("--run-a", "demo/before", "--run-b", "demo/after")


def test_the_newest_eval_rows_of_two_runs_are_compared_and_a_regression_exits_with_1(ledger, capsys):
    found = document(capsys, ledger, ledger, *BOTH, code=1)
    assert (found["a"]["split"], found["b"]["split"], found["b"]["step"]) == ("eval", "eval", 2)
    assert (found["prompts"], found["unpaired_a"], found["unpaired_b"], found["b"]["missing"]) == (110, 10, 0, 1)
    assert found["regression"] and found["difference"]["high"] < 0 and "mean" in found["worse"]
    assert {row["category"] for row in found["slices"]} == {"x", "y"}
    keys = {"a", "b", "metric", "pairs", "prompts", "unpaired_a", "unpaired_b", "difference", "mcnemar"}
    assert keys | {"slices", "tails", "eprocess", "regression", "verdict"} <= found.keys()
    assert {"category", "n", "estimate", "low", "high", "p", "p_adjusted", "mde", "verdict"} <= found["slices"][
        0
    ].keys()


def test_a_run_is_named_in_the_place_or_by_the_option(ledger, capsys):
    named = document(capsys, f"{ledger}:demo/before", f"{ledger}:demo/after", code=1)
    assert named == document(capsys, ledger, ledger, *BOTH, code=1)
    assert "names the run `demo/after`, the option" in refused(f"{ledger}:demo/after", ledger, "--run-a", "demo/train")


def test_two_steps_of_one_run_compare_as_two_checkpoints(ledger, capsys):
    run = f"{ledger}:demo/after"
    found = document(capsys, run, run, "--step-a", 1, "--step-b", 2, "--split", "eval", code=1)
    assert (found["a"]["step"], found["b"]["step"], found["prompts"]) == (1, 2, 110)
    back = document(capsys, run, run, "--step-a", 2, "--step-b", 1, "--split", "eval")
    assert back["difference"]["estimate"] == pytest.approx(-found["difference"]["estimate"])
    assert "both sides are" in refused(run, run)
    assert "both sides are" in refused(run, run, "--step-b", 2)
    assert "no row is of step 7" in refused(run, run, "--step-a", 7)


def test_train_rows_are_taken_where_one_side_has_no_others(ledger, capsys):
    found = document(capsys, f"{ledger}:demo/train", f"{ledger}:demo/after")
    assert (found["a"]["split"], found["b"]["split"], found["prompts"]) == ("train", "train", 30)
    forced = document(capsys, *(f"{ledger}:demo/{name}" for name in ("before", "after")), "--split", "train")
    assert forced["prompts"] == 30 and forced["difference"]["estimate"] == 0
    assert "no eval row" in refused(f"{ledger}:demo/train", f"{ledger}:demo/after", "--split", "eval")


def test_compliance_and_components_are_metrics_and_a_negative_weight_turns_the_direction(ledger, capsys):
    kept = document(capsys, ledger, ledger, *BOTH, "--metric", "compliant", code=1)
    assert kept["mcnemar"]["worse"] > kept["mcnemar"]["better"] and kept["metric"] == "compliant"
    task = document(capsys, ledger, ledger, *BOTH, "--metric", "task", code=1)
    assert task["better"] == "more" and task["difference"]["estimate"] < 0
    assert call(ledger, ledger, *BOTH, "--metric", "extras", "--json") == 1
    said = capsys.readouterr()
    extras = json.loads(said.out)
    assert extras["better"] == "less" and extras["difference"]["estimate"] > 0 and "weight of `extras`" in said.err
    assert "its components: `extras`, `task`" in refused(ledger, ledger, *BOTH, "--metric", "typo")
    assert "not a column of numbers" in refused(ledger, ledger, *BOTH, "--metric", "category")
    assert "no row has a value" in refused(ledger, ledger, *BOTH, "--metric", "kl_nats", "--split", "train")


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        names = list(rows[0])
        cells = [",".join("" if row[name] is None else str(row[name]) for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *cells]) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps({"model": "m", "rows": rows}))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(values, **more):
    return [
        {"prompt_id": f"p{i}", "category": "xy"[i % 2], "correct": bool(v > 0.5), "score": float(v), **more}
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_comparison(tmp_path, suffix, capsys):
    values = np.random.default_rng(1).random(60)
    old = write(tmp_path / f"old{suffix}", rows_of(values))
    new = write(tmp_path / f"new{suffix}", rows_of(values * 0.8))
    found = document(capsys, old, new, "--metric", "score", code=1)
    assert found["difference"]["estimate"] == pytest.approx(-0.2 * values.mean()) and len(found["slices"]) == 2
    assert found["a"]["source"] == str(old) and found["a"]["run"] is None
    flags = document(capsys, old, new, "--metric", "correct", code=1)
    assert flags["mcnemar"]["worse"] == int(((values > 0.5) & (values * 0.8 <= 0.5)).sum())


def test_a_files_only_number_is_the_metric_and_several_must_be_chosen_from(tmp_path, capsys):
    rows = [{"prompt_id": f"p{i}", "accuracy": i % 3 / 2, "note": "x"} for i in range(30)]
    old, new = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows)
    assert document(capsys, old, new)["metric"] == "accuracy"
    two = write(tmp_path / "c.jsonl", rows_of(np.linspace(0, 1, 30)))
    assert "`correct`, `score`" in refused(two, write(tmp_path / "d.jsonl", rows_of(np.linspace(0, 1, 30))))
    assert "no column `typo`; its numbers: `accuracy`" in refused(old, new, "--metric", "typo")


def test_a_ledger_compares_with_a_file(ledger, tmp_path, capsys):
    rows = [{"prompt_id": f"p{i}", "baseline_reward": 0.1, "split": "eval"} for i in range(50)]
    new = write(tmp_path / "new.jsonl", rows)
    found = document(capsys, f"{ledger}:demo/before", new, code=1)
    assert (found["a"]["split"], found["b"]["split"], found["prompts"]) == ("eval", "eval", 50)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no row"),
        ('{"id": 1, "score": 2}\n', "no column `prompt_id`"),
        ('{"prompt_id": null, "score": 2}\n', ":1: `prompt_id` is empty"),
        ('{"prompt_id": "a", "score": "good"}\n', ":1: `score` is 'good', no number"),
        ('{"prompt_id": "a", "score": null}\n', "no row has a value"),
        ("{broken\n", ":1: broken JSON"),
    ],
)
def test_a_file_that_cannot_be_compared_is_named_with_its_line(tmp_path, text, says):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(text)
    good = write(tmp_path / "good.jsonl", rows_of(np.linspace(0, 1, 9)))
    assert says in refused(good, bad, "--metric", "score")


def test_what_is_not_there_is_refused_in_one_line(ledger, tmp_path):
    good = write(tmp_path / "good.jsonl", rows_of(np.linspace(0, 1, 9)))
    assert "no such ledger or file" in refused(tmp_path / "none", good)
    assert "it holds: demo/before" in refused(f"{ledger}:nothing", good, "--metric", "baseline_reward")
    assert "a file has no runs" in refused(good, good, "--run-b", "x")
    (tmp_path / "good.txt").write_text("x")
    assert "not a file that can be read" in refused(good, tmp_path / "good.txt")
    assert "ledger" in refused(tmp_path, good)
    far = write(tmp_path / "far.jsonl", [{"prompt_id": f"q{i}", "score": 1.0} for i in range(5)])
    assert "no prompt in common" in refused(good, far, "--metric", "score")
    assert "name another file" in refused(good, good, "--metric", "score")
    assert "lower one first" in refused(good, far, "--limits", "1", "0")


def test_people_read_a_table_and_the_verdict(ledger, capsys):
    assert call(ledger, ledger, *BOTH) == 1
    said = capsys.readouterr()
    assert "run demo/after, eval rows, step 2" in said.out and "finds from" in said.out
    assert "Regression in the mean" in said.out and "e-process" in said.out.lower()
    run = f"{ledger}:demo/after"
    assert call(run, run, "--step-a", 2, "--step-b", 1, "--split", "eval", "--metric", "compliant") == 0
    said = capsys.readouterr()
    assert "McNemar:" in said.out and "No regression found" in said.out and "4 of 5 cases" in said.out


def test_numbers_that_cannot_be_squared_are_refused(tmp_path):
    files = [tmp_path / "old.jsonl", tmp_path / "new.jsonl"]
    for file, half in zip(files, (1, 2), strict=True):
        rows = [{"prompt_id": str(i), "x": (-1) ** (i // half) * 1e300} for i in range(40)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "nothing can be computed" in refused(*files)


def test_a_refused_number_is_named_by_its_metric_and_its_file(tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    for path, value in ((old, 0.5), (new, 1e300)):
        path.write_text("".join(json.dumps({"prompt_id": f"p{i}", "accuracy": value}) + "\n" for i in range(9)))
    said = refused(old, new)
    assert said.startswith(f"{new}: `accuracy` holds a number of size 1e+300") and "`value`" not in said
    new.write_text("".join(json.dumps({"prompt_id": f"p{i}", "accuracy": None}) + "\n" for i in range(9)))
    assert f"{new}: no row has a value of `accuracy`" in refused(old, new, "--metric", "accuracy")


def test_one_prompt_is_one_prompt(tmp_path, capsys):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    for path, prompts in ((old, range(6)), (new, range(5))):
        path.write_text("".join(json.dumps({"prompt_id": f"p{i}", "accuracy": i % 2}) + "\n" for i in prompts))
    call(old, new)
    said = capsys.readouterr()
    assert "1 prompt only in A" in said.out and "1 prompts" not in said.out + said.err
