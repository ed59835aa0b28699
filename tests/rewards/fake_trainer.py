"""A trainer that does to reward functions and callbacks what TRL's do, in their order, and trains nothing."""

import asyncio
import inspect
import json
import os
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class GRPOConfig(SimpleNamespace):
    """Arguments by TRL's names."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


GRPOConfig.__module__ = "trl.trainer.grpo_config"


def configuration(folder: Path, **more: Any) -> GRPOConfig:
    known = {"output_dir": str(folder), "num_generations": 2, "reward_weights": None, "save_steps": 2, "eval_steps": 0}
    return GRPOConfig(**(known | {"max_steps": 4, "resume_from_checkpoint": None} | more))


class FakeTrainer:
    """Scores `prompts` x num_generations completions a step; a completion names its step, prompt and place."""

    def __init__(self, functions: list[Any], args: GRPOConfig, callbacks: list[Any], prompts: int = 2) -> None:
        self.reward_funcs, self.args, self.callbacks = functions, args, callbacks
        self.reward_func_names = [getattr(f, "__name__", type(f).__name__) for f in functions]
        self.reward_weights = args.reward_weights or [1.0] * len(functions)
        self.num_generations = args.num_generations
        self.model = SimpleNamespace(training=False)
        self.state = SimpleNamespace(global_step=0, max_steps=args.max_steps, log_history=[])
        self.prompts, self.breaks_at = prompts, None
        self.seen: list[tuple[Any, ...]] = []
        self._logs: dict[str, Any] = {"completion": deque(maxlen=64), "advantages": deque(maxlen=64)}
        self.call("on_init_end")

    def call(self, event: str, **more: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, SimpleNamespace(), model=self.model, optimizer=None, **more)

    def log_extra(self, column: str, values: list[Any]) -> None:
        """What TRL hands to reward functions under this name is a method of the trainer."""

    def score(self, label: str) -> None:
        prompts = [f"prompt {i}" for i in range(self.prompts) for _ in range(self.num_generations)]
        completions = [f"{label} answer {i}" for i in range(len(prompts))]
        arguments = {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": [list(range(3 + i)) for i in range(len(prompts))],
            "category": ["even" if int(p[-1]) % 2 == 0 else "odd" for p in prompts],
            "trainer_state": self.state,
            "log_extra": self.log_extra,
            "log_metric": print,
        }
        values = run(self.reward_funcs, arguments)
        self.seen += list(zip(completions, *values, strict=True))
        if label == f"step {self.breaks_at}":
            raise MemoryError
        self._logs["completion"].extend(completions)
        self._logs["advantages"].extend(float(i) for i in range(len(prompts)))

    def evaluate(self) -> None:
        self.model.training = False
        self.score(f"eval {self.state.global_step}")
        self.call("on_prediction_step")
        metrics = {"eval_reward": 1.0, "eval_runtime": 0.5}
        self.log(metrics)
        self.call("on_evaluate", metrics=metrics)

    def log(self, logs: dict[str, Any]) -> None:
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.call("on_log", logs=logs)

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        self.state = SimpleNamespace(global_step=0, max_steps=self.args.max_steps, log_history=[])
        if resume_from_checkpoint:
            kept = json.loads((Path(resume_from_checkpoint) / "trainer_state.json").read_text())
            self.state = SimpleNamespace(max_steps=self.args.max_steps, **kept)
        self.call("on_train_begin")
        while self.state.global_step < self.args.max_steps:
            self.call("on_step_begin")
            self.model.training = True
            self.score(f"step {self.state.global_step + 1}")
            self.state.global_step += 1
            self.call("on_step_end")
            self.log({"loss": 1 / self.state.global_step, "grad_norm": 0.5})
            if self.args.eval_steps and self.state.global_step % self.args.eval_steps == 0:
                self.evaluate()
            if self.state.global_step % self.args.save_steps == 0:
                self.save()
        self.log({"train_runtime": 1.5, "train_loss": 0.25})
        self.call("on_train_end")

    def save(self) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        os.makedirs(folder, exist_ok=True)
        kept = {"global_step": self.state.global_step, "log_history": self.state.log_history}
        (folder / "trainer_state.json").write_text(json.dumps(kept))
        self.call("on_save")


def run(functions: list[Any], arguments: dict[str, Any]) -> list[list[Any]]:
    """Each function once: the synchronous ones in turn, then the asynchronous ones together."""
    values: dict[int, Any] = {}
    for i, function in enumerate(functions):
        if not inspect.iscoroutinefunction(function):
            values[i] = list(function(**arguments))

    async def together() -> None:
        waiting = [i for i, function in enumerate(functions) if inspect.iscoroutinefunction(function)]
        answers = await asyncio.gather(*(functions[i](**arguments) for i in waiting))
        values.update(zip(waiting, map(list, answers), strict=True))

    asyncio.run(together())
    return [values[i] for i in range(len(functions))]
