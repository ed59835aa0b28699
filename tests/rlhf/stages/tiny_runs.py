"""Small configurations of every stage, run through the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file

from rewards import Ledger
from rlhf.cli import main

ROOT = Path(__file__).resolve().parents[3]

MODEL = [
    "model.model_name_or_path=tiny",
    "model.tiny_hidden_size=32",
    "model.tiny_num_layers=2",
    "model.tiny_num_heads=2",
    "model.tiny_num_kv_heads=1",
    "model.tiny_vocab_size=300",
]
TRAIN = ["train.use_cpu=true", "train.max_length=96", "train.seed=3"]
STAGE_KEYS: dict[str, list[str]] = {
    "sft": ["data.dataset_name=wild7", "data.recipe_split=demonstrations", "data.max_rows=64"],
    "reward": ["data.dataset_name=wild7", "data.recipe_split=pairs", "data.max_rows=64"],
    "dpo": ["data.dataset_name=wild7", "data.recipe_split=pairs", "data.max_rows=64"],
    "kto": ["data.dataset_name=wild7", "data.recipe_split=pairs", "data.max_rows=32"],
    "grpo": [
        "data.dataset_name=wild7",
        "data.recipe_split=prompts",
        "data.max_rows=64",
        "data.holdout_fraction=0",
        "train.max_completion_length=12",
        "train.num_generations=4",
        "reference.beta=0.05",
        "reward.reward_funcs=[{name: task, fn: wild7_task}, {name: brevity, fn: length, weight: -0.1}]",
        "reward.classifier=wild7_classifier",
    ],
}
# What differs between two records of the same training, by the ledger's own account.
VOLATILE = {"attempt", "writer", "seq", "time"}


def arguments(stage: str, output_dir: Path, *extra: str, steps: int = 4, batch: int = 8) -> list[str]:
    """The command line of a small run; later keys win."""
    keys = [
        *(MODEL if not any(key.startswith("model.model_name_or_path") for key in extra) else []),
        *TRAIN,
        *STAGE_KEYS[stage],
        f"train.per_device_train_batch_size={batch}",
        f"train.max_steps={steps}",
        f"train.output_dir={output_dir}",
    ]
    names = {key.split("=", 1)[0] for key in extra if "=" in key}
    return [stage, *(key for key in keys if key.split("=", 1)[0] not in names), *extra, "--progress", "none"]


def run(stage: str, output_dir: Path, *extra: str, **options: int) -> int:
    """Runs the stage in this process; returns the exit code."""
    return main(arguments(stage, output_dir, *extra, **options))


def environment() -> dict[str, str]:
    """The environment of a child process: two threads, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def run_ranks(
    stage: str, output_dir: Path, ranks: int, *extra: str, **options: int
) -> subprocess.CompletedProcess[str]:
    """Runs the stage on several CPU ranks, started as a user would start them."""
    argv = arguments(stage, output_dir, *extra, **options)
    config = output_dir.parent / f"{output_dir.name}.yaml"
    config.write_text(f"stage: {stage}\n")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(ROOT / "experiments" / "train.py")]
    return subprocess.run(
        [*command, "--config", str(config), *argv[1:]],
        env={**environment(), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    """The final model's parameters."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted((output_dir / "model").glob("*.safetensors")):
        found |= {f"{path.name}:{name}": tensor for name, tensor in load_file(path).items()}
    return found


def ledger_of(output_dir: Path) -> Ledger:
    """The run's ledger."""
    return Ledger.open(output_dir / "ledger")


def live_view(output_dir: Path, run_id: str) -> list[dict[str, Any]]:
    """Live sessions with texts, without what may differ between two records of the same training."""
    ledger = ledger_of(output_dir)
    table: pa.Table = ledger.sessions(run_id, texts=True)
    ledger.close()
    rows = table.drop_columns([name for name in VOLATILE if name in table.column_names]).to_pylist()
    for row in rows:
        for part in row["components"] or []:
            part.pop("latency_ms")
    return rows


def live_events(output_dir: Path, run_id: str, kind: str) -> list[dict[str, Any]]:
    """Payloads of the live events of a kind, without times."""
    ledger = ledger_of(output_dir)
    payloads = [dict(event["payload"], step=event["step"]) for event in ledger.events(run_id, kind=kind)]
    ledger.close()
    for payload in payloads:
        payload.pop("seconds", None)
    return payloads


def summary(output_dir: Path) -> dict[str, Any]:
    """What the run left in run.json."""
    found: dict[str, Any] = json.loads((output_dir / "run.json").read_text())
    return found
