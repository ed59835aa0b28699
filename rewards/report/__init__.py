"""Reports of a run: one HTML file and one JSON document from a ledger."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.errors import UserError

if TYPE_CHECKING:
    from rewards.ledger import Ledger
    from rewards.report.build import Report

__all__ = ["build_report", "write_html", "write_json", "write_markdown", "write_report"]


def build_report(ledger: Ledger, run_id: str | None = None) -> Report:
    """The report of a run; by default of the newest online-RL run with sessions, else of the newest run.

    Raises: LedgerError for an unknown run or a ledger without runs.
    """
    from rewards.report.build import build
    from rewards.report.record import read_record

    return build(read_record(ledger, run_id))


def write_html(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes the page. Raises: UserError when the file cannot be written."""
    from rewards.report.html import render

    return write_whole(Path(path), render(report))


def write_json(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes the document. Raises: UserError when the file cannot be written."""
    return write_whole(Path(path), dumps(report.data))


def write_markdown(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes the findings as Markdown. Raises: UserError when the file cannot be written."""
    from rewards.report.markdown import markdown

    return write_whole(Path(path), markdown(report.data))


def write_report(
    ledger: Ledger,
    run_id: str | None = None,
    html: str | os.PathLike[str] | None = None,
    json_path: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Builds a report, writes the asked-for files and gives its data. Raises: as the functions above."""
    report = build_report(ledger, run_id)
    if html is not None:
        write_html(report, html)
    if json_path is not None:
        write_json(report, json_path)
    return report.data


def dumps(data: Any) -> str:
    """JSON as the commands print and write it."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_whole(path: Path, content: str | bytes) -> Path:
    """A reader never sees half a report: written aside, then renamed. Raises: UserError when it cannot be written."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):  # where the folder is none, there is nothing to remove either
            aside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path
