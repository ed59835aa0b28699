"""Errors that are meant for people: one line that names the file, row, key or session and says what to do."""

from collections.abc import Sequence


class UserError(Exception):
    """Bad usage or bad input: the command prints the line and exits with 2."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that cannot be used; names the file, the line and the key."""


class DataError(UserError):
    """A data set that cannot be used; names the file and the row."""


class LedgerError(UserError):
    """A ledger that cannot be opened, written or read; names the file."""


class NoLedger(LedgerError):
    """There is no folder where a ledger was looked for. path: the folder."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path}: no such folder; check the path, or make the ledger, in Python, with create=True")
        self.path = path


class DamagedRows(LedgerError):
    """The rows of one commit are not as they were written. first_seq: its first row; reason: what does not fit."""

    def __init__(self, path: object, first_seq: int, reason: str) -> None:
        super().__init__(
            f"{path}: the rows from seq {first_seq} on are not as they were written ({reason}); run verify"
        )
        self.first_seq = first_seq
        self.reason = reason


class CheckFailed(UserError):
    """A check ran and did not hold: exit 1."""

    exit_code = 1


class RunStopped(UserError):
    """A run that stopped itself; what led to it is in the ledger. `rows` names the rows concerned. Exit 3."""

    exit_code = 3

    def __init__(self, message: str, rows: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)
