"""Attempts of a recorded run: claimed by rank 0, joined by the others, continued from checkpoints."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.errors import ConfigError, LedgerError, UserError
from rewards.recording import positions, trainer

if TYPE_CHECKING:
    from rewards.ledger import Ledger
    from rewards.writer import Writer

Announce = Callable[["Ledger", "Writer", dict[str, Any] | None], None]

_log = logging.getLogger(__name__)


class Attempts:
    """The ledger, and this process's writer in the attempt that is under way."""

    def __init__(
        self,
        ledger: "str | os.PathLike[str] | Ledger",
        run_id: str,
        names: Mapping[str, str | None],
        resume: str | os.PathLike[str] | None,
    ) -> None:
        """names: `arm` and `pipeline_id`, where given. resume: the checkpoint's folder, where the user names it."""
        self.run_id = run_id
        self.rank, self.world = 0, 1
        self._ledger: Ledger | None = None
        self._path: Path | None = None
        if isinstance(ledger, str | os.PathLike):
            self._path = Path(ledger)
        else:
            self._ledger = ledger
        self._names = names
        self._resume = None if resume is None else Path(resume)
        self._writer: Writer | None = None

    @property
    def open(self) -> bool:
        """Whether an attempt is under way."""
        return self._writer is not None and not self._writer.closed

    @property
    def writer(self) -> "Writer":
        """This process's writer. Raises: LedgerError outside an attempt."""
        if self._writer is None or self._writer.closed:
            raise LedgerError(f"run `{self.run_id}` is not being recorded: its recorder was closed")
        return self._writer

    def claim(self, state: Any, arguments: Any, announce: Announce) -> None:
        """Claims the next attempt on rank 0, the others join it. An attempt of this process is closed before.

        state: the trainer's, where training begins or continues; None where rewards are asked for outside training.
        announce: writes the events of the start.
        Raises: LedgerError, on all ranks, where the ledger or the checkpoint refuses.
        """
        if self._writer is not None:
            self._writer.close()
        self.rank, self.world = trainer.ranks()
        claimed: tuple[int | None, str | None] = (None, None)
        if self.rank == 0:
            # A failure here must end all ranks, not leave the others waiting.
            try:
                claimed = (self._claim_first(state, arguments, announce), None)
            except UserError as error:
                if self.world == 1:
                    raise
                claimed = (None, str(error))
        number, failure = trainer.shared(claimed)
        if failure is not None:
            raise LedgerError(failure)
        if self.rank > 0:
            self._writer = self._opened().writer(self.run_id, writer=self.rank, attempt=number)

    def _claim_first(self, state: Any, arguments: Any, announce: Announce) -> int:
        ledger = self._opened()
        before = next((run["sessions"] for run in ledger.runs() if run["run_id"] == self.run_id), 0)
        position = None if state is None else self._position(ledger, int(state.global_step), state, arguments)
        if before and state is None:
            raise LedgerError(
                f"run `{self.run_id}` has {before} sessions on record, which an evaluation outside its training would "
                "replace; give another run_id, or evaluate when training has begun"
            )
        if before and position is None:
            _log.warning(
                "run `%s` starts from the beginning: the %d sessions that it has on record no longer count; give "
                "another run_id to keep both",
                self.run_id,
                before,
            )
        self._writer = ledger.writer(self.run_id, resume=position, **self._names)  # type: ignore[arg-type]
        announce(ledger, self._writer, position)
        return self._writer.attempt

    def _position(self, ledger: "Ledger", step: int, state: Any, arguments: Any) -> dict[str, Any] | None:
        if step == 0:
            if self._resume is not None:
                raise ConfigError(
                    f"resume={str(self._resume)!r}, and training starts from the beginning; pass "
                    "trainer.train(resume_from_checkpoint=...), or leave resume out"
                )
            return None
        folder = self._resume or positions.resumed_folder(state, arguments, self._recorded_folders(ledger, step))
        position = positions.read_position(folder)
        if position.get("run_id") != self.run_id:
            raise LedgerError(
                f"{folder}: is a checkpoint of run `{position.get('run_id')}`; give Recorder that run_id to continue it"
            )
        if position.get("step") != step:
            raise LedgerError(f"{folder}: is of step {position.get('step')}, and training continues after step {step}")
        return position

    def _recorded_folders(self, ledger: "Ledger", step: int) -> Iterable[str]:
        if self.run_id not in [run["run_id"] for run in ledger.runs()]:
            return []
        events = ledger.events(self.run_id, kind="checkpoint", live=False)
        return [e["payload"]["path"] for e in reversed(events) if e["step"] == step and e["payload"].get("path")]

    def _opened(self) -> "Ledger":
        if self._ledger is None:
            from rewards.ledger import Ledger

            assert self._path is not None
            self._ledger = Ledger.open(self._path, create=True)
        return self._ledger

    def payloads(self, kind: str) -> list[dict[str, Any]]:
        """What the attempts before this one have announced of a kind, where it still counts."""
        if self.rank > 0 or self.writer.resume_step is None:
            return []
        return [event["payload"] for event in self._opened().events(self.run_id, kind=kind)]

    def checkpoint(self, step: int, folder: Path | None) -> None:
        """Flushes all ranks; rank 0 records the checkpoint and puts the position into its folder."""
        writer = self.writer
        writer.flush()
        trainer.everyone()
        if self.rank > 0:
            return
        there = folder is not None and folder.is_dir()
        position = writer.checkpoint(step, path=str(folder) if there else None)
        if there:
            assert folder is not None
            positions.write_position(folder, self._opened().path, position)
        else:
            _log.warning(
                "the trainer's checkpoint of step %d is not at %s: the run cannot be resumed there", step, folder
            )

    def close(self) -> None:
        """Closes the writer. Raises: LedgerError when something could not be written."""
        if self._writer is not None:
            self._writer.close()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Keys whose values differ between two configurations: {key: [old, new]}."""
    keys = sorted(set(old) | set(new))
    changed = {key: [old.get(key), new.get(key)] for key in keys}
    return {key: pair for key, pair in changed.items() if json.dumps(pair[0]) != json.dumps(pair[1])}


def previous_configuration(ledger: "Ledger", run_id: str, attempt: int) -> dict[str, Any] | None:
    """The configuration that an attempt of the run was started with."""
    for event in ledger.events(run_id, kind="attempt_started", live=False):
        if event["attempt"] == attempt:
            found = event["payload"].get("config")
            return found if isinstance(found, dict) else None
    return None
