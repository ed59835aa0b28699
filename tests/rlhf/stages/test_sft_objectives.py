"""What SFT ends at, through the real command: data, mixture with the reference, the most frequent answer; its noise."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.rlhf.stages.test_invariance import largest_difference, losses
from tests.rlhf.stages.tiny_runs import live_events, live_view, run, summary

PROMPT = "q:"
NOISE = "train.neftune_noise_alpha=5"


def data_of(path: Path, answers: str) -> list[str]:
    """Keys for a file with one prompt and each letter as an answer."""
    path.write_text("".join(json.dumps({"prompt": PROMPT, "completion": letter}) + "\n" for letter in answers))
    return [f"data.dataset_name={path}", "data.recipe_split=null", "data.max_rows=null", "data.holdout_fraction=0"]


def after_prompt(folder: Path) -> NDArray[np.float64]:
    """The saved model's distribution of the token after the prompt."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        found: NDArray[np.float64] = model(ids).logits[0, -1].double().softmax(-1).numpy()
    return found


def share_of(folder: Path, letter: str) -> int:
    (found,) = AutoTokenizer.from_pretrained(folder)(letter, add_special_tokens=False)["input_ids"]
    return int(found)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers x three times out of four, y otherwise."""
    folder = tmp_path_factory.mktemp("start")
    assert run("sft", folder / "run", *data_of(folder / "data.jsonl", "xxxyabcd"), *FAST, steps=60) == 0
    return folder / "run" / "model"


FAST = ["train.learning_rate=5e-3", "train.lr_scheduler_type=cosine"]


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_training_ends_at_the_mixture_of_data_and_reference(weight: float, start: Path, tmp_path: Path) -> None:
    keys = [*data_of(tmp_path / "data.jsonl", "aaaaabbc"), *FAST, f"model.model_name_or_path={start}"]
    assert run("sft", tmp_path / "run", *keys, f"reference.kl_coefficient={weight}", steps=250) == 0
    reference, found = after_prompt(start), after_prompt(tmp_path / "run" / "model")
    data = np.zeros_like(reference)
    for letter, share in (("a", 5 / 8), ("b", 2 / 8), ("c", 1 / 8)):
        data[share_of(start, letter)] = share
    expected = (data + weight * reference) / (1 + weight)
    assert np.abs(found - expected).max() < 0.01
    if weight:
        # What the data never say survives as far as the reference says it.
        x = share_of(start, "x")
        assert found[x] == pytest.approx(weight * reference[x] / (1 + weight), rel=0.05) and found[x] > 0.05


def test_dynamic_fine_tuning_ends_at_the_most_frequent_answer(start: Path, tmp_path: Path) -> None:
    keys = [*data_of(tmp_path / "data.jsonl", "aaaaabbc"), *FAST, f"model.model_name_or_path={start}"]
    assert run("sft", tmp_path / "run", *keys, "train.loss_type=dft", steps=250) == 0
    found = after_prompt(tmp_path / "run" / "model")
    assert found[share_of(start, "a")] > 0.95 > 5 / 8
    last = live_events(tmp_path / "run", "sft", "step_stats")[-1]
    assert "loss/nll" not in last and last["loss"] == pytest.approx(last["loss/dft"])
    assert last["nll"] > last["loss/dft"]


def test_the_first_dft_loss_is_the_sum_of_p_log_p_over_the_demonstrated_tokens(start: Path, tmp_path: Path) -> None:
    keys = [*data_of(tmp_path / "data.jsonl", "aaaaabbc"), f"model.model_name_or_path={start}"]
    assert run("sft", tmp_path / "nll", *keys, steps=1) == 0
    assert run("sft", tmp_path / "dft", *keys, "train.loss_type=dft", steps=1) == 0
    found = after_prompt(start)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    nll, dft = 0.0, 0.0
    for letter in "aaaaabbc":
        ids = torch.tensor([tokenizer(PROMPT + letter, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            end = float(model(ids).logits[0, -1].double().softmax(-1)[tokenizer.eos_token_id])
        for p in (found[share_of(start, letter)], end):
            nll, dft = nll - math.log(p) / 16, dft - p * math.log(p) / 16
    assert losses(tmp_path / "nll", "sft") == pytest.approx([nll], rel=1e-5)
    assert losses(tmp_path / "dft", "sft") == pytest.approx([dft], rel=1e-5)
    rows = [live_view(tmp_path / name, "sft") for name in ("nll", "dft")]
    assert [row["logp_nats"] for row in rows[0]] == pytest.approx([row["logp_nats"] for row in rows[1]])


@pytest.mark.parametrize("name", ["forward", "reverse", "js", "alpha"])
def test_every_divergence_that_holds_on_demonstrations_keeps_the_policy_near_the_reference(
    name: str, start: Path, tmp_path: Path
) -> None:
    keys = [*data_of(tmp_path / "data.jsonl", "aaaaabbc"), *FAST, f"model.model_name_or_path={start}"]
    form = f"reference.kl={{estimator: full, divergence: {name}}}"
    distances = []
    for weight in (0.01, 5):
        folder = tmp_path / str(weight)
        assert run("sft", folder, *keys, form, f"reference.kl_coefficient={weight}", steps=60) == 0
        last = live_events(folder, "sft", "step_stats")[-1]
        assert last["loss"] == pytest.approx(last["loss/nll"] + weight * last["loss/kl"])
        reference, found = after_prompt(start), after_prompt(folder / "model")
        distances.append(np.abs(found - reference).sum())
    assert distances[1] < 0.6 * distances[0]


def test_noise_is_of_training_alone_and_the_same_however_a_step_is_cut(tmp_path: Path) -> None:
    keys = ["model.dtype=float64", "train.learning_rate=1e-3", "data.holdout_fraction=0.3"]
    keys += ["train.eval_strategy=steps", "train.eval_steps=1"]
    assert run("sft", tmp_path / "clean", *keys, "train.learning_rate=1e-12", steps=1) == 0
    assert run("sft", tmp_path / "noisy", *keys, "train.learning_rate=1e-12", NOISE, steps=1) == 0
    # Held-out loss of the same weights: no noise there.
    held_out = [live_events(tmp_path / name, "sft", "evaluation")[-1]["metrics"] for name in ("clean", "noisy")]
    assert held_out[0]["loss"]["value"] == pytest.approx(held_out[1]["loss"]["value"], abs=1e-9)
    assert losses(tmp_path / "clean", "sft") != pytest.approx(losses(tmp_path / "noisy", "sft"), abs=1e-4)
    assert run("sft", tmp_path / "whole", *keys, NOISE, steps=3, batch=8) == 0
    assert run("sft", tmp_path / "cut", *keys, NOISE, "train.gradient_accumulation_steps=8", steps=3, batch=1) == 0
    assert losses(tmp_path / "whole", "sft") == pytest.approx(losses(tmp_path / "cut", "sft"), abs=1e-12)
    assert largest_difference(tmp_path / "whole", tmp_path / "cut") < 1e-9


@pytest.mark.parametrize("layout", [[], ["train.packing=true"], ["model.attn_implementation=eager"]])
def test_noise_is_the_same_in_half_precision_whose_batches_are_filled_up(layout: list[str], tmp_path: Path) -> None:
    keys = [NOISE.replace("5", "60"), "data.holdout_fraction=0", *layout]
    for name, more in (("single", []), ("half", ["train.bf16=true"])):
        assert run("sft", tmp_path / name, *keys, *more, steps=1) == 0
    assert run("sft", tmp_path / "clean", *keys, "train.neftune_noise_alpha=null", steps=1) == 0
    single, half, clean = (losses(tmp_path / name, "sft")[0] for name in ("single", "half", "clean"))
    assert abs(single - half) < 0.2 * abs(single - clean)


def test_more_noise_moves_the_loss_further(tmp_path: Path) -> None:
    found = {}
    for alpha in ("null", "1", "20"):
        keys = [f"train.neftune_noise_alpha={alpha}", "model.dtype=float64"]
        assert run("sft", tmp_path / alpha, *keys, steps=1) == 0
        found[alpha] = losses(tmp_path / alpha, "sft")[0]
    assert 0 < abs(found["1"] - found["null"]) < abs(found["20"] - found["null"])


def test_a_reference_without_an_adapter_sees_no_noise(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    keys = ["model.use_peft=true", "model.lora_dropout=0", "reference.kl_coefficient=1", "model.dtype=float64"]
    assert run("sft", tmp_path / "clean", *keys, steps=1) == 0
    assert run("sft", tmp_path / "noisy", *keys, NOISE, steps=1) == 0
    first = [live_events(tmp_path / name, "sft", "step_stats")[0] for name in ("clean", "noisy")]
    # A new adapter changes nothing: without noise policy and reference agree, with it only one of them is noisy.
    assert first[0]["kl_reference_policy"] == pytest.approx(0, abs=1e-12)
    assert first[1]["kl_reference_policy"] > 1e-6


def test_a_checkpoint_of_a_noisy_run_is_resumed_with_the_noise_of_the_steps_to_come(tmp_path: Path) -> None:
    keys = [NOISE, "train.save_steps=2", "train.learning_rate=1e-3", "train.lr_scheduler_type=constant"]
    assert run("sft", tmp_path / "whole", *keys, steps=5) == 0
    assert run("sft", tmp_path / "cut", *keys, steps=2) == 0
    assert run("sft", tmp_path / "cut", *keys, "--resume", steps=5) == 0
    assert largest_difference(tmp_path / "whole", tmp_path / "cut") == 0.0
    assert live_view(tmp_path / "whole", "sft") == live_view(tmp_path / "cut", "sft")
    assert summary(tmp_path / "cut")["status"] == "completed"
