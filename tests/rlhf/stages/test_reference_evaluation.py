"""Through the real command: evaluations compare with the start, and the start of a fine-tuned adapter is its own."""

from pathlib import Path

import pytest
import torch

from tests.rlhf.stages.tiny_runs import live_events, live_view, run, run_ranks, summary, weights

LORA = ["model.use_peft=true"]
FAST = ["train.learning_rate=1e-2", "data.holdout_fraction=0.3"]
STILL = ["train.learning_rate=1e-30", "data.holdout_fraction=0.3"]


@pytest.mark.parametrize("adapter", [False, True])
def test_an_evaluation_after_training_compares_with_the_start_and_not_with_the_trained_policy(
    adapter: bool, tmp_path: Path
) -> None:
    """Upstream trl#6443: `evaluate()` compared the trained policy with itself, and every margin was 0."""
    lora = LORA if adapter else []
    assert run("sft", tmp_path / "start", "train.learning_rate=1e-2", steps=2) == 0
    start, trained = tmp_path / "start" / "model", tmp_path / "dpo" / "model"
    assert run("dpo", tmp_path / "dpo", *FAST, *lora, f"model.model_name_or_path={start}", steps=3) == 0
    # Another way to the same figures: the trained model as it is, the start as a model of its own.
    keys = [*STILL, f"model.model_name_or_path={trained}", f"reference.reference_model={start}"]
    assert run("dpo", tmp_path / "again", *keys, steps=1) == 0
    found, expected = (summary(tmp_path / name)["outcome"]["held_out_pairs"] for name in ("dpo", "again"))
    assert abs(expected["margin"]["value"]) > 1e-3
    for figure in ("margin", "loss", "accuracy"):
        assert found[figure]["value"] == pytest.approx(expected[figure]["value"], abs=1e-5)


def test_online_rl_on_a_fine_tuned_adapter_starts_at_no_distance_from_its_reference(tmp_path: Path) -> None:
    """Upstream trl#3194: the model under the adapter was the reference."""
    assert run("sft", tmp_path / "sft", *LORA, "train.learning_rate=1e-2", steps=3) == 0
    tuned = f"model.model_name_or_path={tmp_path / 'sft' / 'model'}"
    assert run("sft", tmp_path / "plain", STILL[0], steps=1) == 0
    base = f"reference.reference_model={tmp_path / 'plain' / 'model'}"
    cases = {"own": LORA, "ema": [*LORA, "reference.source=ema"], "base": [*LORA, "reference.source=frozen", base]}
    distance = {}
    for name, keys in cases.items():
        assert run("grpo", tmp_path / name, tuned, *keys, steps=1) == 0
        rows = [row for row in live_view(tmp_path / name, "grpo") if row["split"] == "train"]
        distance[name] = max(abs(row["kl_nats"]) for row in rows)
    assert distance["own"] < 1e-4 and distance["ema"] < 1e-4 < 1e-2 < distance["base"]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [["reference.source=ema"], [*LORA, "reference.source=synced"]])
def test_on_two_ranks_a_reference_follows_as_on_one(keys: list[str], tmp_path: Path) -> None:
    keys = [*keys, "model.dtype=float64", *FAST]
    keys += ["reference.ema_decay=0.7"] if "reference.source=ema" in keys else ["reference.ref_model_sync_steps=2"]
    assert run("dpo", tmp_path / "one", *keys, steps=4, batch=8) == 0
    done = run_ranks("dpo", tmp_path / "two", 2, *keys, "train.gradient_checkpointing=true", steps=4, batch=4)
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-9
    kept = [
        torch.load(tmp_path / name / "checkpoint-4" / "trainer" / "reference.pt", weights_only=True)
        for name in ("one", "two")
    ]
    assert kept[0]["identity"] == kept[1]["identity"]
    for name, weight in kept[0]["weights"].items():
        assert torch.allclose(weight, kept[1]["weights"][name], rtol=0, atol=1e-9)
    assert live_events(tmp_path / "one", "dpo", "reference_synced") == live_events(
        tmp_path / "two", "dpo", "reference_synced"
    )


def test_two_runs_whose_random_state_differed_before_have_the_same_adapter(tmp_path: Path) -> None:
    """Upstream trl#6688: the adapter was initialised before the seed was set."""
    for seed, name in ((1, "one"), (2, "two")):
        torch.manual_seed(seed)
        assert run("dpo", tmp_path / name, *LORA, *STILL, steps=1) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert any("lora_A" in name for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert run("dpo", tmp_path / "other", *LORA, *STILL, "train.seed=4", steps=1) == 0
    other = weights(tmp_path / "other")
    assert not all(torch.equal(one[name], other[name]) for name in one if "lora_A" in name)
