"""A figure with what it must reach, and the table of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured value. must: the limit it is held to, None where it is told for information; at_most: its side."""

    name: str
    value: float
    unit: str
    must: float | None = None
    at_most: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))  # numpy's numbers are no JSON

    @property
    def holds(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        if self.must is None:
            return None
        return self.value <= self.must if self.at_most else self.value >= self.must

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"holds": self.holds}


def print_table(figures: Sequence[Figure]) -> None:
    """A line a figure: what it is, the value, what it must be, pass or fail."""
    width = max(len(figure.name) for figure in figures)
    print(f"{'':{width}}  {'measured':>16}  {'must':>16}")
    for figure in figures:
        must = "" if figure.must is None else f"{'<=' if figure.at_most else '>='} {_short(figure.must)}"
        word = {None: "", True: "pass", False: "FAIL"}[figure.holds]
        value = f"{_short(figure.value)} {figure.unit}".rstrip()
        print(f"{figure.name:{width}}  {value:>16}  {must:>16}  {word:4}  {figure.note}".rstrip())


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def machine(folder: Path) -> dict[str, Any]:
    """What the figures were measured on."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "file_system": kind.stdout.strip() or "unknown",
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("numpy", "pyarrow", "deltalake", "duckdb")},
    }
