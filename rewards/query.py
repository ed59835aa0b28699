"""SQL over a ledger: DuckDB on the Delta tables' files and what is still in the tails, as of one moment."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rewards import events
from rewards.blocks import as_table
from rewards.catalog import DATABASE
from rewards.errors import LedgerError
from rewards.parts import SESSIONS, read_parts
from rewards.reading import Look, look
from rewards.schema import BY_NAME, COLUMNS, TEXT_COLUMNS
from rewards.seal import attempt_table
from rewards.sealed import Body
from rewards.sqlite import snapshot
from rewards.view import run_list

if TYPE_CHECKING:
    import duckdb

_SHOWN = ", ".join(f's."{column.name}"' for column in COLUMNS)
_NUMBER = "b.session_offset + s.position + 1"  # null for eval rows: they have no position
_JOINED = "FROM stored_sessions s JOIN blocks b USING (block)"
_VIEWS = {
    "live": f"SELECT {_SHOWN}, {_NUMBER} AS session {_JOINED} WHERE b.live",
    "sessions": f"SELECT {_SHOWN}, CASE WHEN b.live THEN {_NUMBER} END AS session, b.live {_JOINED}",
    "texts": f"SELECT run_id, attempt, writer, seq, {', '.join(TEXT_COLUMNS)} FROM stored_texts",
}


def connect(root: Path) -> "duckdb.DuckDBPyConnection":
    """A connection to an empty database in memory with the ledger's views. See `Ledger.connect`."""
    import duckdb

    seen = look(root, lambda lineage: lambda chain: True, texts=True)
    _check_complete(root, seen)
    connection = duckdb.connect()
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("hot_sessions", seen.hot)
        connection.register("hot_texts", seen.hot_texts)
        _stored(connection, "stored_sessions", seen.sessions, seen.hot, "hot_sessions")
        _stored(connection, "stored_texts", seen.texts, seen.hot_texts, "hot_texts")
        for name, table in _small_tables(root, seen).items():
            connection.register(f"{name}_now", table)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {name}_now")
            connection.unregister(f"{name}_now")
        for name, query in _VIEWS.items():
            connection.execute(f"CREATE VIEW {name} AS {query}")
    except duckdb.Error as error:
        connection.close()
        check_files(seen.sessions)
        check_files(seen.texts)
        raise LedgerError(f"{root}: {' '.join(str(error).split())}; run verify") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _check_complete(root: Path, seen: Look) -> None:
    """Raises LedgerError when the files that the log names hold fewer rows than were committed."""
    stored = sum(part.rows for part in seen.sessions.parts()) + seen.hot.num_rows
    wanted = int(seen.blocks.count.sum())
    if stored < wanted:
        damage = f"; {seen.sessions.damage}" if seen.sessions.damage else ""
        raise LedgerError(
            f"{root / SESSIONS}: holds {wanted - stored:,} rows less than were committed{damage}; run verify, restore "
            "the ledger from a copy, or read what is left with `rewards export --salvage`"
        )


def check_files(body: Body) -> None:
    """Raises LedgerError for a file that cannot be read, FileNotFoundError for one that is missing."""
    for part in body.parts():
        for _ in read_parts([part], ["chain", "seq"]):
            pass


def _stored(connection: "duckdb.DuckDBPyConnection", name: str, body: Body, hot: pa.Table, hot_name: str) -> None:
    files = [str(part.path) for part in body.parts()]
    sources = [f"SELECT * FROM read_parquet([{', '.join(map(_quoted, files))}])"] if files else []
    if hot.num_rows or not files:
        sources.append(f"SELECT * FROM {hot_name}")
    connection.execute(f"CREATE VIEW {name} AS {' UNION ALL '.join(sources)}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _small_tables(root: Path, seen: Look) -> dict[str, pa.Table]:
    with snapshot(root / DATABASE) as ledger:
        stored = events.read(ledger)
    shown = [
        {
            "seq": e.seq,
            "run_id": e.run_id,
            "attempt": e.attempt,
            "writer": e.writer,
            "step": e.step,
            "time": e.time,
            "kind": e.kind,
            "payload": e.payload,
        }
        for e in stored
    ]
    kinds = [("seq", pa.int64()), ("run_id", pa.string()), ("attempt", pa.int32()), ("writer", pa.int32())]
    kinds += [("step", pa.int64()), ("time", BY_NAME["time"].type), ("kind", pa.string()), ("payload", pa.string())]
    runs: list[dict[str, Any]] = run_list(root)
    whole = ("attempts", "newest_attempt", "sessions", "steps")
    names = ("run_id", "pipeline_id", *whole, "started", "ended", "status")
    run_schema = pa.schema([(name, pa.int64() if name in whole else pa.string()) for name in names])
    return {
        "blocks": as_table(seen.blocks, seen.chains),
        "attempts": attempt_table(seen.lineage),
        "events": pa.Table.from_pylist(shown, pa.schema(kinds)),
        "runs": pa.Table.from_pylist(runs, run_schema),
    }
