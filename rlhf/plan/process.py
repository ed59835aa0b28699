"""What a process holds beside a stage's tensors, measured in this one."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

from rewards import Ledger

HELD = 0.12
"""Share of what a step allocates that the C library does not give back in time, measured on glibc at 5 million
parameters: a freed block stays where a smaller one has been put behind it."""

PREPARED = 60e6
"""What oneDNN keeps of the matrix shapes that it has prepared in bfloat16, beyond those of the trials: 0 to 130 MB in
stages of four steps at 5 million parameters. It grows with the number of different shapes that a run meets."""


def process_bytes(folder: Path) -> int:
    """Resident memory of this process with everything loaded that a run loads, and nothing of a model left.

    To be called after a stage has been tried: interpreter, libraries, their buffers, rows and tokenizer are in it.
    """
    with Ledger.open(folder, create=True) as ledger:
        with ledger.writer("plan") as writer:
            writer.event("stopped", {"reason": "nothing was run", "exit_code": 0, "rows": []}, step=0)
        ledger.seal()
    gc.collect()
    _give_back()
    return _resident()


def _give_back() -> None:
    """Freed memory back to the system, where the C library can be asked for it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
