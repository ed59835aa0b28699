"""A process that reads a ledger over and over until its stdin closes, and checks that nothing it saw ever goes away.

Usage: storm_reader LEDGER. Prints one JSON object: polls, rows and errors.
"""

import json
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from duckdb import DuckDBPyConnection

from rewards import Ledger
from rewards.places import asked

_KEY = ("attempt", "writer", "seq")


def keys(table: pa.Table) -> np.ndarray[Any, Any]:
    attempt, writer, seq = (table[name].to_numpy().astype(np.int64) for name in _KEY)
    return attempt << 44 | writer << 36 | seq


def live_by_rule(attempts: list[dict[str, Any]], rows: pa.Table) -> np.ndarray[Any, Any]:
    """The rule in plain words: from the newest attempt back, what is not above a later attempt's resume step."""
    by_id = {attempt["attempt_id"]: attempt for attempt in attempts}
    limits: dict[int, float] = {}
    limit, here = float("inf"), max(attempts, key=lambda a: a["attempt"], default=None)
    while here is not None:
        limits[here["attempt"]] = limit
        limit = min(limit, float("inf") if here["resume_step"] is None else here["resume_step"])
        here = by_id.get(here["parent_id"])
    highest = np.array([limits.get(a, -1.0) for a in range(1 + max((a["attempt"] for a in attempts), default=0))])
    return rows["step"].to_numpy() <= highest[rows["attempt"].to_numpy()]


class Reader:
    def __init__(self, path: str) -> None:
        self.ledger = Ledger.open(path)
        self.seen = self.live = np.zeros(0, np.int64)
        self.newest = 0

    def poll(self) -> None:
        self.poll_views()
        self.poll_table()

    def poll_views(self) -> None:
        def question(connection: DuckDBPyConnection) -> tuple[list[dict[str, Any]], pa.Table, Any]:
            attempts = connection.sql("SELECT * FROM attempts WHERE run_id = 'r'").to_arrow_table().to_pylist()
            columns = "attempt, writer, seq, step, live, session"
            rows = connection.sql(f"SELECT {columns} FROM sessions WHERE run_id = 'r'").to_arrow_table()
            return attempts, rows, connection.sql("SELECT count(*), max(session) FROM live").fetchall()[0]

        attempts, rows, counted = asked(self.ledger, question)
        there = keys(rows)
        assert len(np.unique(there)) == len(there), "a row came twice"
        assert np.isin(self.seen, there).all(), "a row that was there is gone"
        self.seen = there
        live = rows["live"].to_numpy(zero_copy_only=False)
        assert (live == live_by_rule(attempts, rows)).all(), "the live view is not the rule's"
        assert counted == (live.sum(), live.sum() or None), "the live view is numbered otherwise"

    def poll_table(self) -> None:
        newest = self.ledger.runs()[0]["newest_attempt"]
        table = self.ledger.sessions("r")
        same = newest == self.newest and newest == self.ledger.runs()[0]["newest_attempt"]
        live = keys(table)
        assert len(np.unique(live)) == len(live), "a live row came twice"
        assert table["session"].to_pylist() == list(range(1, len(live) + 1)), "numbers are not 1 to n"
        order = [table[name].to_numpy() for name in ("seq", "attempt", "writer", "step")]
        assert (np.lexsort(order) == np.arange(len(live))).all(), "sessions are not in order"
        if same:
            assert np.isin(self.live, live).all(), "a live row is gone without a resume"
        self.live, self.newest = live, newest


def main(path: str) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    polls, errors = 0, []
    reader = None
    while not ended.is_set():
        try:
            if reader is None:
                if not Path(path, "ledger.db").exists() or not Ledger.open(path, create=True).runs():
                    continue
                reader = Reader(path)
            reader.poll()
            polls += 1
            time.sleep(0.02)
        except Exception:
            errors.append(traceback.format_exc())
            if len(errors) > 3:
                break
    print(json.dumps({"polls": polls, "rows": 0 if reader is None else len(reader.seen), "errors": errors}))


if __name__ == "__main__":
    main(*sys.argv[1:])
