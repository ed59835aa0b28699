"""A stretch of rows of a file, and how an error says where one of them stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import DataError


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows, columns as the file has them.

    columns: field -> an Arrow array, or a list of Python values. at: the place of a row of this chunk, counted from 0,
    as FILE:LINE or FILE: row N. parse: whether the values are text that may stand for numbers, as in a CSV file.
    """

    columns: dict[str, Any]
    count: int
    at: Callable[[int], str]
    parse: bool = False

    def error(self, row: int, said: str) -> DataError:
        """The error about a row."""
        return DataError(f"{self.at(row)}: {said}")


def rows_from(path: Path, first: int) -> Callable[[int], str]:
    """Places in a file without lines. first: number of the chunk's first row in the file, from 1."""
    return lambda row: f"{path}: row {first + row:,}"


def at_lines(path: Path, lines: Sequence[int]) -> Callable[[int], str]:
    """Places in a file of lines. lines: one number a row, from 1."""
    return lambda row: f"{path}:{lines[row]}"
