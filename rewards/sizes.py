"""How much room a ledger takes, and where its rows are."""

from pathlib import Path

from rewards.catalog import DATABASE, TAILS, read_chains, read_lineage
from rewards.hot import is_first_version
from rewards.parts import SESSIONS, TEXTS
from rewards.sqlite import snapshot, translated


def measure(root: Path) -> dict[str, int]:
    """See `Ledger.sizes`."""
    with snapshot(root / DATABASE) as ledger:
        chains = read_chains(ledger, root, read_lineage(ledger))
    rows = [_rows(chain.path) for chain in chains]
    sessions, texts = (_files(root / name) for name in (SESSIONS, TEXTS))
    return {
        "ledger_bytes": sum(_bytes(path) for path in root.glob(DATABASE + "*")),
        "tail_bytes": sum(_bytes(path) for path in (root / TAILS).glob("*")),
        "session_bytes": sum(map(_bytes, sessions)),
        "text_bytes": sum(map(_bytes, texts)),
        "hot_rows": sum(hot for hot, _ in rows),
        "sealed_rows": sum(all_rows - hot for hot, all_rows in rows),
        "files": len(sessions) + len(texts),
    }


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a log that was folded into its file meanwhile
        return 0


def _files(folder: Path) -> list[Path]:
    """The files of a table, with those that were replaced and are not deleted yet."""
    return list(folder.glob("*.parquet"))


def _rows(path: Path) -> tuple[int, int]:
    """How many rows are in a tail, and how many ever were."""
    hot = "SELECT coalesce(sum(count), 0) FROM blocks WHERE first_seq IN (SELECT first_seq FROM batches)"
    with translated(path, "read"), snapshot(path) as tail:
        if is_first_version(tail):
            hot = "SELECT count(*) FROM sessions"
        queries = (hot, "SELECT coalesce(sum(count), 0) FROM blocks")
        there, ever = (int(tail.execute(query).fetchone()[0]) for query in queries)
    return there, ever
