"""One rank's way into the ledger: rows go to the rank's own writer, events are written by the main rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rewards import Ledger
from rewards.errors import RunStopped, UserError


class SharedStop(RunStopped):
    """A stop that every rank comes to at the same point, so that one record of it is enough."""


class Recorder:
    """Rows, events and checkpoints of one attempt; nothing is opened and no attempt is claimed before `claim`."""

    def __init__(
        self,
        path: Path,
        run_id: str,
        accelerator: Accelerator,
        *,
        pipeline_id: str | None,
        resume: dict[str, Any] | None,
        fork_of: dict[str, Any] | None = None,
        arm: str | None = None,
    ) -> None:
        self.path, self.run_id, self.accelerator = path, run_id, accelerator
        self.pipeline_id, self.resume = pipeline_id, resume
        self.fork_of, self.arm = fork_of, arm
        self.ledger: Ledger | None = None
        self.writer: Any = None

    @property
    def claimed(self) -> bool:
        """Whether there is an attempt to record in."""
        return self.writer is not None

    def claim(self) -> None:
        """Opens the ledger, claims an attempt on the main rank and joins it on the others.

        Raises: UserError on all ranks where the ledger refuses.
        """
        accelerator = self.accelerator
        failure: str | None = None
        shared: list[Any] = [None, None]
        if accelerator.is_main_process:
            # A failure on one rank must end all of them, not leave the others waiting for it.
            try:
                self.ledger = Ledger.open(self.path, create=True)
                self.writer = self.ledger.writer(
                    self.run_id,
                    writer=0,
                    resume=self.resume,
                    fork_of=self.fork_of,
                    arm=self.arm,
                    pipeline_id=self.pipeline_id,
                )
                shared = [self.writer.attempt, None]
            except UserError as error:
                failure = str(error)
                shared = [None, failure]
        if accelerator.num_processes > 1:
            broadcast_object_list(shared)
        if shared[1] is not None:
            raise UserError(shared[1])
        if not accelerator.is_main_process:
            self.ledger = Ledger.open(self.path)
            self.writer = self.ledger.writer(self.run_id, writer=accelerator.process_index, attempt=shared[0])

    def rows(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Appends this rank's sessions of a step."""
        if rows:
            self.writer.append(step=step, rows=rows)

    def event(self, kind: str, payload: Mapping[str, Any], step: int | None = None) -> None:
        """Writes an event; the main rank's call counts."""
        if self.accelerator.is_main_process:
            self.writer.event(kind, dict(payload), step=step)

    def stopped(self, error: BaseException) -> None:
        """Records why the run ends here; on this rank's own account where the others do not know of it."""
        if not self.claimed or (isinstance(error, SharedStop) and not self.accelerator.is_main_process):
            return
        payload = {
            "reason": str(error) or type(error).__name__,
            "exit_code": getattr(error, "exit_code", 1),
            "rows": list(getattr(error, "rows", ())),
        }
        self.writer.event("stopped", payload, step=getattr(error, "step", None))
        self.writer.flush()

    def events(self, events: Iterable[tuple[str, Mapping[str, Any]]], step: int | None = None) -> None:
        """Several events of one step, in order."""
        for kind, payload in events:
            self.event(kind, payload, step)

    def evaluation_rows(self, step: int, rows: list[dict[str, Any]]) -> None:
        """This rank's evaluated answers; those that an attempt before left at the step of its checkpoint count once."""
        known: set[str] = set()
        if self._goes_on_from(step):
            assert self.ledger is not None
            there = self.ledger.sessions(self.run_id).select(["group_id", "split", "step"]).to_pylist()
            known = {row["group_id"] for row in there if row["split"] == "eval" and row["step"] == step}
        self.rows(step, [row for row in rows if row["group_id"] not in known])

    def evaluation(self, payload: Mapping[str, Any], step: int) -> None:
        """The figures of an evaluation, unless an attempt before left the same evaluation at this step."""
        if self._goes_on_from(step) and self.accelerator.is_main_process:
            assert self.ledger is not None
            for event in self.ledger.events(self.run_id, kind="evaluation"):
                there = event["payload"]
                if event["step"] == step and (there["suite"], there["when"]) == (payload["suite"], payload["when"]):
                    return
        self.event("evaluation", payload, step=step)

    def _goes_on_from(self, step: int) -> bool:
        # What is done after the last step is done at the step of the last checkpoint, and the ledger counts by steps.
        return self.resume is not None and self.resume["step"] == step

    def flush(self) -> None:
        """Everything handed over is durable when this returns."""
        self.writer.flush()

    def checkpoint(self, step: int, path: Path) -> dict[str, Any]:
        """Flushes every rank; the main rank records the checkpoint and returns the ledger's position."""
        self.writer.flush()
        self.accelerator.wait_for_everyone()
        return dict(self.writer.checkpoint(step=step, path=str(path))) if self.accelerator.is_main_process else {}

    def close(self) -> None:
        """Flushes and closes."""
        if self.writer is not None:
            self.writer.close()
        if self.ledger is not None:
            self.ledger.close()
