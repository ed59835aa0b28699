"""LoRA through the real command: the reference is the model under the adapter, and a resumed run is the same run."""

import math
from pathlib import Path

import pytest
import torch

from tests.rlhf.stages.tiny_runs import live_events, live_view, run, weights

LORA = ["model.use_peft=true", "train.learning_rate=1e-2"]
STAGES = ("sft", "reward", "dpo", "grpo")
REFERENCED = {
    "sft": ["reference.kl_coefficient=0.2"],
    "reward": ["train.rm_regularizer=kl_ref"],
    "dpo": [],
    "grpo": [],
}


def losses(folder: Path, stage: str) -> list[float]:
    return [event["loss"] for event in live_events(folder, stage, "step_stats")]


@pytest.mark.parametrize("stage", STAGES)
def test_adapter_off_gives_the_losses_of_a_frozen_copy(stage: str, tmp_path: Path) -> None:
    keys = [*LORA, *REFERENCED[stage]]
    assert run(stage, tmp_path / "off", *keys, "reference.source=adapter_off", steps=3) == 0
    assert run(stage, tmp_path / "copy", *keys, "reference.source=frozen", steps=3) == 0
    assert losses(tmp_path / "off", stage) == pytest.approx(losses(tmp_path / "copy", stage), abs=1e-6)


def test_an_adapters_dropout_does_not_move_dpo_from_its_reference(tmp_path: Path) -> None:
    assert run("dpo", tmp_path / "run", *LORA, "model.lora_dropout=0.5", steps=3) == 0
    assert losses(tmp_path / "run", "dpo")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run("dpo", tmp_path / "none", *LORA, "model.lora_dropout=0", steps=3) == 0
    assert losses(tmp_path / "run", "dpo") == losses(tmp_path / "none", "dpo")


def test_an_adapters_dropout_does_not_come_between_sampler_and_trainer(tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "run", *LORA, "model.lora_dropout=0.5", steps=3) == 0
    rows = [row for row in live_view(tmp_path / "run", "grpo") if row["split"] == "train"]
    assert all(row["sampler_mismatch_max_nats"] < 1e-4 for row in rows)


def test_dpo_on_a_fine_tuned_adapter_has_the_fine_tuned_policy_as_reference(tmp_path: Path) -> None:
    assert run("sft", tmp_path / "sft", *LORA, steps=3) == 0
    start = f"model.model_name_or_path={tmp_path / 'sft' / 'model'}"
    assert run("dpo", tmp_path / "dpo", *LORA, start, steps=2) == 0
    assert losses(tmp_path / "dpo", "dpo")[0] == pytest.approx(math.log(2), abs=1e-6)
    # Its reference gives the log-probabilities of the fine-tuned policy, not those of the base model.
    rows = [row for row in live_view(tmp_path / "dpo", "dpo") if row["step"] == 1]
    assert all(abs(row["log_ratio_nats"]) < 1e-4 for row in rows)
    assert run("dpo", tmp_path / "base", *LORA, steps=2) == 0
    before = {row["row_id"]: row["logp_nats"] for row in live_view(tmp_path / "base", "dpo") if row["step"] == 1}
    assert all(abs(row["logp_nats"] - before[row["row_id"]]) > 1e-3 for row in rows)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_adapter_equals_the_uninterrupted_one_bit_for_bit(stage: str, tmp_path: Path) -> None:
    keys = [*LORA, "train.save_steps=2", "train.lr_scheduler_type=constant"]
    assert run(stage, tmp_path / "whole", *keys, steps=4) == 0
    assert run(stage, tmp_path / "stopped", *keys, steps=2) == 0
    assert run(stage, tmp_path / "stopped", *keys, "--resume", steps=4) == 0
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == stopped.keys() and any("lora_A" in name for name in whole)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert losses(tmp_path / "whole", stage) == losses(tmp_path / "stopped", stage)
    assert live_view(tmp_path / "whole", stage) == live_view(tmp_path / "stopped", stage)
