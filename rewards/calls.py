"""Calls reward functions and classifiers: synchronous ones in turn, asynchronous ones together."""

import asyncio
import inspect
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What one call gave: its values, or the exception that it raised. Units: latency_ms of the whole call."""

    values: list[Any] | None
    error: Exception | None
    latency_ms: float


class Caller:
    """Calls functions with one set of arguments.

    Asynchronous functions share one event loop for the caller's lifetime, in a thread of its own: clients that they
    keep between calls stay valid, and a notebook's own running loop is no obstacle.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(
        self, functions: Sequence[Callable[..., Any]], arguments: Mapping[str, Any], *, stop_at_error: bool
    ) -> list[Outcome | None]:
        """One outcome per function, in order; None for those not called after an error with `stop_at_error`."""
        outcomes: list[Outcome | None] = [None] * len(functions)
        waiting: list[tuple[int, Callable[..., Any]]] = []
        for index, function in enumerate(functions):
            if is_async(function):
                waiting.append((index, function))
                continue
            outcomes[index] = outcome = _call(function, arguments)
            if stop_at_error and outcome.error is not None:
                return outcomes
        if waiting:
            gathered = self._gather([function for _, function in waiting], arguments)
            for (index, _), outcome in zip(waiting, gathered, strict=True):
                outcomes[index] = outcome
        return outcomes

    def _gather(self, functions: Sequence[Callable[..., Any]], arguments: Mapping[str, Any]) -> list[Outcome]:
        async def together() -> list[Outcome]:
            return await asyncio.gather(*(_await(function, arguments) for function in functions))

        return asyncio.run_coroutine_threadsafe(together(), self._running_loop()).result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._loop.run_forever, name="reward-functions", daemon=True)
            thread.start()
            weakref.finalize(self, _stop, self._loop, thread)
        return self._loop


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling the function gives a coroutine: an `async def`, a partial of one, or an object with one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Outcome:
    start = time.perf_counter()
    try:
        values, error = list(function(**arguments)), None
    except Exception as raised:
        values, error = None, raised
    return Outcome(values, error, 1000 * (time.perf_counter() - start))


async def _await(function: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]) -> Outcome:
    start = time.perf_counter()
    try:
        values, error = list(await function(**arguments)), None
    except Exception as raised:
        values, error = None, raised
    return Outcome(values, error, 1000 * (time.perf_counter() - start))


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
    if not loop.is_running():
        loop.close()
