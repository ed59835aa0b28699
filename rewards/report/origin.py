"""Where a record came from, when that is the reason for what it does not hold."""

from collections.abc import Mapping, Sequence
from typing import Any

Event = Mapping[str, Any]


def reasons(events: Sequence[Event]) -> dict[str, str]:
    """Column -> why the newest start of the run says that it is null, for records made from another trainer."""
    for event in reversed(events):
        if event["kind"] == "attempt_started":
            found = dict(event["payload"].get("not_recorded") or {})
            for sentence in _imported(event):
                if "KL" in sentence:
                    found.setdefault("kl_nats", sentence)
            return found
    return {}


def sentences(events: Sequence[Event]) -> list[str]:
    """The same for people: what the record cannot hold, columns of one reason together."""
    together: dict[str, list[str]] = {}
    for column, reason in reasons(events).items():
        together.setdefault(reason, []).append(column)
    imported = [sentence for event in events if event["kind"] == "attempt_started" for sentence in _imported(event)]
    found = [
        f"Not on record: {', '.join(columns)} ({why})." for why, columns in together.items() if why not in imported
    ]
    return found + [f"Imported files cannot hold everything: {sentence}." for sentence in dict.fromkeys(imported)]


def _imported(event: Event) -> list[str]:
    described = event["payload"].get("import")
    return list(described.get("cannot_contain") or ()) if isinstance(described, Mapping) else []
