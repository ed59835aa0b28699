"""The recorder: one run's way from somebody else's trainer into a ledger."""

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rewards.errors import ConfigError, LedgerError, UserError
from rewards.recording import trainer
from rewards.recording.attempts import Attempts, differences, previous_configuration
from rewards.recording.batches import Batch, Batches
from rewards.recording.callback import LedgerCallback
from rewards.recording.functions import wrapped
from rewards.recording.groups import Groups
from rewards.recording.reward_set import RewardSet
from rewards.recording.rows import NOT_RECORDED, Place, checked_columns, rows_of

if TYPE_CHECKING:
    from rewards.ledger import Ledger
    from rewards.writer import Writer

_BEGINNING = SimpleNamespace(global_step=0)


class Recorder:
    """Records every completion that a trainer scores: `wrap` its reward functions, and give it `callback()`.

    ledger: a folder, made where there is none, or an open ledger. pipeline: kind of training, by default as TRL's
    configuration class is called. columns: {ledger column: field of the data set}, beside category, dataset_id,
    prompt_id and row_id, which are taken over by themselves unless they are None here. resume: the checkpoint's folder,
    where it cannot be found from what the trainer says. advantages: sessions wait for those that the trainer makes,
    until its next callback; a kill in that time loses them, and without, the column stays null.
    """

    def __init__(
        self,
        ledger: "str | os.PathLike[str] | Ledger",
        run_id: str,
        *,
        pipeline: str | None = None,
        pipeline_id: str | None = None,
        arm: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        resume: str | os.PathLike[str] | None = None,
        advantages: bool = False,
    ) -> None:
        self.split = "train"  # what batches are where neither trainer nor callback shows the model's mode
        self.attempts = Attempts(ledger, run_id, {"arm": arm, "pipeline_id": pipeline_id}, resume)
        self._pipeline, self._columns, self._advantages = pipeline, checked_columns(columns), advantages
        self._functions: RewardSet | None = None
        self._batches = Batches([], self._place, self._done)
        self._waiting: list[tuple[Batch, dict[str, Any]]] = []
        self._groups = Groups()
        self._model: Any = None
        self._state: Any = None
        self._arguments: Any = None
        self._agreed: Any = self  # the trainer whose functions and weights were compared; nobody yet
        self._training = self._closed = self._stopped = False
        self._last_step = 0
        self._lock = threading.RLock()

    def wrap(self, functions: Any, weights: Sequence[float] | None = None) -> list[Callable[..., Any]]:
        """The functions as the trainer is to get them: same order, same names, asynchronous where they were.

        weights: by default the trainer's `reward_weights`, else 1 each; where both are given they must agree.
        Raises: ConfigError for what is no function, for repeated names, for weights that do not fit.
        """
        if self._functions is not None:
            raise ConfigError("this recorder has its functions; a baseline reward is made of one set, wrapped together")
        self._functions = RewardSet(functions, weights)
        self._batches = Batches(self._functions.parts, self._place, self._done)
        return [wrapped(part, index, self._batches) for index, part in enumerate(self._functions.parts)]

    def callback(self) -> LedgerCallback:
        """The callback for the trainer: configuration, scalars, evaluations, checkpoints, and the end."""
        return LedgerCallback(self)

    def flush(self) -> None:
        """Every batch that all functions have scored is durable when this returns.

        Raises: LedgerError when something could not be written.
        """
        self.settle()
        if self.attempts.open:
            self.attempts.writer.flush()

    def close(self) -> None:
        """Writes what waits and closes the writer; nothing is scored any more. A ledger handed over stays open."""
        self._closed = True
        self._leave()

    def _leave(self) -> None:
        atexit.unregister(self._at_exit)
        if self.attempts.open:
            try:
                self._batches.leave()
                self.flush()
            finally:
                self.attempts.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None and not self._stopped and self.attempts.open:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._stop(reason, self._last_step)
        finally:
            self.close()

    def _stop(self, reason: str, step: int) -> None:
        """Records, on this rank's own account, why training ends here."""
        self._stopped = True
        self.attempts.writer.event("stopped", {"reason": reason, "exit_code": 1}, step=step)
        self.attempts.writer.flush()

    def _at_exit(self) -> None:
        try:
            self.close()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)

    # -- what the trainer says of itself: its callbacks come here ----------------------------------------------------

    def met(self, arguments: Any, model: Any, state: Any = None) -> None:
        """Remembers the trainer's arguments, its model, whose mode tells training from evaluation, and its state."""
        self._arguments = arguments if arguments is not None else self._arguments
        self._model = model if model is not None else self._model
        self._state = state if state is not None else self._state

    def begin_training(self, state: Any) -> None:
        """Training starts at the state's step: in an attempt of its own, unless none has trained in this one yet."""
        if not self.attempts.open or self._training or state.global_step > 0:
            self._claim(state)
        self._training = True

    def settle(self) -> None:
        """Writes the sessions that wait for their advantages, with those that the trainer has made by now."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            for batch, rows in waiting:
                place: Place = batch.place
                found = trainer.advantages(
                    place.trainer, batch.arguments["completions"], self.attempts.rank, self.attempts.world
                )
                # No schedule has acted, so the advantage without it is the same.
                rows |= {"advantage": found, "advantage_unadjusted": found}
                self.attempts.writer.append(place.step, rows)

    def event(self, kind: str, payload: Mapping[str, Any], step: int) -> None:
        """Records an event of the run; rank 0's call counts."""
        if self.attempts.open and self.attempts.rank == 0:
            self.attempts.writer.event(kind, payload, step=step)

    @property
    def evaluating(self) -> bool:
        """Whether the model that the callbacks have shown is in evaluation mode."""
        return trainer.training(self._model) is False

    # -- attempts ----------------------------------------------------------------------------------------------------

    def _claim(self, state: Any) -> None:
        self._check_open()
        self._leave()
        self._groups, self._training, self._stopped, self._agreed = Groups(), False, False, self
        self._last_step = 0 if state is None else int(state.global_step)
        self.attempts.claim(state, self._arguments, self._announce)
        atexit.register(self._at_exit)

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerError(
                f"run `{self.attempts.run_id}` is not being recorded: its recorder was closed; close it after the last "
                "evaluation"
            )

    def _announce(self, ledger: "Ledger", writer: "Writer", position: dict[str, Any] | None) -> None:
        step = 0 if position is None else position["step"]
        config = trainer.configuration(self._arguments)
        payload = {
            "stage": self.pipeline,
            "pipeline": self.pipeline,
            "config": config,
            "config_digest": trainer.digest(config),
            "model": getattr(getattr(self._model, "config", None), "_name_or_path", None) or None,
            "resume_step": None if position is None else step,
            "world_size": self.attempts.world,
            "versions": trainer.versions(),
            "recorded_by": "rewards.Recorder",
            "not_recorded": self._not_recorded(),
        }
        writer.event("attempt_started", payload, step=step)
        if position is None:
            return
        resumed = {"resume_step": step, "from_attempt": position["attempt"]}
        writer.event("resumed", resumed, step=step)
        before = previous_configuration(ledger, writer.run_id, position["attempt"])
        changed = differences(before, config) if before and config else {}
        if changed:
            writer.event("config_changed", {"keys": changed}, step=step)

    def _not_recorded(self) -> dict[str, str]:
        if self._functions is None:
            return {"sessions": "the trainer's reward functions, if it has any, were not wrapped"}
        return NOT_RECORDED if self._advantages else {**NOT_RECORDED, "advantage": "advantages=True was not asked for"}

    @property
    def pipeline(self) -> str:
        """Kind of training; `rl` where completions are scored and the trainer does not say what for."""
        unknown = "other" if self._functions is None else "rl"
        return self._pipeline or trainer.pipeline_of(self._arguments) or unknown

    # -- batches -----------------------------------------------------------------------------------------------------

    def _place(self, arguments: dict[str, Any], prompts: list[str]) -> Place:
        """Where a batch belongs, as its first call shows it."""
        self._check_open()
        found = trainer.trainer_of(arguments)
        mode = trainer.training(self._model if found is None else found.model)
        split = self.split if mode is None else "train" if mode else "eval"
        state = arguments.get("trainer_state") or self._state
        updates = getattr(state, "global_step", None)
        if not self.attempts.open:
            self._claim_late(found, state, split)
        self.settle()
        if found is not self._agreed:
            self._agree(found)
        if updates is None:  # without a trainer's state every training batch is a step
            self._last_step += split == "train"
            step = self._last_step
        else:
            step = updates + (split == "train")
            if split == "train" and step < self._last_step:
                raise LedgerError(
                    f"training went back from step {self._last_step} to step {step} unseen, and its sessions would "
                    "count twice; give the trainer callbacks=[recorder.callback()]"
                )
            self._last_step = max(self._last_step, step)
        size = trainer.generations(found or self._arguments, split)
        repeated = split == "eval" and step == (self.attempts.writer.resume_step or None)
        label = f"{split}-{step}" if not repeated else f"eval-{step}-attempt-{self.attempts.writer.attempt}"
        groups, size = self._groups.of(label.removeprefix("train-"), prompts, size, self.attempts)
        return Place(step, split, updates, groups, size, found)

    def _claim_late(self, found: Any, state: Any, split: str) -> None:
        """A function was called before the callback saw training begin, or there is no callback."""
        if found is not None:
            self.met(found.args, found.model)
        if getattr(state, "global_step", 0):
            raise LedgerError(
                f"training continues after step {state.global_step}, and which attempt of run `{self.attempts.run_id}` "
                "it continues is not known; give the trainer callbacks=[recorder.callback()]"
            )
        self._claim(_BEGINNING if split == "train" else None)

    def _agree(self, found: Any) -> None:
        assert self._functions is not None
        self._functions.agree(found, self._arguments if found is None else found.args)
        self._agreed = found
        known = self.attempts.payloads("scorer_registered")
        for payload in self._functions.registrations():
            if payload not in known:
                self.event("scorer_registered", payload, step=self._last_step)

    def _done(self, batch: Batch, problem: str | None) -> None:
        """A batch is whole, or will not become so: its sessions are recorded. problem: what happened, if known."""
        assert self._functions is not None
        place: Place = batch.place
        rows = rows_of(batch, self._functions, self.pipeline, self._columns, whole=problem is None)
        with self._lock:
            if problem is None and self._advantages and place.split == "train" and place.trainer is not None:
                self._waiting.append((batch, rows))
                return
            self.attempts.writer.append(place.step, rows)
        if problem:
            self.settle()
            self._stop(problem, place.step)


def recorded(
    functions: Any,
    ledger: "str | os.PathLike[str] | Ledger",
    run_id: str,
    weights: Sequence[float] | None = None,
    **options: Any,
) -> list[Callable[..., Any]]:
    """The reward functions wrapped so that every completion they score is a session of the run, and nothing else.

    The short form of `Recorder(ledger, run_id, **options).wrap(functions, weights)`. Without the recorder's callback
    there are no scalars and no checkpoints, so that a resumed training is refused.
    """
    return Recorder(ledger, run_id, **options).wrap(functions, weights)
