"""Attempts and what they continue from; which rows and events count.

A row or event of run R is live iff its attempt lies on the path of parents from R's newest attempt, and its step is
at most the resume step of every later attempt on that path. A fork is the first attempt of another run on such a
path: it takes nothing away from its parent and its view holds no row of the parent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

from rewards.errors import LedgerError


@dataclass(frozen=True)
class Place:
    """A writer's place in its chain: the last row (0 before the first) and the head after it."""

    seq: int
    head: str


@dataclass(frozen=True)
class Attempt:
    """One process lifetime of a run.

    id: unique in the ledger, counted from 1 in order of claims. number: unique in the run. parent: id of the attempt
    it continues from. resume_step, places: where it continues. Units: started in microseconds since 1970.
    """

    id: int
    run_id: str
    number: int
    parent: int | None
    resume_step: int | None
    arm: str | None
    pipeline_id: str | None
    places: Mapping[int, Place]
    started: int

    def payload(self) -> dict[str, Any]:
        """What the claim's event says."""
        return {
            "id": self.id,
            "parent": self.parent,
            "resume_step": self.resume_step,
            "arm": self.arm,
            "pipeline_id": self.pipeline_id,
            "positions": places_payload(self.places),
        }

    @classmethod
    def from_payload(cls, run_id: str, number: int, started: int, payload: Mapping[str, Any]) -> "Attempt":
        """The attempt that a claim's event speaks of."""
        return cls(
            id=payload["id"],
            run_id=run_id,
            number=number,
            parent=payload["parent"],
            resume_step=payload["resume_step"],
            arm=payload["arm"],
            pipeline_id=payload["pipeline_id"],
            places={int(w): Place(**place) for w, place in payload["positions"].items()},
            started=started,
        )


def places_payload(places: Mapping[int, Place]) -> dict[str, dict[str, Any]]:
    """Places as they stand in positions and events: plain JSON, writers as text."""
    return {str(writer): {"seq": place.seq, "head": place.head} for writer, place in sorted(places.items())}


@dataclass(frozen=True)
class Position:
    """A checkpoint's position, as `Writer.checkpoint` hands it out."""

    run_id: str
    attempt: int
    step: int
    places: Mapping[int, Place]
    event_head: str

    @classmethod
    def read(cls, position: Any) -> "Position":
        """The position in a dict that went through JSON or not.

        Raises: LedgerError when the dict is not one that a checkpoint handed out.
        """
        try:
            return cls(
                run_id=str(position["run_id"]),
                attempt=index(position["attempt"]),
                step=index(position["step"]),
                places={int(w): Place(index(p["seq"]), str(p["head"])) for w, p in position["positions"].items()},
                event_head=str(position["event_head"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LedgerError(
                f"not a position of a ledger ({type(error).__name__}: {error}); pass what Writer.checkpoint returned"
            ) from error


class Lineage:
    """All attempts of a ledger."""

    def __init__(self, attempts: Iterable[Attempt]) -> None:
        self.by_id = {attempt.id: attempt for attempt in attempts}
        self.runs: dict[str, dict[int, Attempt]] = {}
        for attempt in self.by_id.values():
            self.runs.setdefault(attempt.run_id, {})[attempt.number] = attempt

    def newest(self, run_id: str) -> Attempt | None:
        """The newest attempt of a run."""
        numbers = self.runs.get(run_id)
        return numbers[max(numbers)] if numbers else None

    def path(self, attempt: Attempt, limit: int | None = None) -> dict[int, int | None]:
        """From an attempt back through its parents: attempt id -> highest live step; None where every step is live."""
        live: dict[int, int | None] = {}
        here: Attempt | None = attempt
        while here is not None:
            live[here.id] = limit
            if here.parent is None:
                break
            if here.resume_step is not None:
                limit = here.resume_step if limit is None else min(limit, here.resume_step)
            # A parent is always older; an edited ledger must not send us round in circles.
            here = self.by_id.get(here.parent) if here.parent < here.id else None
        return live

    def last_rows(self, run_id: str) -> dict[int, Mapping[int, Place] | None]:
        """The run's own attempts that count: attempt id -> where its writers were when it was continued.

        None where it was not: all its rows count. Whatever a writer of a continued attempt wrote after that checkpoint
        counts no more, at whichever step: its process was thought dead.
        """
        newest = self.newest(run_id)
        found: dict[int, Mapping[int, Place] | None] = {}
        after: Attempt | None = None
        for id in {} if newest is None else self.path(newest):
            here = self.by_id[id]
            if here.run_id == run_id:
                found[id] = None if after is None or after.run_id != run_id else after.places
            after = here
        return found

    def live(self, run_id: str) -> dict[int, int | None]:
        """The run's own attempts that count: attempt id -> highest live step; None where every step is live."""
        newest = self.newest(run_id)
        path = {} if newest is None else self.path(newest)
        return {id: limit for id, limit in path.items() if self.by_id[id].run_id == run_id}
