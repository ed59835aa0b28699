"""bf16 compute over float32 weights, and recomputed activations: close to, or the same as, the plain run."""

from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState

from rlhf.train.checkpoint import checkpoints
from tests.rlhf.stages.tiny_runs import live_events, live_view, run, weights

STAGES = ("sft", "reward", "dpo", "grpo")
FAST = "train.learning_rate=1e-2"
KEYS = {
    "sft": ["reference.kl_coefficient=0.2"],
    "reward": ["train.rm_regularizer=kl_ref", "train.reward_offset=reference", "data.max_rows=24"],
    "dpo": [],
    "grpo": [],
}


def losses(folder: Path, stage: str) -> list[float]:
    return [event["loss"] for event in live_events(folder, stage, "step_stats")]


@pytest.mark.parametrize("stage", STAGES)
def test_compute_in_bfloat16_keeps_float32_weights_and_moments(stage: str, tmp_path: Path) -> None:
    keys = [*KEYS[stage], FAST, "train.save_steps=2"]
    assert run(stage, tmp_path / "half", *keys, "train.bf16=true", steps=2) == 0
    assert run(stage, tmp_path / "full", *keys, steps=2) == 0
    half, full = losses(tmp_path / "half", stage), losses(tmp_path / "full", stage)
    assert half != full, "bf16 changed nothing"
    assert half[0] == pytest.approx(full[0], abs=2e-2)
    kept = {name: tensor for name, tensor in weights(tmp_path / "half").items() if not name.endswith(":offset")}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    (folder,) = checkpoints(tmp_path / "half")
    moments = torch.load(folder / "trainer" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert {part["exp_avg"].dtype for part in moments.values()} == {torch.float32}


def test_a_stage_computes_where_it_is_told_whatever_the_one_before_it_did(tmp_path: Path) -> None:
    before = PartialState(cpu=True)
    before.device = torch.device("cuda", 0)  # as a stage on a GPU leaves it
    assert run("sft", tmp_path / "run", steps=1) == 0
    (event,) = live_events(tmp_path / "run", "sft", "attempt_started")
    assert event["device"] == "cpu"


def test_the_reference_computes_in_the_precision_of_the_policy(tmp_path: Path) -> None:
    # Were it float32, the first log-ratios would be the rounding of bfloat16.
    assert run("dpo", tmp_path / "run", "train.bf16=true", steps=1) == 0
    assert all(abs(row["log_ratio_nats"]) < 1e-6 for row in live_view(tmp_path / "run", "dpo"))


def test_what_samples_computes_in_the_precision_that_is_trained(tmp_path: Path) -> None:
    import rlhf.stages.rollout as rollout

    seen = []
    plain = rollout.answer

    def watched(*args: object, **kwargs: object) -> object:
        seen.append(torch.is_autocast_enabled("cpu"))
        return plain(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "answer", watched)
        assert run("grpo", tmp_path / "half", "train.bf16=true", steps=1) == 0
        assert run("grpo", tmp_path / "full", steps=1) == 0
    assert seen == [True, False]


def test_scores_of_a_reward_model_are_not_rounded_to_bfloat16(tmp_path: Path) -> None:
    assert run("reward", tmp_path / "run", "train.bf16=true", steps=2) == 0
    margins = torch.tensor([row["baseline_reward"] for row in live_view(tmp_path / "run", "reward")])
    assert not torch.equal(margins, margins.bfloat16().float())


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_activations_give_the_same_losses(stage: str, adapter: bool, tmp_path: Path) -> None:
    keys = [*KEYS[stage], FAST, *(["model.use_peft=true"] if adapter else [])]
    assert run(stage, tmp_path / "plain", *keys, steps=2) == 0
    assert run(stage, tmp_path / "again", *keys, "train.gradient_checkpointing=true", steps=2) == 0
    assert losses(tmp_path / "plain", stage) == pytest.approx(losses(tmp_path / "again", stage), abs=1e-6)
