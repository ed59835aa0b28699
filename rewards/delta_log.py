"""Opening a Delta table whose log may be damaged: what can be passed over, and what to say of the rest.

An entry of the log says how many actions it holds: one that a power loss cut short is known even where what is left
of it reads well. The newest one may be passed over, for nothing relies on it yet; its rows are still in the tails.
"""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.errors import LedgerError
from rewards.sqlite import sync_folder, translated

if TYPE_CHECKING:
    from deltalake import DeltaTable

LOG = "_delta_log"
COUNT = "ledger_actions"  # in an entry's commitInfo: how many actions follow
_ACTIONS = ("add", "remove", "txn")
_HINT = "_last_checkpoint"
_COPY = "restore it from a copy of the ledger"
_WITHOUT = "the log is whole without it, and `rewards seal` sets it aside"


def uri(root: Path) -> str:
    """The folder as the Delta library is told it.

    Raises: LedgerError for a path that it would take for another one.
    """
    check_path(root)
    return root.absolute().as_uri()


def check_path(root: Path) -> None:
    """Raises LedgerError for a path with what the Delta library decodes: `a%20b` would be the folder `a b` to it."""
    if "%" in str(root) or "\\" in str(root):
        raise LedgerError(
            f"{root}: a path with `%` or a backslash is read in another way by the Delta library; use another folder, "
            "or move the ledger there"
        )


def open_table(root: Path) -> tuple["DeltaTable | None", str | None]:
    """The table, None where there is none yet; and what is wrong with its newest log entry, which then is passed over.

    Raises: LedgerError naming the file when the log cannot be read.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    check_path(root)
    _check_process(root)
    entries = _entries(root)
    newest = max(entries, default=-1)
    if newest < 0 and not _checkpoints(root):
        return None, None  # the log's folder was made, and then the process was killed
    misfit = _misfit(entries[newest]) if newest >= 0 else None
    damage = None
    if misfit is not None:
        damage = (
            f"{entries[newest]}: the newest log entry is damaged ({misfit}) and passed over; `rewards seal` sets it "
            "aside and writes again what the tails still hold of it"
        )
        if newest == 0:
            return None, damage
    try:
        return DeltaTable(uri(root), version=None if damage is None else newest - 1), damage
    except (DeltaError, OSError, ValueError) as error:
        raise LedgerError(_explained(root, entries, error)) from error


_started_in: list[int] = []  # the processes, fathers first, that used the Delta library before they were forked


def _check_process(root: Path) -> None:
    """Raises LedgerError in a process forked from one that used the Delta library: its threads are not here."""
    if not _started_in:
        _started_in.append(os.getpid())
    elif _started_in[0] != os.getpid():
        raise LedgerError(
            f"{root}: this process was forked from one that had used the sealed tables, and cannot use them; start it "
            "with `spawn`, or open the ledger only after the fork"
        )


def set_aside(root: Path) -> list[str]:
    """Renames what is damaged and not needed, so that the table can be written again; says what it renamed."""
    done: list[str] = []
    while True:
        found = _unneeded(root)
        if found is None:
            return done
        path, misfit = found
        path.rename(path.with_name(path.name + ".damaged"))
        (path.parent / _HINT).unlink(missing_ok=True)
        sync_folder(path.parent)
        done.append(f"{path}: damaged ({misfit}); set aside")


def _unneeded(root: Path) -> tuple[Path, str] | None:
    entries = _entries(root)
    if not entries:
        return None
    newest = entries[max(entries)]
    misfit = _misfit(newest)
    if misfit is not None:
        return newest, misfit
    try:
        open_table(root)
    except LedgerError:
        if 0 in entries:  # without its checkpoints the log is read from its beginning
            return _bad_checkpoint(root)
    return None


def _entries(root: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in (root / LOG).glob("*.json") if path.stem.isdigit()}


def _checkpoints(root: Path) -> list[Path]:
    return sorted((root / LOG).glob("*.checkpoint.parquet"))


def _misfit(path: Path) -> str | None:
    """Why an entry is not as it was written; None where it is."""
    try:
        with translated(path, "read"):
            stored = path.read_bytes()
        actions = [json.loads(line) for line in stored.decode().splitlines()]
        if not actions:
            return "it is empty"
        wanted = [action["commitInfo"][COUNT] for action in actions if COUNT in action.get("commitInfo", {})]
        there = sum(any(kind in action for kind in _ACTIONS) for action in actions)
    except (ValueError, TypeError, AttributeError) as error:
        return f"not the JSON it was: {' '.join(str(error).split())}"
    if wanted and int(wanted[0]) != there:
        return f"it holds {there} of {wanted[0]} actions"
    return None


def _bad_checkpoint(root: Path) -> tuple[Path, str] | None:
    """The newest checkpoint that cannot be read, or the hint that speaks of one that is not there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in reversed(_checkpoints(root)):
        try:
            pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            return path, str(error).splitlines()[0].rpartition(f"{path}")[2].lstrip("': ")
    hint = root / LOG / _HINT
    if hint.exists() and not _leads_to_a_checkpoint(hint):
        return hint, "it speaks of a checkpoint that is not there"
    return None


def _leads_to_a_checkpoint(hint: Path) -> bool:
    try:
        return hint.with_name(f"{json.loads(hint.read_text())['version']:020d}.checkpoint.parquet").exists()
    except (ValueError, TypeError, KeyError):
        return False


def _explained(root: Path, entries: dict[int, Path], error: Exception) -> str:
    """What is wrong with a log that cannot be opened, and what to do."""
    for number in sorted(entries):
        misfit = _misfit(entries[number])
        if misfit is not None:
            return f"{entries[number]}: the log entry is damaged ({misfit}); {_COPY}"
    numbers = sorted(entries)
    if numbers and numbers[0] > 0 and not _checkpoints(root):
        numbers.insert(0, -1)
    for before, after in pairwise(numbers):
        if after != before + 1:
            return f"{root / LOG}/{before + 1:020d}.json: the log entry is missing; {_COPY}"
    bad = _bad_checkpoint(root)
    if bad is not None:
        return f"{bad[0]}: the checkpoint of the log is damaged ({bad[1]}); {_WITHOUT}"
    return (
        f"{root / LOG}: cannot be read ({' '.join(str(error).split())}); restore the folder from a copy of the ledger"
    )
