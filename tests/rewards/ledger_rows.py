"""Rows and events that the ledger's tests write."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def row(i: int = 0, split: str = "train", **more: Any) -> dict[str, Any]:
    return {
        "pipeline": "grpo",
        "split": split,
        "prompt_id": f"p{i}",
        "category": "arithmetic",
        "baseline_reward": float(i),
        "adjusted_reward": i / 3,
        "compliant": i % 2 == 0,
        "response": f"answer {i}",
        "components": [{"name": "task", "raw": i / 7, "value": i / 7, "weight": 1.0, "role": "optimised"}],
        **more,
    }


def rows(first: int, count: int, split: str = "train", **more: Any) -> list[dict[str, Any]]:
    return [row(i, split, **more) for i in range(first, first + count)]


RECALIBRATION = {
    "category": "self",
    "component": None,
    "op": "widen",
    "old_pct": 0.0,
    "new_pct": 15.0,
    "reason": "7 of 20",
}


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: most tests are not about the disk, and syncing it takes their time."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        yield Path(folder)
