"""Every stage through the real command: what it leaves behind, and what the ledger holds of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.batch import TokenBatch
from rlhf.cli import main
from rlhf.models.load import load_reward_model
from rlhf.models.policy import Policy
from rlhf.stages.reward import RewardPairs
from tests.rlhf.stages.tiny_runs import arguments, ledger_of, live_events, live_view, run, summary


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "grpo"])
def test_every_row_of_every_step_is_a_session_in_the_ledger(stage: str, tmp_path: Path) -> None:
    assert run(stage, tmp_path / "run", steps=3) == 0
    rows = live_view(tmp_path / "run", stage)
    assert [row["session"] for row in rows if row["split"] == "train"] == list(range(1, 25))
    assert [row["step"] for row in rows if row["split"] == "train"] == [1] * 8 + [2] * 8 + [3] * 8
    assert all(row["baseline_reward"] is not None and row["adjusted_reward"] is not None for row in rows)
    assert {row["pipeline"] for row in rows} == {stage}
    ledger = ledger_of(tmp_path / "run")
    assert ledger.verify().ok
    assert ledger.head() == summary(tmp_path / "run")["ledger"]["head"]
    ledger.close()
    losses = [event["loss"] for event in live_events(tmp_path / "run", stage, "step_stats")]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)


def test_a_saved_stage_is_an_ordinary_transformers_folder(tmp_path: Path) -> None:
    assert run("sft", tmp_path / "run", steps=1) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    assert (tmp_path / "run" / "config.yaml").read_text().startswith("# digest: ")


def test_the_configuration_digest_stands_beside_the_run_and_in_the_ledger(tmp_path: Path) -> None:
    assert run("sft", tmp_path / "run", steps=1) == 0
    started = live_events(tmp_path / "run", "sft", "attempt_started")
    digest = (tmp_path / "run" / "config.yaml").read_text().splitlines()[0].split()[-1]
    assert [event["config_digest"] for event in started] == [digest] == [summary(tmp_path / "run")["config_digest"]]


def test_dpo_starts_at_log_2_and_its_sessions_at_a_margin_of_0(tmp_path: Path) -> None:
    assert run("dpo", tmp_path / "run", "train.learning_rate=1e-3", steps=2) == 0
    first, second = (event["loss"] for event in live_events(tmp_path / "run", "dpo", "step_stats"))
    assert first == pytest.approx(math.log(2), abs=1e-6)
    rows = live_view(tmp_path / "run", "dpo")
    assert all(row["baseline_reward"] == pytest.approx(0.0, abs=1e-6) for row in rows if row["step"] == 1)
    assert second != pytest.approx(first, abs=1e-6) or any(row["baseline_reward"] != 0 for row in rows)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto", "grpo"])
def test_a_model_that_takes_no_flat_rows_is_named(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, keys in (("flat", []), ("padded", ["model.attn_implementation=eager"])):
        assert main([*arguments(stage, tmp_path / name, *keys, steps=1)[:-1], "plain"]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "is given padded rows" in line]
        told = f"{stage}: LlamaForCausalLM is given padded rows: it takes no flat ones, which are faster"
        assert lines == ([told] if keys else [])


@pytest.mark.parametrize(("stage", "passes"), [("sft", 1), ("reward", 1), ("dpo", 1), ("kto", 2), ("grpo", 1)])
def test_a_step_is_one_pass_of_the_policy_and_figures_cost_none(
    stage: str, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    encode = Policy._encode

    def counted(policy: Policy, *args: Any, **options: Any) -> Any:
        seen.append(torch.is_grad_enabled())
        return encode(policy, *args, **options)

    monkeypatch.setattr(Policy, "_encode", counted)
    keys = ["data.holdout_fraction=0", "reference.beta=0" if stage == "grpo" else "evaluation.before=false"]
    keys += ["reference.source=precomputed"] if stage in ("dpo", "kto") else []
    assert run(stage, tmp_path / "run", *keys, steps=3) == 0
    # KTO also reads each prompt with another row's completion, for its baseline, without a gradient.
    after = seen[seen.index(True) :]
    assert seen.count(True) == 3 and len(after) <= 3 * passes


def test_a_gain_enters_the_loss_and_the_row(tmp_path: Path) -> None:
    gain = "reward.differentials=[{category: arithmetic, differential: 0.5}]"
    assert run("dpo", tmp_path / "run", gain, steps=2) == 0
    rows = live_view(tmp_path / "run", "dpo")
    widened = [row for row in rows if row["category"] == "arithmetic"]
    others = [row for row in rows if row["category"] != "arithmetic"]
    assert widened and others
    for row in rows:
        gain_of = 1.5 if row["category"] == "arithmetic" else 1.0
        assert row["loss_weight"] == pytest.approx(gain_of)
        assert row["differential_pct"] == pytest.approx(100 * (gain_of - 1))
        assert row["adjusted_reward"] == pytest.approx(row["baseline_reward"] / gain_of)


def test_sft_adjusted_reward_is_the_weight_of_the_demonstration(tmp_path: Path) -> None:
    gain = "reward.differentials=[{category: format, differential: -0.5}]"
    assert run("sft", tmp_path / "run", gain, steps=2) == 0
    for row in live_view(tmp_path / "run", "sft"):
        expected = 0.5 if row["category"] == "format" else 1.0
        assert (row["baseline_reward"], row["adjusted_reward"]) == (1.0, expected)


def test_sft_with_a_reference_stays_nearer_to_it(tmp_path: Path) -> None:
    free, held = tmp_path / "free", tmp_path / "held"
    fast = "train.learning_rate=3e-2"
    assert run("sft", free, fast, "reference.kl_coefficient=0.0001", steps=6) == 0
    assert run("sft", held, fast, "reference.kl_coefficient=30", steps=6) == 0
    kl_free, kl_held = (live_events(folder, "sft", "step_stats")[-1]["kl_reference_policy"] for folder in (free, held))
    assert kl_held < 0.5 * kl_free
    rows = [row for row in live_view(held, "sft") if row["step"] == 6]
    assert all(row["log_ratio_nats"] is not None and row["kl_nats"] is None for row in rows)


def test_the_log_ratio_of_a_demonstration_is_the_difference_of_two_models_log_probabilities(tmp_path: Path) -> None:
    assert run("sft", tmp_path / "other", "train.learning_rate=3e-2", steps=3) == 0
    other = tmp_path / "other" / "model"
    assert run("sft", tmp_path / "ref", f"model.model_name_or_path={other}", steps=1) == 0
    keys = [f"reference.reference_model={other}", "reference.kl_coefficient=0.1"]
    assert run("sft", tmp_path / "run", *keys, steps=1) == 0
    of_other = {row["row_id"]: row["logp_nats"] for row in live_view(tmp_path / "ref", "sft")}
    rows = live_view(tmp_path / "run", "sft")
    assert len(rows) == 8 and {row["row_id"] for row in rows} == set(of_other)
    for row in rows:
        expected = row["logp_nats"] - of_other[row["row_id"]]
        assert abs(expected) > 0.1 and row["log_ratio_nats"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("regularizer", ["grm_sft", "kl_ref"])
def test_the_regulariser_of_a_reward_model_is_a_loss_term_of_its_own(regularizer: str, tmp_path: Path) -> None:
    keys = [f"train.rm_regularizer={regularizer}", "train.center_rewards_coefficient=0.1"]
    assert run("reward", tmp_path / "run", *keys, steps=2) == 0
    event = live_events(tmp_path / "run", "reward", "step_stats")[-1]
    terms = {name.split("/")[1] for name in event if name.startswith("loss/")}
    assert terms == {"pairs", "centering", regularizer}
    expected = event["loss/pairs"] + 0.1 * event["loss/centering"] + 0.01 * event[f"loss/{regularizer}"]
    assert event["loss"] == pytest.approx(expected)


@pytest.mark.parametrize("regularizer", ["grm_sft", "kl_ref"])
def test_the_regulariser_is_that_of_the_chosen_texts_by_hand(regularizer: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}:", "chosen": f" {i} well", "rejected": f" no, {i}"} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [f"data.dataset_name={tmp_path / 'rows.jsonl'}", "data.recipe_split=null", "data.holdout_fraction=0"]
    keys += ["train.save_steps=1", "train.learning_rate=1e-2", "model.dtype=float64", "data.max_rows=null"]
    assert run("sft", tmp_path / "start", *keys, "data.format=preference", steps=1) == 0
    keys += [f"model.model_name_or_path={tmp_path / 'start' / 'model'}", f"train.rm_regularizer={regularizer}"]
    # All rows are in each step, so that their order does not matter.
    assert run("reward", tmp_path / "run", *keys, "train.rm_regularizer_weight=5", steps=2, batch=6) == 0
    recorded = [event[f"loss/{regularizer}"] for event in live_events(tmp_path / "run", "reward", "step_stats")]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start" / "model")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "start" / "model", dtype=torch.float64)
    moved, _ = load_reward_model(tmp_path / "run" / "checkpoint-1")
    for step, model in enumerate((reference, moved.model)):
        found = []
        for row in rows:
            head, tail = (tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "chosen"))
            ids = torch.tensor([[*head, *tail, tokenizer.eos_token_id]])
            with torch.no_grad():
                logp_TV, logq_TV = (m(ids).logits[0, len(head) - 1 : -1].log_softmax(-1) for m in (model, reference))
            nll_T = -logp_TV.gather(-1, ids[0, len(head) :, None])[:, 0]
            found += (nll_T if regularizer == "grm_sft" else (logq_TV.exp() * (logq_TV - logp_TV)).sum(-1)).tolist()
        assert recorded[step] == pytest.approx(sum(found) / len(found), abs=1e-6)
    assert abs(recorded[1] - recorded[0]) > 1e-3


def test_the_offset_of_a_reward_model_makes_reference_answers_score_0_on_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[TokenBatch] = []
    answers = RewardPairs._reference_texts
    monkeypatch.setattr(RewardPairs, "_reference_texts", lambda work: [answered.append(b) or b for b in answers(work)])
    assert run("reward", tmp_path / "run", "train.reward_offset=reference", "train.learning_rate=1e-2", steps=2) == 0
    offset = summary(tmp_path / "run")["outcome"]["reward_offset"]
    assert offset["n"] == sum(tokens.size for tokens in answered) > 20 and abs(offset["value"]) > 1e-4
    model, _ = load_reward_model(tmp_path / "run" / "model")
    with torch.no_grad():
        scores = torch.cat([model.eval()(tokens).scores_B for tokens in answered])
    assert float(model.offset) == pytest.approx(offset["value"])
    assert float(scores.double().mean()) == pytest.approx(0.0, abs=1e-6) and float(scores.std()) > 1e-4


def test_held_out_pair_accuracy_has_an_interval_and_says_what_it_could_have_seen(tmp_path: Path) -> None:
    assert run("reward", tmp_path / "run", "data.holdout_fraction=0.3", steps=2) == 0
    figure = summary(tmp_path / "run")["outcome"]["held_out_pairs"]["accuracy"]
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert figure["n"] > 5 and figure["detectable_difference"] > 0


def test_early_stopping_ends_the_run_when_the_watched_figure_does_not_improve(tmp_path: Path) -> None:
    keys = ["train.eval_strategy=steps", "train.eval_steps=1", "train.metric_for_best_model=eval_loss"]
    keys += ["train.early_stopping_patience=2", "train.learning_rate=1e-12", "data.holdout_fraction=0.3"]
    assert run("sft", tmp_path / "run", *keys, steps=20) == 0
    found = summary(tmp_path / "run")
    assert found["status"] == "stopped early" and found["steps"] < 20


def test_grpo_rows_carry_what_the_advantage_was_made_of(tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "run", steps=2) == 0
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    for row in rows:
        parts = {part["name"]: part for part in row["components"]}
        expected = parts["task"]["value"] - 0.1 * parts["brevity"]["value"]
        assert row["baseline_reward"] == pytest.approx(expected) == pytest.approx(row["adjusted_reward"])
        assert row["advantage"] == pytest.approx(
            (row["adjusted_reward"] - row["norm_mean"]) / (row["norm_std"] + 1e-4), abs=1e-4
        )
        assert row["group_size"] == 4
        assert row["prompt"] and row["response"] is not None
        assert row["sampler_mismatch_max_nats"] < 1e-3
    assert all(abs(row["kl_nats"]) < 1e-4 for row in rows if row["step"] == 1)
    assert any(abs(row["kl_nats"]) > 0 for row in rows if row["step"] == 2) or rows[0]["logp_nats"] < 0


def test_the_last_group_of_a_run_may_be_smaller_and_the_count_is_exact(tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "run", "train.max_sessions=19", "train.max_steps=-1") == 0
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert len(rows) == 19
    assert sorted({row["group_size"] for row in rows}) == [3, 4]


def test_inner_iterations_take_more_steps_on_the_same_sessions(tmp_path: Path) -> None:
    keys = ["train.num_iterations=2", "train.learning_rate=1e-2", "train.epsilon=0.05"]
    assert run("grpo", tmp_path / "run", *keys, steps=4) == 0
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert sorted({row["step"] for row in rows}) == [1, 3] and len(rows) == 16
    assert [event["step"] for event in live_events(tmp_path / "run", "grpo", "step_stats")] == [1, 2, 3, 4]


def test_a_reward_model_is_a_reward_function(tmp_path: Path) -> None:
    assert run("reward", tmp_path / "rm", steps=1) == 0
    functions = f"reward.reward_funcs=[{{name: rm, fn: 'model:{tmp_path / 'rm' / 'model'}'}}]"
    assert (
        run("grpo", tmp_path / "run", functions, f"model.model_name_or_path={tmp_path / 'rm' / 'model'}", steps=1) == 0
    )
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert all(row["components"][0]["name"] == "rm" and row["baseline_reward"] is not None for row in rows)


def test_json_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "run", "--json", steps=1) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == "sft"
