"""A run whose parameters are cut over two ranks is the run of one process, and its checkpoints are ordinary ones."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf.train import sharding
from tests.rlhf.stages.tiny_runs import ROOT, arguments, environment, live_events, live_view, run, summary, weights

DOUBLE = ["model.dtype=float64", "train.learning_rate=1e-2", "train.lr_scheduler_type=constant", "train.max_length=64"]
LORA = ["model.use_peft=true", "model.lora_dropout=0"]
# The clip acts, micro-batches accumulate, the ranks have unequal numbers of held-out rows and of prompts to answer.
SFT = ["train.gradient_checkpointing=true", "train.max_grad_norm=0.5", "data.holdout_fraction=0.2"]
SFT += ["train.eval_strategy=steps", "train.eval_steps=2", "train.per_device_eval_batch_size=2"]
SFT += ["evaluation.prompts=wild7", "evaluation.eval_recipe_split=prompts", "evaluation.num_samples=3"]
SFT += ["evaluation.eval_max_completion_length=6", "evaluation.eval_reward_funcs=[wild7_task]"]
SFT += ["evaluation.before=true"]
SYNCED = ["reference.source=synced", "reference.ref_model_sync_steps=1"]
CASES: dict[str, tuple[str, list[str]]] = {
    "sft": ("sft", SFT),
    "sft against its reference": ("sft", ["reference.kl_coefficient=0.5"]),
    "reward": ("reward", ["train.rm_regularizer=kl_ref", *LORA]),
    "dpo frozen": ("dpo", ["data.holdout_fraction=0.3"]),
    "dpo precomputed": ("dpo", ["reference.source=precomputed"]),
    "dpo ema": ("dpo", ["reference.source=ema", "reference.ema_decay=0.7"]),
    "dpo synced": ("dpo", SYNCED),
    "dpo adapter_off": ("dpo", [*LORA, "train.gradient_checkpointing=true"]),
    "kto ema": ("kto", ["reference.source=ema", "reference.ema_decay=0.7", "data.holdout_fraction=0.3"]),
    "dpo lora synced": ("dpo", [*LORA, *SYNCED, "data.holdout_fraction=0.3"]),
}
RESUMED = ("dpo synced", "dpo adapter_off")
SAVING = "train.save_steps=2"
STEPS = 3


def argv(name: str, folder: Path, *extra: str, steps: int = STEPS, ranks: int = 1) -> list[str]:
    stage, keys = CASES[name]
    cut = [f"train.gradient_accumulation_steps={2 if name == 'sft' else 1}"]
    return arguments(
        stage,
        folder,
        *DOUBLE,
        *keys,
        *cut,
        SAVING,
        *extra,
        steps=steps,
        batch=8 // ranks // (2 if cut[0][-1] == "2" else 1),
    )


def two_ranks(folder: Path, lines: list[list[str]]) -> list[int]:
    """Runs command lines on two CPU ranks; returns the exit codes."""
    (folder / "lines.json").write_text(json.dumps(lines))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "tests.rlhf.stages.many_runs"]
    done = subprocess.run(
        [*command, str(folder / "lines.json")],
        env={**environment(), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    (folder / "stderr").write_text(done.stderr)
    codes = [json.loads((folder / f"codes-{rank}.json").read_text()) for rank in (0, 1)]
    assert codes[0] == codes[1]
    found: list[int] = codes[0]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs on two ranks, in one start of the processes."""
    folder = tmp_path_factory.mktemp("sharded")
    full = "train.fsdp=true"
    lines = [[*argv(name, folder / name, full, ranks=2)[:-1], "plain"] for name in CASES]
    for name in RESUMED:
        there = folder / f"{name} resumed"
        lines += [argv(name, there, full, ranks=2, steps=2), argv(name, there, full, "--resume", ranks=2)]
        there = folder / f"{name} went on whole"
        lines += [argv(name, there, full, ranks=2, steps=2), argv(name, there, "--resume", ranks=2)]
        there = folder / f"{name} went on sharded"
        lines += [argv(name, there, ranks=2, steps=2), argv(name, there, full, "--resume", ranks=2)]
    half = "model.dtype=bfloat16"
    lines.append([*arguments("reward", folder / "mixed", full, half, steps=1, batch=4)[:-1], "plain"])
    lines += [arguments("sft", folder / "bf16", full, "train.bf16=true", steps=2, batch=4)]
    lines += [arguments("dpo", folder / "half", full, half, *SYNCED, steps=2, batch=4)]
    assert two_ranks(folder, lines) == [0] * (len(lines) - 3) + [2, 0, 0]
    return folder


def largest_gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys() and all(one[name].shape == other[name].shape for name in one)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_sharded_ranks_give_the_parameters_of_one_process(name: str, folder: Path, tmp_path: Path) -> None:
    from rlhf.cli import main

    assert main(argv(name, tmp_path / "one")) == 0
    stage = CASES[name][0]
    assert largest_gap(weights(tmp_path / "one"), weights(folder / name)) < 1e-9
    one, two = (live_events(path, stage, "step_stats") for path in (tmp_path / "one", folder / name))
    for key in ("loss", "grad_norm"):
        assert [event[key] for event in one] == pytest.approx([event[key] for event in two], abs=1e-9)
    outcomes = [summary(path)["outcome"] for path in (tmp_path / "one", folder / name)]
    assert json.loads(json.dumps(outcomes[0])) == approximately(outcomes[1])
    answers = [
        sorted((row["group_id"], row["response"]) for row in live_view(path, stage) if row["split"] == "eval")
        for path in (tmp_path / "one", folder / name)
    ]
    assert answers[0] == answers[1] and (len(answers[0]) == 6) == (name == "sft")


def approximately(value: object) -> object:
    if isinstance(value, dict):
        return {key: approximately(part) for key, part in value.items()}
    return pytest.approx(value, abs=1e-9) if isinstance(value, float) else value


@pytest.mark.slow
def test_narrow_types_are_sharded_where_one_type_is_trained_and_refused_where_two_are(folder: Path) -> None:
    assert next(event["loss"] for event in live_events(folder / "half", "dpo", "step_stats")) == pytest.approx(
        math.log(2)
    )
    assert all(weight.dtype == torch.bfloat16 for weight in weights(folder / "half").values())
    assert all(weight.dtype == torch.float32 for weight in weights(folder / "bf16").values())
    refused = [line for line in (folder / "stderr").read_text().splitlines() if line.startswith("error: ")]
    assert refused and "train.fsdp needs trained parameters of one type" in refused[0]
    assert "head_weight in float32" in refused[0]


@pytest.mark.slow
def test_each_rank_holds_a_part_of_the_parameters(folder: Path) -> None:
    said = [line for line in (folder / "stderr").read_text().splitlines() if "train.fsdp:" in line]
    assert len(said) >= len(CASES)
    said = said[: len(CASES)]
    for line in said:
        everything, own = (
            int(part.split()[-1].replace(",", "")) for part in (line.split(" parameters")[0], line.split(" on this")[0])
        )
        assert everything / 2 <= own < 0.6 * everything


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_sharded_run_equals_the_uninterrupted_one_bit_for_bit(name: str, folder: Path) -> None:
    whole, cut = weights(folder / name), weights(folder / f"{name} resumed")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert live_view(folder / name, "dpo") == live_view(folder / f"{name} resumed", "dpo")
    saved = [
        torch.load(folder / run_name / "checkpoint-3" / "trainer" / file, weights_only=True)
        for file in ("reference.pt", "optimizer.pt")
        for run_name in (name, f"{name} resumed")
    ]
    assert saved[0]["identity"] == saved[1]["identity"]
    for key, weight in saved[0].get("weights", {}).items():
        assert torch.equal(weight, saved[1]["weights"][key])
    for index, moments in saved[2]["optimizer"]["state"].items():
        assert torch.equal(moments["exp_avg_sq"], saved[3]["optimizer"]["state"][index]["exp_avg_sq"])


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_a_checkpoint_does_not_tell_whether_the_run_was_sharded(name: str, way: str, folder: Path) -> None:
    assert largest_gap(weights(folder / name), weights(folder / f"{name} went on {way}")) < 1e-9


def test_a_parameter_that_is_no_dtensor_after_sharding_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "init_device_mesh", lambda *args: None)
    monkeypatch.setattr(sharding, "fully_shard", lambda module, **options: module)
    with pytest.raises(RuntimeError, match="2 parameters are not sharded, first weight"):
        sharding.shard(torch.nn.Linear(2, 2), "cpu", 2)


def test_sharding_needs_ranks_to_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", tmp_path / "run", "train.fsdp=true", steps=1) == 2
    assert "train.fsdp cuts the model over the ranks, and there is one" in capsys.readouterr().err


def test_online_rl_is_not_sharded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("grpo", tmp_path / "run", "train.fsdp=true", steps=1) == 2
    assert "train.fsdp: online RL is not sharded" in capsys.readouterr().err
