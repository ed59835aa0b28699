"""Losses and gradients against TRL's own trainers on the same batch; TRL is optional, without it these tests skip."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from rlhf.batch import TokenBatch
from rlhf.config import ModelSection
from rlhf.models.policy import Policy
from rlhf.models.tiny import build_model, build_tokenizer
from rlhf.objectives.policy_gradient import clipped_surrogate, denominator, token_weights
from rlhf.objectives.preference import implicit_rewards, pair_margin, sigmoid
from rlhf.ops.masked import sequence_sum
from rlhf.reference.divergence import kl_penalty
from rlhf.reference.policy import FrozenCopy
from rlhf.reference.settings import PRESETS

pytestmark = pytest.mark.slow
trl = pytest.importorskip("trl", reason="TRL is not installed: `pip install rlhf-ledger[trl]`")

ROWS = [
    {"prompt": f"What is {i} plus {i}?", "chosen": f" It is {2 * i}.", "rejected": " I would rather not say" + "." * i}
    for i in range(1, 5)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer([text for row in ROWS for text in row.values()], 300)


def make_model(tokenizer: Any, seed: int) -> LlamaForCausalLM:
    section = ModelSection(tiny_hidden_size=16, tiny_num_layers=2, tiny_num_heads=2, tiny_num_kv_heads=1)
    return build_model(section, tokenizer, seed)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert ours
    assert all(torch.allclose(a, b, rtol=1e-4, atol=2e-6) for a, b in zip(ours, theirs, strict=True))


ARGUMENTS: dict[str, Any] = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 4,
    "disable_tqdm": True,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo_loss_and_gradient_equal_trls(tmp_path: Path, tokenizer: Any, beta: float) -> None:
    model, reference = make_model(tokenizer, 0), make_model(tokenizer, 1)
    trainer = trl.DPOTrainer(
        model,
        reference,
        trl.DPOConfig(output_dir=str(tmp_path), beta=beta, **ARGUMENTS),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(model, batch)
    their_gradients = gradients(model, theirs)

    policy, scored = Policy(model), batch["completion_mask"].bool()
    tokens = TokenBatch(batch["input_ids"], batch["attention_mask"].bool(), scored, tuple("abcdefgh"))
    logps_BT = policy(tokens).logps_BT
    sums = [sequence_sum(x, scored) for x in (logps_BT, FrozenCopy(Policy(reference)).logps(tokens))]
    loss_N = sigmoid(pair_margin(implicit_rewards(*sums, beta)), torch.zeros(4), torch.ones(4))
    assert float(loss_N.mean().detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert abs(float(theirs.detach()) - 0.6931) > 1e-3
    assert_same(gradients(model, loss_N.mean()), their_gradients)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_grpo_loss_and_gradient_with_kl_equal_trls(tmp_path: Path, tokenizer: Any, loss_type: str) -> None:
    beta, prompt, length = 0.5, 3, 5
    model, reference = make_model(tokenizer, 0), make_model(tokenizer, 1)
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        beta=0.0,
        loss_type=loss_type,
        num_generations=4,
        max_completion_length=length,
        epsilon_high=0.3,
        **ARGUMENTS,
    )
    trainer = trl.GRPOTrainer(
        model,
        lambda completions, **_: [0.0] * len(completions),
        arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    trainer.beta = beta  # set afterwards, so that no reference is loaded: its log-probabilities are handed over
    trainer.current_gradient_accumulation_steps = 1

    generator = torch.Generator().manual_seed(2)
    ids_BT = torch.randint(5, len(tokenizer), (4, prompt + length), generator=generator)
    counted_BT = torch.arange(prompt + length) < prompt + torch.tensor([[5], [3], [1], [4]])
    mask_BT = counted_BT & (torch.arange(prompt + length) >= prompt)
    tokens = TokenBatch(ids_BT, counted_BT, mask_BT, tuple("abcd"))
    advantages_B = torch.tensor([1.5, -0.5, 0.3, -1.3])
    policy = Policy(model)
    ref_BT = FrozenCopy(Policy(reference)).logps(tokens)
    old_BT = policy(tokens).logps_BT.detach() + 0.7 * torch.randn(ids_BT.shape, generator=generator)
    inputs = {
        "prompt_ids": ids_BT[:, :prompt],
        "prompt_mask": counted_BT[:, :prompt].long(),
        "completion_ids": ids_BT[:, prompt:],
        "completion_mask": mask_BT[:, prompt:].long(),
        "advantages": advantages_B,
        "old_per_token_logps": old_BT[:, prompt:],
        "ref_per_token_logps": ref_BT[:, prompt:],
        "num_items_in_batch": mask_BT.sum(),
    }
    trainer.model.train()
    theirs = trainer._compute_loss(trainer.model, inputs)
    their_gradients = gradients(model, theirs)

    logps_BT = policy(tokens).logps_BT
    surrogate = clipped_surrogate(logps_BT, advantages_B, mask_BT, old_BT, epsilon=0.2, epsilon_high=0.3)
    penalty_BT = kl_penalty(PRESETS["trl_grpo"], logps_BT, ref_BT, mask_BT, old_BT)
    weights_BT = token_weights(loss_type, mask_BT)
    ours = (weights_BT * (surrogate.loss_BT + beta * penalty_BT)).sum() / denominator(loss_type, mask_BT, length)
    assert int(surrogate.low_BT.sum()) > 0 and int(surrogate.high_BT.sum()) > 0
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert_same(gradients(model, ours), their_gradients)
