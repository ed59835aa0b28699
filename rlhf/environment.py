"""What a run ran on: versions, threads, devices. No torch is loaded to tell versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

PACKAGES = (
    "rlhf-ledger",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "numpy",
    "pyarrow",
    "duckdb",
    "deltalake",
)


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that a result depends on; None where one is absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def describe() -> dict[str, Any]:
    """Versions, machine and accelerator; loads torch when it is there."""
    facts: dict[str, Any] = {"versions": versions(), "platform": platform.platform(), "cpus": os.cpu_count()}
    try:
        import torch
    except ImportError:
        facts["torch"] = "not installed: pip install 'rlhf-ledger[train]'"
        return facts
    facts["threads"] = torch.get_num_threads()
    facts["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts
