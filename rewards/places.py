"""Finds rows by the numbers people have for them: a session of a run, or the place of a row in its writer's chain."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rewards.errors import LedgerError

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from rewards.ledger import Ledger

_INT64 = 2**63
_IS_KEY = "run_id = ? AND attempt = ? AND writer = ? AND seq = ?"
_TRIES = 5

Answer = TypeVar("Answer")


class Key(NamedTuple):
    """What a row is called for good; a session's number is its own only until a resume gives it to another row."""

    run_id: str
    attempt: int
    writer: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}/{self.writer}/{self.seq}"


def key_of(row: dict[str, Any]) -> Key:
    """The key in a row's own columns."""
    return Key(row["run_id"], row["attempt"], row["writer"], row["seq"])


def find_session(ledger: Ledger, run_id: str, number: int) -> dict[str, Any]:
    """A session of the live view: all columns, `session`, `live` and its texts.

    Raises: LedgerError, with the numbers there are, when the run has no such session.
    """
    return asked(ledger, lambda connection: _with_texts(connection, _live_row(connection, run_id, number)))


def find_row(ledger: Ledger, key: Key) -> dict[str, Any]:
    """Any row: also one of the eval split, which has no number, and one that a resume superseded.

    Raises: LedgerError when there is none.
    """

    def question(connection: DuckDBPyConnection) -> dict[str, Any]:
        there = all(0 <= number < _INT64 for number in key[1:])
        found = rows(connection, f"SELECT * FROM sessions WHERE {_IS_KEY}", [*key]) if there else []
        if not found:
            raise LedgerError(
                f"run `{key.run_id}` has no row {key}; rows are called ATTEMPT/WRITER/SEQ, after their columns"
            )
        return _with_texts(connection, found[0])

    return asked(ledger, question)


def session_keys(ledger: Ledger, run_id: str, first: int, last: int) -> tuple[list[Key], int]:
    """The keys of the first and the last session of a range (one key where they are the same), and the last one's step.

    Raises: LedgerError, with the numbers there are, when the run lacks one of them.
    """

    def question(connection: DuckDBPyConnection) -> tuple[list[Key], int]:
        ends = [_live_row(connection, run_id, number) for number in dict.fromkeys((first, last))]
        return [key_of(row) for row in ends], int(ends[-1]["step"])

    return asked(ledger, question)


def last_step(ledger: Ledger, run_id: str) -> int | None:
    """The highest step with a live row; None before the first."""
    import pyarrow.compute as pc

    blocks = commits(ledger, run_id)
    step: int | None = pc.max(blocks.filter(blocks["live"])["step"]).as_py()
    return step


def numbers_now(ledger: Ledger, keys: Iterable[Key]) -> dict[Key, int | None]:
    """The session numbers that rows have now; None for superseded rows and those that never had one."""
    now: dict[Key, int | None] = dict.fromkeys(keys)
    mixed = set()
    for run_id in {key.run_id for key in now}:
        writers: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for block in commits(ledger, run_id).sort_by("first_seq").to_pylist():
            writers.setdefault((block["attempt"], block["writer"]), []).append(block)
        for key in [key for key in now if key.run_id == run_id]:
            block = _block_of(writers.get((key.attempt, key.writer), []), key.seq)
            if block is None or not block["live"]:
                continue
            if block["rows"] == block["sessions"]:
                now[key] = block["session_offset"] + key.seq - block["first_seq"] + 1
            else:
                mixed.add(key)
    return now | _numbers_among_others(ledger, mixed)


def _block_of(blocks: Sequence[dict[str, Any]], seq: int) -> dict[str, Any] | None:
    """The commit that holds a row, of a writer's in their order."""
    at = bisect_right(blocks, seq, key=lambda block: block["first_seq"]) - 1
    return blocks[at] if at >= 0 and seq < blocks[at]["first_seq"] + blocks[at]["rows"] else None


def _numbers_among_others(ledger: Ledger, keys: Collection[Key]) -> dict[Key, int | None]:
    """The same for rows whose commit holds rows of the eval split too: only the rows tell their numbers."""
    if not keys:
        return {}
    import pyarrow as pa

    wanted = pa.Table.from_pylist([key._asdict() for key in sorted(keys)])
    query = "SELECT run_id, attempt, writer, seq, session FROM live SEMI JOIN wanted_keys USING "

    def question(connection: DuckDBPyConnection) -> list[dict[str, Any]]:
        connection.register("wanted_keys", wanted)
        return rows(connection, query + "(run_id, attempt, writer, seq)")

    return {key_of(row): row["session"] for row in asked(ledger, question)}


# -- reading ---------------------------------------------------------------------------------------------------------


def commits(ledger: Ledger, run_id: str | None = None) -> pa.Table:
    """The commits of a run or of all, as the view `blocks` has them; no row is read, so damaged ones do no harm."""
    from rewards.blocks import block_table
    from rewards.catalog import DATABASE, read_chains, read_lineage
    from rewards.sqlite import snapshot

    with snapshot(ledger.path / DATABASE) as database:
        lineage = read_lineage(database)
        chains = read_chains(database, ledger.path, lineage, run_id)
    return block_table(lineage, chains)


def asked(ledger: Ledger, question: Callable[[DuckDBPyConnection], Answer]) -> Answer:
    """The answer to a question that queries the ledger; asked again where a file was replaced in between.

    Raises: LedgerError naming the file that cannot be read.
    """
    import duckdb

    for tries_left in reversed(range(_TRIES)):
        try:
            with ledger.connect() as connection:
                return question(connection)
        except duckdb.IOException as error:  # files were put together, and the old ones deleted
            if not tries_left:
                raise _unread(ledger, error) from error
        except duckdb.Error as error:
            raise _unread(ledger, error) from error
    raise AssertionError("the last try returns or raises")


def rows(connection: DuckDBPyConnection, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
    """What a query gives, as dicts."""
    found: list[dict[str, Any]] = connection.sql(query, params=parameters or []).to_arrow_table().to_pylist()
    return found


def _unread(ledger: Ledger, error: Exception) -> LedgerError:
    said = " ".join(str(error).split("\n\n")[0].split())
    return LedgerError(f"{ledger.path}: {said}; `rewards verify` tells what is damaged")


def _live_row(connection: DuckDBPyConnection, run_id: str, number: int) -> dict[str, Any]:
    """The row of a session; its block is looked up first, so that only its own rows are read."""
    blocks = "SELECT attempt, writer, first_seq, first_seq + rows - 1 AS last_seq FROM blocks WHERE run_id = ? AND live"
    found = []
    if 0 < number < _INT64:
        asked_for = [run_id, number, number]
        found = rows(connection, f"{blocks} AND session_offset < ? AND session_offset + sessions >= ?", asked_for)
    if not found:
        query = "SELECT max(session_offset + sessions) AS last FROM blocks WHERE run_id = ? AND live"
        (last,) = rows(connection, query, [run_id])
        there = f"its sessions are 1 to {last['last']:,}" if last["last"] else "it has none yet"
        raise LedgerError(f"run `{run_id}` has no session {number}: {there}")
    among = "run_id = ? AND attempt = ? AND writer = ? AND seq BETWEEN ? AND ? AND session = ?"
    row = rows(connection, f"SELECT *, true AS live FROM live WHERE {among}", [run_id, *found[0].values(), number])
    if not row:
        raise LedgerError(f"run `{run_id}`: the row of session {number} is not where it was written; run verify")
    return row[0]


def _with_texts(connection: DuckDBPyConnection, row: dict[str, Any]) -> dict[str, Any]:
    from rewards.schema import TEXT_COLUMNS

    query = f"SELECT {', '.join(TEXT_COLUMNS)} FROM texts WHERE {_IS_KEY}"
    found = rows(connection, query, [*key_of(row)])
    return row | (found[0] if found else dict.fromkeys(TEXT_COLUMNS))
