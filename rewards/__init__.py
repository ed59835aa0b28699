"""A ledger of every reward: what the signal was, what the schedule made of it, and what changed the schedule.

Stands alone: numpy, scipy, pyarrow and duckdb, never torch. Names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.errors import LedgerError, UserError
    from rewards.ledger import Ledger
    from rewards.recording import Recorder, recorded

__all__ = ["Ledger", "LedgerError", "Recorder", "UserError", "recorded"]

_HOME = {
    "Ledger": "rewards.ledger",
    "LedgerError": "rewards.errors",
    "Recorder": "rewards.recording",
    "UserError": "rewards.errors",
    "recorded": "rewards.recording",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
