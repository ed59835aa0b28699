"""A resumed run is the uninterrupted one, bit for bit, whatever the reference; references that move are on record."""

from pathlib import Path

import pytest
import torch

from rlhf.cli import main
from rlhf.reference.following import chained
from tests.rlhf.stages.tiny_runs import arguments, ledger_of, live_events, live_view, run, weights

SAVING = ["train.save_steps=2", "train.learning_rate=1e-2", "train.lr_scheduler_type=constant"]
LORA = ["model.use_peft=true"]
SOURCES = {
    "frozen": ["reference.source=frozen"],
    "precomputed": ["reference.source=precomputed"],
    "ema": ["reference.source=ema", "reference.ema_decay=0.7"],
    "synced": ["reference.source=synced", "reference.ref_model_sync_steps=2"],
    "adapter_off": [*LORA, "reference.source=adapter_off"],
    "lora frozen": [*LORA, "reference.source=frozen"],
    "lora ema": [*LORA, "reference.source=ema", "reference.ema_decay=0.7"],
    "lora synced": [*LORA, "reference.source=synced", "reference.ref_model_sync_steps=2"],
    "lora precomputed": [*LORA, "reference.source=precomputed"],
    "none": [],  # what asks for no reference is the stage's own key
}
ONLINE = ("ema", "synced", "lora ema")
ALL = [("dpo", name) for name in SOURCES] + [("grpo", name) for name in (*ONLINE, "none")]
ALL += [("kto", "ema"), ("kto", "precomputed"), ("sft", "ema"), ("sft", "lora synced"), ("reward", "ema")]
QUICK = [("dpo", "synced"), ("dpo", "lora ema"), ("dpo", "none"), ("grpo", "ema")]
CASES = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in ALL]
EXTRA = {
    "dpo": ["data.holdout_fraction=0.2", "train.eval_strategy=steps", "train.eval_steps=2"],
    "grpo": ["train.num_iterations=2"],
    "kto": [],
    "sft": ["reference.kl_coefficient=0.5"],
    "reward": ["train.rm_regularizer=kl_ref"],
}
WITHOUT = {"dpo": ["train.loss_type=simpo"], "grpo": ["reference.beta=0"]}
MOVING = ("ema", "synced")


def evaluations(folder: Path, stage: str) -> dict[int, object]:
    return {event["step"]: event["metrics"] for event in live_events(folder, stage, "evaluation")}


@pytest.mark.parametrize(("stage", "source"), CASES)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(stage: str, source: str, tmp_path: Path) -> None:
    keys = [*SAVING, *SOURCES[source], *EXTRA[stage], *(WITHOUT[stage] if source == "none" else [])]
    assert run(stage, tmp_path / "whole", *keys, steps=4) == 0
    assert run(stage, tmp_path / "cut", *keys, steps=2) == 0
    assert run(stage, tmp_path / "cut", *keys, "--resume", steps=4) == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert live_view(tmp_path / "whole", stage) == live_view(tmp_path / "cut", stage)
    for kind in ("step_stats", "reference_synced"):
        assert live_events(tmp_path / "whole", stage, kind) == live_events(tmp_path / "cut", stage, kind), kind
    # The run that was cut also evaluated at what was its end then.
    evaluated = evaluations(tmp_path / "cut", stage)
    for step, metrics in evaluations(tmp_path / "whole", stage).items():
        assert evaluated[step] == metrics
    files = [tmp_path / name / "checkpoint-4" / "trainer" / "reference.pt" for name in ("whole", "cut")]
    if source == "none":
        assert not any(file.exists() for file in files)
        return
    saved = [torch.load(file, weights_only=True) for file in files]
    assert saved[0]["identity"] == saved[1]["identity"]
    if any(word in source for word in MOVING):
        moved = saved[0]["weights"]
        assert moved and all(torch.equal(weight, saved[1]["weights"][name]) for name, weight in moved.items())
        # An adapter's reference keeps a second adapter, not a second model.
        assert all(("lora" in name) == ("lora" in source) for name in moved)


@pytest.mark.parametrize(
    "source", ["ema", "lora synced", *(pytest.param(name, marks=pytest.mark.slow) for name in ("synced", "lora ema"))]
)
def test_a_reference_that_moves_gives_other_losses_than_one_that_stands(source: str, tmp_path: Path) -> None:
    stands = [key for key in SOURCES[source] if key in LORA]
    assert run("dpo", tmp_path / "moves", *SAVING, *SOURCES[source], steps=3) == 0
    assert run("dpo", tmp_path / "stands", *SAVING, *stands, steps=3) == 0
    moving, standing = (
        [event["loss"] for event in live_events(tmp_path / name, "dpo", "step_stats")] for name in ("moves", "stands")
    )
    first = 1 if "ema" in source else 2
    assert moving[:first] == pytest.approx(standing[:first], abs=1e-6)
    # One step on, the reference has moved for the first time.
    assert abs(moving[first] - standing[first]) > 1e-4


def test_sessions_name_the_reference_that_scored_them_and_its_moves_are_events(tmp_path: Path) -> None:
    assert run("dpo", tmp_path / "run", *SAVING, *SOURCES["synced"], steps=5) == 0
    origin = torch.load(tmp_path / "run" / "checkpoint-2" / "trainer" / "reference.pt", weights_only=True)["origin"]
    second = chained(origin, "synced", 2, 0.6)
    fourth = chained(second, "synced", 4, 0.6)
    expected = {1: origin, 2: origin, 3: second, 4: second, 5: fourth}
    for row in live_view(tmp_path / "run", "dpo"):
        assert row["reference_id"] == expected[row["step"]][:16]
    moves = live_events(tmp_path / "run", "dpo", "reference_synced")
    assert [(move["step"], move["reference_id"]) for move in moves] == [(2, second[:16]), (4, fourth[:16])]
    assert moves[0] == {
        "source": "synced",
        "share": 0.6,
        "every": 2,
        "reference_id": second[:16],
        "before": origin[:16],
        "step": 2,
    }
    assert ledger_of(tmp_path / "run").verify().ok


def test_of_an_average_the_first_move_is_recorded_and_every_session_names_the_link_of_its_step(tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "run", *SAVING, *SOURCES["ema"], steps=4) == 0
    (move,) = live_events(tmp_path / "run", "grpo", "reference_synced")
    assert (move["step"], move["every"], move["share"]) == (1, 1, pytest.approx(0.3))
    link = torch.load(tmp_path / "run" / "checkpoint-2" / "trainer" / "reference.pt", weights_only=True)["origin"]
    names = {row["step"]: row["reference_id"] for row in live_view(tmp_path / "run", "grpo")}
    for step in range(1, 5):
        assert names[step] == link[:16]
        link = chained(link, "ema", step, move["share"])


def test_another_source_or_start_is_refused_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run("dpo", folder, *SAVING, *SOURCES["synced"], steps=2) == 0
    for other in ("frozen", "ema"):
        assert run("dpo", folder, *SAVING, *SOURCES[other], "--resume", steps=4) == 2
        assert "reference" in capsys.readouterr().err.splitlines()[-1]
    assert run("dpo", folder, *SAVING, *SOURCES["synced"], "train.seed=4", "--resume", steps=4) == 2


def test_a_reference_that_will_never_move_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = arguments("dpo", tmp_path / "run", "reference.source=synced", steps=1)
    assert main([*argv[:-1], "plain"]) == 0
    assert "the reference never moves, its first step to do so would be 512 of 1" in capsys.readouterr().err
