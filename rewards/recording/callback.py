"""The callback for transformers' trainer, and so for TRL's: its methods are called by name, no base class is needed."""

from typing import TYPE_CHECKING, Any

from rewards.recording.positions import checkpoint_folder

if TYPE_CHECKING:
    from rewards.recording.recorder import Recorder

# What a trainer logs once at the end of training, beside the figures of its steps.
_SUMMARY = "train_runtime"


class LedgerCallback:
    """Tells a recorder where training is: configuration, scalars, evaluations, checkpoints, and the end.

    Events that transformers adds later are heard and ignored. Every rank needs the callback.
    """

    def __init__(self, recorder: "Recorder") -> None:
        self.recorder = recorder
        self._summary: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return self._heard
        raise AttributeError(f"{type(self).__name__} has no attribute `{name}`")

    def _heard(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Any event shows the trainer's arguments, model and state, and that advantages are there by now."""
        self.recorder.met(args, kwargs.get("model"), state)
        self.recorder.settle()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Claims an attempt; where training continues, after the checkpoint it continues from."""
        self._heard(args, state, control, **kwargs)
        self._summary = {}
        self.recorder.begin_training(state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The scalars of training. Those of an evaluation come again with `on_evaluate`."""
        self._heard(args, state, control, **kwargs)
        logs = kwargs.get("logs") or {}
        if _SUMMARY in logs:
            self._summary = _plain(logs)
        elif not self.recorder.evaluating and not any(name.startswith("eval_") for name in logs):
            self.recorder.event("step_stats", _plain(logs), step=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The scalars of an evaluation."""
        self._heard(args, state, control, **kwargs)
        metrics = _plain(kwargs.get("metrics") or {})
        suite = next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")
        self.recorder.event("evaluation", {"suite": suite, "when": "step", "metrics": metrics}, step=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Records the checkpoint and puts the ledger's position into its folder."""
        self._heard(args, state, control, **kwargs)
        self.recorder.flush()
        self.recorder.attempts.checkpoint(state.global_step, checkpoint_folder(args, state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Records how training ended; evaluations after it are still recorded."""
        self._heard(args, state, control, **kwargs)
        step = state.global_step
        status = "completed" if step >= state.max_steps else "stopped early"
        self.recorder.event("attempt_ended", {"status": status, "steps": step, "figures": self._summary}, step=step)
        self.recorder.flush()


def _plain(values: Any) -> dict[str, Any]:
    """Scalars as the ledger takes them; what is none is kept as text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or isinstance(value, bool | int | float | str):
            found[str(name)] = value
        elif hasattr(value, "item"):
            found[str(name)] = value.item()
        else:
            found[str(name)] = str(value)
    return found
