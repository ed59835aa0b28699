"""The peak that `rlhf plan` expects against the peak of the run, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rlhf.stages.tiny_runs import ROOT, STAGE_KEYS, environment

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for the peak of a process")

# Five million parameters, and batches whose step takes as much as everything else in the process.
MODEL = [
    "model.model_name_or_path=tiny",
    "model.tiny_hidden_size=256",
    "model.tiny_num_layers=5",
    "model.tiny_num_heads=4",
    "model.tiny_num_kv_heads=2",
    "model.tiny_vocab_size=4096",
]
ROWS = {"sft": 96, "reward": 80, "dpo": 64, "kto": 96, "grpo": 48}
RUN = """
import sys
from pathlib import Path
from rlhf.cli import main

code = main(sys.argv[1:])
found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(found["VmHWM"].split()[0]) * 1024)
sys.exit(code)
"""
LIBRARIES = """
from pathlib import Path
import rlhf.stages.run, rlhf.stages.registry

found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(found["VmHWM"].split()[0]) * 1024)
"""


def output(*argv: str) -> str:
    done = subprocess.run(
        [sys.executable, *argv], env=environment(), capture_output=True, text=True, cwd=ROOT, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def compared(tmp_path: Path, stage: str, *extra: str) -> tuple[float, float]:
    """Expected over measured: of the whole peak, and of what stands above the loaded libraries."""
    path = tmp_path / "stage.yaml"
    path.write_text(f"stage: {stage}\n")
    keys = [
        *MODEL,
        *STAGE_KEYS[stage],
        "data.max_rows=256",
        "train.use_cpu=true",
        "train.max_steps=4",
        "train.save_strategy=no",
        f"train.per_device_train_batch_size={ROWS[stage]}",
        f"train.output_dir={tmp_path / 'out'}",
    ]
    if stage == "grpo":
        keys.append("train.max_completion_length=48")
    names = {key.split("=", 1)[0] for key in extra}
    keys = [key for key in keys if key.split("=", 1)[0] not in names] + list(extra)
    expected = json.loads(output("-m", "rlhf.cli", "plan", str(path), "--json", *keys))["stages"][0]["peak_bytes"]
    measured = int(output("-c", RUN, stage, "--config", str(path), "--progress", "none", *keys).splitlines()[-1])
    libraries = int(output("-c", LIBRARIES))
    print(f"{stage} {' '.join(extra)}: expected {expected / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    return expected / measured, (expected - libraries) / (measured - libraries)


def within(ratios: tuple[float, float]) -> None:
    whole, above = ratios
    assert whole == pytest.approx(1, abs=0.2)
    assert above == pytest.approx(1, abs=0.3)


def test_the_expected_peak_of_dpo_is_the_measured_one(tmp_path: Path) -> None:
    within(compared(tmp_path, "dpo"))


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto", "grpo"])
def test_the_expected_peak_is_the_measured_one(tmp_path: Path, stage: str, bf16: bool) -> None:
    within(compared(tmp_path, stage, f"train.bf16={str(bf16).lower()}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("dpo", ["reference.source=precomputed"]),
        ("sft", ["train.gradient_checkpointing=true"]),
        ("dpo", ["train.gradient_checkpointing=true", "train.bf16=true"]),
        ("sft", ["train.gradient_accumulation_steps=2", "train.per_device_train_batch_size=48"]),
        ("sft", ["train.packing=true", "train.max_length=256", "train.per_device_train_batch_size=16"]),
        ("sft", ["reference.kl_coefficient=0.1"]),
        # Three times as many scored tokens as have their logits kept.
        (
            "sft",
            ["reference.kl_coefficient=0.1", "train.per_device_train_batch_size=48", "model.tiny_vocab_size=32000"],
        ),
        ("reward", ["train.rm_regularizer=grm_sft"]),
        ("reward", ["train.rm_regularizer=kl_ref"]),
        ("reward", ["train.ensemble_size=3"]),
        ("grpo", ["train.num_iterations=2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].partition("=")[0],
)
def test_the_expected_peak_follows_the_knobs_that_move_it(tmp_path: Path, stage: str, keys: list[str]) -> None:
    within(compared(tmp_path, stage, *keys))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_expected_peak_of_an_adapter_is_the_measured_one(tmp_path: Path, stage: str) -> None:
    pytest.importorskip("peft")
    within(compared(tmp_path, stage, "model.use_peft=true"))
