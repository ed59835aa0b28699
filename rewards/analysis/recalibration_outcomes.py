"""What a recalibration is compared on: its place among the events of the run, its controls, and the outcomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.analysis.data import RunData
from rewards.analysis.event_bins import Design, Floats, Place, Values
from rewards.analysis.recalibrations import of_kind, session_after_step
from rewards.text import fold

Event = Mapping[str, Any]

WHOLE_TEXTS = 20_000  # a run of at most so many sessions is read whole for a phrase
DRIFT_WINDOWS = 3
MOST_WITHHELD = 10


@dataclass(frozen=True)
class Outcome:
    """name: compliant, or phrase: and the phrase. anywhere: whether all of the run can be asked at little cost."""

    name: str
    label: str
    values: Values
    anywhere: bool = True


@dataclass(frozen=True)
class Moment:
    """A recalibration in its run. Units: sessions, counted from 0.

    place: with its window, cut at other recalibrations of the category. earliest: where the drift before it may be
    read from. treated, controls: codes of categories. own: places of all recalibrations of the category. withheld:
    triggers of the category on which nothing was done, far from them.
    """

    place: Place
    earliest: int
    treated: int
    controls: list[int]
    triggered: bool
    own: list[int]
    withheld: list[Place]


def compliance(data: RunData) -> Outcome:
    """Whether the session was compliant."""
    compliant = data.column("compliant")
    return Outcome("compliant", "compliance", lambda start, stop: compliant[start:stop])


class Texts:
    """Which responses hold a phrase; each response is read once for a run of moderate length."""

    def __init__(self, data: RunData) -> None:
        self._data = data
        self._held: tuple[int, int, list[str | None]] | None = None

    @property
    def whole(self) -> bool:
        """Whether the whole run is read."""
        return self._data.sessions <= WHOLE_TEXTS

    def outcome(self, phrase: str) -> Outcome:
        """1 where the response holds the phrase, whatever the letter case; NaN without a text."""
        needle = fold(phrase)

        def values(start: int, stop: int) -> Floats:
            found = self._read(start, stop)
            return np.array([np.nan if text is None else float(needle in text) for text in found], dtype=np.float64)

        return Outcome(f"phrase: {phrase}", f"the phrase “{phrase}”", values, self.whole)

    def _read(self, start: int, stop: int) -> list[str | None]:
        if stop <= start:
            return []
        if self._held is None or not (self._held[0] <= start and stop <= self._held[1]):
            low, high = (0, self._data.sessions) if self.whole else (start, stop)
            texts = self._data.texts(low + 1, high)
            self._held = low, high, [None if text is None else fold(text) for text in texts]
        low, _, held = self._held
        return held[start - low : stop - low]


class Timeline:
    """The recalibrations of a run and the triggers on which nothing was done, as places among its sessions."""

    def __init__(self, data: RunData, design: Design) -> None:
        self._data, self._design = data, design
        self.recalibrations = of_kind(data.events, "recalibration")
        self._places: dict[str, list[int]] = {}
        for event in self.recalibrations:
            at, category = self.at(event), event["payload"].get("category")
            if at is not None and category is not None:
                self._places.setdefault(category, []).append(at)
        others = of_kind(data.events, "mixture_changed", "config_changed", "reference_synced")
        self._changes = [
            change for event in (*self.recalibrations, *others) if (change := self._change(event)) is not None
        ]
        self._withheld: dict[str, list[Event]] = {}
        self._phrases: dict[str, dict[str, None]] = {}
        for event in of_kind(data.events, "trigger_evaluated", "recalibration"):
            payload = event["payload"]
            phrase = (payload.get("trigger") or {}).get("phrase")
            if phrase:
                self._phrases.setdefault(payload.get("category"), {}).setdefault(phrase)
            if event["kind"] == "trigger_evaluated" and payload.get("applied") is False:
                self._withheld.setdefault(payload.get("category"), []).append(event)

    def at(self, event: Event) -> int | None:
        """Sessions scored before the event acts, which is from the step after its own on."""
        return session_after_step(self._data.steps, event.get("step"))

    def phrases(self, category: str) -> list[str]:
        """Every phrase that some trigger watched in a category, whether or not it led to anything."""
        return list(self._phrases.get(category, {}))

    def moment(self, event: Event) -> Moment | str:
        """Where and against what a recalibration is compared; or why it cannot be.

        The window ends at other recalibrations of the category; categories that were changed in it are no controls.
        """
        at, category = self.at(event), event["payload"].get("category")
        if at is None or category is None:
            return "the event names no step or no category"
        if category not in self._data.names:
            return f"no session of category {category} is on record"
        if not 0 < at < self._data.sessions:
            return "the run has no sessions on one side of the event"
        own = self._places[category]
        earliest = max(0, at - DRIFT_WINDOWS * self._design.window, *(other for other in own if other < at))
        start, stop, controls = self._against(category, at, own)
        return Moment(
            place=Place(at, start, stop, *self._gaps(event, at)),
            earliest=earliest,
            treated=self._data.names.index(category),
            controls=[self._data.names.index(name) for name in controls],
            triggered=bool(event["payload"].get("trigger")),
            own=own,
            withheld=self._placebos(category, own),
        )

    def _against(self, category: str, at: int, own: Sequence[int]) -> tuple[int, int, list[str]]:
        """First and last session of the window, and the categories that were left alone in it.

        The window is halved once where every other category was changed in it.
        """
        others = [name for name in self._data.names if name != category]
        start = stop = at
        for window in (self._design.window, self._design.window // 2):
            start = max(0, at - window, *(other for other in own if other < at))
            stop = min(self._data.sessions, at + window, *(other for other in own if other > at))
            low, high = start, stop
            quiet = [name for name in others if not any(low < there < high for there in self._places.get(name, []))]
            if quiet:
                return start, stop, quiet
        return start, stop, []

    def _gaps(self, event: Event, at: int) -> tuple[int, int]:
        """What is left out beside a triggered event: its window and as much again before it, and as much after it.

        The window was picked for being high, and what made it high may outlive it.
        """
        trigger = event["payload"].get("trigger")
        if not trigger:
            return 0, 0
        evidence = event["payload"].get("evidence") or {}
        first, n = evidence.get("first_session_step"), evidence.get("n") or trigger.get("n")
        if first is not None:
            window = at - int(np.searchsorted(self._data.steps, first, side="left"))
        elif n is not None:
            code = self._data.names.index(event["payload"]["category"])
            reach = max(0, at - self._design.window)
            mine = np.flatnonzero(self._data.codes[reach:at] == code)
            window = at - reach - int(mine[-n]) if len(mine) >= n else at - reach
        else:
            window = 0
        return 2 * window, window

    def _placebos(self, category: str, own: Sequence[int]) -> list[Place]:
        """Withheld triggers a window away from the category's recalibrations and from each other."""
        window, found = self._design.window, list[Place]()
        for event in self._withheld.get(category, []):
            at = self.at(event)
            if at is None or not 0 < at < self._data.sessions or len(found) == MOST_WITHHELD:
                continue
            if all(abs(at - other) >= window for other in [*own, *(place.at for place in found)]):
                stop = min(self._data.sessions, at + window)
                found.append(Place(at, max(0, at - window), stop, *self._gaps(event, at)))
        return found

    def nearby(self, event: Event, within: int) -> list[str]:
        """Other changes close enough to share the window of a recalibration."""
        at, found = self.at(event), []
        for there, other in self._changes:
            if at is None or other is event or abs(there - at) >= within:
                continue
            name = other["payload"].get("category")
            found.append(f"{other['kind'].replace('_', ' ')}{f' of {name}' if name else ''} at session {there:,}")
        return found

    def _change(self, event: Event) -> tuple[int, Event] | None:
        """A change of the run with the sessions scored before it acts; a mixture says itself from which step."""
        begins = event["payload"].get("from_step")
        at = self.at(event) if begins is None else session_after_step(self._data.steps, begins - 1)
        return None if at is None else (at, event)
