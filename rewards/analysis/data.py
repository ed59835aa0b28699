"""One run as arrays: what every analysis reads, column by column, from a ledger or from a table.

A ledger's columns are fetched when they are asked for and put at their session's place, so that a run of ten million
sessions is never held whole, never sorted, and its texts are read only where somebody looks at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rewards.analysis.sources import LedgerSource, TableSource
from rewards.errors import LedgerError
from rewards.runs import ONLINE, pipeline_kinds, unknown_run
from rewards.schema import BY_NAME

if TYPE_CHECKING:
    from rewards.ledger import Ledger

Floats = NDArray[np.float64]
Event = Mapping[str, Any]

# Columns of a run that are kept for the next section that asks; more of them are read again.
KEPT_BYTES = 1 << 29


class Source(Protocol):
    """Where columns come from. Shapes: one value a session, in session order."""

    def numbers(self, name: str) -> Floats:
        """A numeric or boolean column; NaN is null."""

    def component(self, name: str, field: str) -> Floats:
        """One field of one component; NaN where it is absent or null."""

    def roles(self) -> dict[str, str]:
        """Name -> role of every component that some session carries."""

    def labels(self, name: str) -> list[str | None]:
        """A text column."""

    def codes(self, name: str) -> NDArray[np.int64]:
        """Equal numbers for equal values of a text column, from 0; -1 is null."""

    def named(self, name: str) -> tuple[NDArray[np.int16], tuple[str, ...]]:
        """A text column of few values as codes into the sorted values; -1 is null."""

    def texts(self, first: int, last: int, column: str) -> list[str | None]:
        """Texts of sessions first..last."""

    def part(self, first: int, last: int, numbers: Sequence[str], label: str) -> tuple[list[Floats], NDArray[np.int64]]:
        """Numbers of sessions first..last, and a text column of them as `codes` gives it."""


@dataclass(frozen=True)
class RunData:
    """The live train sessions of one run, in session order, and the run's live events.

    Shapes: steps, codes: one value a session; index i is session i + 1. codes: into names, -1 is null.
    """

    run_id: str
    pipeline: str | None
    steps: NDArray[np.int64]
    codes: NDArray[np.int16]
    names: tuple[str, ...]
    events: Sequence[Event]
    source: Source = field(repr=False)
    _kept: dict[tuple[str, str], Floats] = field(default_factory=dict, repr=False)

    @property
    def sessions(self) -> int:
        """How many train sessions count."""
        return len(self.steps)

    @property
    def online(self) -> bool:
        """Whether a session is an answer of the policy itself."""
        return self.pipeline in ONLINE

    def column(self, name: str) -> Floats:
        """A numeric or boolean column of the sessions; all NaN where no row has it. Units: as in the schema."""
        return self._keep(("column", name), lambda: self.source.numbers(name))

    def component(self, name: str, field: str = "raw") -> Floats:
        """One field (raw, value, weight) of one component; NaN where it is absent or null."""
        return self._keep((field, name), lambda: self.source.component(name, field))

    @cached_property
    def component_roles(self) -> dict[str, str]:
        """Name -> optimised, observed or gold, sorted by name."""
        return dict(sorted(self.source.roles().items()))

    def labels(self, name: str) -> list[str | None]:
        """A text column of all sessions."""
        return self.source.labels(name)

    def codes_of(self, name: str) -> NDArray[np.int64]:
        """Equal numbers for equal values of a text column; -1 is null."""
        return self.source.codes(name)

    def named(self, name: str) -> tuple[NDArray[np.int16], tuple[str, ...]]:
        """A text column of few values (classification, schedule_version): codes into the sorted values; -1 is null."""
        return self.source.named(name)

    def texts(self, first: int, last: int, column: str = "response") -> list[str | None]:
        """Texts of sessions first..last. Raises: ValueError unless 1 <= first <= last <= sessions."""
        if not 1 <= first <= last <= self.sessions:
            raise ValueError(f"sessions {first} to {last}: the run has 1 to {self.sessions}")
        return self.source.texts(first, last, column)

    def part(self, first: int, last: int, numbers: Sequence[str], label: str) -> tuple[list[Floats], NDArray[np.int64]]:
        """Columns of numbers of sessions first..last, and equal numbers for equal values of a text column.

        Shapes: one value a session of the part; NaN and -1 are null. Reads nothing outside it.
        Raises: ValueError unless 1 <= first <= last <= sessions.
        """
        if not 1 <= first <= last <= self.sessions:
            raise ValueError(f"sessions {first} to {last}: the run has 1 to {self.sessions}")
        return self.source.part(first, last, numbers, label)

    def of_kind(self, *kinds: str) -> list[Event]:
        """The run's events of the given kinds, in their order."""
        return [event for event in self.events if event["kind"] in kinds]

    def _keep(self, key: tuple[str, str], read: Any) -> Floats:
        if key not in self._kept:
            values: Floats = read()
            while self._kept and sum(v.nbytes for v in self._kept.values()) + values.nbytes > KEPT_BYTES:
                del self._kept[next(iter(self._kept))]
            values.flags.writeable = False
            self._kept[key] = values
        return self._kept[key]

    @classmethod
    def of_table(cls, table: pa.Table, events: Sequence[Event] = (), run_id: str = "run") -> RunData:
        """From a table of train sessions in session order."""
        steps = np.asarray(table["step"].to_numpy(zero_copy_only=False), dtype=np.int64)
        source = TableSource(table)
        codes, names = source.named("category")
        pipeline = table["pipeline"][0].as_py() if "pipeline" in table.column_names and table.num_rows else None
        if pipeline is None:
            pipeline = pipeline_kinds(events).get(run_id)
        return cls(run_id, pipeline, steps, codes, names, list(events), source)

    @classmethod
    def of_columns(
        cls,
        run_id: str,
        steps: Sequence[int] | NDArray[np.int64],
        categories: Sequence[str | None],
        columns: Mapping[str, Any],
        events: Sequence[Event] = (),
        texts: Mapping[str, Sequence[str | None]] | None = None,
        pipeline: str | None = "grpo",
    ) -> RunData:
        """From arrays; NaN is null. Raises: ValueError for arrays of different lengths."""
        fields: dict[str, Any] = {"step": np.asarray(steps, dtype=np.int64), "category": list(categories)}
        for name, values in (dict(columns) | dict(texts or {})).items():
            kind = BY_NAME[name].type if name in BY_NAME and pa.types.is_string(BY_NAME[name].type) else None
            fields[name] = pa.array(values, type=kind, from_pandas=True) if name != "components" else pa.array(values)
        if len({len(values) for values in fields.values()}) > 1:
            raise ValueError("arrays of different lengths")
        made = cls.of_table(pa.table(fields), events, run_id)
        return cls(run_id, pipeline, made.steps, made.codes, made.names, made.events, made.source)

    @classmethod
    @contextmanager
    def read(cls, ledger: Ledger, run_id: str) -> Iterator[RunData]:
        """One run of a ledger, as of now; usable inside the `with` block.

        Raises: LedgerError for an unknown run, or naming the file that cannot be read.
        """
        runs = ledger.runs()
        if run_id not in [run["run_id"] for run in runs]:
            raise LedgerError(unknown_run(run_id, runs))
        events = ledger.events(run_id)
        with LedgerSource.open(ledger, run_id) as source:
            steps = source.steps()
            codes, names = source.named("category")
            pipeline = source.pipeline() or pipeline_kinds(events).get(run_id)
            yield cls(run_id, pipeline, steps, codes, names, events, source)
