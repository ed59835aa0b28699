"""A synced reference over a resume, here and in TRL: figures of one small DPO run on the same pairs and model."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rlhf.stages.tiny_runs import live_events, run

trl = pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
STEPS, SAVED, SYNC = 6, 3, 2


def of_trl(folder: Path, resume: int | None = None) -> list[dict[str, float]]:
    """What TRL logs of its steps; resumed: of those after the checkpoint."""
    from tests.rlhf import trl_runs

    options: dict[str, Any] = {"max_steps": STEPS, "save_steps": SAVED, "lr_scheduler_type": "constant"}
    options |= {"sync_ref_model": True, "ref_model_sync_steps": SYNC, "ref_model_mixup_alpha": 0.6}
    trainer = trl_runs.train(folder, "DPO", resume=resume, **options)
    return [entry for entry in trainer.state.log_history if "loss" in entry][resume or 0 :]


def of_this(folder: Path, model: Path, pairs: Path, *extra: str, steps: int = STEPS) -> list[float]:
    """Losses of all steps of this project's run, with TRL's knobs."""
    keys = [f"model.model_name_or_path={model}", f"data.dataset_name={pairs}", "data.recipe_split=null"]
    keys += ["data.max_rows=null", "data.holdout_fraction=0", f"train.save_steps={SAVED}", "train.learning_rate=1e-2"]
    keys += ["train.lr_scheduler_type=constant", "reference.source=synced", f"reference.ref_model_sync_steps={SYNC}"]
    assert run("dpo", folder, *keys, *extra, steps=steps, batch=4) == 0
    return [event["loss"] for event in live_events(folder, "dpo", "step_stats")]


def test_a_resumed_run_of_trl_forgets_its_synced_reference_and_one_of_this_project_does_not(tmp_path: Path) -> None:
    from tests.rlhf.trl_runs import PAIRS, build

    model, pairs = build(tmp_path), tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    logged = of_trl(tmp_path / "trl")[SAVED:], of_trl(tmp_path / "trl", resume=SAVED)
    theirs, again = ([entry["loss"] for entry in entries] for entries in logged)
    # The policy is the same again: what differs is what it is compared with.
    assert logged[0][0]["logps/chosen"] == pytest.approx(logged[1][0]["logps/chosen"], abs=1e-4)
    ours = of_this(tmp_path / "whole", model, pairs)
    of_this(tmp_path / "cut", model, pairs, steps=SAVED)
    resumed = of_this(tmp_path / "cut", model, pairs, "--resume")
    print(f"\nloss at steps {SAVED + 1} to {STEPS}, reference synced every {SYNC} steps, resumed at {SAVED}")
    for name, losses in (
        ("TRL, uninterrupted", theirs),
        ("TRL, resumed", again),
        ("this, uninterrupted", ours[SAVED:]),
        ("this, resumed", resumed[SAVED:]),
    ):
        print(f"{name:22}" + " ".join(f"{loss:.4f}" for loss in losses))
    assert len(again) == STEPS - SAVED
    assert max(abs(a - b) for a, b in zip(theirs, again, strict=True)) > 0.02
    assert resumed == ours
