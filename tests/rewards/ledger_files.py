"""What lies in a ledger's folder."""

from pathlib import Path

from rewards.sealed import Body

TABLES = ("sessions", "texts", "attempts", "blocks")


def orphans(path: Path) -> set[Path]:
    """Files beside the tables that no log speaks of."""
    listed = {part.path for name in TABLES for part in Body(path, name).parts()}
    return {file for name in TABLES for file in (path / name).glob("*") if file.is_file()} - listed
