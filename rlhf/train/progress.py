"""Progress on stderr: rich on a terminal, plain `key=value` lines elsewhere, main rank only."""

from __future__ import annotations

import sys
import time
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Mode = Literal["auto", "rich", "plain", "none"]


def _number(value: float) -> str:
    return f"{value:.4g}"


class Reporter:
    """Shows a stage's steps; plain lines carry step, seconds and the step's metrics, one every `every` steps."""

    def __init__(self, label: str, total: int, mode: Mode, *, main: bool, every: int) -> None:
        self.label, self.total, self.every = label, total, every
        self.mode = mode if main else "none"
        if self.mode == "auto":
            self.mode = "rich" if sys.stderr.isatty() else "plain"
        self.began = time.perf_counter()
        self.bar: Progress | None = None

    def __enter__(self) -> Reporter:
        if self.mode == "rich":
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
            )
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, figures="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """One optimizer step."""
        if self.bar is not None:
            figures = " ".join(f"{k}={_number(v)}" for k, v in list(metrics.items())[:4])
            self.bar.update(self.task, completed=step, figures=figures)
        elif self.mode == "plain" and (step % self.every == 0 or step == self.total or step == 1):
            seconds = time.perf_counter() - self.began
            figures = " ".join(f"{k}={_number(v)}" for k, v in metrics.items())
            self.line(f"{self.label} step={step}/{self.total} {figures} elapsed_s={seconds:.1f}")

    def line(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self.mode == "none":
            return
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
