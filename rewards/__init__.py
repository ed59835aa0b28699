"""A ledger of every reward: what the signal was, what the schedule made of it, and what changed the schedule.

Stands alone: numpy, scipy, pyarrow and duckdb, never torch. Names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.errors import LedgerError, UserError
    from rewards.ledger import Ledger

__all__ = ["Ledger", "LedgerError", "UserError"]

_HOME = {"Ledger": "rewards.ledger", "LedgerError": "rewards.errors", "UserError": "rewards.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
