"""Which field of a file becomes which column: by name, by --map, by --set; what is left out is named, never dropped."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rewards.errors import DataError, UserError
from rewards.importers.components import PREFIX, split_name
from rewards.schema import COLUMNS, ROW_KEYS, TEXT_COLUMNS

# Of the ledger a file was exported from: the ledger that takes it in gives them anew.
RENUMBERED = ("run_id", "attempt", "writer", "seq", "live")
_PLACED = ("session", "step")
NAMES = tuple(c.name for c in COLUMNS if c.name in ROW_KEYS) + TEXT_COLUMNS + _PLACED
_SHOWN = 6


@dataclass(frozen=True)
class Options:
    """What the user says about the columns of a file.

    columns: ledger column -> field of the file. drop: fields that are left out. constants: ledger column -> one value
    for all rows, as text.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()
    constants: Mapping[str, str] = field(default_factory=dict)


def read_pairs(option: str, given: Iterable[str]) -> dict[str, str]:
    """`column=value` arguments of an option.

    Raises: UserError for one without `=`, an unknown column, or a column given twice.
    """
    pairs: dict[str, str] = {}
    for text in given:
        column, equals, value = text.partition("=")
        if not equals or not column or not value:
            raise UserError(f"{option} {text}: write it as {option} COLUMN=VALUE")
        if not is_target(column):
            raise UserError(f"{option} {text}: {unknown_column(column)}")
        if column in pairs:
            raise UserError(f"{option} {text}: `{column}` is already {pairs[column]}")
        pairs[column] = value
    return pairs


def is_target(column: str) -> bool:
    """Whether a file may give the column."""
    return column in NAMES or split_name(column) is not None


def unknown_column(column: str) -> str:
    """Why a name is no column that can be given, with the nearest one that is."""
    if column in RENUMBERED:
        return f"`{column}` is given by the ledger itself"
    near = nearest(column, NAMES)
    return f"the ledger has no column `{column}`" + (f"; did you mean `{near}`?" if near else "")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar name, if one is similar."""
    close = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return close[0] if close else None


class Fields:
    """The plan for the fields of a file, and what of it was seen to apply."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.seen: set[str] = set()
        self.given: set[str] = set()
        self.filled_in: frozenset[str] | None = None
        self.renumbered: set[str] = set()
        self.runs: set[str | None] = set()

    def targets(self, given: Sequence[str], where: Callable[[str], str]) -> dict[str, list[str]]:
        """Field -> the columns it becomes; fields without any are left out on purpose.

        where: the place of a field in the file.
        Raises: DataError for a field that is no column, or a column that two fields claim.
        """
        self.seen.update(given)
        mapped: dict[str, list[str]] = {}
        for column, name in self.options.columns.items():
            mapped.setdefault(name, []).append(column)
        plan: dict[str, list[str]] = {}
        unknown = []
        for name in given:
            columns = list(mapped.get(name, []))
            by_name = is_target(name) and name not in self.options.columns and not columns
            if name in self.options.drop:
                columns = []
            elif by_name:
                columns = [name]
            elif not columns and name in RENUMBERED:
                self.renumbered.add(name)
            elif not columns:
                unknown.append(name)
            plan[name] = columns
        if unknown:
            raise DataError(f"{where(unknown[0])}: {self._unknown(unknown)}")
        self.given.update(column for columns in plan.values() for column in columns)
        self._check(plan, where(given[0]))
        return plan

    def _check(self, plan: Mapping[str, list[str]], at: str) -> None:
        given = [column for columns in plan.values() for column in columns]
        for column in self.options.constants:
            if column in given:
                raise DataError(f"{at}: --set {column}=... and the file both give `{column}`; leave one out")
        if "components" in given and any(column.startswith(PREFIX) for column in given):
            raise DataError(
                f"{at}: gives both `components` and columns `{PREFIX}...`; leave one of them out with --drop"
            )

    def _unknown(self, names: Sequence[str]) -> str:
        told = []
        for name in names[:_SHOWN]:
            if name in self.options.columns:
                told.append(f"`{name}` stands beside --map {name}={self.options.columns[name]}")
                continue
            near = nearest(name, NAMES)
            told.append(f"`{name}` is no column of the ledger" + (f" (nearest: `{near}`)" if near else ""))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        drops = " ".join(f"--drop {_quoted(name)}" for name in names)
        return f"{', '.join(told)}{more}; use --map COLUMN=FIELD, or leave out with {drops}"

    def check_used(self, where: str) -> None:
        """Checks that every option met a field.

        Raises: UserError for one that did not.
        """
        for column, name in self.options.columns.items():
            if name not in self.seen:
                raise UserError(f"--map {column}={name}: {where} has no field `{name}`{self._near(name)}")
        for name in sorted(self.options.drop):
            if name not in self.seen:
                raise UserError(f"--drop {name}: {where} has no field `{name}`{self._near(name)}")

    def _near(self, name: str) -> str:
        near = nearest(name, self.seen)
        return f"; did you mean `{near}`?" if near else f"; its fields are {', '.join(sorted(self.seen))}"


def _quoted(name: str) -> str:
    plain = name.replace("_", "").replace("-", "").replace(".", "").replace("/", "")
    return name if plain.isalnum() else "'" + name.replace("'", "'\\''") + "'"
