"""What a report is made of: one run's live sessions, its pipeline's events, and what the ledger says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rewards.analysis import forks
from rewards.errors import LedgerError
from rewards.runs import ONLINE, choose_run, pipeline_kinds, unknown_run

if TYPE_CHECKING:
    from rewards.ledger import Ledger


@dataclass(frozen=True)
class Record:
    """Everything a report reads.

    sessions: live rows of the run, train rows first and in session order, with texts; events: live events of all runs
    of its pipeline; runs: one entry for every run of the ledger; superseded: rows of the run that no longer count;
    forks: what forks of the run showed.
    """

    run_id: str
    sessions: pa.Table
    events: Sequence[Mapping[str, Any]]
    runs: Sequence[Mapping[str, Any]]
    head: str | None = None
    verified: bool | None = None
    first_bad: str | None = None
    superseded: int | None = None
    forks: Mapping[str, Any] | None = None
    train: pa.Table = field(init=False)
    steps: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Raises: LedgerError when the run is not among the runs."""
        if self.run_id not in [run["run_id"] for run in self.runs]:
            raise LedgerError(unknown_run(self.run_id, self.runs))
        split = self.sessions["split"]
        object.__setattr__(self, "train", self.sessions.filter(pc.equal(split, "train")).combine_chunks())
        steps = np.asarray(self.train["step"].to_numpy(zero_copy_only=False), dtype=np.int64)
        object.__setattr__(self, "steps", steps)

    @property
    def run(self) -> Mapping[str, Any]:
        """The run's entry."""
        return next(run for run in self.runs if run["run_id"] == self.run_id)

    @property
    def pipeline_runs(self) -> list[Mapping[str, Any]]:
        """The runs of the same pipeline in the order in which they came; the run alone where it names no pipeline."""
        name = self.run.get("pipeline_id")
        return [run for run in self.runs if run is self.run or (name is not None and run.get("pipeline_id") == name)]

    @property
    def pipeline(self) -> str | None:
        """Kind of training: sft, reward, dpo, grpo, ... None for a run without sessions and without a start."""
        if self.train.num_rows:
            kind: str = self.train["pipeline"][0].as_py()
            return kind
        return pipeline_kinds(self.events).get(self.run_id)

    @property
    def online(self) -> bool:
        """Whether a session is an answer of the policy itself."""
        return self.pipeline in ONLINE


def read_record(ledger: Ledger, run_id: str | None = None) -> Record:
    """Reads a run of a ledger, and verifies the whole ledger.

    Raises: LedgerError for an unknown run or a ledger without runs.
    """
    runs = ledger.runs()
    if run_id is None:
        run_id = choose_run(runs, pipeline_kinds(ledger.events(kind="attempt_started")))
    if run_id not in [run["run_id"] for run in runs]:
        raise LedgerError(unknown_run(run_id, runs))
    verification = ledger.verify()
    sessions = ledger.sessions(run_id, live=True, texts=True)
    record = Record(run_id, sessions, [], runs)
    # A run of one attempt has superseded nothing, so its rows need not be read twice.
    resumed = record.run["attempts"] > 1
    superseded = ledger.sessions(run_id, live=False).num_rows - sessions.num_rows if resumed else 0
    events = [event for run in record.pipeline_runs for event in ledger.events(run["run_id"], live=True)]
    return Record(
        run_id,
        sessions,
        events,
        runs,
        head=verification.head,
        verified=verification.ok,
        first_bad=verification.first_bad,
        superseded=superseded,
        forks=forks.section(ledger, run_id),
    )
