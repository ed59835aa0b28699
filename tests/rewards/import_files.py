"""Files that the importers' tests read, and a short way to import them."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rewards import Ledger
from rewards.importers import Options, Request, import_run

RUN = "imported"


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def take_in(ledger: Path, *files: Path | str, run: str = RUN, form: str = "auto", **more: Any) -> dict[str, Any]:
    """Imports and returns the summary. map_, drop, constants: as the options; events, weights: as in Request."""
    options = Options(more.pop("map_", {}), frozenset(more.pop("drop", ())), more.pop("constants", {}))
    return import_run(ledger, Request(run, files, form, options, **more))


def live(ledger: Path, run: str = RUN, texts: bool = False) -> list[dict[str, Any]]:
    """The live view as dicts."""
    with Ledger.open(ledger) as opened:
        rows: list[dict[str, Any]] = opened.sessions(run, texts=texts).to_pylist()
    return rows


def column(ledger: Path, name: str, run: str = RUN) -> list[Any]:
    return [row[name] for row in live(ledger, run, texts=name in ("prompt", "response", "rejected"))]
