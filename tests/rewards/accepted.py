"""The table of measured against accepted figures that the long tests write as they run."""

import os
from datetime import UTC, datetime
from pathlib import Path

HEAD = "| item | measured | accepted | n | written (UTC) |\n|---|---|---|---|---|\n"
_DEFAULT = Path(__file__).parents[2] / ".pytest_cache" / "accepted.md"


def record(item: str, measured: float, accepted: str, n: int) -> None:
    """Adds one line to the table in the file that RLHF_ACCEPTED names, by default in pytest's cache.

    n: simulated worlds, or other units, that the measured figure rests on. Test processes may call this at the same
    time: a line is one appending write. Lines are added and never replaced, so the newest of an item counts.
    """
    path = Path(os.environ.get("RLHF_ACCEPTED") or _DEFAULT)
    path.parent.mkdir(parents=True, exist_ok=True)
    _begin(path)
    shown = f"{measured:.4g}" if isinstance(measured, float) else str(measured)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    cells = " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in (item, shown, accepted, n, when))
    _append(path, f"| {cells} |\n")


def _begin(path: Path) -> None:
    """Puts the head of the table into a file that is not there yet; one of several processes wins."""
    if path.exists():
        return
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(HEAD)
    try:
        os.link(aside, path)  # appears whole, and only where there is none
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def _append(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)
