"""What a process needed, and what others did to the machine meanwhile. No torch: the parent must stay small."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "trl")


def peak_resident_bytes() -> int:
    """Greatest resident memory of this process since it began its program.

    Linux's ru_maxrss also knows what the parent held at the fork, VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_bytes(device: str) -> int:
    """Peak resident memory on a CPU, peak of the allocator on a GPU."""
    if device == "cpu":
        return peak_resident_bytes()
    import torch

    return int(torch.cuda.max_memory_allocated())


def busy_seconds() -> float | None:
    """CPU seconds that all processes of the machine have used; None where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    fields = [int(value) for value in stat.read_text().splitlines()[0].split()[1:]]
    idle = fields[3] + fields[4]
    # Guests are counted in user and nice already.
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """CPU seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def hardware() -> dict[str, Any]:
    """What the figures are measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        **{name: version(name) for name in PACKAGES},
    }
