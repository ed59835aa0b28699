"""What a GPU computes: the values of a processor, the gradients of padded rows, every stage, and runs that go on.

Skipped, visibly, where there is none.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf.batch import TokenBatch, to_device
from rlhf.cli import main
from rlhf.models import flat, ragged
from rlhf.models.layout import Layout
from rlhf.models.policy import Policy
from tests.rlhf.stages.tiny_runs import STAGE_KEYS, arguments, ledger_of, live_events, weights
from tests.rlhf.test_models_policy import CONFIGS, batch, every_common_token_is_shared, make_policy

__all__ = ["every_common_token_is_shared"]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
GPU = ["train.use_cpu=false"]
# What a stage is run with beside its data.
OWN = {"dpo": ["reference.source=precomputed"], "grpo": ["train.num_iterations=2"]}
STAGES = ("sft", "reward", "dpo", "kto", "grpo")
HALF = {"tied", "head of its own", "sliding window", "norms of queries", "sliding window and full attention"}


def on_gpu(name: str) -> Policy:
    return make_policy(CONFIGS[name](), dtype=torch.float32).eval().cuda()


def tokens_there() -> TokenBatch:
    return to_device(batch(group=[0, 0, 1, 0]), "cuda")


def outcome(policy: Policy, half: bool = False) -> list[torch.Tensor]:
    """Log-probabilities, entropies and gradients of a sum that weighs every token differently."""
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        output = policy(tokens_there(), need=frozenset({"logps", "entropy"}))
    by = torch.linspace(0.5, 2, output.logps_BT.numel(), device="cuda").view_as(output.logps_BT)
    (output.logps_BT * by).sum().backward()
    return [output.logps_BT.detach(), output.entropy_BT, *(p.grad for p in policy.parameters())]


def apart(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The greatest difference, in units of the largest value of each tensor, or of 1e-3 where all are smaller."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max() / max(1e-3, float(b.abs().max()))) for a, b in pairs)


def devices(folder: Path, stage: str) -> set[str]:
    """What the attempts of a run say they were computed on."""
    return {event["device"].split(":")[0] for event in live_events(folder, stage, "attempt_started")}


@pytest.mark.parametrize("name", CONFIGS)
def test_flat_rows_give_the_values_and_gradients_of_padded_rows_on_a_gpu(name: str) -> None:
    padded = on_gpu(name)
    padded._shortcuts = (0, None)
    assert apart(outcome(on_gpu(name)), outcome(padded)) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_gives_the_log_probabilities_of_a_processor_in_double_precision(name: str) -> None:
    exact = make_policy(CONFIGS[name](), dtype=torch.float32).double().eval()(batch(group=[0, 0, 1, 0])).logps_BT
    found = on_gpu(name)(tokens_there()).logps_BT
    torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(HALF))
def test_half_precision_stays_within_its_digits_of_single_precision(name: str) -> None:
    exact = outcome(on_gpu(name))
    half, padded = on_gpu(name), on_gpu(name)
    padded._shortcuts = (0, None)
    ours, theirs = apart(outcome(half, half=True), exact), apart(outcome(padded, half=True), exact)
    assert 0 < ours < max(0.03, 1.5 * theirs)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("width", [8, 64])
def test_the_kernel_over_texts_has_the_values_and_gradients_of_sdpa(
    window: int | None, heads: tuple[int, int], width: int
) -> None:
    layout = Layout.of(tokens_there(), least_shared=1)
    generator = torch.Generator("cuda").manual_seed(0)
    count = len(layout.source_N)
    leaves = [
        torch.randn(1, count, n, width, generator=generator, device="cuda").bfloat16().transpose(1, 2).requires_grad_()
        for n in (heads[0], heads[1], heads[1])
    ]
    assert ragged.suits(leaves[0], None, 0.0)
    found = ragged.attend(layout, *leaves, 0.3, window)
    wanted = flat._by_text(layout, *(leaf.double() for leaf in leaves), flat._Call(0.3, window, None, 0.0))
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.02)
    upstream = torch.randn(found.shape, generator=generator, device="cuda").bfloat16()
    ours = torch.autograd.grad(found, leaves, upstream)
    theirs = torch.autograd.grad(wanted, leaves, upstream.double())
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), two.double(), rtol=0.02, atol=0.04)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns_on_a_gpu_and_leaves_a_sealed_record(stage: str, half: bool, tmp_path: Path) -> None:
    extra = [*GPU, *OWN.get(stage, []), f"train.bf16={str(half).lower()}"]
    assert main(arguments(stage, tmp_path / "run", *extra, steps=3)) == 0
    assert devices(tmp_path / "run", stage) == {"cuda"}
    steps = live_events(tmp_path / "run", stage, "step_stats")
    assert [step["step"] for step in steps] == [1, 2, 3]
    with ledger_of(tmp_path / "run") as ledger:
        assert ledger.verify().ok


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_run_on_a_gpu_starts_with_the_loss_of_one_on_a_processor_and_goes_on_after_a_stop(
    stage: str, tmp_path: Path
) -> None:
    extra = [*OWN.get(stage, []), "train.save_steps=2", "train.lr_scheduler_type=constant"]
    for name, own, steps in (("cpu", [], 4), ("whole", GPU, 4), ("cut", GPU, 2)):
        assert main(arguments(stage, tmp_path / name, *extra, *own, steps=steps)) == 0
    assert main(arguments(stage, tmp_path / "cut", *extra, *GPU, "--resume", steps=4)) == 0
    assert [devices(tmp_path / name, stage) for name in ("cpu", "whole", "cut")] == [{"cpu"}, {"cuda"}, {"cuda"}]
    losses = {n: [e["loss"] for e in live_events(tmp_path / n, stage, "step_stats")] for n in ("cpu", "whole", "cut")}
    # A GPU adds up in an order of its own, and not in the same one twice.
    assert losses["whole"] == pytest.approx(losses["cpu"], rel=1e-4)
    assert losses["cut"] == pytest.approx(losses["whole"], rel=1e-5)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for key, value in whole.items():
        torch.testing.assert_close(cut[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_the_expected_peak_is_within_a_fifth_of_the_allocator_s(
    stage: str, half: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stage.yaml"
    path.write_text(f"stage: {stage}\n")
    keys = [
        "model.model_name_or_path=tiny",
        "model.tiny_hidden_size=512",
        "model.tiny_num_layers=6",
        "model.tiny_num_heads=8",
        "model.tiny_num_kv_heads=2",
        "model.tiny_vocab_size=4096",
        *STAGE_KEYS[stage],
        "data.max_rows=256",
        "train.max_steps=4",
        "train.save_strategy=no",
        "train.per_device_train_batch_size=64",
        f"train.output_dir={tmp_path / 'out'}",
        f"train.bf16={str(half).lower()}",
    ]
    keys = [key for key in keys if key != "data.max_rows=64"]
    assert main(["plan", str(path), "--json", *keys]) == 0
    expected = json.loads(capsys.readouterr().out)["stages"][0]["peak_bytes"]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert main([stage, "--config", str(path), "--progress", "none", *keys]) == 0
    measured = torch.cuda.max_memory_allocated() - before
    with capsys.disabled():
        print(
            f"{stage} {'bf16' if half else 'fp32'}: expected {expected / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"
        )
    assert expected == pytest.approx(measured, rel=0.2)
