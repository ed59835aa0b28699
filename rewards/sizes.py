"""How much room a ledger takes, and where its rows are."""

from pathlib import Path

from rewards.catalog import DATABASE, TAILS
from rewards.hot import is_first_version
from rewards.sealed import SESSIONS, TEXTS, Body
from rewards.sqlite import snapshot, translated


def measure(root: Path) -> dict[str, int]:
    """See `Ledger.sizes`."""
    sessions, texts = Body(root, SESSIONS).parts(), Body(root, TEXTS).parts()
    return {
        "ledger_bytes": sum(_bytes(path) for path in root.glob(DATABASE + "*")),
        "tail_bytes": sum(_bytes(path) for path in (root / TAILS).glob("*")),
        "session_bytes": sum(part.bytes for part in sessions),
        "text_bytes": sum(part.bytes for part in texts),
        "hot_rows": sum(_hot_rows(path) for path in (root / TAILS).glob("*.db")),
        "sealed_rows": sum(part.rows for part in sessions),
        "files": len(sessions) + len(texts),
    }


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a log that was folded into its file meanwhile
        return 0


def _hot_rows(path: Path) -> int:
    with translated(path, "read"), snapshot(path) as tail:
        query = "SELECT coalesce(sum(count), 0) FROM blocks WHERE first_seq IN (SELECT first_seq FROM batches)"
        if is_first_version(tail):
            query = "SELECT count(*) FROM sessions"
        count: int = tail.execute(query).fetchone()[0]
    return count
