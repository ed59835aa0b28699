"""Reward functions, batches and readings that the recorder's tests share."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rewards import Ledger, Recorder
from tests.rewards.fake_trainer import FakeTrainer, configuration


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


async def last(completions: list[str], **columns: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return [float(text[-1]) if text[-1] != "1" else None for text in completions]


class Judge:
    def __init__(self, value: float) -> None:
        self.value = value

    async def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        return [self.value for _ in completions]


def batch(*completions: Any, prompts: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"prompts": prompts or ["p"] * len(completions), "completions": list(completions), **more}


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step)


def read(path: Path, run_id: str = "run", **options: Any) -> list[dict[str, Any]]:
    with Ledger.open(path) as ledger:
        rows: list[dict[str, Any]] = ledger.sessions(run_id, texts=True, **options).to_pylist()
    return rows


def events(path: Path, kind: str, run_id: str = "run") -> list[dict[str, Any]]:
    with Ledger.open(path) as ledger:
        return ledger.events(run_id, kind=kind)


def train(folder: Path, resume: str | None = None, functions: Any = None, **more: Any) -> FakeTrainer:
    """A training as a new process would do it."""
    options = {key: more.pop(key) for key in ("advantages", "resume_folder") if key in more}
    if "resume_folder" in options:
        options["resume"] = options.pop("resume_folder")
    recorder = Recorder(folder / "ledger", more.pop("run_id", "run"), **options)
    functions = recorder.wrap(functions or [length, last], weights=more.pop("weights", None))
    trainer = FakeTrainer(functions, configuration(folder / "out", **more), [recorder.callback()])
    try:
        trainer.train(resume)
    finally:
        recorder.close()
    return trainer
