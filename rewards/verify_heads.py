"""What was handed out: the heads that checkpoints recorded and the anchors that people keep, against the history."""

from dataclasses import dataclass, field
from typing import Any

from rewards import events
from rewards.chain import EVENTS_CHAIN, chain_name, ledger_head


@dataclass
class History:
    """What was recomputed.

    problems: the first misfit of every chain. heads: chain -> last head, as stored. known: chain -> {last seq: head}
    of the commits that fit, the start included. commits: (time, chain, head) of all that fit.
    """

    problems: list[str] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)
    known: dict[str, dict[int, str]] = field(default_factory=dict)
    commits: list[tuple[int, str, str]] = field(default_factory=list)


def check_checkpoints(stored: list[events.Event], history: History) -> None:
    """Every place and head that a checkpoint recorded occurs in the chains."""
    heads = {chain: set(known.values()) for chain, known in history.known.items()}
    for event in stored:
        content = _checkpoint(event)
        for writer, place in content["positions"].items():
            name = chain_name(event.run_id, event.attempt or 0, int(writer))
            if history.known.get(name, {}).get(place["seq"]) != place["head"]:
                history.problems.append(
                    f"run {event.run_id}, attempt {event.attempt}, writer {writer}, step {event.step}: rows up to seq "
                    f"{place['seq']}, on record at the checkpoint, are gone or others"
                )
                return
        lost = sorted(name for name, head in content["heads"].items() if head not in heads.get(name, ()))
        if lost:
            history.problems.append(
                f"run {event.run_id}, attempt {event.attempt}, step {event.step}: rows of {lost[0]} "
                "(run/attempt/writer), on record at the checkpoint, are gone or others"
            )
            return


def check_anchor(anchor: str, head: str, stored: list[events.Event], history: History) -> None:
    """The anchor occurs in the history."""
    if not _occurs(anchor.strip().lower(), head, stored, history):
        history.problems.append(
            f"the anchor {anchor} occurs nowhere in the history of this ledger: it is another ledger's, or this one "
            "was rewritten or cut since"
        )


def _checkpoint(event: events.Event) -> dict[str, Any]:
    """What a checkpoint recorded of the chains; nothing for other events, and for those that trainers wrote."""
    content = event.content() if event.kind == "checkpoint" else {}
    return content if "heads" in content else {"positions": {}, "heads": {}}


def _occurs(anchor: str, head: str, stored: list[events.Event], history: History) -> bool:
    """Whether a head was this ledger's, or one of its chains', now or at some time before."""
    if anchor == head or any(anchor == commit[2] for commit in history.commits):
        return True
    for event in stored:
        heads = _checkpoint(event)["heads"]
        if heads and anchor == ledger_head(heads | {EVENTS_CHAIN: event.hash}):
            return True
    latest: dict[str, int] = {}
    timed = []
    for order, (time, chain, chain_head) in enumerate(history.commits):
        latest[chain] = max(time, latest.get(chain, 0))  # a clock that was set back does not reorder a chain
        timed.append((latest[chain], order, chain, chain_head))
    heads = {}
    for _, _, chain, chain_head in sorted(timed):
        heads[chain] = chain_head
        if anchor == ledger_head(heads):
            return True
    return False
