"""What a fork is: which event of which run, from which checkpoint, in which arms and seeds. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewards.analysis.recalibrations import of_kind, session_after_step
from rewards.config import Loaded, load
from rewards.errors import ConfigError, UserError
from rewards.ledger import Ledger
from rlhf.config import RETIRED, STAGES, stage_of
from rlhf.config_tables import known_elsewhere
from rlhf.fork import NULL_ARMS

PLAN = "fork.json"
OWNED = (
    "train.output_dir",
    "train.run_name",
    "train.seed",
    "train.resume_from_checkpoint",
    "ledger.path",
    "ledger.pipeline_id",
)


@dataclass(frozen=True)
class Recalibration:
    """A recalibration on record. number: its place among those of the run, from 1; session: the last before it acts."""

    number: int
    step: int
    session: int
    category: str
    component: str | None
    old_pct: float
    new_pct: float
    phrase: str | None

    @property
    def name(self) -> str:
        """For people."""
        what = self.category if self.component is None else f"{self.category}/{self.component}"
        return f"{what} {self.old_pct:g} % to {self.new_pct:g} %"


@dataclass(frozen=True)
class Forking:
    """A fork, planned.

    replayed: recalibrations between the checkpoint and the event, which every arm applies as they were recorded.
    last_step: where the arms end; None: where the run ends.
    """

    stage: str
    run_dir: Path
    run_id: str
    seed: int
    ledger: Path
    checkpoint: Path
    checkpoint_step: int
    position: dict[str, Any]
    event: Recalibration
    replayed: tuple[Recalibration, ...]
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    last_step: int | None
    out: Path
    overrides: tuple[str, ...]

    def run_of(self, seed: int, arm: str) -> str:
        """Run id of an arm."""
        return f"{self.run_id}@fork{self.event.step}-s{seed}-{arm}"

    def folder_of(self, seed: int, arm: str) -> Path:
        """Output folder of an arm."""
        return self.out / f"s{seed}-{arm}"

    def config_of(self, seed: int, arm: str) -> Loaded[Any]:
        """The run's configuration with the arm's names."""
        path = self.run_dir / "config.yaml"
        decided = [
            f"train.output_dir={self.folder_of(seed, arm)}",
            f"train.run_name={self.run_of(seed, arm)}",
            f"ledger.path={self.ledger}",
            "train.resume_from_checkpoint=null",
        ]
        return load(
            STAGES[self.stage],
            path,
            [*decided, *self.overrides],
            retired=RETIRED,
            known_elsewhere=known_elsewhere(self.stage),
        )

    def record_of(self, seed: int, arm: str) -> dict[str, Any]:
        """What the start of an arm's attempt says about it."""
        return {
            "fork_of": {"run_id": self.run_id, "attempt": self.position["attempt"], "step": self.checkpoint_step},
            "arm": arm,
            "fork": {
                "seed": seed,
                "event": asdict(self.event),
                "replayed": [asdict(one) for one in self.replayed],
                "last_step": self.last_step,
                "zero_epsilon": arm in NULL_ARMS,
                "triggers": "held in every arm: whatever they ask for is recorded and withheld",
                "overrides": list(self.overrides),
            },
        }

    def identity(self) -> dict[str, Any]:
        """What must not change when a fork is gone on with; seeds and arms may be added."""
        return {
            "run": self.run_id,
            "attempt": self.position["attempt"],
            "checkpoint_step": self.checkpoint_step,
            "event": asdict(self.event),
            "last_step": self.last_step,
            "overrides": list(self.overrides),
        }


def plan_fork(
    run_dir: Path,
    at: str,
    *,
    seeds: tuple[int, ...],
    arms: tuple[str, ...],
    steps: int | None,
    out: Path | None,
    overrides: Sequence[str] = (),
) -> Forking:
    """Finds the event and the checkpoint before it.

    Raises: UserError where the folder holds no run of online RL, no such event is on record, or no checkpoint at or
    before it was kept.
    """
    for override in overrides:
        if override.partition("=")[0] in {name for key in OWNED for name in (key, key.partition(".")[2])} - {"path"}:
            raise ConfigError(f"command line: `{override.partition('=')[0]}` is decided by the fork; leave it out")
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir}: no config.yaml here; give the output_dir of a stage that has run")
    stage = stage_of(path)
    if stage != "grpo":
        raise UserError(f"{run_dir}: a run of {stage}; only online RL recalibrates during a run")
    config = load(STAGES[stage], path, retired=RETIRED, known_elsewhere=known_elsewhere(stage)).config
    if "null" in arms:
        _check_null(config, path)
    run_id = config.train.run_name or stage
    folder = _ledger_of(config, run_dir)
    ledger = Ledger.open(folder)
    try:
        known = recalibrations(ledger, run_id)
        live = {(e["attempt"], e["payload"]["step"]) for e in ledger.events(run_id, kind="checkpoint")}
    finally:
        ledger.close()
    event = find_event(known, at, run_dir)
    checkpoint, state = _checkpoint_before(run_dir, event, live)
    return Forking(
        stage=stage,
        run_dir=run_dir,
        run_id=run_id,
        seed=config.train.seed,
        ledger=folder,
        checkpoint=checkpoint,
        checkpoint_step=state["step"],
        position=state["ledger"],
        event=event,
        replayed=tuple(one for one in known if state["step"] < one.step <= event.step and one != event),
        seeds=seeds,
        arms=arms,
        last_step=None if steps is None else event.step + steps,
        out=out if out is not None else run_dir / f"fork-{event.step}",
        overrides=tuple(overrides),
    )


def recalibrations(ledger: Ledger, run_id: str) -> list[Recalibration]:
    """The live recalibrations of a run, in their order. Raises: LedgerError for an unknown run."""
    events = of_kind(ledger.events(run_id), "recalibration")
    if not events:
        return []
    table = ledger.sessions(run_id).select(["step", "session"])
    steps = table.filter(table["session"].is_valid())["step"].to_numpy()
    found = []
    for number, event in enumerate(events, start=1):
        payload = event["payload"]
        step = int(event["step"])
        found.append(
            Recalibration(
                number,
                step,
                session_after_step(steps, step) or 0,
                payload["category"],
                payload.get("component"),
                payload["old_pct"],
                payload["new_pct"],
                (payload.get("trigger") or {}).get("phrase"),
            )
        )
    return found


def find_event(known: Sequence[Recalibration], at: str, run_dir: Path) -> Recalibration:
    """The recalibration that `at` means: its number, its step (also `step:N`), or `session:N` of its step.

    Raises: UserError naming the recalibrations there are.
    """
    if not known:
        raise UserError(f"{run_dir}: no recalibration of this run is on record; there is nothing to leave out")
    kind, _, text = at.rpartition(":")
    if not text.isdecimal() or kind not in ("", "step", "session"):
        raise UserError(f"--at: `{at}` is neither a number, nor step:N, nor session:N")
    number = int(text)
    if kind == "" and 1 <= number <= len(known):
        return known[number - 1]
    matching = [one for one in known if number == (one.session if kind == "session" else one.step)]
    if len(matching) == 1:
        return matching[0]
    there = "; ".join(f"{one.number}: step {one.step}, session {one.session:,}, {one.name}" for one in known)
    what = "several recalibrations" if matching else "no recalibration"
    raise UserError(f"{run_dir}: {what} at `{at}`; there are {there}")


def begin_folder(forking: Forking) -> None:
    """Keeps the plan in the fork's folder, or compares with the one that is there.

    Raises: UserError when arms there are of another fork.
    """
    path = forking.out / PLAN
    if path.is_file():
        old = json.loads(path.read_text())
        for key, value in json.loads(json.dumps(forking.identity())).items():
            if old.get(key) != value:
                raise UserError(
                    f"{path}: the arms there have another {key.replace('_', ' ')} ({old.get(key)}, now {value}); "
                    "repeat it, or use another --out"
                )
    elif int(os.environ.get("RANK", "0")) == 0:
        forking.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(forking.identity(), indent=1))


def _ledger_of(config: Any, run_dir: Path) -> Path:
    """The run's ledger, where the configuration says or beside the folder, which may have been moved."""
    named = [Path(config.ledger.path)] if config.ledger.path else []
    for folder in [*named, run_dir / "ledger", run_dir.parent / "ledger"]:
        if folder.is_dir():
            return folder
    raise UserError(f"{run_dir}: its ledger is not there ({named[0] if named else run_dir / 'ledger'})")


def _checkpoint_before(run_dir: Path, event: Recalibration, live: set[tuple[int, int]]) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint at or before the event's step; one at its step holds the change, which arms take back."""
    found: list[tuple[int, Path, dict[str, Any]]] = []
    for path in run_dir.glob("checkpoint-*/trainer/state.json"):
        state = json.loads(path.read_text())
        if state["step"] <= event.step and (state["ledger"]["attempt"], state["step"]) in live:
            found.append((state["step"], path.parent.parent, state))
    if not found:
        raise UserError(
            f"{run_dir}: no checkpoint up to step {event.step} is left; run the stage again with a train.save_steps "
            "that gives one and train.save_total_limit=null"
        )
    _, checkpoint, state = max(found, key=lambda one: one[0])
    return checkpoint, state


def _check_null(config: Any, path: Path) -> None:
    """A differential on the whole reward has no effect only where groups are standardised, and nothing else enters."""
    wrong = None
    if config.reward.place != "reward":
        wrong = f"reward.place is `{config.reward.place}`"
    elif config.train.scale_rewards != "group":
        wrong = f"train.scale_rewards is `{config.train.scale_rewards}`"
    elif config.reference.beta > 0 and config.reference.kl.settings().place == "reward":
        wrong = "the KL penalty is part of the standardised reward (reference.kl.place)"
    if wrong is not None:
        raise UserError(f"{path}: {wrong}: the effect of a whole-reward differential is not known to be none here")
