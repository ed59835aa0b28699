"""Asks a ledger one query in a process of its own: `python ask.py LEDGER QUERY`; prints what it took as JSON."""

import json
import re
import resource
import sys
import time
from pathlib import Path

QUERIES = {
    "per 100-session bin": "SELECT (session - 1) // 100 AS bin, avg(adjusted_reward), var_samp(adjusted_reward) "
    "FROM live WHERE run_id = 'grpo' AND session IS NOT NULL GROUP BY bin ORDER BY bin",
    "by category": "SELECT category, count(*), avg(adjusted_reward), var_samp(adjusted_reward) FROM live "
    "WHERE run_id = 'grpo' GROUP BY category ORDER BY category",
    "live view after a resume": "SELECT count(*), count(session), max(session), avg(adjusted_reward) FROM live "
    "WHERE run_id = 'grpo'",
}


def main() -> None:
    """Connects, asks, prints."""
    began = time.perf_counter()
    import duckdb  # noqa: F401

    from rewards import Ledger

    imported = time.perf_counter()
    with Ledger.open(sys.argv[1]).connect() as connection:
        connection.execute("SET threads = 2")
        connected = time.perf_counter()
        answer = connection.sql(QUERIES[sys.argv[2]]).to_arrow_table()
        answered = time.perf_counter()
    result = {
        "import_s": imported - began,
        "connect_s": connected - imported,
        "query_s": answered - connected,
        "peak_bytes": _peak_bytes(),
        "rows": answer.num_rows,
        "first": [str(value) for value in answer.slice(0, 1).to_pylist()[0].values()],
    }
    print(json.dumps(result))


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it started this process
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return 1024 * int(kilobytes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
