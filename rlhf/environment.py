"""What a run ran on: versions, threads, devices. No torch is loaded to tell versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
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


def code_commit() -> str | None:
    """The commit that the code was checked out at, with `+` where files differ; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    said = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        said.append(done.stdout.strip())
    return said[0] + ("+" if said[1] else "")


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
