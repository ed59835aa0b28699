"""What people said of a run: how far they agree, where they are of two minds, and the dissent that stays on record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rewards.analysis.raters import alpha_estimate, dawid_skene, krippendorff, majority, two_camps
from rewards.counted import counted

if TYPE_CHECKING:
    from rewards.analysis.data import RunData

__all__ = ["dawid_skene", "krippendorff", "section"]

Floats = NDArray[np.float64]
Event = Mapping[str, Any]

FEWEST_ANNOTATORS = 3
FEWEST_ITEMS = 10
_NO_ONE = "nobody annotated this run: agreement cannot be told, and nothing was reviewed"


def section(data: RunData) -> dict[str, Any]:
    """Agreement of the annotators of a run, from its annotation and review events.

    An item is a session, a step or a range of sessions. Of each annotator the newest label of an item counts.
    Keys: annotators, items, labels, shared (items with two annotators or more), alpha (estimate, low, high, level, n,
    why), by_annotator (n, labels), dawid_skene (items, accuracies, differs, why), bimodal, disagreed (shared items
    without unanimity), reviews (closed, dissent_kept), why.
    """
    notes = [event for event in data.events if event["kind"] == "annotation"]
    reviews = _reviews(notes, [event for event in data.events if event["kind"] == "review"])
    table = _Table.of(notes)
    found: dict[str, Any] = {
        "annotators": len(table.annotators),
        "items": len(table.items),
        "labels": int((table.codes >= 0).sum()),
        "shared": int(table.shared.sum()),
        "alpha": alpha_estimate(table.ratings, table.level, np.random.default_rng(0)),
        "by_annotator": table.by_annotator(),
        "dawid_skene": _consensus(table),
        "bimodal": _bimodal(table),
        "disagreed": sum(len(votes) > 1 for votes in table.votes()),
        "reviews": reviews,
    }
    return found | {"why": None if notes else _NO_ONE}


@dataclass(frozen=True)
class _Table:
    """Labels by annotator and item. codes: index into names, -1 none; ratings: the same, as numbers where they are."""

    annotators: list[str]
    items: list[str]
    names: list[str]
    level: str
    codes: NDArray[np.int64]
    ratings: Floats

    @classmethod
    def of(cls, notes: Sequence[Event]) -> _Table:
        """From annotation events in their order; those that their author superseded are left out."""
        gone = _superseded(notes)
        places: dict[tuple[Any, ...], str] = {}
        said: dict[tuple[str, tuple[Any, ...]], str] = {}
        for event in notes:
            payload = event["payload"]
            if payload.get("annotator") is None or payload.get("label") is None or event.get("seq") in gone:
                continue
            key, name = _item(event)
            places.setdefault(key, name)
            said[str(payload["annotator"]), key] = str(payload["label"])
        annotators = sorted({who for who, _ in said})
        numbers = {label: _as_number(label) for label in said.values()}
        numeric = bool(numbers) and None not in numbers.values()
        names = sorted(numbers, key=lambda label: (numbers[label] or 0.0, label) if numeric else (0.0, label))
        codes = np.full((len(annotators), len(places)), -1, dtype=np.int64)
        columns = {key: i for i, key in enumerate(places)}
        for (who, key), label in said.items():
            codes[annotators.index(who), columns[key]] = names.index(label)
        scale = np.array([numbers[name] if numeric else i for i, name in enumerate(names)], dtype=np.float64)
        ratings = np.where(codes >= 0, scale[np.maximum(codes, 0)] if len(scale) else np.nan, np.nan)
        whole = numeric and all(float(number or 0).is_integer() for number in numbers.values())
        level = "nominal" if not numeric else "ordinal" if whole else "interval"
        return cls(annotators, list(places.values()), names, level, codes, ratings)

    @property
    def shared(self) -> NDArray[np.bool_]:
        """Which items two annotators or more labelled."""
        return np.asarray((self.codes >= 0).sum(axis=0) >= 2)

    def votes(self) -> list[dict[str, int]]:
        """How often each label was given to each item; the distribution itself, not its mean."""
        found = []
        for column in self.codes.T:
            codes, counts = np.unique(column[column >= 0], return_counts=True)
            found.append({self.names[code]: int(count) for code, count in zip(codes, counts, strict=True)})
        return found

    def by_annotator(self) -> dict[str, Any]:
        """Per annotator how many items, and how often each label."""
        found = {}
        for who, row in zip(self.annotators, self.codes, strict=True):
            counts = np.bincount(row[row >= 0], minlength=len(self.names))
            labels = {name: int(count) for name, count in zip(self.names, counts, strict=True) if count}
            found[who] = {"n": int(counts.sum()), "labels": labels}
        return found


def _item(event: Event) -> tuple[tuple[Any, ...], str]:
    """Key and name of what a note is about; a session by its row, since a resume gives its number to another one."""
    payload = event["payload"]
    if payload.get("session") is not None:
        row = payload.get("row")
        key = tuple(sorted(row.items())) if isinstance(row, Mapping) else (payload["session"],)
        return ("session", *key), f"session {payload['session']}"
    if payload.get("sessions") is not None:
        ends = tuple(payload["sessions"])
        return ("sessions", *ends), "sessions " + " to ".join(str(end) for end in ends)
    step = payload.get("step", event.get("step"))
    return ("step", step), "the run" if step is None else f"step {step}"


def _as_number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _superseded(notes: Sequence[Event]) -> set[Any]:
    """Numbers of notes in whose place their own author wrote another one."""
    author = {event["seq"]: event["payload"].get("annotator") for event in notes if event.get("seq") is not None}
    return {
        event["payload"]["supersedes"]
        for event in notes
        if isinstance(event["payload"].get("supersedes"), int)
        and author.get(event["payload"]["supersedes"], object()) == event["payload"].get("annotator")
    }


def _consensus(table: _Table) -> dict[str, Any]:
    """One truth behind the labels, beside the labels: it is a reading of them and replaces none."""
    nothing: dict[str, Any] = {"items": [], "accuracies": {}, "differs": 0, "n": int(table.shared.sum())}
    kept = np.flatnonzero(table.shared)
    here = np.asarray((table.codes[:, kept] >= 0).any(axis=1))
    if here.sum() < FEWEST_ANNOTATORS or len(kept) < FEWEST_ITEMS or len(table.names) < 2:
        why = (
            f"{counted(int(here.sum()), 'annotator')}, {counted(len(kept), 'item')} in common: it needs "
            f"{FEWEST_ANNOTATORS} annotators, {FEWEST_ITEMS} shared items and two labels"
        )
        return nothing | {"why": why}
    codes = table.codes[here][:, kept]
    found = dawid_skene(codes, len(table.names))
    most, votes = majority(codes, len(table.names)), table.votes()
    items = []
    for place, item in enumerate(kept):
        best = int(found.posterior[place].argmax())
        row: dict[str, Any] = {"item": table.items[item], "votes": votes[item]}
        row["majority"] = table.names[most[place]] if most[place] >= 0 else None
        items.append(row | {"label": table.names[best], "probability": float(found.posterior[place, best])})
    names = [who for who, kept_row in zip(table.annotators, here, strict=True) if kept_row]
    counts = (codes >= 0).sum(axis=1)
    accuracies = {
        who: {"estimate": float(accuracy), "n": int(n)}
        for who, accuracy, n in zip(names, found.accuracy, counts, strict=True)
    }
    differs = sum(row["majority"] is not None and row["majority"] != row["label"] for row in items)
    return nothing | {"items": items, "accuracies": accuracies, "differs": differs, "why": None}


def _bimodal(table: _Table) -> list[dict[str, Any]]:
    """Items whose labels fall into two camps: shown with who said what, never as a mean."""
    known = table.ratings[np.isfinite(table.ratings)]
    spread = float(np.ptp(known)) if len(known) else None
    rows = []
    for i, votes in enumerate(table.votes()):
        column = table.ratings[:, i]
        camps = two_camps(column[np.isfinite(column)].tolist(), table.level, spread)
        if camps is None:
            continue
        said = {
            who: table.names[code] for who, code in zip(table.annotators, table.codes[:, i], strict=True) if code >= 0
        }
        sizes = [len(camp) for camp in camps]
        rows.append({"item": table.items[i], "votes": votes, "camps": sizes, "said": said, "n": len(said)})
    return rows


def _reviews(notes: Sequence[Event], reviews: Sequence[Event]) -> dict[str, Any]:
    """How many notes others agreed with, and every note over which they did not, to the letter.

    A note is closed by the newest word of every reviewer other than its author being `agree`; any other word keeps it.
    """
    gone = _superseded(notes)
    closed, dissent = 0, []
    for event in notes:
        payload = event["payload"]
        of_it = [r["payload"] for r in reviews if r["payload"].get("reviews") == event.get("seq")]
        words = {r.get("annotator"): r.get("label") for r in of_it if r.get("annotator") != payload.get("annotator")}
        if event.get("seq") in gone or not words:
            continue
        if set(words.values()) == {"agree"}:
            closed += 1
            continue
        dissent.append(
            {
                "event": event.get("seq"),
                "item": _item(event)[1],
                "annotator": payload.get("annotator"),
                "label": payload.get("label"),
                "note": payload.get("note"),
                "reviews": [{key: r.get(key) for key in ("annotator", "label", "note")} for r in of_it],
            }
        )
    open_notes = sum(event.get("seq") not in gone for event in notes) - closed - len(dissent)
    return {"n": len(reviews), "closed": closed, "unreviewed": open_notes, "dissent_kept": dissent}
