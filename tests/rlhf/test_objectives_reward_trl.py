"""The reward model's loss and gradient against TRL's own trainer on the same batch; without TRL these tests skip."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from rlhf.batch import TokenBatch
from rlhf.config import ModelSection
from rlhf.models.heads import RewardModel
from rlhf.models.tiny import build_model, build_tokenizer
from rlhf.objectives.preference import pair_margin
from rlhf.objectives.reward_model import bradley_terry, centering

pytestmark = pytest.mark.slow
trl = pytest.importorskip("trl", reason="TRL is not installed: `pip install rlhf-ledger[trl]`")

ROWS = [
    {"prompt": f"What is {i} plus {i}?", "chosen": f" It is {2 * i}.", "rejected": " I would rather not say" + "." * i}
    for i in range(1, 5)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("centre", [None, 0.3])
@pytest.mark.parametrize("margins", [None, [0.5, 0.0, -0.25, 1.0]])
def test_the_loss_and_gradient_of_pairs_equal_trls(tmp_path: Path, centre: float | None, margins: Any) -> None:
    from datasets import Dataset

    tokenizer = build_tokenizer([text for row in ROWS for text in row.values()], 300)
    section = ModelSection(tiny_hidden_size=16, tiny_num_layers=2, tiny_num_heads=2, tiny_num_kv_heads=1)
    ours = RewardModel(build_model(section, tokenizer, 0), seed=5)
    with torch.no_grad():
        ours.head_weight.mul_(20)  # scores that are all near 0 would compare little
    config = ours.model.config
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    theirs = LlamaForSequenceClassification(config)
    theirs.model.load_state_dict(ours.model.model.state_dict())
    theirs.score.weight.data.copy_(ours.head_weight.detach().view(1, -1))
    rows = [dict(row) if margins is None else {**row, "margin": margins[i]} for i, row in enumerate(ROWS)]
    trainer = trl.RewardTrainer(
        theirs,
        trl.RewardConfig(
            output_dir=str(tmp_path),
            center_rewards_coefficient=centre,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=4,
            disable_tqdm=True,
            disable_dropout=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    their_loss = trainer.compute_loss(trainer.model, batch)
    their_loss.backward()

    attention_BT = batch["attention_mask"].bool()
    scores_B = ours(TokenBatch(batch["input_ids"], attention_BT, attention_BT)).scores_B
    margin_N = batch["margin"] if margins is not None else torch.zeros(4)
    loss = bradley_terry(pair_margin(scores_B), margin_N, torch.ones(4)).mean()
    if centre is not None:
        loss = loss + centre * centering(scores_B[:4], scores_B[4:]).mean()
    loss.backward()
    assert abs(float(loss.detach()) - 0.6931) > 1e-3
    assert float(loss.detach()) == pytest.approx(float(their_loss.detach()), rel=1e-5)
    mine = dict(ours.model.model.named_parameters())
    for name, parameter in theirs.model.named_parameters():
        assert torch.allclose(mine[name].grad, parameter.grad, rtol=1e-4, atol=2e-6), name
    assert torch.allclose(ours.head_weight.grad, theirs.score.weight.grad[0], rtol=1e-4, atol=2e-6)
