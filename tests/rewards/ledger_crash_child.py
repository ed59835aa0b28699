"""Seals copies of a ledger, each in a process of its own that ends at once at another step, as if it were killed.

Usage: ledger_crash_child LEDGER FOLDER STRIDE START. A step is a call that changes or syncs a file, or the moment after
one that adds a file or an entry of a log. Every STRIDE-th is tried; prints a JSON line for each: step, its name, copy.
"""

import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from rewards import Ledger, compaction, seal, sealed

ENDED_HERE, ENDED_BY_ITSELF = 9, 0


class Steps:
    """Counts steps and ends the process at the wanted one."""

    def __init__(self, wanted: int, pipe: int) -> None:
        self.wanted, self.pipe, self.seen = wanted, pipe, 0

    def step(self, name: str) -> None:
        if self.seen == self.wanted:
            os.write(self.pipe, name.encode())
            os._exit(ENDED_HERE)
        self.seen += 1

    def wrap(self, owner: Any, name: str, after: bool = False) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **more: Any) -> Any:
            self.step(f"before {name}")
            result = function(*args, **more)
            if after:
                self.step(f"after {name}")
            return result

        setattr(owner, name, wrapped)


def crash(root: Path, wanted: int, pipe: int) -> None:
    steps = Steps(wanted, pipe)
    for owner, name in ((os, "fsync"), (os, "utime"), (pathlib.Path, "unlink"), (pathlib.Path, "rename")):
        steps.wrap(owner, name)
    for owner, name in (
        (pyarrow.parquet, "write_table"),
        (deltalake.DeltaTable, "create_write_transaction"),
        (deltalake.DeltaTable, "create"),
        (deltalake.DeltaTable, "create_checkpoint"),
        (seal, "drop_rows"),
        (seal, "publish"),
        (compaction, "shrink_tail"),
    ):
        steps.wrap(owner, name, after=True)
    sealed._CHECKPOINT_EVERY = 4
    Ledger.open(root).seal()


def main(ledger: str, folder: str, stride: str, start: str) -> None:
    wanted = int(start)
    while True:
        copy = Path(folder) / str(wanted)
        shutil.copytree(ledger, copy)
        read, write = os.pipe()
        child = os.fork()  # nothing here has started a thread yet: a copy of it is whole
        if child == 0:
            try:
                crash(copy, wanted, write)
            except BaseException as error:
                os.write(write, repr(error).encode())
                os._exit(1)
            os._exit(ENDED_BY_ITSELF)
        os.close(write)
        with os.fdopen(read) as pipe:
            name = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"step": wanted, "code": code, "name": name, "copy": str(copy)}), flush=True)
        if code != ENDED_HERE:
            return
        wanted += int(stride)


if __name__ == "__main__":
    main(*sys.argv[1:])
