"""Every loss on pairs that TRL has, with its knobs: value and gradient of the stage's code against TRL's trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from rlhf.batch import PairBatch, TokenBatch
from rlhf.config import DPOTrainSection, ModelSection
from rlhf.models.policy import Policy
from rlhf.models.tiny import build_model, build_tokenizer
from rlhf.reference.policy import FrozenCopy
from rlhf.stages.pair_objective import PairObjective

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
trl = pytest.importorskip("trl", reason="TRL is not installed: `pip install rlhf-ledger[trl]`")

ROWS = [
    {"prompt": f"What is {i} plus {i}?", "chosen": f" It is {2 * i}.", "rejected": " I would rather not say" + "." * i}
    for i in range(1, 5)
]
THEIRS = {"ipo_mean": "ipo"}


class Peers:
    """TRL's trainer and a batch of its own, with the two models."""

    def __init__(self, folder: Path) -> None:
        tokenizer = build_tokenizer([text for row in ROWS for text in row.values()], 300)
        section = ModelSection(tiny_hidden_size=16, tiny_num_layers=2, tiny_num_heads=2, tiny_num_kv_heads=1)
        self.model: LlamaForCausalLM = build_model(section, tokenizer, 0)
        reference = build_model(section, tokenizer, 1)
        arguments = trl.DPOConfig(
            output_dir=str(folder),
            use_weighting=True,  # so that the head gives what WPO needs; each case sets what it wants
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=4,
            disable_tqdm=True,
        )
        self.trainer = trl.DPOTrainer(
            self.model, reference, arguments, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
        )
        self.batch = next(iter(self.trainer.get_train_dataloader()))
        scored = self.batch["completion_mask"].bool()
        self.tokens = TokenBatch(
            self.batch["input_ids"], self.batch["attention_mask"].bool(), scored, tuple("abcdefgh")
        )
        self.policy, self.reference = Policy(self.model), FrozenCopy(Policy(reference))

    def theirs(self, train: DPOTrainSection) -> torch.Tensor:
        """TRL's loss with the same knobs."""
        trainer = self.trainer
        trainer.loss_types = [THEIRS.get(name, name) for name in train.loss_type]
        trainer.loss_weights = list(train.weights.values())
        trainer.beta, trainer.label_smoothing = train.reference_beta, train.label_smoothing
        trainer.f_divergence_type = train.f_divergence_type
        trainer.f_alpha_divergence_coef = train.f_alpha_divergence_coef
        trainer.ld_alpha, trainer.use_weighting = train.ld_alpha, train.use_weighting
        trainer.args.discopop_tau = train.discopop_tau
        loss: torch.Tensor = trainer.compute_loss(self.model, self.batch)
        return loss

    def ours(self, train: DPOTrainSection) -> torch.Tensor:
        """The loss as the loop makes it of one micro-batch."""
        batch, objective = PairBatch(self.tokens, torch.ones(4), torch.zeros(4)), PairObjective(train)
        judged = objective(self.policy(self.tokens, objective.need), self.reference.logps(self.tokens), batch)
        sums, parts = objective.sums(judged), objective.denominators(batch)
        return torch.stack([sums[name].coefficient * sums[name].total / parts[name] for name in sums]).sum()

    def gradients(self, loss: torch.Tensor) -> torch.Tensor:
        """All of them in one vector."""
        self.model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]).clone()


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Peers:
    return Peers(tmp_path_factory.mktemp("trl"))


MARGIN = ["sigmoid", "sigmoid_norm", "hinge", "ipo_mean", "exo_pair", "robust", "discopop"]
SEPARATE = ["nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"]
COUPLED = ["aot", "aot_unpaired"]
ALPHA = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}
CASES: list[tuple[list[str], dict[str, Any]]] = [
    *(([name], {}) for name in MARGIN + SEPARATE + COUPLED),
    *(([name], {"label_smoothing": 0.3}) for name in ("robust", "exo_pair", *COUPLED)),
    *(([name], {"f_divergence_type": kind}) for name in MARGIN for kind in ("forward_kl", "js_divergence")),
    *(([name], ALPHA) for name in MARGIN),
    *(([name], {"ld_alpha": 0.3}) for name in MARGIN + SEPARATE + COUPLED),
    # Without `hinge`: TRL 1.16 multiplies the weights into the output of relu in place, and its backward pass fails.
    *(([name], {"use_weighting": True}) for name in MARGIN + SEPARATE if name != "hinge"),
    (["discopop"], {"discopop_tau": 0.5}),
    (["sigmoid", "bco_pair", "sft"], {"loss_weights": [0.8, 0.2, 1.0]}),
    (["sigmoid", "sft"], {"f_divergence_type": "js_divergence", "ld_alpha": 0.5}),
]


@pytest.mark.parametrize(("names", "knobs"), CASES)
@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_loss_and_gradient_equal_trls(peers: Peers, names: list[str], knobs: dict[str, Any], beta: float) -> None:
    if {"exo_pair", "robust"} & set(names):
        knobs = {"label_smoothing": 0.1, **knobs}
    train = DPOTrainSection(loss_type=names, beta=beta, **knobs)
    theirs = peers.theirs(train)
    their_gradients = peers.gradients(theirs)
    ours = peers.ours(train)
    our_gradients = peers.gradients(ours)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=2e-5)
    scale = float(their_gradients.abs().max())
    assert scale > 1e-6
    assert float((our_gradients - their_gradients).abs().max()) < 2e-4 * scale


def test_trls_sigmoid_says_nothing_of_the_label_smoothing_that_it_ignores(peers: Peers) -> None:
    plain, smooth = (DPOTrainSection(label_smoothing=e) for e in (0.0, 0.3))
    assert float(peers.theirs(plain).detach()) == float(peers.theirs(smooth).detach())
    assert float(peers.ours(plain).detach()) != pytest.approx(float(peers.ours(smooth).detach()), abs=1e-3)


def test_trl_averages_log_ratios_where_the_paper_of_ipo_sums_them(peers: Peers) -> None:
    by_paper, by_trl = (DPOTrainSection(loss_type=[name]) for name in ("ipo_sum", "ipo_mean"))
    theirs = float(peers.theirs(by_trl).detach())
    assert float(peers.ours(by_trl).detach()) == pytest.approx(theirs, rel=2e-5)
    assert abs(float(peers.ours(by_paper).detach()) - theirs) > 0.1
