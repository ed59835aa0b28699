"""`rlhf kto` through the real command: one baseline however a batch is cut, records, resumption, bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.cli import main
from rlhf.data.mixture import EpochOrder
from tests.rlhf.stages.tiny_runs import (
    arguments,
    ledger_of,
    live_events,
    live_view,
    run,
    run_ranks,
    summary,
    weights,
)

FAST = ["train.learning_rate=1e-2", "train.beta=0.3"]
EXACT = [*FAST, "model.dtype=float64", "train.desirable_weight=1.3"]
GAIN = "reward.differentials=[{category: format, differential: 0.7}]"
SOURCES = {
    "frozen": ["reference.source=frozen"],
    "precomputed": ["reference.source=precomputed"],
    "ema": ["reference.source=ema"],
    "synced": ["reference.source=synced", "reference.ref_model_sync_steps=2"],
}


def stats(folder: Path, name: str) -> list[float]:
    return [event[name] for event in live_events(folder, "kto", "step_stats")]


def largest_difference(a: Path, b: Path) -> float:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() and first
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def rows_file(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.dataset_name={path}", "data.recipe_split=null", "data.max_rows=null", "data.holdout_fraction=0"]


def labelled(n: int, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"say {i}", "completion": f"{i} " * (1 + i % 3), "label": i % 2 == 0, **columns} for i in range(n)
    ]


# --- the baseline ----------------------------------------------------------------------------------------------------


def test_one_batch_of_8_and_8_of_1_give_the_same_baseline_and_parameters_in_float64(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("kto", whole, *EXACT, GAIN, steps=4, batch=8) == 0
    assert run("kto", cut, *EXACT, GAIN, "train.gradient_accumulation_steps=8", steps=4, batch=1) == 0
    assert max(stats(whole, "kl")) > 0.5
    for name in ("kl", "kl_before_bound", "loss"):
        assert stats(whole, name) == pytest.approx(stats(cut, name), abs=1e-11)
    assert largest_difference(whole, cut) < 1e-9


@pytest.mark.slow
def test_two_ranks_give_the_baseline_and_parameters_of_one_in_float64(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("kto", one, *EXACT, GAIN, steps=4, batch=8) == 0
    done = run_ranks("kto", two, 2, *EXACT, GAIN, "train.gradient_accumulation_steps=2", steps=4, batch=2)
    assert done.returncode == 0, done.stderr
    for name in ("kl", "loss"):
        assert stats(one, name) == pytest.approx(stats(two, name), abs=1e-11)
    assert largest_difference(one, two) < 1e-9
    ends = [summary(folder)["outcome"]["held_out_labels"] for folder in (one, two)]
    assert ends[0]["accuracy"] == ends[1]["accuracy"]
    assert ends[0]["kl_nats"]["value"] == pytest.approx(ends[1]["kl_nats"]["value"], abs=1e-9)
    ledger = ledger_of(two)
    assert {row["writer"] for row in ledger.sessions("kto").to_pylist()} == {0, 1} and ledger.verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("source", ["frozen", "synced"])
def test_two_sharded_ranks_give_the_baseline_and_parameters_of_one_in_float64(source: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("kto", one, *EXACT, *SOURCES[source], steps=4, batch=8) == 0
    done = run_ranks("kto", two, 2, *EXACT, *SOURCES[source], "train.fsdp=true", steps=4, batch=4)
    assert done.returncode == 0, done.stderr
    assert stats(one, "kl") == pytest.approx(stats(two, "kl"), abs=1e-11)
    assert largest_difference(one, two) < 1e-9


def by_hand(model: Any, tokenizer: Any, prompt: str, completion: str) -> float:
    """Log-probability of a completion and its end, text by text, without anything of this project."""
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    start = [] if tokenizer.bos_token_id is None else tokenizer("", add_special_tokens=True)["input_ids"]
    ids = torch.tensor([[*start, *head, *tail]])
    with torch.no_grad():
        logps = model(ids).logits[0].double().log_softmax(-1)
    at = len(start) + len(head)
    return sum(float(logps[at + k - 1, token]) for k, token in enumerate(tail))


def test_the_baseline_is_the_mean_log_ratio_of_the_batchs_prompts_with_the_next_rows_completions(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"say {i}:", "completion": f" {i}", "label": i % 2 == 0} for i in range(12)]
    keys = [*rows_file(tmp_path / "rows.jsonl", rows), *FAST, "train.save_steps=1", "model.dtype=float64"]
    # A start that is on disk: the reference by hand is read from there.
    assert run("kto", tmp_path / "start", *keys, "train.learning_rate=1e-12", steps=1, batch=6) == 0
    start = tmp_path / "start" / "model"
    folder = tmp_path / "run"
    assert run("kto", folder, *keys, f"model.model_name_or_path={start}", steps=2, batch=6) == 0

    tokenizer = AutoTokenizer.from_pretrained(start)
    reference = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float64)
    policy = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-1", dtype=torch.float64)
    batch = EpochOrder(12, 6, 3).indices(2)
    ratios = []
    for i, row in enumerate(batch):
        prompt, completion = rows[row]["prompt"], rows[batch[i - 1]]["completion"]
        ratios.append(
            by_hand(policy, tokenizer, prompt, completion) - by_hand(reference, tokenizer, prompt, completion)
        )
    recorded = live_events(folder, "kto", "step_stats")[1]
    assert recorded["kl_before_bound"] == pytest.approx(np.mean(ratios), abs=1e-6)
    assert abs(np.mean(ratios)) > 0.05
    assert recorded["kl"] == max(0.0, recorded["kl_before_bound"])
    # ... and not of completions with their own prompts.
    own = [by_hand(m, tokenizer, rows[r]["prompt"], rows[r]["completion"]) for r in batch for m in (policy, reference)]
    assert recorded["kl_before_bound"] != pytest.approx(np.mean(np.subtract(own[::2], own[1::2])), abs=1e-3)


def test_apo_zero_has_no_baseline_and_takes_one_row_a_step(tmp_path: Path) -> None:
    assert run("kto", tmp_path / "run", *FAST, "train.loss_type=apo_zero_unpaired", steps=3, batch=1) == 0
    assert all("kl" not in event for event in live_events(tmp_path / "run", "kto", "step_stats"))
    assert "kl_nats" not in summary(tmp_path / "run")["outcome"]["held_out_labels"]
    row = live_view(tmp_path / "run", "kto")[2]
    assert row["baseline_reward"] == pytest.approx(0.3 * row["log_ratio_nats"], rel=1e-5)


# --- what is recorded, and what moves --------------------------------------------------------------------------------


def test_a_session_is_a_completion_with_its_margin_label_and_weights(tmp_path: Path) -> None:
    rows = labelled(12, category="format", offset=0.25)
    keys = [*rows_file(tmp_path / "rows.jsonl", rows), "reward.margin_column=offset", GAIN]
    keys += ["train.undesirable_weight=2.0", "ledger.record_texts=always"]
    assert run("kto", tmp_path / "run", *FAST, *keys, steps=3, batch=6) == 0
    kl = stats(tmp_path / "run", "kl")
    sessions = live_view(tmp_path / "run", "kto")
    assert len(sessions) == 18 and {row["pipeline"] for row in sessions} == {"kto"}
    texts = {row["prompt"]: row for row in rows}
    for row in sessions:
        source = texts[row["prompt"]]
        assert row["classification"] == ("desirable" if source["label"] else "undesirable")
        z = 0.3 * (row["log_ratio_nats"] - kl[row["step"] - 1])
        assert row["baseline_reward"] == pytest.approx(z, abs=1e-5)
        assert row["adjusted_reward"] == pytest.approx((row["baseline_reward"] - 0.25) / 1.7)
        assert row["pivot"] == 0.25 and row["differential_pct"] == pytest.approx(70)
        assert row["loss_weight"] == pytest.approx(1.7 * (1.0 if source["label"] else 2.0))
        assert row["response"] == source["completion"] and row["logp_nats"] < 0 and row["reference_id"]
    # The loss of a step is the mean over its sessions of w * (1 - s(+-u)).
    u = np.array([row["adjusted_reward"] for row in sessions])
    sign = np.array([1 if row["classification"] == "desirable" else -1 for row in sessions])
    loss = np.array([row["loss_weight"] for row in sessions]) / (1 + np.exp(sign * u))
    assert stats(tmp_path / "run", "loss") == pytest.approx(loss.reshape(3, 6).mean(1), abs=1e-5)


def test_training_separates_the_labels(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"say {i}", "completion": f"{'no' if i % 3 else 'yes'} {i}", "label": i % 3 == 0} for i in range(24)
    ]
    keys = [*rows_file(tmp_path / "rows.jsonl", rows), "train.learning_rate=1e-2", "train.lr_scheduler_type=constant"]
    assert run("kto", tmp_path / "run", *keys, "train.beta=0.3", steps=24) == 0
    assert np.mean(stats(tmp_path / "run", "loss")[-4:]) < 0.25
    assert np.mean(stats(tmp_path / "run", "rewards/accuracies")[-4:]) > 0.9


def test_pairs_are_announced_as_two_rows_and_the_balance_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments("kto", tmp_path / "run", "train.desirable_weight=2", steps=1)
    assert main([*argv[:-1], "plain"]) == 0
    said = capsys.readouterr().err
    assert "32 rows of wild7: pairs (chosen, rejected) -> labelled completions, two a pair" in said
    assert "desirable and" in said and "weighted 2.00 to 1; the authors recommend 1 to 1.33" in said
    ids = [row["row_id"] for row in live_view(tmp_path / "run", "kto")]
    assert all(row_id.endswith(("#chosen", "#rejected")) for row_id in ids)


@pytest.mark.parametrize(
    "key",
    [
        "train.beta=0.5",
        "train.desirable_weight=1.5",
        "train.undesirable_weight=1.5",
        "train.loss_type=apo_zero_unpaired",
        "reward.margin_column=offset",
        "reward.differentials=[{category: format, differential: 0.5}]",
    ],
)
def test_every_knob_changes_the_parameters(key: str, tmp_path: Path) -> None:
    rows = labelled(12, category="format", offset=0.7)
    keys = [*rows_file(tmp_path / "rows.jsonl", rows), "train.learning_rate=1e-2"]
    assert run("kto", tmp_path / "as_is", *keys, steps=3, batch=6) == 0
    assert run("kto", tmp_path / "changed", *keys, key, steps=3, batch=6) == 0
    assert largest_difference(tmp_path / "as_is", tmp_path / "changed") > 1e-5


def test_held_out_accuracy_carries_its_interval_and_the_share_of_labels(tmp_path: Path) -> None:
    keys = [*FAST, "train.eval_strategy=steps", "train.eval_steps=2"]
    assert run("kto", tmp_path / "run", *keys, steps=4) == 0
    figures = summary(tmp_path / "run")["outcome"]["held_out_labels"]
    assert figures["accuracy"]["low"] < figures["accuracy"]["value"] < figures["accuracy"]["high"]
    assert figures["desirable_share"]["value"] == 0.5 and figures["kl_nats"]["value"] >= 0
    events = live_events(tmp_path / "run", "kto", "evaluation")
    assert {event["suite"] for event in events} == {"heldout_labels"} and len(events) >= 2


# --- the reference, and resumption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_a_resumed_run_equals_the_uninterrupted_one(source: str, tmp_path: Path) -> None:
    keys = [*FAST, "train.save_steps=2", "train.lr_scheduler_type=constant", *SOURCES[source]]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("kto", whole, *keys, steps=6) == 0
    assert run("kto", stopped, *keys, steps=2) == 0
    assert run("kto", stopped, *keys, "--resume", steps=6) == 0
    assert largest_difference(whole, stopped) == 0.0
    assert live_view(whole, "kto") == live_view(stopped, "kto")
    assert stats(whole, "kl") == stats(stopped, "kl") and max(stats(whole, "kl")) > 0


def test_a_run_is_not_resumed_against_other_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled(12)
    keys = [*rows_file(tmp_path / "rows.jsonl", rows), "train.save_steps=2"]
    assert run("kto", tmp_path / "run", *keys, steps=2) == 0
    rows_file(tmp_path / "rows.jsonl", [{**row, "label": not row["label"]} for row in rows])
    assert run("kto", tmp_path / "run", *keys, "--resume", steps=4) == 2
    assert "the data set is not the one this run started with" in error_line(capsys)


def test_a_cached_reference_holds_the_mismatched_texts_of_all_epochs(tmp_path: Path) -> None:
    keys = [*FAST, "data.holdout_fraction=0.3", "data.max_rows=12"]
    assert run("kto", tmp_path / "copy", *keys, steps=8) == 0
    assert run("kto", tmp_path / "cache", *keys, "reference.source=precomputed", steps=8) == 0
    for name in ("loss", "kl"):
        assert stats(tmp_path / "cache", name) == pytest.approx(stats(tmp_path / "copy", name), abs=1e-4)
    ends = [summary(tmp_path / name)["outcome"]["held_out_labels"] for name in ("copy", "cache")]
    assert ends[0]["kl_nats"]["value"] == pytest.approx(ends[1]["kl_nats"]["value"], abs=1e-4)


def test_the_column_of_the_rows_is_shared_with_apo_zero_and_another_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(name: str, *extra: str) -> list[str]:
        keys = ["reference.source=precomputed", f"reference.cache_dir={tmp_path / 'cache'}", "data.max_rows=8"]
        keys += [*rows_file(tmp_path / "rows.jsonl", labelled(12))]
        argv = arguments("kto", tmp_path / name, *keys, *extra, steps=2)
        assert main([*argv[:-1], "plain"]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "kto: reference:" in line]

    first = said("first")
    assert len(first) == 2 and all("computing" in line for line in first)
    (again,) = said("apo", "train.loss_type=apo_zero_unpaired")
    assert "12 rows from" in again


@pytest.mark.parametrize("keys", [["train.bf16=true"], ["train.gradient_checkpointing=true"]])
def test_the_baseline_is_0_before_the_first_step_in_every_precision(keys: list[str], tmp_path: Path) -> None:
    """Policy and reference compute alike, outside of the wrapped model's step too."""
    assert run("kto", tmp_path / "run", *FAST, *keys, "data.max_rows=12", steps=2) == 0
    assert stats(tmp_path / "run", "kl_before_bound")[0] == pytest.approx(0.0, abs=1e-5)
    assert abs(stats(tmp_path / "run", "kl_before_bound")[1]) > 0.01


def test_an_adapter_is_trained_against_the_model_under_it(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed: `pip install rlhf-ledger[peft]`")
    assert run("kto", tmp_path / "run", *FAST, "model.use_peft=true", steps=3) == 0
    assert stats(tmp_path / "run", "loss")[0] == pytest.approx(0.5, abs=1e-6)
    assert len(set(stats(tmp_path / "run", "loss"))) == 3


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [True, False])
def test_one_label_only_is_refused_with_counts_and_file(
    label: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = rows_file(tmp_path / "rows.jsonl", [{**row, "label": label} for row in labelled(5)])
    assert run("kto", tmp_path / "run", *keys, steps=1) == 2
    line = error_line(capsys)
    counts = "5 desirable and 0 undesirable" if label else "0 desirable and 5 undesirable"
    assert "rows.jsonl: " in line and counts in line
    assert not (tmp_path / "run" / "ledger").exists()


def test_a_label_that_max_length_takes_away_is_missed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "prompt": row["prompt"] + (" and more" * 40 if row["label"] else "")} for row in labelled(6)]
    keys = [*rows_file(tmp_path / "rows.jsonl", rows), "train.max_length=24"]
    assert run("kto", tmp_path / "run", *keys, steps=1) == 2
    assert "0 desirable and 3 undesirable" in error_line(capsys)


def test_a_label_that_is_neither_true_nor_false_names_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad in (3, "good", 0.5, [True]):
        rows = labelled(4)
        rows[2]["label"] = bad
        assert run("kto", tmp_path / "run", *rows_file(tmp_path / "rows.jsonl", rows), steps=1) == 2
        line = error_line(capsys)
        assert "rows.jsonl:3" in line and "`label`" in line
    rows[2]["label"] = None
    assert run("kto", tmp_path / "run", *rows_file(tmp_path / "rows.jsonl", rows), steps=1) == 2
    assert "rows.jsonl:3" in (line := error_line(capsys)) and "has no `label`" in line


def test_a_step_of_one_row_is_refused_with_a_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("kto", tmp_path / "run", steps=1, batch=1) == 2
    line = error_line(capsys)
    assert "train.per_device_train_batch_size" in line and "apo_zero_unpaired" in line
    assert run("kto", tmp_path / "run", "train.world_size=1", steps=1, batch=1) == 2
    assert "train.per_device_train_batch_size" in error_line(capsys)


@pytest.mark.parametrize("same", ["prompt", "completion"])
def test_rows_that_cannot_be_mismatched_are_refused(
    same: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, same: "the same"} for row in labelled(6)]
    assert run("kto", tmp_path / "run", *rows_file(tmp_path / "rows.jsonl", rows), steps=1) == 2
    line = error_line(capsys)
    assert f"all with the same {same}" in line and "rows.jsonl:1" in line and "apo_zero_unpaired" in line


def test_a_batch_that_happens_to_hold_one_prompt_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a" if i else "b", "completion": f"{i}", "label": i % 2 == 0} for i in range(12)]
    keys = rows_file(tmp_path / "rows.jsonl", rows)
    assert run("kto", tmp_path / "run", *keys, steps=6, batch=2) == 3
    assert "no completion of the batch belongs to another prompt" in error_line(capsys)


def test_demonstrations_are_refused_and_told_about_the_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in labelled(4)]
    assert run("kto", tmp_path / "run", *rows_file(tmp_path / "rows.jsonl", rows), steps=1) == 2
    assert "a column `label`" in error_line(capsys)


def test_keys_of_kto_are_errors_elsewhere_and_those_of_others_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("dpo", tmp_path / "run", "train.desirable_weight=2", steps=1) == 2
    assert "a key of kto" in error_line(capsys)
    assert run("kto", tmp_path / "run", "train.label_smoothing=0.1", steps=1) == 2
    assert "does not apply to kto" in error_line(capsys)
    assert run("kto", tmp_path / "run", "reference.source=none", steps=1) == 2
    assert "KTO compares with a reference" in error_line(capsys)


def test_texts_labelled_both_ways_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*labelled(6), {**labelled(1)[0], "label": False}]
    argv = arguments("kto", tmp_path / "run", *rows_file(tmp_path / "rows.jsonl", rows), steps=1)
    assert main([*argv[:-1], "plain"]) == 0
    assert "an earlier row gives the same texts the other label (rows.jsonl:7)" in capsys.readouterr().err
