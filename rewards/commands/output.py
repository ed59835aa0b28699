"""What commands print: JSON for programs, tables for people, remarks on stderr."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

_ANY_WIDTH = 1_000_000
_DIGITS = 8
_ROOMY = 100
_HELD = "\ue000"  # stands for a space that no line is broken at; of the private use area
_NARROW = 12  # a column of a table is not broken into lines shorter than this


def say(text: str) -> None:
    """A remark for people, on stderr: stdout is for what was asked."""
    print(text, file=sys.stderr)


# -- JSON --------------------------------------------------------------------------------------------------------------


class Plain:
    """Turns values into what JSON knows, and counts what it does not know.

    NaN and infinities become null. Times are ISO 8601, decimals numbers where a double holds them and text where not,
    bytes base64. digits: of numbers, for people; all of them where none are given.
    """

    def __init__(self, digits: int | None = None) -> None:
        self.not_finite = 0
        self._digits = digits

    def __call__(self, value: Any) -> Any:
        """The value, nested ones included."""
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float):
            if math.isfinite(value):
                return value if self._digits is None else float(f"{value:.{self._digits}g}")
            self.not_finite += 1
            return None
        if isinstance(value, Mapping):
            return {str(key): self(item) for key, item in value.items()}
        if isinstance(value, list) or type(value) is tuple:
            return [self(item) for item in value]
        return self._leaf(value)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, decimal.Decimal):
            return self._decimal(value)
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        return str(value)

    def _decimal(self, value: decimal.Decimal) -> Any:
        if not value.is_finite():
            self.not_finite += 1
            return None
        if value == value.to_integral_value() and value.as_tuple().exponent == 0:
            return int(value)
        return float(value) if decimal.Decimal(repr(float(value))) == value else str(value)

    def remark(self) -> None:
        """Says on stderr how many numbers JSON could not hold."""
        if self.not_finite:
            numbers = "1 number is" if self.not_finite == 1 else f"{self.not_finite:,} numbers are"
            say(f"{numbers} NaN or infinite, which JSON does not know: null stands in their place")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    plain = Plain()
    print(dumps(plain(value)))
    plain.remark()


def dumps(value: Any, indent: int | None = 1) -> str:
    """JSON text that the output's encoding can carry."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(value, indent=indent, ensure_ascii=not encoding.startswith("utf"), allow_nan=False)


# -- text --------------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as people read it: without control characters, which a model's text may hold and a terminal obeys."""
    text = value if isinstance(value, str) else str(value)
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def line(value: Any) -> str:
    """The same on one line."""
    return shown(value).replace("\n", "\\n").replace("\t", "\\t")


def size(count: int) -> str:
    """A number of bytes."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:,.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("the last unit holds any size")


def minute(time: Any) -> str:
    """A time (ISO, UTC) to the minute."""
    return "" if time is None else line(time)[:16].replace("T", " ")


def moment(time: str | None) -> str:
    """The same for a column of a table; without the year where the terminal is narrow and the year is this one."""
    told = minute(time)
    this_year = told.startswith(f"{datetime.datetime.now(datetime.UTC).year}-")
    return told[5:] if this_year and is_terminal() and width() < _ROOMY else told


def print_items(title: str, items: Sequence[str], indent: str = "  ") -> None:
    """A title and what belongs to it, broken between the items to the terminal's width."""
    text = f"{title}: {', '.join(item.replace(' ', _HELD) for item in items)}"
    if is_terminal():
        text = textwrap.fill(
            text, max(width(), 20), subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
        )
    print(text.replace(_HELD, " "))


def is_terminal() -> bool:
    """Whether people read stdout as it comes."""
    return sys.stdout.isatty()


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size((80, 24)).columns


def print_table(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = (), dim: Collection[int] = ()
) -> None:
    """A table: styled and wrapped to the terminal's width, or plain lines of full length where nobody looks.

    right: heads of the columns set flush right, whose cells are never broken. dim: numbers of rows that step back.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        flush = head in right
        table.add_column(
            Text(head), justify="right" if flush else "left", no_wrap=flush, overflow="ellipsis" if flush else "fold"
        )
    for number, row in enumerate(rows):
        table.add_row(*(Text(line(cell)) for cell in row), style="dim" if number in dim else None)
    console = Console(width=width() if is_terminal() else _ANY_WIDTH, soft_wrap=False)
    with console.capture() as captured:
        console.print(table)
    for printed in captured.get().splitlines():
        print(printed.rstrip())


def print_records(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Records as a table where it fits the terminal, else one value a line; a null is shown as nothing."""
    numeric = [n for n in names if all(_is_number(record[n]) for record in records)]
    cells = [[_cell(record[name]) for name in names] for record in records]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(names)]
    if not is_terminal() or sum(min(w, _NARROW) for w in widths) + 2 * (len(widths) - 1) <= width():
        print_table(names, cells, numeric)
        return
    margin = max(len(name) for name in names)
    for number, record in enumerate(records, start=1):
        print(f"-- row {number:,} " + "-" * max(0, min(width(), 60) - len(f"-- row {number:,} ")))
        for name in names:
            if record[name] is not None:
                print(f"{line(name):>{margin}}  {_cell(record[name])}")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return line(value)
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return line(value if isinstance(value, int) else _text(Plain(_DIGITS)(value)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value, indent=None)
