"""`rlhf plan`: bytes that are counted, sizes of batches, extrapolation, the largest batch, the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.batch import TokenBatch
from rlhf.cli import main
from rlhf.config import ModelSection
from rlhf.ops import readout
from rlhf.plan.live import Live
from rlhf.plan.memory import Moment, fit, largest
from rlhf.plan.shallow import depths, make
from rlhf.plan.sizes import Size, completions, size_of
from rlhf.plan.trial import Trial
from rlhf.plan_cli import amount
from tests.rlhf.stages.tiny_runs import MODEL, STAGE_KEYS, TRAIN

MB = 1 << 20


def test_live_bytes_of_a_product_and_its_gradients_are_those_by_hand() -> None:
    square = 512 * 512 * 4  # a MiB
    weight = nn.Parameter(torch.randn(512, 512))
    holder = nn.Module()
    holder.register_parameter("weight", weight)
    live = Live(torch.device("cpu"))
    live.own(holder)
    with live:
        hidden = (torch.ones(512, 512) @ weight).relu()
        # The ones are kept for the weight's gradient, the result for that of relu; what relu was given is gone.
        assert live.live == 2 * square
        assert live.mark() == 3 * square
        hidden.sum().backward()
        assert weight.grad is not None
        del hidden
        assert live.live == square  # the gradient
        weight.grad = None
        assert live.live == 0


def test_a_view_is_no_new_memory_and_another_device_is_not_counted() -> None:
    live = Live(torch.device("cpu"))
    with live:
        whole = torch.zeros(256, 1024)
        kept = whole[:10].t()
        torch.zeros(1000, device="meta")
        assert live.live == MB
        del whole
        assert live.live == MB
        del kept
        assert live.live == 0


def test_size_counts_what_is_shared_once_and_pairs_within_texts() -> None:
    ids_BT = torch.arange(1, 41).view(2, 20)
    ids_BT[1, :12] = ids_BT[0, :12]
    attention_BT = torch.ones(2, 20, dtype=torch.bool)
    attention_BT[1, 17:] = False
    mask_BT = attention_BT.clone()
    mask_BT[:, :12] = False
    shared = size_of(TokenBatch(ids_BT, attention_BT, mask_BT, group_B=torch.tensor([0, 0])))
    assert shared == Size(tokens=20 + 5, attended=20 * 20 + 5 * 17, scored=8 + 5, texts=2, whole=37, width=20)
    apart = size_of(TokenBatch(ids_BT, attention_BT, mask_BT))
    assert (apart.tokens, apart.attended) == (37, 20 * 20 + 17 * 17)
    assert apart.padded() == Size(40, 800, 13, 2, 37, 20)
    assert shared + apart == Size(62, 485 + 689, 26, 4, 74, 20)


def test_answers_of_one_prompt_read_it_once() -> None:
    found = completions(prompt=10, completion=5, rows=3, group=2)
    # Two answers of one prompt, one of another.
    assert found == Size(tokens=20 + 15, attended=15 * 15 + 5 * 15 + 15 * 15, scored=15, texts=3, whole=45, width=15)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 100, 999, 1000])
def test_the_largest_batch_is_the_last_that_fits(most: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= most

    assert largest(fits, 1000) == most
    assert len(tried) <= 25


VOCABULARY = 1000


def trial(size: Size, layers: int) -> Trial:
    """A world whose memory is known."""
    scored = min(size.scored, readout.KEEP // (4 * VOCABULARY))
    return Trial(
        size=size,
        weights=1000 + 200 * layers,
        gradients=1000 + 200 * layers,
        moments=2 * (1000 + 200 * layers),
        standing=500,
        sampling=0,
        forward=layers * (7 * size.tokens + 2 * size.attended) + 4 * VOCABULARY * scored,
        transient=300 + 3 * size.tokens,
        late=1000 + 200 * layers + 50,
    )


def test_a_linear_world_is_extrapolated_exactly_in_layers_tokens_and_kept_logits() -> None:
    sizes = [Size(10, 100, 4), Size(30, 500, 10), Size(50, 2500, 11), Size(20, 300, 19), Size(80, 900, 33)]
    model = fit([trial(s, 2) for s in sizes], [trial(s, 4) for s in sizes], (2, 4, 24), VOCABULARY)
    far = Size(tokens=100_000, attended=4_000_000, scored=90_000, texts=50, width=700)
    truth = trial(far, 24)
    assert model.forward(far) == pytest.approx(truth.forward, rel=1e-6)
    assert model.transient(far) == pytest.approx(truth.transient, rel=1e-6)
    assert (model.weights, model.moments, model.standing) == pytest.approx((5800, 11600, 500))
    assert model.sampling is None
    assert model.misfit < 1e-6


def test_the_peak_is_the_worst_of_the_moments_and_gradients_stand_when_accumulated() -> None:
    sizes = [Size(10, 100, 4), Size(30, 500, 10), Size(50, 2500, 11), Size(20, 300, 19), Size(80, 900, 33)]
    model = fit([trial(s, 2) for s in sizes], [trial(s, 4) for s in sizes], (2, 4, 4), VOCABULARY)
    big = model.peak(Size(1000, 5000, 50), 10.0, accumulated=False)
    assert big.name == "the backward pass begins"
    assert big.terms == pytest.approx(
        {
            "process": 10,
            "weights": 1800,
            "optimizer moments": 3600,
            "reference and other copies": 500,
            "activations": 4 * (7000 + 10_000) + 200_000,
            "temporary": 3300,
        }
    )
    held = model.peak(Size(1000, 5000, 50), 10.0, accumulated=True)
    assert held.total - big.total == pytest.approx(1800)
    small = model.peak(Size(1, 1, 0), 10.0, accumulated=False)
    assert small.name == "the backward pass ends"
    assert small.terms["gradients"] + small.terms["temporary"] == pytest.approx(1850)


def test_what_the_allocator_holds_is_a_share_of_what_passes() -> None:
    moment = Moment("x", {"weights": 1000.0, "activations": 100.0, "temporary": 20.0}).holding(0.1)
    assert moment.terms["held by the allocator"] == pytest.approx(12.0)


@pytest.mark.parametrize(("text", "found"), [("8GB", 8e9), ("7.5 GiB", 7.5 * 2**30), ("900mb", 9e8), ("12", 12)])
def test_amounts_have_units(text: str, found: float) -> None:
    assert amount(text) == found


def test_layers_of_several_kinds_are_cut_in_whole_periods(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path / "model"
    tiny = ModelSection(
        tiny_hidden_size=32, tiny_num_heads=2, tiny_num_kv_heads=1, tiny_num_layers=2, tiny_vocab_size=300
    )
    make(tiny, 2, ["some text"], 0, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 3
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=9,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        layer_types=kinds,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    section = ModelSection(model_name_or_path=str(folder))
    assert depths(section) == (3, 6, 9)
    copy = make(section, 6, [], 0, tmp_path / "copy")
    cut = AutoConfig.from_pretrained(copy.model_name_or_path)
    assert (cut.num_hidden_layers, cut.layer_types) == (6, kinds[:6])


def plan(capsys: pytest.CaptureFixture[str], tmp_path: Path, stage: str, *extra: str) -> tuple[int, str, str]:
    path = tmp_path / f"{stage}.yaml"
    path.write_text(f"stage: {stage}\n")
    keys = [*MODEL, *TRAIN, *STAGE_KEYS[stage], "train.per_device_train_batch_size=8"]
    capsys.readouterr()
    code = main(["plan", str(path), *keys, *extra])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_stage_that_does_not_fit_exits_1_and_says_what_to_lower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = plan(capsys, tmp_path, "dpo", "--budget", "50MB")
    assert code == 1
    assert "DOES NOT FIT" in out and "lower first: " in out and "none, not even 1" in out
    assert list(tmp_path.iterdir()) == [tmp_path / "dpo.yaml"]  # nothing is left behind


def test_the_document_names_the_largest_batch_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, tmp_path, "sft", "--budget", "8GB", "--json")
    document = json.loads(out)
    (stage,) = document["stages"]
    assert code == 0 and stage["fits"] is True
    assert stage["per_device_train_batch_size"] == 8
    # All of the 64 rows fit into one batch.
    assert stage["largest_per_device_train_batch_size"] >= 60
    assert sum(stage["terms_bytes"].values()) == pytest.approx(stage["peak_bytes"], abs=10)


def test_the_largest_batch_of_a_budget_that_binds_fits_and_one_row_more_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What this process takes grows from plan to plan by more than a row of so small a model.
    monkeypatch.setattr("rlhf.plan.stage.process_bytes", lambda folder: 10**8)

    def planned(batch: int, *extra: str) -> tuple[int, dict[str, Any]]:
        code, out, _ = plan(capsys, tmp_path, "sft", "--json", f"train.per_device_train_batch_size={batch}", *extra)
        return code, json.loads(out)["stages"][0]

    small, large = (planned(batch)[1]["peak_bytes"] for batch in (1, 60))
    budget = ["--budget", f"{(small + large) / 2 / 1e6:.3f}MB"]
    code, stage = planned(60, *budget)
    most = stage["largest_per_device_train_batch_size"]
    assert code == 1 and stage["fits"] is False and 1 < most < 59
    assert planned(most, *budget)[0] == 0
    assert planned(most + 1, *budget)[0] == 1


def test_a_pipeline_is_planned_from_models_that_no_stage_has_made_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pipeline.yaml"
    sizes = ", ".join(key.removeprefix("model.").replace("=", ": ") for key in MODEL)
    path.write_text(
        f"output_dir: {tmp_path / 'out'}\n"
        "defaults:\n"
        "  data: {dataset_name: wild7, max_rows: 32, holdout_fraction: 0}\n"
        "  train: {use_cpu: true, max_length: 96, per_device_train_batch_size: 4, max_steps: 2, save_strategy: 'no'}\n"
        "stages:\n"
        f"  - {{stage: sft, model: {{{sizes}}}, data: {{recipe_split: demonstrations}}}}\n"
        "  - {stage: reward, model: {model_name_or_path: '${sft}'}, data: {recipe_split: pairs}}\n"
        "  - stage: grpo\n"
        "    model: {model_name_or_path: '${sft}'}\n"
        "    data: {recipe_split: prompts}\n"
        "    train: {max_completion_length: 8, num_generations: 2}\n"
        "    reward: {reward_funcs: ['model:${reward}']}\n"
    )
    capsys.readouterr()
    assert main(["plan", str(path), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["name"] for stage in stages] == ["sft", "reward", "grpo"]
    assert stages[0]["terms_bytes"]["weights"] == stages[2]["terms_bytes"]["weights"] > 0
    assert any("scoring models that do not exist yet" in line for line in stages[2]["assumptions"])
    assert not (tmp_path / "out").exists()


def test_a_budget_that_is_no_amount_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = plan(capsys, tmp_path, "sft", "--budget", "much")
    assert (code, out) == (2, "")
    assert error == "error: --budget: `much` is no amount of memory; write it as 8GB, 7.5GiB or 900MB\n"


def test_gradient_checkpointing_and_an_adapter_lower_what_they_are_said_to_lower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    found = {}
    for name, keys in {
        "full": [],
        "checkpointing": ["train.gradient_checkpointing=true"],
        "adapter": ["model.use_peft=true", "model.lora_r=4"],
    }.items():
        code, out, _ = plan(capsys, tmp_path, "sft", "train.per_device_train_batch_size=32", "--json", *keys)
        assert code == 0
        found[name] = json.loads(out)["stages"][0]["terms_bytes"]
    assert found["checkpointing"]["activations"] < 0.5 * found["full"]["activations"]
    assert found["adapter"]["optimizer moments"] < 0.5 * found["full"]["optimizer moments"]
    assert 0 < found["adapter"]["weights"] - found["full"]["weights"] < 0.1 * found["full"]["weights"]
