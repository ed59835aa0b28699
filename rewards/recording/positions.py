"""Where training continues: the ledger's position beside the trainer's checkpoint, and finding it again."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rewards.errors import LedgerError
from rewards.sqlite import sync_folder

POSITION_FILE = "ledger_position.json"
STATE_FILE = "trainer_state.json"


def checkpoint_folder(arguments: Any, step: int) -> Path | None:
    """Where transformers' trainer puts the checkpoint of a step."""
    output = getattr(arguments, "output_dir", None)
    return Path(output) / f"checkpoint-{step}" if output else None


def write_position(folder: Path, ledger: Path, position: dict[str, Any]) -> None:
    """Puts the position into the checkpoint's folder; a reader sees all of it or nothing."""
    path = folder / POSITION_FILE
    aside = folder / f".{POSITION_FILE}.{os.getpid()}"
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump({"ledger": str(ledger), "position": position}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(folder)
    except OSError as error:
        raise LedgerError(
            f"{path}: cannot be written ({error.strerror or error}); without it the run cannot be resumed from this "
            "checkpoint"
        ) from error


def read_position(folder: Path) -> dict[str, Any]:
    """The position in a checkpoint's folder.

    Raises: LedgerError when there is none, or it cannot be read.
    """
    path = folder / POSITION_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["position"]
    except FileNotFoundError:
        raise LedgerError(
            f"{folder}: holds no {POSITION_FILE}, so it is not known which sessions led to it; resume from a "
            "checkpoint that was saved with recorder.callback(), or start another run_id"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path}: cannot be read ({error}); resume from another checkpoint") from error
    if not isinstance(found, dict):
        raise LedgerError(f"{path}: holds no position; resume from another checkpoint")
    return found


def resumed_folder(state: Any, arguments: Any, others: Iterable[str | None]) -> Path:
    """The checkpoint that a trainer with this state has just loaded, which it does not say.

    others: more places to look at. Raises: LedgerError when no folder fits.
    """
    step = int(state.global_step)
    named = getattr(arguments, "resume_from_checkpoint", None)
    usual = checkpoint_folder(arguments, step)
    places = [named if isinstance(named, str) else None, usual, *others]
    for place in dict.fromkeys(Path(place) for place in places if place):
        if _is_of(place, state):
            return place
    raise LedgerError(
        f"training continues after step {step}, and its checkpoint is not at {usual or 'a place the trainer names'}; "
        "name its folder: Recorder(..., resume=FOLDER)"
    )


def _is_of(folder: Path, state: Any) -> bool:
    """Whether the state was read from this folder: the history of what was logged is the same."""
    try:
        kept = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    mine = getattr(state, "log_history", None)
    return kept.get("global_step") == state.global_step and (
        mine is None or json.dumps(kept.get("log_history"), sort_keys=True) == json.dumps(mine, sort_keys=True)
    )
