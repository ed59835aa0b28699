"""What was left out of a data set and why: counted, named, reported; never silent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rewards.errors import ConfigError, DataError
from rlhf.data.records import Record, Text, plain, prompt_of

SHOWN = 10  # references kept per reason


@dataclass(frozen=True)
class GateReport:
    """How many rows passed, and per reason how many did not (dropped) or passed with a remark (noted).

    dropped, noted: reason -> references (FILE:LINE) of the first ten rows; counts: reason -> all of them.
    """

    kept: int
    dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    noted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def dropped_count(self) -> int:
        """Rows that were left out, over all reasons."""
        return sum(self.counts[reason] for reason in self.dropped)

    def lines(self) -> list[str]:
        """One line for people per reason."""
        total = self.kept + self.dropped_count
        said = [
            f"dropped {self.counts[reason]:,} of {total:,} rows: {reason} ({_some(refs, self.counts[reason])})"
            for reason, refs in self.dropped.items()
        ]
        return said + [
            f"kept, but {self.counts[reason]:,} of {total:,} rows: {reason} ({_some(refs, self.counts[reason])})"
            for reason, refs in self.noted.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for events."""
        return {
            "kept": self.kept,
            "dropped": {reason: self.counts[reason] for reason in self.dropped},
            "noted": {reason: self.counts[reason] for reason in self.noted},
            "examples": {reason: list(refs) for reason, refs in {**self.dropped, **self.noted}.items()},
        }


def _some(refs: Sequence[str], count: int) -> str:
    return ", ".join(refs[:3]) + (", ..." if count > min(len(refs), 3) else "")


class Gates:
    """Collects what happens to rows on their way; `report` closes the account."""

    def __init__(self) -> None:
        self._refs: dict[str, dict[str, list[str]]] = {"dropped": {}, "noted": {}}
        self._counts: dict[str, int] = {}

    def drop(self, reason: str, ref: str) -> None:
        """Row `ref` is left out."""
        self._count("dropped", reason, ref)

    def note(self, reason: str, ref: str) -> None:
        """Row `ref` stays, with a remark."""
        self._count("noted", reason, ref)

    def _count(self, what: str, reason: str, ref: str) -> None:
        refs = self._refs[what].setdefault(reason, [])
        if len(refs) < SHOWN:
            refs.append(ref)
        self._counts[reason] = self._counts.get(reason, 0) + 1

    def report(self, kept: int) -> GateReport:
        """The account of everything since the start.

        Raises: DataError where no row is left.
        """
        dropped = {reason: tuple(refs) for reason, refs in self._refs["dropped"].items()}
        noted = {reason: tuple(refs) for reason, refs in self._refs["noted"].items()}
        report = GateReport(kept, dropped, noted, dict(self._counts))
        if kept == 0:
            raise DataError(
                "no row is left to train on: " + ("; ".join(report.lines()) or "there was none to begin with")
            )
        return report


def check_records(records: Sequence[Record], gates: Gates) -> list[Record]:
    """Records that carry something to learn from; the rest is dropped with its reason.

    Dropped: an empty completion or side, a conversation without an assistant's turn, an empty prompt to answer,
    identical sides. Noted and kept: exact repetitions, since a data set may repeat rows on purpose, and completions
    that an earlier row gives the other label.
    """
    kept: list[Record] = []
    seen: set[bytes] = set()
    for record in records:
        reason = _fault(record)
        if reason is not None:
            gates.drop(reason, record.ref)
            continue
        digest = _digest(record)
        if digest in seen:
            gates.note("the same texts as an earlier row", record.ref)
        seen.add(digest)
        if record.label is not None and _digest(replace(record, label=not record.label)) in seen:
            gates.note("an earlier row gives the same texts the other label", record.ref)
        kept.append(record)
    return kept


def check_labels(records: Sequence[Record]) -> None:
    """That both labels occur.

    Raises: DataError with the counts and the file.
    """
    desirable = sum(record.label is True for record in records)
    if 0 < desirable < len(records):
        return
    files = list(dict.fromkeys(record.ref.rpartition(":")[0] for record in records))
    where = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "") if files else "the data"
    raise DataError(
        f"{where}: {desirable:,} desirable and {len(records) - desirable:,} undesirable completions to train on: "
        "without both labels nothing says which way to go; add rows of the other label"
        + (", or train on these with `rlhf sft`" if desirable else "")
    )


def check_categories(records: Sequence[Record], named: Sequence[str], keys: str) -> Iterator[str]:
    """That rows of each named category occur; then a line per category of the rows that none of them reaches.

    keys: where the categories are named.
    Raises: ConfigError naming the category that no row has, before any line.
    """
    rows: dict[str | None, list[str]] = {}
    for record in records:
        rows.setdefault(record.category, []).append(record.ref)
    present = ", ".join(sorted(str(category) for category in rows if category is not None)) or "none"
    for category in named:
        if category not in rows:
            raise ConfigError(f"{keys} names category `{category}`, which no row has; there are {present}")
    return _unreached(rows, named)


def _unreached(rows: dict[str | None, list[str]], named: Sequence[str]) -> Iterator[str]:
    for category, refs in sorted(rows.items(), key=lambda item: str(item[0])):
        if named and category not in named:
            what = "rows without a category" if category is None else f"category `{category}` without a differential"
            yield f"{what}: gain 1 ({len(refs)} rows: {', '.join(refs[:3])}{', ...' if len(refs) > 3 else ''})"


def _fault(record: Record) -> str | None:
    if record.kind == "pair":
        if _empty(record.chosen):
            return "empty chosen text"
        if _empty(record.rejected):
            return "empty rejected text"
        return "chosen and rejected are identical" if record.chosen == record.rejected else None
    if record.kind == "prompt":
        return "empty prompt" if not plain(prompt_of(record)).strip() else None
    text = record.completion
    if record.kind == "demonstration" and isinstance(text, list) and all(m["role"] != "assistant" for m in text):
        return "no assistant turn to learn from"
    return "empty completion" if _empty(text) else None


def _empty(text: Text | None) -> bool:
    """No word in a string, or in any answer of a conversation."""
    if text is None or isinstance(text, str):
        return not (text or "").strip()
    answers = [message for message in text if message["role"] == "assistant"]
    return not any((answer.get("content") or "").strip() or answer.get("tool_calls") for answer in answers or text)


def _digest(record: Record) -> bytes:
    texts = [record.prompt, record.completion, record.chosen, record.rejected, record.label]
    return hashlib.sha256(json.dumps(texts, sort_keys=True, default=str).encode()).digest()
