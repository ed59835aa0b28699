"""Where rows come from: files in the ledger's own columns, or the logs of another trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rewards.importers.place import Chunk
from rewards.importers.readers import read_chunks


class Source:
    """Files in the ledger's own column names; read from the start by every call of `chunks`.

    limits: what such files cannot contain. notes: what reading them found, in words.
    """

    limits: tuple[str, ...] = ()

    def __init__(self, files: Sequence[Path], kind: str) -> None:
        self.files = list(files)
        self.kind = kind
        self.notes: dict[str, str] = {}

    def chunks(self) -> Iterator[Chunk]:
        """The rows that count.

        Raises: DataError for what cannot be read.
        """
        for path in self.files:
            yield from read_chunks(path, self.kind)

    @property
    def resume_step(self) -> int | None:
        """The step after which a second process trained, where the files show it."""
        return None

    def superseded(self) -> Iterator[Chunk]:
        """Rows that the second process scored anew; their steps are above `resume_step`."""
        yield from ()
