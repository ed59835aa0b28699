"""Which files an import reads, in which order, and in which format they are."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import DataError

SUFFIXES = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".parquet": "parquet",
}
_BLOCK = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """A file as it was before the import: a change while it is read is noticed."""

    path: Path
    bytes: int
    modified: int
    sha256: str

    def describe(self) -> dict[str, Any]:
        """What the ledger keeps about it."""
        return {"name": self.path.name, "bytes": self.bytes, "sha256": self.sha256}


def kind_of(path: Path) -> str | None:
    """csv, jsonl or parquet by the name of the file; None for another."""
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def find_files(given: Sequence[str | Path]) -> list[Path]:
    """The files of all arguments: files, folders and globs; folders and globs in natural order.

    Raises: DataError for what does not exist, holds no data file, or is named twice.
    """
    found: list[Path] = []
    for item in given:
        found += _expand(str(item))
    for i, path in enumerate(found):
        if path.resolve() in [other.resolve() for other in found[:i]]:
            raise DataError(f"{path}: named twice; its sessions would count twice")
    if not found:
        raise DataError("no file to import")
    return found


def _expand(item: str) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        if not path.is_file():
            raise DataError(f"{path}: not a regular file; write it to one first")
        return [path]
    if glob.has_magic(item):
        matches = [Path(match) for match in glob.glob(item)]
        files = natural(match for match in matches if match.is_file())
        if files:
            return files
        raise DataError(f"{item}: no file matches")
    raise DataError(f"{path}: no such file or folder")


def _folder(folder: Path) -> list[Path]:
    if (folder / "_delta_log").is_dir():
        raise DataError(
            f"{folder}: a Delta table, whose folder also holds removed rows: write its rows to a Parquet file"
        )
    if (folder / "ledger.db").exists():
        raise DataError(f"{folder}: a ledger: use `rewards export` and import its file")
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "_"))]
    files = natural(path for path in inside if path.is_file() and kind_of(path))
    if not files:
        folders = sorted(path.name for path in inside if path.is_dir())
        more = f"; it holds folders: {', '.join(folders[:5])}" if folders else ""
        raise DataError(f"{folder}: no data file ({', '.join(SUFFIXES)}) in this folder{more}")
    kinds = sorted({str(kind_of(path)) for path in files})
    if len(kinds) > 1:
        raise DataError(f"{folder}: holds {' and '.join(kinds)} files; name the ones to import, or a glob")
    return files


def natural(paths: Any) -> list[Path]:
    """Sorted with numbers in names by their value, so that 10 stands after 9."""
    return sorted(paths, key=lambda path: [(len(p), p) if p.isdigit() else (0, p) for p in _parts(path)])


def _parts(path: Path) -> list[str]:
    return [part for part in re.split(r"(\d+)", str(path)) if part]


def fingerprint(path: Path) -> InputFile:
    """Size, time of change and digest of a file.

    Raises: DataError when it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        before = path.stat()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return InputFile(path, before.st_size, before.st_mtime_ns, digest.hexdigest())


def check_unchanged(files: Sequence[InputFile]) -> None:
    """Checks that nobody wrote to the files since their fingerprints.

    Raises: DataError for one that is another now.
    """
    for file in files:
        try:
            now = file.path.stat()
        except OSError as error:
            raise DataError(f"{file.path}: gone while it was read: {error.strerror or error}") from error
        if (now.st_size, now.st_mtime_ns) != (file.bytes, file.modified):
            raise DataError(f"{file.path}: changed while it was read; import it when nobody writes to it")
