"""Our side: the stage as its command runs it, timed by what it records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from peer_bench.cases import SEED
from peer_bench.machine import peak_bytes


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Step ends and losses from the ledger; seconds of the reference pass; peak memory."""
    folder = Path(spec["folder"]) / spec["name"]
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(_config(spec, folder / "run")))
    from rlhf.cli import main
    from rlhf.launch import set_up_process

    set_up_process()  # before torch, as the command does it
    passes = _timed_reference()
    if main([spec["stage"], "--config", str(path), "--progress", "none"]) != 0:
        raise SystemExit("our run failed: see above")
    peak = peak_bytes(spec["device"])
    from rewards import Ledger

    with Ledger.open(folder / "run" / "ledger") as ledger:
        events = list(ledger.events(spec["stage"], kind="step_stats"))
    ends = [datetime.fromisoformat(str(event["time"])).timestamp() for event in events]
    return {
        "ends": ends,
        "losses": [event["payload"]["loss"] for event in events],
        "reference_seconds": sum(passes) if spec["stage"] == "dpo" else None,
        "peak_bytes": peak,
    }


def _config(spec: dict[str, Any], output_dir: Path) -> dict[str, Any]:
    config: dict[str, Any] = {
        "stage": spec["stage"],
        "model": {"model_name_or_path": str(Path(spec["model"]) / "policy")},
        "data": {"dataset_name": str(Path(spec["folder"]) / "ours.jsonl"), "holdout_fraction": 0},
        "train": {
            "output_dir": str(output_dir),
            "seed": SEED,
            "max_steps": spec["steps"],
            "per_device_train_batch_size": spec["batch"],
            "max_length": spec["max_length"],
            "learning_rate": spec["learning_rate"],
            "lr_scheduler_type": "constant",
            "bf16": spec["dtype"] == "bf16",
            "use_cpu": spec["device"] == "cpu",
            "save_strategy": "no",
        },
    }
    if spec["stage"] == "dpo":
        config["reference"] = {"source": "precomputed"}
    return config


def _timed_reference() -> list[float]:
    """Seconds of what opens the reference: its copy, its fingerprint, its pass over all rows."""
    import rlhf.stages.registry  # noqa: F401  # loads every stage

    seconds: list[float] = []
    found = None
    for name, module in list(sys.modules.items()):
        if name.startswith("rlhf.stages.") and hasattr(module, "open_reference"):
            found = module.open_reference
            module.open_reference = _clocked(found, seconds)
    if found is None:
        raise SystemExit("no stage opens a reference: the pass cannot be timed")
    return seconds


def _clocked(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = call(*args, **options)
        seconds.append(time.perf_counter() - began)
        return result

    return timed
