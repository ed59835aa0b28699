"""`rewards sql`: a query over the ledger, in DuckDB."""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.commands.arguments import About, Commands, add_command, add_json, read_stdin, whole_number
from rewards.commands.output import Plain, dumps, line, print_records, say
from rewards.counted import counted
from rewards.errors import LedgerError, UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from rewards.ledger import Ledger

_SHOWN = 40  # rows of a table for people, unless --limit says otherwise
_BATCH = 10_000
_TRIES = 5

Rows = Iterator[dict[str, Any]]

ABOUT = About(
    "a query over the ledger, in DuckDB's SQL",
    "Views: live (the sessions that count, with their number `session`), sessions (the superseded ones too, column\n"
    "`live`), texts, events (payload is JSON text), attempts, blocks, runs. `describe live` lists the columns. All of\n"
    "a query sees one moment of the ledger. It can read the ledger and nothing else, and write nothing.\n\n"
    "--json prints a list with one object a row: times in ISO 8601 (UTC), NaN and infinities as null, decimals as\n"
    "numbers (as text where a double cannot hold them), bytes in base64. --csv prints null as nothing and nested\n"
    "values as JSON.\n\n"
    '  rewards sql LEDGER "select category, avg(baseline_reward) from live group by 1"\n'
    "  rewards sql LEDGER --csv - < query.sql > answer.csv",
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "sql", run, ABOUT)
    parser.add_argument("query", metavar="QUERY", help="one SELECT; - reads it from stdin")
    parser.add_argument(
        "--limit", type=whole_number, metavar="N", help=f"rows to print; default: all, a table {_SHOWN}"
    )
    form = parser.add_mutually_exclusive_group()
    add_json(form, "print one JSON document: a list of rows")
    form.add_argument("--csv", action="store_true", help="print CSV with a line of names")


def run(args: argparse.Namespace) -> int:
    """Runs the query and prints what it gives."""
    from rewards.ledger import Ledger

    query = read_stdin() if args.query == "-" else args.query
    if args.limit is not None and args.limit < 0:
        raise UserError(f"--limit is {args.limit}; give a number of rows from 0")
    with Ledger.open(args.ledger) as ledger, _one_line(), _answer(ledger, query) as (names, rows):
        wanted = rows if args.limit is None else islice(rows, args.limit)
        if args.json:
            _print_json(wanted)
        elif args.csv:
            _print_csv(names, wanted)
        else:
            _print_table(names, rows, _SHOWN if args.limit is None else args.limit)
    return 0


# -- the query -------------------------------------------------------------------------------------------------------


@contextmanager
def _closed_off(ledger: Ledger) -> Iterator[DuckDBPyConnection]:
    """A connection that can read the ledger's folder and no other file, and whose settings cannot be changed.

    What does not fit into memory is spilled to a temporary folder, not to the folder the command was started in.
    """
    with tempfile.TemporaryDirectory(prefix="rewards-sql-") as spill, ledger.connect() as connection:
        folders = ", ".join(_quoted(folder) for folder in (ledger.path.absolute(), ledger.path.resolve()))
        for setting in (
            "TimeZone = 'UTC'",
            f"temp_directory = {_quoted(Path(spill))}",
            "python_enable_replacements = false",
            f"allowed_directories = [{folders}]",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        yield connection


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


@contextmanager
def _one_line() -> Iterator[None]:
    """What DuckDB says of a query, as one line."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        said = [part.strip() for part in str(error).split("\n\nLINE")[0].splitlines()]
        raise LedgerError(f"the query: {'; '.join(line(part) for part in said if part)}") from error


@contextmanager
def _answer(ledger: Ledger, query: str) -> Iterator[tuple[list[str], Rows]]:
    """The names of the columns and the rows, read as they are asked for.

    Where a file vanishes before the first rows are read, because a seal put it together with others, the query starts
    again on what the ledger is then.
    """
    import duckdb

    for tries_left in reversed(range(_TRIES)):
        with _closed_off(ledger) as connection:
            try:
                reader = _checked(connection, query).to_arrow_reader(_BATCH)
                names = _distinct(reader.schema.names)
                rows = _rows(reader, names)
                first = list(islice(rows, 1))
            except duckdb.IOException:
                if tries_left:
                    continue
                raise
            yield names, chain(first, rows)
            return


def _checked(connection: DuckDBPyConnection, query: str) -> DuckDBPyRelation:
    """The query, bound and not yet run.

    Raises: LedgerError for anything but one query that reads. Nothing else may run: a COPY could write into the folder
    that is there to be read, the ledger's own.
    """
    from duckdb import StatementType

    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise LedgerError(f"give one query; there are {len(statements)} in the text")
    if statements[0].type != StatementType.SELECT:
        kind = statements[0].type.name
        more = "; name the values of a PIVOT: PIVOT ... ON x IN ('a', 'b')" if kind == "MULTI" else ""
        raise LedgerError(f"a query reads: give a SELECT (or DESCRIBE, SUMMARIZE), not {kind}{more}")
    return connection.sql(query)


def _rows(reader: Any, names: list[str]) -> Rows:
    for batch in reader:
        yield from batch.rename_columns(names).to_pylist(maps_as_pydicts="strict")


def _distinct(names: list[str]) -> list[str]:
    """Names that occur once: a, a_1, a_2."""
    distinct: list[str] = []
    for name in names:
        candidate, number = name, 0
        while candidate in distinct:
            number += 1
            candidate = f"{name}_{number}"
        distinct.append(candidate)
    return distinct


# -- the answer ------------------------------------------------------------------------------------------------------


def _print_json(rows: Rows) -> None:
    plain = Plain()
    between = "["
    for row in rows:
        sys.stdout.write(f"{between}\n {dumps(plain(row), indent=None)}")
        between = ","
    print("\n]" if between == "," else "[]")
    plain.remark()


def _print_csv(names: list[str], rows: Rows) -> None:
    plain = Plain()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_csv_cell(value, plain) for value in row.values()])


def _csv_cell(value: Any, plain: Plain) -> Any:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    value = plain(value)
    return value if isinstance(value, str) else dumps(value, indent=None)


def _print_table(names: list[str], rows: Rows, limit: int) -> None:
    head = list(islice(rows, limit + 1))
    print_records(names, head[:limit])
    if not head:
        say("no row")
    elif len(head) > limit:
        say(f"the first {counted(limit, 'row')}; --limit N shows more, --csv or --json all of them")
